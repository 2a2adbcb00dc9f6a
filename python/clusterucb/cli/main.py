"""Run the command line: read the options, print the summary, and report each error in one line.

Results go to standard output; progress and messages go to standard error. Exit codes: 0 success; 2 the request cannot
be fulfilled (one line says why); 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (one line says how to
resume); 141 nobody reads the output; 1 a bug in clusterucb. Only ``--debug`` shows tracebacks.

Messages that cannot be written are dropped, because a full disk under a log must not end hours of work.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, TextIO

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console
from rich.text import Text

from clusterucb.cli.commands import JOBS, app
from clusterucb.errors import ClusterUCBError, ClusterUCBWarning, check_utf8
from clusterucb.options import config_file as config
from clusterucb.terminal import Droppable, Terminal, prints_aside
from clusterucb.wording import in_words, one_line, printable

_NO_MEMORY = "can't allocate memory"  # words of torch's error on a CPU
_NO_THREAD = "can't start new thread"  # words of Python's error
_MACHINE = {  # what to do about errors of the system, by their numbers
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close programs that have many files open",
    errno.EAGAIN: "raise the limit on processes (ulimit -u), or free some memory",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the connection to the file server",
    errno.EROFS: "use folders that can be written",
}
_BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE ends
_NUL = "embedded null"  # words of Python's error about a path
_NAME = 80  # the most letters that are shown of a name that is too long
_MESSAGE = 4000  # and of a message


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    debug = "--debug" in arguments
    with warnings.catch_warnings(), _droppable_messages(), _printable_logs(), _signals() as received:
        messages = Terminal(stderr=True, soft_wrap=True)
        _show_warnings(messages, debug)
        try:
            for argument in arguments:
                check_utf8("the argument", argument)
            with prints_aside() if "--json" in arguments else nullcontext():
                app(list(arguments), exit_on_error=False, print_error=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (ClusterUCBError, CycloptsError) as error:
            text = _usage_message(error, arguments) if isinstance(error, CycloptsError) else str(error)
            _complain(messages, config.placed(text, arguments), debug)
            return 2
        except KeyboardInterrupt:
            again = [one for one in arguments if one != "--overwrite"]  # would remove the results so far
            messages.print(
                f"\nInterrupted; finished work is saved. To resume: {shlex.join(['clusterucb', *again])}"
            )
            return 128 + (received[0] if received else signal.SIGINT)
        except (BrokenPipeError, SystemExit):  # nobody reads the output; rich turns this into an exit
            _discard(sys.stdout)
            return _BROKEN_PIPE
        except Exception as error:  # any other exception is a bug of ours
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
                _discard(sys.stdout)
                _complain(
                    messages,
                    "cannot write to standard output: no space left; free some space and repeat the command",
                    debug,
                )
                return 2
            if fault := _of_the_machine(error) or _of_a_name(error):
                _complain(messages, fault, debug)
                return 2
            if isinstance(error, MemoryError) or _NO_MEMORY in str(error):
                _complain(
                    messages,
                    f"memory ran out ({one_line(error) or 'MemoryError'}): clusterucb plan estimates what a job needs. "
                    "Use a machine with more memory, or smaller numbers. Finished work is saved: repeat the command",
                    debug,
                )
                return 2
            reason = f"{type(error).__name__}: {error}"
            _complain(
                messages,
                f"this is a bug in clusterucb; please report it with the output of --debug: {reason}",
                debug,
            )
            return 1
    return 0


def _of_the_machine(error: Exception) -> str | None:
    """Return a message about an error that says that the machine has too little of something; None for another error.

    Such an error can come from anywhere, as from the import of a library. So it is no bug, wherever nobody caught it.
    """
    for cause in _causes(error):
        remedy = _MACHINE.get(_number_of(cause))
        if _NO_THREAD in str(cause):
            remedy = _MACHINE[errno.EAGAIN]
        if remedy is not None:
            return f"{one_line(cause)}: {remedy}. Finished work is saved: then repeat the command"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from or during, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _number_of(error: BaseException) -> int:
    """Return the number of an error of the system, which some libraries only have in words; 0 for another error."""
    if isinstance(error, OSError):
        return error.errno or 0
    words = str(error)
    return next((number for number in _MACHINE if os.strerror(number) in words), 0)


def _of_a_name(error: Exception) -> str | None:
    """Return a message about an error that says that a name can be no file's; None for another error.

    Any option that takes a path may be given such a name, and any function that looks for its file fails.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            given = os.fsdecode(cause.filename) if isinstance(cause.filename, str | bytes) else ""
            longest = max((len(os.fsencode(part)) for part in given.split("/")), default=0)
            size = f" ({longest:,} bytes in a name, {len(os.fsencode(given)):,} in all)" if given else ""
            shown = f"{given[:_NAME]}{'...' if len(given) > _NAME else ''}"
            return (
                f"the path {shown!r} is too long{size}; expected at most 255 bytes in each name and 4,095 in all. "
                "If it is a text and no path, see the option's help"
            )
        if isinstance(cause, ValueError) and _NUL in str(cause):
            return "a path has a NUL; expected the path of a file or a folder: remove the NUL"
    return None


