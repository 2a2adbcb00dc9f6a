"""The command line: results on standard output, one clear line for every mistake, no traceback but for bugs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.markdown import Markdown

import clusterucb as cu
from clusterucb.cli import main as cli
from clusterucb.engine.aggregate import RULES
from clusterucb.jobs import select as pipeline
from clusterucb.kernels.preconditioner import PRECONDITIONERS
from clusterucb.options.kinds import DTYPES, SCORERS
from clusterucb.progress import Screen
from clusterucb.report.export import TOOLS
from clusterucb.samples.shapes import SHAPES
from helpers.tiny import write_job, write_rows


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def command(job, tmp_path, monkeypatch):
    """Return the arguments of a small selection, run from the job's folder."""
    monkeypatch.chdir(job)
    small = ["--warmup-steps", "2", "--batch-size", "4"]
    return [
        "select",
        "pool.jsonl",
        "--target",
        "dev.jsonl",
        "--model",
        "model",
        "--out",
        str(tmp_path / "run"),
        *small,
    ]


def test_the_summary_says_what_was_selected_and_what_it_cost(command, capsys):
    assert cli.run(command) == 0
    out, err = capsys.readouterr()
    assert "Selected 2 of 40 samples after scoring 8" in out
    assert re.search(r"total +22 +0 +0\.550", out)
    assert "selected.jsonl" in out
    assert "Scoring: 8 of 8 draws" in err
    assert "Traceback" not in err


