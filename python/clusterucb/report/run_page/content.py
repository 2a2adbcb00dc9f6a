"""Make the page of a run from the run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.report.page import render
from clusterucb.report.run_page import figures
from clusterucb.report.run_page.details import Listed
from clusterucb.report.run_page.found import Found, found_in
from clusterucb.report.run_page.pool_map import pool_map
from clusterucb.report.run_page.trail import read_trail
from clusterucb.run.cost import FORWARD

_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(folder: Path) -> Path:
    """Write the page of a run, and return its path.

    Raises:
        RunError: the folder holds no selection, or nothing was scored yet; or a file is damaged or cannot be written.
    """
    path = folder / filenames.RUN_PAGE
    write_whole(path, page_of(folder).encode())
    return path


def page_of(folder: Path) -> str:
    """Return the page of a run as HTML. Nothing is written.

    Raises:
        RunError: as for `write_page`.
    """
    return render(_TEMPLATE, page_content(folder))


def page_content(folder: Path) -> dict[str, Any]:
    """Return what the page of a run shows, as JSON values.

    Args:
        folder: the run folder. Nothing is written to it.

    Raises:
        RunError: as for `write_page`.
    """
    found = found_in(folder)
    manifest, details = found.manifest, found.details
    return {
        "folder": str(folder),
        "status": manifest.status,
        "version": manifest.clusterucb,
        "versions": manifest.versions,
        "config": found.config,
        "asked": msgspec.to_builtins(manifest.asked),
        "options": manifest.identity.options,
        "inputs": msgspec.to_builtins(manifest.inputs),
        "outcome": msgspec.to_builtins(manifest.outcome) if details else None,
        "pool": len(found.overview.tokens),
        "subtasks": found.subtasks,
        "target": found.overview.subtasks,
        "scored": len(found.rows),
        "failed": int(np.isnan(found.mean_scores).sum()),
        "tokens": int(found.overview.tokens[found.rows].sum()),
        "cost": _cost(found),
        "trail": msgspec.to_builtins(read_trail(folder, len(found.rows))),
        "best": figures.best_so_far(found),
        "arms": figures.arms(found),
        "scores": figures.histograms(found),
        "lengths": figures.lengths(found),
        "sources": figures.sources(found),
        "map": pool_map(found),
        "rejected": list(manifest.inputs.rejected.items()) if details else [],
        "listed": {name: _listed(found, name) for name in ("selected", "below", "worst")},
        "calibration": msgspec.to_builtins(details.calibration) if details else None,
        "missed": details.missed if details else None,
        "duplicates": _duplicates(found),
    }


def _cost(found: Found) -> dict[str, Any]:
    """Return every phase's cost, and what scoring the whole pool would have cost."""
    cost = found.manifest.cost
    draws = cost.phases.get("draws")
    others = cost.seconds - (draws.seconds if draws else 0.0)
    tokens = found.overview.tokens
    share = float(tokens.sum()) / max(float(tokens[found.rows].sum()), 1.0)
    phases = [
        {"name": name, **msgspec.to_builtins(phase), "share": cost.share(phase)}
        for name, phase in cost.phases.items()
    ]
    return {
        "phases": phases,
        "forward": FORWARD,
        "total": cost.total,
        "seconds": cost.seconds,
        "exhaustive_seconds": others + draws.seconds * share if draws and draws.seconds else None,
    }


def _listed(found: Found, name: str) -> list[dict[str, Any]]:
    """Return the samples of one of the lists in the details, with what the ledger and the overview know of them."""
    overview = found.overview
    listed: list[Listed] = getattr(found.details, name) if found.details else []
    draws = found.draws_of([one.row for one in listed])
    return [
        {
            "id": one.id,
            "score": one.score,
            "turns": msgspec.to_builtins(one.turns),
            "source": overview.sources[overview.source[one.row]],
            "tokens": int(overview.tokens[one.row]),
            "draw": draw,
            "arm": int(found.arms[draw]),
            "scores": [round(score, 5) for score in found.scores[draw].tolist()],
        }
        for one, draw in zip(listed, draws, strict=True)
    ]


def _duplicates(found: Found) -> dict[str, Any] | None:
    """Return the near-duplicates among the selected samples, as ids."""
    details = found.details
    if details is None:
        return None
    names = {one.row: one.id for one in details.selected}
    pairs = [[names[a], names[b], share] for a, b, share in details.duplicates if {a, b} <= names.keys()]
    return {"count": details.n_duplicates, "pairs": pairs}
