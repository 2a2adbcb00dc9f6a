"""Sum up a search for the figures of its page: the curves, the arms, the scores, the lengths and the sources."""

from __future__ import annotations

from typing import Any

import numpy as np

from clusterucb.engine.rules import Rules
from clusterucb.report.run_page.details import SOURCES, SUBTASKS
from clusterucb.report.run_page.found import Floats, Found, Rows
from clusterucb.report.run_page.scales import NARROWEST, ends

_STEPS = 100  # points of a curve
_ARMS, _TIMES = 40, 60  # rows and columns of the chart of arms
_BINS = 40  # of a histogram


def best_so_far(found: Found) -> dict[str, Any]:
    """Return the mean score of each subtask's best draws so far, as many as it would select alone, at some draws."""
    n = len(found.rows)
    at = np.unique(np.linspace(max(n // _STEPS, 1), n, min(_STEPS, n)).astype(np.int64))
    outcome = found.manifest.outcome
    n_select = outcome.n_select if outcome and outcome.n_select else max(len(found.overview.tokens) // 20, 1)
    seats = np.ceil(Rules().seats(n_select, len(found.subtasks))).astype(np.int64)
    columns = zip(found.subtasks, found.scores.T, seats.tolist(), strict=True)
    curves = {
        name: _means_of_best(column, at, count)
        for _, (name, column, count) in zip(range(SUBTASKS), columns, strict=False)
    }
    return {"draws": at.tolist(), "curves": curves}


def _means_of_best(scores: Floats, at: Rows, count: int) -> list[float | None]:
    """Return the mean of the ``count`` largest scores after some numbers of draws; None before the first score."""
    means: list[float | None] = []
    best = np.zeros(0)
    for part in np.split(scores, at)[:-1]:
        best = np.concatenate([best, part[~np.isnan(part)]])
        if len(best) > count:
            best = np.partition(best, len(best) - count)[-count:]
        means.append(round(float(best.mean()), 5) if len(best) else None)
    return means


def arms(found: Found) -> dict[str, Any]:
    """Return how many samples were drawn from which arm at which time, for the arms with the largest mean scores."""
    n_arms = int(found.arms.max()) + 1
    scores = np.nan_to_num(found.mean_scores)
    counts = np.bincount(found.arms, minlength=n_arms)
    means = np.bincount(found.arms, scores, minlength=n_arms) / np.maximum(counts, 1)
    chosen = np.bincount(found.arms[found.selected], minlength=n_arms)
    order = np.lexsort((-means, counts == 0))[: int(np.count_nonzero(counts))]
    shown = order[:_ARMS]
    n_times = min(_TIMES, len(found.rows))
    time = np.arange(len(found.rows)) * n_times // len(found.rows)
    drawn = np.bincount(found.arms * n_times + time, minlength=n_arms * n_times).reshape(n_arms, n_times)
    rest = order[_ARMS:]
    return {
        "count": len(order),
        "edges": [int(edge) for edge in np.searchsorted(time, np.arange(n_times))] + [len(found.rows)],
        "rows": [
            {
                "arm": arm,
                "draws": int(counts[arm]),
                "mean": float(means[arm]),
                "selected": int(chosen[arm]),
                "times": drawn[arm].tolist(),
            }
            for arm in shown.tolist()
        ],
        "others": {
            "arms": len(rest),
            "draws": int(counts[rest].sum()),
            "selected": int(chosen[rest].sum()),
            "times": drawn[rest].sum(axis=0).tolist(),
        },
    }


def histograms(found: Found) -> dict[str, Any]:
    """Return the distribution of each subtask's scores over the draws, and over the selected ones."""
    shown = {}
    for name, column in list(zip(found.subtasks, found.scores.T, strict=True))[:SUBTASKS]:
        known = ~np.isnan(column)
        low, high = ends(column)
        high = max(high, low + NARROWEST)
        of_all, _ = np.histogram(column[known], _BINS, (low, high))
        of_selected, _ = np.histogram(column[known & found.selected], _BINS, (low, high))
        shown[name] = {
            "low": low,
            "high": high,
            "drawn": of_all.tolist(),
            "selected": of_selected.tolist(),
        }
    return shown


def lengths(found: Found) -> dict[str, Any]:
    """Return the lengths of the pool's samples, of the drawn and of the selected ones, in doubling intervals."""
    tokens = np.maximum(found.overview.tokens, 1)
    level = np.floor(np.log2(tokens)).astype(np.int64)
    first, last = int(level.min()), int(level.max())

    def counts(rows: Rows | slice) -> list[int]:
        found: list[int] = np.bincount(level[rows] - first, minlength=last - first + 1).tolist()
        return found

    return {
        "edges": [2**power for power in range(first, last + 2)],
        "pool": counts(slice(None)),
        "drawn": counts(found.rows),
        "selected": counts(found.rows[found.selected]),
    }


def sources(found: Found) -> dict[str, Any]:
    """Return a row of numbers for each source: those with most selected, most drawn and most samples first."""
    overview, details = found.overview, found.details
    n = len(overview.sources)
    of_draws = overview.source[found.rows]
    pool = np.bincount(overview.source, minlength=n)
    drawn = np.bincount(of_draws, minlength=n)
    outcome = found.manifest.outcome
    by_source = outcome.selected_by_source if outcome and details else {}
    chosen = np.array([by_source.get(name, 0) for name in overview.sources], np.int64)
    missed = dict(details.missed[1]) if details and details.missed else None
    values = np.nan_to_num(found.mean_scores, nan=-np.inf)
    best = np.full(n, -np.inf)
    np.maximum.at(best, of_draws, values)
    means = np.bincount(of_draws, np.nan_to_num(found.mean_scores), minlength=n) / np.maximum(drawn, 1)
    order = np.lexsort((-pool, -drawn, -chosen))
    rows = [
        {
            "name": overview.sources[at],
            "pool": int(pool[at]),
            "drawn": int(drawn[at]),
            "selected": int(chosen[at]),
            "mean": float(means[at]) if drawn[at] else None,
            "best": float(best[at]) if np.isfinite(best[at]) else None,
            "missed": None if missed is None else missed.get(overview.sources[at], 0.0),
        }
        for at in order[:SOURCES].tolist()
    ]
    return {"count": n, "rows": rows}
