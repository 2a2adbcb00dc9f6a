"""Make the map of a run: every sample at its place, with its score, its source, and the beginning of its text."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import evenly
from clusterucb.report.run_page.found import Floats, Found, Rows
from clusterucb.report.run_page.overview import Excerpt
from clusterucb.report.run_page.scales import ends

DRAWN, _UNDRAWN, _SELECTED = 100_000, 4000, 5000  # points on the map, at most; the last are among the first
_MAPPED = 4  # subtasks whose scores can colour the map


def pool_map(found: Found) -> dict[str, Any] | None:
    """Return the points of the map, as whole numbers of 16 bits; None if all samples have the same features."""
    place = found.overview.place
    if not np.ptp(place, axis=0).any():
        return None
    shown = evenly(len(found.rows), DRAWN)
    selected = np.flatnonzero(found.selected)
    shown = np.union1d(shown, selected[evenly(len(selected), _SELECTED)])
    rows = found.rows[shown]
    is_drawn = np.zeros(len(place), np.bool_)
    is_drawn[found.rows] = True
    undrawn = np.flatnonzero(~is_drawn)
    told = {
        one.row: one for one in (*found.overview.excerpts, *(found.details.excerpts if found.details else ()))
    }
    with_text = np.array([row for row in sorted(told) if not is_drawn[row]], np.int64)
    undrawn = np.union1d(undrawn[evenly(len(undrawn), _UNDRAWN)], with_text)
    points = np.concatenate([rows, undrawn])
    sources, which = np.unique(found.overview.source[points], return_inverse=True)
    low, spread = place.min(axis=0), np.ptp(place, axis=0)
    unit = (place[points] - low) / np.where(spread > 0, spread, 1)
    columns = found.subtasks[:_MAPPED] if 1 < len(found.subtasks) <= _MAPPED else []
    scores = np.column_stack([found.mean_scores, *(found.scores[:, at] for at in range(len(columns)))])[shown]
    return {
        "drawn": len(rows),
        "shown_of": [len(found.rows), len(place) - len(found.rows)],
        "x": _packed(unit[:, 0]),
        "y": _packed(unit[:, 1]),
        "source": base64.b64encode(which.astype("<u4").tobytes()).decode(),
        "names": [found.overview.sources[at] for at in sources.tolist()],
        "selected": np.flatnonzero(found.selected[shown]).tolist(),
        "scores": [
            {"name": name, **_scaled(column)}
            for name, column in zip(
                ["mean of the subtasks" if columns else "score", *columns], scores.T, strict=True
            )
        ],
        "texts": _texts(points, told),
    }


def _texts(points: Rows, told: dict[int, Excerpt]) -> dict[str, list[str]]:
    texts = ((at, told.get(row)) for at, row in enumerate(points.tolist()))
    return {str(at): [one.prompt, one.answer] for at, one in texts if one}


def _scaled(values: Floats) -> dict[str, Any]:
    """Return values as whole numbers from 1 to 65535 between the smallest and the largest; 0 for NaN."""
    low, high = ends(values)
    unit = (values - low) / (high - low or 1.0)
    packed = np.where(np.isnan(values), 0, 1 + np.nan_to_num(unit) * 65534).astype("<u2")
    return {"low": low, "high": high, "values": base64.b64encode(packed.tobytes()).decode()}


def _packed(unit: NDArray[np.floating]) -> str:
    """Return numbers from 0 to 1 as base64 of whole numbers of 16 bits."""
    return base64.b64encode((unit * 65535).astype("<u2").tobytes()).decode()
