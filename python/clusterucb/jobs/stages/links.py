"""Link the selection of a round in a training with what was computed just before, and with what later rounds need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb import filenames
from clusterucb.engine.draws import RowScores

if TYPE_CHECKING:
    from clusterucb.gradients.scorer import Keep


@dataclass(frozen=True)
class AtHand:
    """What a selection with the same model and target has just computed.

    Attributes:
        rows: i64[m], the rows that it scored.
        scores: f64[m, S], their scores.
        folder: its run folder, which holds the target's directions.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    folder: Path

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.rows.tolist())}

    def completed(
        self, rows: NDArray[np.int64], score: Callable[[NDArray[np.int64]], RowScores]
    ) -> RowScores:
        """Return the scores of rows; those that are not at hand are computed.

        Args:
            rows: i64[n], the rows.
            score: computes the scores of rows.
        """
        places = self._places
        known = np.array([row in places for row in rows.tolist()])
        found = np.empty((len(rows), self.scores.shape[1]))
        found[known] = self.scores[[places[row] for row in rows[known].tolist()]]
        if known.all():
            return RowScores(found, {})
        new = score(rows[~known])
        found[~known] = new.values
        return RowScores(found, new.failures)

    def directions(self, names: list[str]) -> dict[str, NDArray[np.float32]]:
        """Return the target's directions f32[S, P] at each checkpoint, by name."""
        kept = load_file(self.folder / filenames.DIRECTIONS)
        return {name: kept[name] for name in names}


@dataclass(frozen=True)
class Links:
    """What a round takes from a selection just before, and leaves for later rounds.

    Attributes:
        at_hand: scores that need not be computed, and whose rows are drawn first; None if there are none.
        keep: called with rows and their sketches after they were scored; None computes no sketches.
    """

    at_hand: AtHand | None = None
    keep: Keep | None = None
