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
    address = asked.address or os.environ.get("RAY_ADDRESS")
    kind = torch.device(device).type
    gpus = int(kind == "cuda")
    here = (torch.cuda.device_count() if gpus else os.cpu_count()) or 1
    transport = RayTransport(kind, asked.size or here, address=address, gpus=gpus)
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
