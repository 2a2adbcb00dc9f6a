"""What a worker process does: it loads programs, and computes requests one after the other.

A worker answers every call. What went wrong is an answer, too: so the driver gets the whole error, with the machine
that it happened on. After an error of a CUDA device every further call would fail, so the driver replaces that worker.
"""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from clusterucb.workers.lane import NoMemory


class Program(Protocol):
    """What a worker has to load before it can answer requests. It is sent to every worker."""

    def load(self, device: str, shared: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
        """Load everything, and return what the driver needs to know and the function that answers a request.

        Args:
            device: the worker's device.
            shared: what the programs of this worker share, such as the model. It is empty at first.
        """


@dataclass(frozen=True)
class Found:
    """An answer.

    Attributes:
        value: what was computed.
    """

    value: Any


@dataclass(frozen=True)
class OutOfMemory:
    """The request needs more memory than there is."""


@dataclass(frozen=True)
class Failed:
    """The request failed.

    Attributes:
        error: the exception.
        where: the machine and the process.
        trace: the traceback as text.
    """

    error: Exception
    where: str
    trace: str


@dataclass(frozen=True)
class Broken:
    """The worker cannot compute anything any more.

    Attributes:
        reason: why.
    """

    reason: str


Answer = Found | OutOfMemory | Failed | Broken


class Worker:
    """Computes requests in a process of its own.

    Args:
        device: the device of its models.
        shared: what is loaded already, for programs to share.
    """

    def __init__(self, device: str, shared: dict[str, Any] | None = None) -> None:
        self._device = device
        self._shared: dict[str, Any] = shared or {}
        self._answers: dict[str, Callable[..., Any]] = {}

    def load(self, key: str, program: Program) -> Answer:
        """Load a program, whose requests are then computed by `compute`.

        Args:
            key: the program's name.
            program: the program.
        """
        return self._answer(self._loaded, key, program)

    def compute(self, key: str, *request: Any) -> Answer:
        """Answer a request to a program.

        Args:
            key: the program's name.
            *request: the arguments.
        """
        return self._answer(lambda: self._answers[key](*request))

    def _loaded(self, key: str, program: Program) -> Any:
        about, self._answers[key] = program.load(self._device, self._shared)
        return about

    def _answer(self, function: Callable[..., Any], *arguments: Any) -> Answer:
        try:
            return Found(function(*arguments))
        except NoMemory:
            return OutOfMemory()
        except Exception as error:
            if "CUDA error" in str(error):
                return Broken(f"{type(error).__name__}: {error}".partition("\n")[0])
            return Failed(error, f"{platform.node()}, process {os.getpid()}", traceback.format_exc())
