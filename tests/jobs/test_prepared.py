"""What can be known at once is refused before the pool is read."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import clusterucb as cu
from clusterucb.errors import InputError, ModelError, OptionError, RunError
from clusterucb.jobs.stages import prepare as prepared
from helpers.tiny import write_job

JOBS = ("select", "score", "sketch", "compare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_job(tmp_path_factory.mktemp("job"))
    (made / "foreign").mkdir()
    (made / "foreign" / "thesis.tex").touch()
    return made


@pytest.fixture
def job(folder, monkeypatch):
    """Return a function that runs a job that must not read its pool."""
    monkeypatch.chdir(folder)

    def read(*_, **__):
        raise AssertionError("the pool is read")

    monkeypatch.setattr(prepared, "read_pool", read)
    monkeypatch.setattr(prepared, "read_target", read)

    def run(name, **options):
        options = {"model": "model", "out": "out", **options}
        if name == "compare":
            options["strategies"] = [cu.Contender("random", cu.Random())]
        getattr(cu, name)("pool.jsonl", *(["dev.jsonl"] if name != "sketch" else []), **options)

    return run


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "abacus"}, OptionError, "--device is 'abacus', which cannot be used"),
        (
            {"adapter": "nowhere"},
            ModelError,
            "there is no nowhere/adapter_config.json; expected the folder of",
        ),
        ({"out": "dev.jsonl"}, RunError, "--out dev.jsonl is a file; expected a folder"),
        (
            {"out": "foreign"},
            RunError,
            r"foreign is not a run folder and not empty \(it holds 'thesis.tex'\); choose",
        ),
        (
            {"model": "./modle"},
            ModelError,
            "there is no folder './modle'; expected a model's folder, or a hub id",
        ),
        (
            {"observer": lambda text: None},
            OptionError,
            r"observer is <function .*, which takes \(text\); expected a function of \(text, done, total\), or",
        ),
    ],
)
def test_what_stands_nowhere_is_refused_before_the_pool_is_read(job, name, options, error, message):
    with pytest.raises(error, match=message):
        job(name, **options)


def test_a_hub_id_is_looked_for_before_the_pool_is_read(job, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"there is no folder 'modle'; .*correct the name, or connect"):
        job("select", model="modle")


def test_counts_are_compared_before_the_pool_is_read(job, folder):
    with pytest.raises(
        OptionError, match="--select is 5; expected at most the budget, --budget 4: only scored"
    ):
        job("select", budget=4, select=5)
    with pytest.raises(
        OptionError, match="--select is 5; expected at most the budget, --budgets 4: only scored"
    ):
        job("compare", budgets=[4], select=5)
    with pytest.raises(OptionError, match=r"--budgets is '0.2'; expected a percentage"):
        job("compare", budgets=["0.2"])
    with pytest.raises(RunError, match="--scores model holds no run"):
        job("compare", scores="model")
    with pytest.raises(AssertionError, match="the pool is read"):
        job("select", budget="10%", select=30)


def test_a_folder_that_cannot_be_looked_into_is_refused(job, tmp_path, monkeypatch):
    def iterdir(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", iterdir)
    with pytest.raises(RunError, match=r"cannot write to .*: Permission denied; choose another --out"):
        prepared.check_paths("m", tmp_path)


def test_a_model_without_a_chat_template_is_said_once(folder, tmp_path):
    bare = shutil.copytree(folder / "model", tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    said = {}
    for model in (folder / "model", bare):
        steps: list[str] = []
        cu.score(
            folder / "pool.jsonl",
            folder / "dev.jsonl",
            model=model,
            warmup_steps=1,
            observer=lambda text, *_, steps=steps: steps.append(text),
        )
        said[model.name] = [text for text in steps if "chat template" in text]
    expected = (
        "The tokenizer has no chat template: a sample is a prompt, its answer and EOS; conversations of "
    )
    assert said["model"] == []
    assert [text.startswith(expected) for text in said["bare"]] == [True]


def test_files_are_checked_without_torch(folder):
    code = (
        "import sys; from clusterucb.cli import main as cli\n"
        "job = 'select pool.jsonl --target dev.jsonl --model model'.split()\n"
        "for wrong in ('foreign', 'dev.jsonl', 'o --adapter nowhere', 'o --budget 1 --select 2'):\n"
        "    assert cli.run([*job, '--out', *wrong.split()]) == 2\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)


@pytest.mark.parametrize("options", [{"model": "modle"}, {"device": "abacus"}])
def test_a_misspelt_pool_is_told_before_the_hub_is_asked_or_torch_is_loaded(folder, monkeypatch, options):
    monkeypatch.chdir(folder)
    with pytest.raises(
        InputError, match=r"cannot read polo\.jsonl: No such file or directory; expected JSONL"
    ):
        cu.select("polo.jsonl", "dev.jsonl", out="out", **{"model": "model", **options})
