"""Record how a search went: a line for each estimate of the recall, added to a file while the search goes on.

Decision: no result rests on the file, and a line that an interrupted process left half-written is passed over. So the
file is added to without a flush, and has no checksum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from clusterucb.atomic import check_regular, unreadable
from clusterucb.errors import RunError
from clusterucb.filenames import TRAIL


class Point(msgspec.Struct):
    """One estimate of the recall.

    Attributes:
        draws: the number of samples scored so far.
        seconds: the time of the run so far, over all its sessions.
        recall: the estimate, and the low and the high end of its interval.
    """

    draws: int
    seconds: float
    recall: tuple[float, float, float]


def add_point(folder: Path, point: Point) -> None:
    """Add an estimate to the trail of a run.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / TRAIL
    check_regular(path, written=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        with open(descriptor, "ab") as file:
            file.write(
                b"\n" + msgspec.json.encode(point)
            )  # a line break first: an earlier line may have none
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; free some space and repeat the command"
        ) from error


def read_trail(folder: Path, n_draws: int | None = None) -> list[Point]:
    """Return the estimates of a run in order of their draws, the last one for each number of draws.

    Args:
        folder: the run folder.
        n_draws: the number of draws in the ledger, if it is known. Estimates of more draws belong to an earlier run.

    Raises:
        RunError: the file cannot be read.
    """
    path = folder / TRAIL
    check_regular(path)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error
    points = {point.draws: point for point in _points(lines) if 0 < point.draws <= (n_draws or point.draws)}
    return [points[draws] for draws in sorted(points)]


def _points(lines: list[bytes]) -> Iterator[Point]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Point)
        except msgspec.DecodeError:
            continue
