"""Read Adafactor's second moment, which is kept as sums over rows and columns.

Sources: Shazeer and Stern, "Adafactor" (2018), algorithm 4; the entries' names are those of transformers and fairseq
(``exp_avg_sq_row`` f32[out], ``exp_avg_sq_col`` f32[in]: means of g²) and of torch (``row_var`` f32[out, 1],
``col_var`` f32[1, in]).

Decisions:
    - The second moment of a matrix is V = R Cᵀ / mean(R), and Adafactor corrects no bias: its decay begins at 0.
    - Its first moment, where it has one, is that of its updates, not of gradients. So this state serves
      ``--preconditioner second_moment`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clusterucb.model.states.entries import Entries, damaged

_FACTORS = (("exp_avg_sq_row", "exp_avg_sq_col"), ("row_var", "col_var"))
_WHOLE = ("exp_avg_sq", "variance")  # of a parameter that is no matrix
EPS = 1e-30  # Adafactor adds it to squares


def is_factored(entries: Mapping[str, Any]) -> bool:
    """Return whether a parameter's entries are Adafactor's."""
    return any(name in entries for pair in _FACTORS for name in pair) or "variance" in entries


def of_adafactor(path: Path, key: object, entries: Mapping[str, Any]) -> Entries:
    """Return ``exp_avg_sq`` and ``step`` for the entries of Adafactor; there is no ``exp_avg``."""
    return Entries(exp_avg_sq=partial(_second, path, key, entries), step=lambda: entries.get("step"))


def _second(path: Path, key: object, entries: Mapping[str, Any]) -> torch.Tensor:
    """Return the second moment, f32 of the parameter's shape.

    Raises:
        ModelError: the two factors are missing or do not fit together.
    """
    for name in _WHOLE:
        if isinstance(entries.get(name), torch.Tensor):
            return entries[name]  # type: ignore[no-any-return]
    for of_rows, of_columns in _FACTORS:
        rows, columns = entries.get(of_rows), entries.get(of_columns)
        if isinstance(rows, torch.Tensor) and isinstance(columns, torch.Tensor):
            rows, columns = rows.double().flatten(), columns.double().flatten()
            return torch.outer(rows / rows.mean().clamp(min=EPS), columns).float()
    raise damaged(path, f"parameter {key} has {', '.join(sorted(map(str, entries)))}, not both factors")