def _usage_message(error: CycloptsError, arguments: Sequence[str]) -> str:
    """Return a message that says what is wrong with a command's arguments, and what to do."""
    text, command = str(error), " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError):
        there = error.keyword is not None
        text = text.replace(" requires an argument", " has no value" if there else " is missing")
        if there:
            text = f"{text.rstrip('.')}; expected one after it."
        elif not text.endswith("?") and (file := config.value_of("--config", arguments)) is not None:
            text = f"{text.rstrip('.')}; expected it on the command line or in {file}."
        if "POOL" in text and "--target" in arguments:
            text += " Put it first: --target takes every file after it."
    elif isinstance(error, UnusedCliTokensError):
        unused = shlex.join(error.unused_tokens or ())
        text = f"{command} does not take {unused}; see clusterucb {command} --help"
    elif (
        isinstance(error, UnknownOptionError)
        and text.startswith("Unknown option: --pool")
        and command in JOBS
    ):
        text = f"Unknown option: --pool. Put the pool first, without an option: clusterucb {command} POOL ..."
    elif isinstance(error, CoercionError) and error.token and error.target_type in (bool, float):
        text = f"Invalid value for {error.token.keyword}: {error.token.value!r} is not {in_words(error.target_type)}"
    return text


@contextmanager
def _droppable_messages() -> Iterator[None]:
    """Drop what cannot be written to standard error while the block runs, and when the interpreter exits."""
    stream = sys.stderr
    if stream is None:  # it is closed
        yield
        return
    sys.stderr = Droppable(stream)
    try:
        yield
    finally:
        sys.stderr = stream
        try:
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)


@contextmanager
def _printable_logs() -> Iterator[None]:
    """Show control characters as � in what libraries log while the block runs; it may name what a file holds."""
    before = logging.getLogRecordFactory()

    def made(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = before(*arguments, **options)
        with suppress(Exception):  # a message that does not fit its arguments is the handler's to complain of
            record.msg, record.args = printable(record.getMessage().expandtabs()), ()
        return record

    logging.setLogRecordFactory(made)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP interrupt the block as Ctrl-C does; a second signal ends the process at once.

    Yields the list of the signals received.
    """
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                before[number] = signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard(stream: TextIO | None) -> None:
    """Discard a stream's buffered output, so that the interpreter can exit without an error."""
    if stream is not None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_warnings(console: Console, debug: bool) -> None:
    """Print our own warnings as one line each, and the libraries' warnings only with ``--debug``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        place = (
            "" if issubclass(category, ClusterUCBWarning) else f"{filename}:{lineno}: {category.__name__}: "
        )
        console.print(Text(f"warning: {place}{message}", style="yellow"))

    warnings.showwarning = show
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ClusterUCBWarning)


def _complain(console: Console, text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if len(text) > _MESSAGE:  # what was given may be long; what to do stands at the end
        text = f"{text[: _MESSAGE // 2]} ... {text[-_MESSAGE // 2 :]}"
    console.print(Text.assemble(("error: ", "bold red"), text))