def test_json_is_the_whole_of_standard_output(command, capsys):
    assert cli.run([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n_selected"] == len(summary["best"]) == 2
    assert summary["cost"]["total"] == pytest.approx(22 / 40)
    assert len(Path(summary["files"]["selected.jsonl"]).read_text().splitlines()) == 2


def test_quiet_prints_nothing(command, capsys):
    assert cli.run([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_strategies_and_their_options_are_named(command, capsys):
    options = ["--clusterer", "kmeans", "-c", "n_clusters=3", "--policy", "ucb", "-p", "beta=0.5", "--json"]
    assert cli.run([*command, *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["clusters"] == 3
    manifest = json.loads(Path(summary["files"]["manifest.json"]).read_text())
    assert manifest["identity"]["options"]["--policy"]["options"] == {"beta": 0.5}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--bugdet", "3"], "Unknown option: --bugdet. Did you mean --budget?"),
        (["--budget", "0.2"], "Write 20% for that share"),
        (["--select", "30%"], "expected at most the budget"),
        (["--seed", "x"], "seed"),
        (["--policy", "ubc"], "there is no policy 'ubc'; installed: cluster-mean, exhaustive"),
        (
            ["--policy", "ucb", "-p", "betta=1"],
            "policy ucb has no option 'betta'; its options: beta. Did you mean 'beta'?",
        ),
        (["-p", "beta"], "-p is 'beta'; expected key=value"),
        (["-p", "beta=1", "-p", "beta=2"], "-p gives 'beta' twice"),
        (
            ["-c", "n_clusters=many"],
            "clusterer kmeans: n_clusters is 'many'; expected a whole number or none",
        ),
        (["--features", "dense"], "there is no feature 'dense'; installed: column"),
        (["--features", "embedding,lexical"], "Features are joined with +: embedding+lexical."),
        (["--policy", "UCB1"], "threshold-normal, ucb, ucb1. Did you mean 'ucb1'?"),
        (["--cold-start", "much"], "Invalid value for --cold-start: 'much' is not a number"),
        (["--strict=maybe"], "Invalid value for --strict: 'maybe' is not true or false"),
        (
            ["--pool", "pool.jsonl"],
            "--pool. Put the pool first, without an option: clusterucb select POOL ...",
        ),
        (["--adapter", "nowhere"], "there is no nowhere/adapter_config.json"),
        (["--target", "none.jsonl"], "none.jsonl"),
        (["--device", "abacus"], "--device is 'abacus'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, capsys, extra, message):
    assert cli.run([*command, *extra]) == 2
    out, err = capsys.readouterr()
    assert not out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["slect"], ["select"], ["select", "pool.jsonl"]])
def test_an_incomplete_command_is_a_mistake(arguments, capsys):
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("doctor pool.jsonl", "cannot read pool.jsonl: No such file or directory"),
        ("plugins lst", "plugins does not take lst; see clusterucb plugins --help"),
        ("compare --pool=a", "Put the pool first, without an option: clusterucb compare POOL ..."),
        (
            "select --target a",
            "POOL... is missing. Put it first: --target takes every file after it.",
        ),
        ("sketch --model a", "POOL... is missing.\n"),
        ("sketch a --model", "--model has no value; expected one after it.\n"),
        (
            "select a --config nowhere.yaml --budget --seed 3",
            "--budget has no value; expected one after it.\n",
        ),
        ("select a -p", "-p has no value; expected one after it.\n"),
    ],
)
def test_a_word_out_of_place_says_where_it_belongs(arguments, message, capsys):
    assert cli.run(arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--format", SHAPES),
        ("--scorer", SCORERS),
        ("--rule", RULES),
        ("--preconditioner", PRECONDITIONERS),
        ("--dtype", DTYPES),
        ("--export", TOOLS),
    ],
)
def test_the_help_of_an_option_names_every_choice(option, choices):
    assert not [choice for choice in choices if not re.search(rf"\b{choice}\b", help_of(option))]


def test_the_help_says_how_long_lines_stay_annotated():
    assert "later call without this option writes plain lines again" in help_of("--annotate")


def test_a_help_text_is_shown_with_all_its_characters():
    """The help is Markdown, which would take <this> for a tag and *this* for emphasis."""

    def shown(text: str) -> str:
        console = Console(width=10_000, file=io.StringIO(), color_system=None)
        console.print(Markdown(text))
        return characters(console.file.getvalue())

    def characters(text: str) -> str:
        return re.sub(r"[\s`]", "", text)

    commands = [cli.app[name] for name in cli.app if not name.startswith("-")]
    texts = [
        argument.parameter.help
        for command in commands
        for argument in command.assemble_argument_collection(parse_docstring=True)
        if argument.parameter.help
    ]
    assert len(texts) > 200
    assert "`<ctx>,</ctx>`" in help_of("--special-tokens")
    for text in (*texts, *(command.help for command in commands)):
        assert shown(text) == characters(text)


def help_of(option: str) -> str:
    """Return what the help of ``select`` says of an option, without the breaks of a screen."""
    arguments = cli.app["select"].assemble_argument_collection(parse_docstring=True)
    (said,) = (argument.parameter.help for argument in arguments if option in argument.names)
    return " ".join(said.split())


def test_flags_have_no_default_in_the_help(capsys):
    assert cli.run(["select", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[default: 8192]" in text
    assert "False" not in text


@pytest.fixture
def failing(monkeypatch):
    """Make the main job raise."""

    def make(error):
        def select(*_, **__):
            raise error

        monkeypatch.setattr(pipeline, "select", select)

    return make


def test_an_interruption_says_how_to_go_on(command, capsys, failing):
    failing(KeyboardInterrupt())
    command[command.index("model")] = "a b"
    assert cli.run(command) == 130
    err = capsys.readouterr().err
    assert "To resume: clusterucb select pool.jsonl" in err
    assert "--model 'a b'" in err
    assert "Traceback" not in err


def test_a_bug_is_exit_code_1_and_shows_a_traceback_with_debug_alone(command, capsys, failing):
    failing(ZeroDivisionError("oh"))
    assert cli.run(command) == 1
    err = capsys.readouterr().err
    assert (
        "this is a bug in clusterucb; please report it with the output of --debug: ZeroDivisionError: oh"
        in err
    )
    assert "Traceback" not in err
    assert cli.run([*command, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("1 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_no_bug(command, capsys, failing, error):
    failing(error)
    assert cli.run(command) == 2
    err = capsys.readouterr().err
    assert "error: memory ran out (" in err
    assert "clusterucb plan estimates what a job needs" in err
    assert "bug" not in err


def test_a_mistake_shows_its_traceback_with_debug(command, capsys):
    assert cli.run([*command, "--policy", "ubc", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_text_of_the_pool_cannot_steer_the_terminal(job, command, tmp_path, capsys):
    evil = [{"prompt": f"\x1b[31mred\x07 [bold]{n}", "completion": f"\x1b]0;title\x07{n}"} for n in range(8)]
    write_rows(tmp_path / "evil.jsonl", evil)
    command[1] = str(tmp_path / "evil.jsonl")
    assert cli.run([*command, "--budget", "8"]) == 0
    out = capsys.readouterr().out
    assert "[bold]" in out
    assert not set(out) & {"\x1b", "\x07"}


def test_help_and_version(capsys):
    assert cli.run(["--help"]) == 0
    assert "select" in capsys.readouterr().out
    assert cli.run(["select", "--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        "--budget",
        "--target",
        "--preconditioner",
        "--trust-remote-code",
        "--policy-option",
        "--json",
    ):
        assert option in text
    assert cli.run(["--version"]) == 0
    from clusterucb import __version__

    assert capsys.readouterr().out.strip() == __version__


def test_the_help_names_every_environment_variable_that_is_read(capsys):
    root = Path(cli.__file__).parents[3]
    sources = [*(root / "python").rglob("*.py"), *(root / "csrc").rglob("*.cpp")]
    read = {
        name
        for path in sources
        for name in re.findall(r"(?:environ(?:\.get\(|\[)|getenv\()\s*\"([A-Z_]+)\"", path.read_text())
    }
    assert "CLUSTERUCB_SIMD" in read
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert not {name for name in read if name.startswith("CLUSTERUCB_") and name not in text}
    assert max(map(len, text.splitlines())) <= 80
    for command in ("select", "plugins", "completion"):
        assert cli.run([command, "--help"]) == 0
        assert "Environment variables" not in capsys.readouterr().out


def test_plugins_lists_every_strategy_with_its_options(capsys):
    assert cli.run(["plugins"]) == 0
    out = capsys.readouterr().out
    for name in ("kmeans", "source", "ucb1", "threshold-normal", "embedding", "beta=1.0"):
        assert name in out
    assert cli.run(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"kind": "policy", "name": "ucb", "package": "clusterucb"}.items() <= next(
        one for one in listed["strategies"] if one["name"] == "ucb"
    ).items()
    assert all(one["summary"] for one in listed["strategies"])


def test_a_strategy_is_checked_and_a_package_begun(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["plugins", "check", "ucb", "-o", "beta=2"]) == 0
    out, _ = capsys.readouterr()
    assert "passed search spends exactly the budget" in out
    assert re.search(r"ucb passes all \d+ tests", out)
    assert cli.run(["plugins", "new", "my-policy", "--kind", "policy"]) == 0
    assert "my-policy/pyproject.toml" in capsys.readouterr()[0]
    assert cli.run(["plugins", "new", "my-policy", "--kind", "policy"]) == 2
    assert "my-policy exists; expected a name whose folder does not exist yet" in capsys.readouterr()[1]
    monkeypatch.setattr(cu.UCB, "index", lambda self, arms, rng: np.random.random(len(arms.mean)))  # noqa: NPY002
    assert cli.run(["plugins", "check", "ucb"]) == 2
    out, err = capsys.readouterr()
    assert "FAILED randomness comes from rng alone" in out
    assert re.search(r"ucb fails \d+ of \d+ tests", err)


def test_options_of_features_belong_to_the_default_unless_others_are_named(command, capsys):
    assert cli.run([*command, "-f", "depth=0.5"]) == 2
    assert "feature embedding has no option 'depth'; its options: model" in capsys.readouterr()[1]
    assert cli.run([*command, "--feature-depth", "0.5"]) == 2
    assert "--feature-depth is given without --features; expected --features hidden" in capsys.readouterr()[1]
    assert cli.run([*command, "--features", "hidden", "-f", "depth=0.5"]) == 0
    assert re.search(r"features +0 +20 +0.215", capsys.readouterr()[0])


def test_it_runs_as_a_module_and_survives_a_closed_pipe():
    command = f"'{sys.executable}' -m clusterucb plugins | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=os.environ)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_help_needs_no_numpy_and_plugins_no_torch():
    code = (
        "import sys; from clusterucb.cli import main as cli\n"
        "assert cli.run(['--help']) == 0 == cli.run(['select', '--help'])\n"
        "assert 'numpy' not in sys.modules\n"
        "assert cli.run(['plugins']) == 0\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_terminal_sees_bars_and_a_log_sees_lines():
    from io import StringIO

    from rich.console import Console

    texts = {}
    for terminal in (True, False):
        stream = StringIO()
        screen = Screen(Console(file=stream, force_terminal=terminal, width=100, highlight=False))
        with screen.count("Scoring", 10, done=4, unit="draws") as advance:
            advance(6)
        texts[terminal] = stream.getvalue()
    assert "10 of 10 draws, 0 left" in texts[True]
    assert texts[False].startswith("Scoring: 10 of 10 draws")
    assert "e+" not in texts[False]
    assert "\x1b" not in texts[False]


def test_the_way_on_after_an_interrupt_removes_nothing(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("clusterucb.jobs.select.select", interrupt)
    command = ["select", "a.jsonl", "--target", "b", "--model", "c", "--out", "d", "--overwrite"]
    assert cli.run(command) == 130
    err = capsys.readouterr().err
    assert "To resume: clusterucb select a.jsonl --target b --model c --out d\n" in err


@pytest.mark.parametrize(
    "option", ["--batch-size", "--lora-rank", "--warmup-steps", "--seed", "--max-length"]
)
@pytest.mark.parametrize("value", ["1.5", "8.0", "0x10"])
def test_whole_numbers_are_not_rounded(capsys, option, value):
    command = ["select", "a.jsonl", "--target", "b", "--model", "c", "--out", "d", option, value]
    assert cli.run(command) == 2
    assert f"{value!r} is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plugins"], ["plugins", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_no_bug(command):
    run = [sys.executable, "-m", "clusterucb", *command]
    with open("/dev/full", "w") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    message = (
        "error: cannot write to standard output: no space left; free some space and repeat the command\n"
    )
    assert done.stderr == message
