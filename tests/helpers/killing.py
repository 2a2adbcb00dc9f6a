"""Run a selection in processes that kill themselves, ever later, until one comes to its end.

    python killing.py JOB RUN

Each child process runs the selection and sends itself SIGKILL before or after one of the calls that
change what is on the disk or what has been computed. Prints how many children were killed.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from pathlib import Path

import torch

import clusterucb as cu
from clusterucb.gradients.accumulate import Accumulator
from clusterucb.run.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import warm
from helpers.selections import arguments


def killing(function, countdown):
    """Return the function, which kills this process when the countdown ends before or after it."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        countdown()
        result = function(*args, **kwargs)
        countdown()
        return result

    return wrapped


def select(job: Path, run: Path, events: int) -> None:
    left = iter(range(events))

    def countdown():
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in (
        (os, "fsync"),
        (Path, "replace"),
        (Ledger, "begin"),
        (Ledger, "finish"),
        (Accumulator, "__call__"),
        (torch.optim.AdamW, "step"),
    ):
        setattr(owner, name, killing(getattr(owner, name), countdown))
    cu.select(**arguments(job, run))


def main(job: Path, run: Path) -> None:
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    warm.load()  # once, and not in every child
    choose = random.Random(0)
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            select(job, run, events=choose.randrange(4 + killed * 2))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
        else:
            assert status == 0
            break
    print(killed)


main(Path(sys.argv[1]), Path(sys.argv[2]))
