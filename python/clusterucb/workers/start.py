"""Start the workers that a user asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from clusterucb.errors import OptionError
from clusterucb.options.workers import WorkersAsked
from clusterucb.wording import counted
from clusterucb.workers.crew import Crew
from clusterucb.workers.ray_transport import RayTransport


def address_of(asked: WorkersAsked) -> str | None:
    """Return the address of the Ray cluster that is asked for, or None for this machine."""
    return asked.address or os.environ.get("RAY_ADDRESS")


def count(asked: WorkersAsked, device: str) -> int:
    """Return the number of workers that are asked for, without starting any.

    Raises:
        OptionError, WorkerError: as for `start`.
    """
    if asked.size is not None:
        return asked.size
    kind = torch.device(device).type
    if (address := address_of(asked)) is None:
        return _devices_here(kind)
    transport = RayTransport(kind, 1, address=address)
    try:
        return transport.room(int(kind == "cuda"))
    finally:
        transport.close()


def _devices_here(kind: str) -> int:
    return (torch.cuda.device_count() if kind == "cuda" else os.cpu_count()) or 1


def start(asked: WorkersAsked, device: str, say: Callable[[str], None]) -> Crew:
    """Start workers on this machine, or on the cluster that the option or ``RAY_ADDRESS`` names.

    Args:
        asked: the workers.
        device: the device of the job. Each worker has a GPU of its own unless this is the CPU.
        say: shows a line to the user.

    Raises:
        OptionError: Ray is not installed, or there are fewer devices than workers.
        WorkerError: the cluster cannot be reached.
    """
    address = address_of(asked)
    kind = torch.device(device).type
    gpus = int(kind == "cuda")
    transport = RayTransport(kind, asked.size or _devices_here(kind), address=address, gpus=gpus)
    try:
        there = transport.room(gpus)
        size = asked.size or there
        if size > there and (gpus or address):
            raise OptionError(
                f"--workers is {size}, but there {'is' if there == 1 else 'are'} {counted(there, 'free device')}; "
                f"expected at most {there}, or all"
            )
        say(f"Computing on {counted(size, 'worker')}")
        return Crew(transport, size, say=say)
    except BaseException:
        transport.close()
        raise
