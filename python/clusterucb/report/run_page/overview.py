"""Keep what the page of a run needs of the whole pool, in one file that is written before the first draw.

Decision: the page of a run is made from the run folder alone, while the run goes on and after it. So the job leaves
here what only it knows: the length and the source of every sample, its place on a map, and the beginnings of some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import evenly
from clusterucb.filenames import OVERVIEW
from clusterucb.report.run_page.layout import places
from clusterucb.run.kept_files import KeptFiles, Shapes, check_arrays
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from clusterucb.samples.pool import Samples
    from clusterucb.samples.pool_and_target import Material

EXCERPTS = 1500  # samples whose beginnings are kept
_TEXT, _WIDE = 160, 60  # characters of a beginning; with letters that take several bytes


class Excerpt(msgspec.Struct, array_like=True):
    """The beginnings of a sample's texts.

    Attributes:
        row: the sample's row in the pool's canonical order.
        prompt, answer: the texts, on one line each.
    """

    row: int
    prompt: str
    answer: str


class _About(msgspec.Struct):
    sources: list[str]
    subtasks: dict[str, int]
    excerpts: list[Excerpt]


@dataclass(frozen=True, eq=False)
class Overview:
    """What a page shows of the whole pool.

    Attributes:
        tokens: u32[N], the number of tokens of each sample.
        source: u32[N], the position of each sample's source in ``sources``.
        place: f32[N, 2], each sample's place on the map.
        sources: the names of the sources.
        subtasks: the number of target samples of each subtask.
        excerpts: the beginnings of evenly spaced samples.
    """

    tokens: NDArray[np.uint32]
    source: NDArray[np.uint32]
    place: NDArray[np.float32]
    sources: list[str]
    subtasks: dict[str, int]
    excerpts: list[Excerpt]


def _shapes(n_samples: int) -> Shapes:
    return {
        "tokens": (np.uint32, (n_samples,)),
        "source": (np.uint32, (n_samples,)),
        "place": (np.float32, (n_samples, 2)),
        "about": (np.uint8, (None,)),
    }


def keep_overview(files: KeptFiles, material: Material, blocks: Mapping[str, NDArray[np.floating]]) -> None:
    """Write the overview of a pool, unless the run has it.

    Args:
        files: the run's files.
        material: the pool and the target.
        blocks: the pool's feature blocks, each [N, k].

    Raises:
        RunError: the file is damaged, or cannot be written.
    """
    n_samples = len(material.samples)
    if files.arrays(OVERVIEW, _shapes(n_samples)) is not None:
        return
    sources = sorted(set(material.sources))
    number = {name: at for at, name in enumerate(sources)}
    about = _About(
        sources,
        {name: len(samples) for name, samples in material.target.items()},
        excerpts(material.samples, evenly(n_samples, EXCERPTS)),
    )
    files.forget(OVERVIEW)  # other versions may compute other bits of the map, on which nothing rests
    arrays: dict[str, NDArray[Any]] = {
        "tokens": material.encoded.lengths.astype(np.uint32),
        "source": np.fromiter((number[name] for name in material.sources), np.uint32, n_samples),
        "place": places(blocks),
        "about": np.frombuffer(msgspec.json.encode(about), np.uint8),
    }
    files.write_arrays(OVERVIEW, arrays)


def read_overview(files: KeptFiles) -> Overview | None:
    """Return the overview of a run's pool, or None if the run has none.

    Raises:
        RunError: the file is damaged.
    """
    arrays = files.arrays(OVERVIEW)
    if arrays is None:
        return None
    try:
        check_arrays(arrays, _shapes(len(arrays.get("tokens", ()))))
        about = msgspec.json.decode(arrays["about"].tobytes(), type=_About)
        if arrays["source"].max(initial=0) >= len(about.sources):
            raise ValueError("a sample has a source without a name")
    except (ValueError, msgspec.MsgspecError) as error:
        raise files.damaged(files.folder / OVERVIEW, error) from error
    return Overview(
        arrays["tokens"],
        arrays["source"],
        arrays["place"],
        about.sources,
        about.subtasks,
        about.excerpts,
    )


def excerpts(samples: Samples, rows: NDArray[np.int64]) -> list[Excerpt]:
    """Return the beginnings of pool samples, in the order of ``rows`` i64[m]."""
    chosen = zip(rows.tolist(), samples.take(rows), strict=True)
    return [Excerpt(row, cut(one_line(each.prompt)), cut(one_line(each.answer))) for row, each in chosen]


def cut(text: str, most: int = _TEXT) -> str:
    """Return at most ``most`` letters of a text, or fewer of one whose letters take several bytes."""
    most = most if text[:most].isascii() else max(most * _WIDE // _TEXT, 1)
    return text if len(text) <= most else f"{text[:most]}…"
