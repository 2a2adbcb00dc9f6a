"""Workers as actors of Ray: on this machine, or on a cluster.

Decisions, each for something that Ray 2.60 does:
    - `ray.init` without an address joins whatever cluster the temporary folder names. So a cluster of our own is
      started with ``address="local"``, and another one is joined only if the user names it.
    - A cluster of our own has no dashboard, sends no usage statistics and has a small object store: what is moved is
      small. Messages of Ray are not shown; errors reach the driver as answers.
    - A cluster of our own asks for a token, which Ray keeps in the user's home. To another cluster, Ray sends the token
      only if RAY_AUTH_MODE says so, because a token must not be sent to whoever answers at an address.
    - `ray.init` replaces the handler of SIGTERM. Ours is put back.
    - Actors are never restarted by Ray (``max_restarts=0``): `clusterucb.workers.crew` replaces them, because it counts
      deaths, and because Ray's own restart takes seconds.
    - Actors inherit the environment. On this machine, workers on the CPU share its cores: each has an equal number of
      threads.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from clusterucb.errors import OptionError, WorkerError
from clusterucb.wording import one_line
from clusterucb.workers.crew import Died
from clusterucb.workers.worker import Worker

_STORE = 256 << 20  # bytes of the object store of a cluster of our own
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def ray_module() -> Any:
    """Return Ray.

    Raises:
        OptionError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError(
            "--workers needs Ray, which is not installed: pip install 'clusterucb[ray]'"
        ) from error
    return ray


class RayTransport:
    """Starts workers as actors.

    Args:
        device: the device of the workers' models, ``cpu`` or ``cuda``.
        size: the number of workers that will be started.
        address: the address of an existing cluster; None starts one on this machine.
        gpus: the GPUs of each worker; 0 on a CPU.

    Raises:
        OptionError: Ray is not installed.
        WorkerError: the cluster cannot be reached.
    """

    def __init__(self, device: str, size: int, *, address: str | None = None, gpus: int = 0) -> None:
        self._ray = ray = ray_module()
        self._device = device
        self._owns = not ray.is_initialized()
        if self._owns:
            self._connect(address, size, gpus)
        self._actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )
        self._workers: list[Any] = []

    def _connect(self, address: str | None, size: int, gpus: int) -> None:
        threads = max((os.cpu_count() or 1) // size, 1)
        with _own_handlers(), _environment({**_QUIET, "OMP_NUM_THREADS": str(threads)}):
            try:
                if address is not None:
                    self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
                else:
                    self._ray.init(
                        address="local",
                        num_cpus=size,
                        num_gpus=size * gpus or None,
                        include_dashboard=False,
                        object_store_memory=_STORE,
                        log_to_driver=False,
                        logging_level="ERROR",
                    )
            except (OSError, RuntimeError, ValueError) as error:
                where, remedy = "a cluster on this machine", ""
                if address is not None:
                    where = f"the cluster at {address}"
                    remedy = ". If it asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless the token "
                    remedy += "is in ~/.ray/auth_token"
                raise WorkerError(f"Ray cannot use {where}: {one_line(error)}{remedy}") from error
        _silence()

    def room(self, gpus: int) -> int:
        """Return how many workers with so many GPUs each the cluster has room for; without GPUs, one for each CPU."""
        free = self._ray.available_resources()
        return int(free.get("GPU", 0) // gpus if gpus else free.get("CPU", 1))

    def start(self) -> Any:
        """Return a new worker, which may still be starting."""
        worker = self._actor.remote(self._device)
        self._workers.append(worker)
        return worker

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of a worker, and return a reference to its answer."""
        return getattr(worker, method).remote(*arguments)

    def share(self, value: Any) -> Any:
        """Return an argument that stands for a large value and reaches each machine once."""
        return self._ray.put(value)

    def wait(self, references: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Wait until one answer is there, at most for some seconds. Return the references whose answers are there."""
        first, rest = self._ray.wait(list(references), num_returns=1, timeout=seconds)
        if rest and first:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            first += more
        found: list[Any] = first
        return found

    def answer(self, reference: Any) -> Any:
        """Return an answer that is there.

        Raises:
            Died: the worker has died.
            WorkerError: the call or its answer cannot be moved.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError) as error:
            why = re.search(r"dead because (.{1,200}?)(?:\. |\.?$)", " ".join(str(error).split()))
            raise Died(why[1] if why else type(error).__name__) from error
        except errors.RayError as error:
            raise WorkerError(f"Ray cannot call a worker: {one_line(error):.300}") from error

    def end(self, worker: Any) -> None:
        """End a worker at once."""
        self._workers.remove(worker)
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(worker)

    def close(self) -> None:
        """End all workers, and the cluster if it was started here."""
        for worker in list(self._workers):
            self.end(worker)
        if self._owns:
            with _own_handlers():
                self._ray.shutdown()


def _silence() -> None:
    """Stop Ray from printing the messages of its own processes."""
    with suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.handlers.clear()


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, inside the block."""
    new = {name: value for name, value in more.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Put the handlers of signals back that the block replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
