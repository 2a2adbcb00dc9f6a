"""Programs that start in milliseconds: a process that has imported the libraries forks for each of them.

    python warm.py SOCKET

A program is Python code or the command line of clusterucb. It is a process of its own, with the folder, the environment
and the streams of who asked for it. What it does not share with a program that starts alone is the import of libraries.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIBRARIES = (
    "pandas",
    "pyarrow.pandas_compat",
    "transformers.models.llama.modeling_llama",
    "clusterucb.cli.main",
    "clusterucb.gradients.session",
    "clusterucb.jobs.comparison.job",
    "clusterucb.jobs.plan",
    "clusterucb.jobs.select",
    "clusterucb.jobs.sketch",
    "clusterucb.model.source",
)

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    what = [{code}, sys.argv[1:], os.getcwd(), dict(os.environ)]
    server.sendall(json.dumps(what).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(9) or 1))
"""


def load() -> None:
    """Import what a job imports when it needs it, before a fork."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy what it walks


@contextmanager
def started(folder: Path) -> Iterator[Path]:
    """Start the process, and yield a folder with the programs ``clusterucb`` and ``code``, which takes Python code."""
    address = str(folder / "socket")
    for name, code in (("clusterucb", False), ("code", True)):
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address, code=code))
        (folder / name).chmod(0o755)
    with subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        yield folder
        process.terminate()


def serve(address: str) -> None:
    """Run what is asked for, each in a process, side by side."""
    load()
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(address)
        asked.listen()
        print("ready", flush=True)
        while True:
            connection, _ = asked.accept()
            if os.fork() == 0:
                break
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # those who have answered
                    pass
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    code, arguments, folder, environment = json.loads(connection.makefile().read())
    if program := os.fork():
        _, status = os.waitpid(program, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status) & 255).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = ""
    run(code, arguments)


def run(code: bool, arguments: list[str]) -> None:
    """Run Python code, or the command line of clusterucb, as the main program."""
    from clusterucb.cli.main import main

    sys.argv = ["-c" if code else "clusterucb", *arguments[code:]]
    if code:
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        main()


if __name__ == "__main__":
    serve(sys.argv[1])
