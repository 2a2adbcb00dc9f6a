"""What the machine lacks is named, wherever the error comes from; what libraries log is shown without controls."""

from __future__ import annotations

import errno
import logging
import os
import sys

import pytest

from clusterucb.cli import main as cli
from clusterucb.terminal import write

HERE = "clusterucb.cli.main.app"


def failing(error: BaseException, cause: BaseException | None = None):
    def fail(*_: object, **__: object) -> None:
        raise error from cause

    return fail


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "raise the limit on open files (ulimit -n)"),
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EIO, "check the disk"),
        (errno.EROFS, "use folders that can be written"),
        (errno.EFBIG, "raise the limit on the size of files"),
    ],
)
def test_an_error_of_the_system_is_no_bug(monkeypatch, capsys, number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number), "a/file")
    for raised, cause in ((error, None), (ImportError("x"), error)):
        monkeypatch.setattr(HERE, failing(raised, cause))
        assert cli.run(["plugins"]) == 2
        shown = capsys.readouterr().err
        assert f"error: [Errno {number}] {os.strerror(number)}: 'a/file': {remedy}" in shown.replace(
            "\n", " "
        )


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (
            "unable to open file <a> in read-only mode: Too many open files (24)",
            "raise the limit on open files",
        ),
        ("I/O error: No space left on device (os error 28)", "free some space"),
        ("Error while serializing: IoError(Disk quota exceeded)", "free some of your quota"),
    ],
)
def test_an_error_of_the_system_in_the_words_of_a_library_is_no_bug(
    monkeypatch, capsys, words, remedy
) -> None:
    monkeypatch.setattr(HERE, failing(RuntimeError(words)))
    assert cli.run(["plugins"]) == 2
    assert remedy in capsys.readouterr().err


def test_a_thread_that_cannot_start_is_no_bug(monkeypatch, capsys) -> None:
    monkeypatch.setattr(HERE, failing(RuntimeError("can't start new thread")))
    assert cli.run(["plugins"]) == 2
    assert "raise the limit on processes" in capsys.readouterr().err


def test_another_error_is_a_bug(monkeypatch, capsys) -> None:
    monkeypatch.setattr(HERE, failing(FileNotFoundError(errno.ENOENT, "No such file", "x")))
    assert cli.run(["plugins"]) == 1
    assert "this is a bug" in capsys.readouterr().err


def test_what_a_plugin_prints_does_not_break_json(monkeypatch, capsys) -> None:
    def noisy(*_: object, **__: object) -> None:
        print("a plugin's progress")
        write('{"a": 1}\n')

    monkeypatch.setattr(HERE, noisy)
    assert cli.run(["plugins", "--json"]) == 0
    assert capsys.readouterr() == ('{"a": 1}\n', "a plugin's progress\n")
    assert cli.run(["plugins"]) == 0
    assert capsys.readouterr().out == 'a plugin\'s progress\n{"a": 1}\n'
    monkeypatch.setattr(HERE, failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")))
    before = sys.stdout
    assert cli.run(["plugins", "--json"]) == 2
    assert sys.stdout is before


def test_what_a_library_logs_has_no_controls(monkeypatch, caplog) -> None:
    before = logging.getLogRecordFactory()
    monkeypatch.setattr(HERE, lambda *_, **__: logging.getLogger("library").warning("%s\n\x9b2J", "\x1b[31m"))
    assert cli.run(["plugins"]) == 0
    assert caplog.messages == ["�[31m\n�2J"]
    assert logging.getLogRecordFactory() is before
