"""Completion: the script that the command prints, in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clusterucb.cli import main as cli

COMPLETE = """
cd "$1"; shift
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
_clusterucb
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("completion")
    for name in ("pool.jsonl", "poor.jsonl", "other.txt"):
        (made / name).touch()
    (made / "models").mkdir()
    return made


@pytest.fixture
def scripts(capsys):
    """Return a function that returns the script of a shell."""

    def script(shell):
        assert cli.run(["completion", shell]) == 0
        out, err = capsys.readouterr()
        assert not err
        return out

    return script


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [""],
            {
                "select",
                "plan",
                "sketch",
                "stores",
                "compare",
                "try",
                "show",
                "report",
                "runs",
                "diff",
                "demo",
                "doctor",
                "plugins",
                "completion",
            },
        ),
        (["se"], {"select"}),
        (["select", "--budg"], {"--budget"}),
        (["compare", "--budg"], {"--budgets"}),
        (["select", "--con"], {"--config"}),
        (["select", "--lora-"], {"--lora-rank", "--lora-alpha", "--lora-targets", "--lora-only"}),
        (["sketch", "--targ"], set()),
        (["select", "poo"], {"pool.jsonl", "poor.jsonl"}),
        (["select", "pool.jsonl", "--target", "poor"], {"poor.jsonl"}),
        (["select", "pool.jsonl", "--target", "poor.jsonl", "--out", "mod"], {"models"}),
        (["plugins", "ch"], {"check"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["select", "--policy", "uc"], {"ucb", "ucb1"}),
        (["select", "--clusterer", "km"], {"kmeans"}),
        (["select", "--features", "emb"], {"embedding"}),
        (
            ["select", "--format", ""],
            {"messages", "conversations", "prompt-completion", "alpaca", "chosen", "calls", "pair", "text"},
        ),
        (["sketch", "--preconditioner", ""], {"adam_less", "adam", "second_moment", "sgd"}),
        (["compare", "--dtype", "f"], {"float32", "float16"}),
        (["select", "--export", "t"], {"trl"}),
        (["select", "--rule", "r"], {"round-robin"}),
        (["plugins", "new", "x", "--kind", "p"], {"policy"}),
    ],
)
def test_bash_completes(folder, scripts, words, expected):
    (folder / "script").write_text(scripts("bash"))
    command = ["bash", "--noprofile", "--norc", "-c", COMPLETE, "bash", str(folder), "clusterucb", *words]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert not done.stderr
    found = {word for word in done.stdout.split() if word not in ("--help", "-h", "--version")}
    assert found == expected


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_the_other_scripts_name_every_option(folder, scripts, shell, check):
    text = scripts(shell)
    for argument in cli.app["select"].assemble_argument_collection():
        for name in argument.names:
            if name.startswith("--"):
                assert name.removeprefix("--") in text
    if shutil.which(shell):
        (folder / "script").write_text(text)
        subprocess.run([shell, *check, str(folder / "script")], check=True)


def test_another_shell_is_a_mistake(capsys):
    assert cli.run(["completion", "tcsh"]) == 2
    err = capsys.readouterr().err
    assert 'Invalid value "tcsh" for SHELL. Choose from: "bash", "zsh", "fish"' in err
    assert err.count("\n") == 1
