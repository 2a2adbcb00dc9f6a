"""Limit the draws to the budget, and show how much of it is spent, in the budget's own unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.budget import Allowance, TimeAllowance, TokenAllowance
from clusterucb.errors import OptionError
from clusterucb.options.amounts import Seconds, Tokens, parse_budget, samples_of
from clusterucb.options.search import Settings
from clusterucb.progress import Advance, Note, Observer
from clusterucb.run.folder import Run
from clusterucb.samples.pool_and_target import Material
from clusterucb.wording import counted


class Spending:
    """A budget that is being spent.

    Args:
        allowance: limits the draws if the budget is a number of tokens or a time; None if it is a number of draws.
        unit: ``draws``, ``tokens`` or ``seconds``.
        left: the number of units that are left.

    Attributes:
        allowance: as given.
        count: the function that is called with the number of units newly spent.
        note: a remark that is shown beside the progress.
    """

    def __init__(self, allowance: Allowance | None, unit: str, left: int) -> None:
        self.allowance = allowance
        self.count: Advance = lambda _: None
        self.note = ""
        self._unit = unit
        self._left = left
        self._began = time.monotonic()
        self._tokens = 0.0  # tokens of all samples scored so far
        self._mean = 0.0  # mean tokens of the samples that are being scored
        self._told = 0

    def scoring(self, tokens: NDArray[np.int64]) -> None:
        """Record the numbers of tokens, i64[m], of the samples that are scored next."""
        self._mean = float(tokens.mean())

    def advance(self, n: int) -> None:
        """Report that ``n`` more samples are scored."""
        self._tokens += n * self._mean
        if self._unit == "draws":
            self.count(n)
            return
        spent = self._tokens if self._unit == "tokens" else time.monotonic() - self._began
        if (now := min(round(spent), self._left)) > self._told:
            self.count(now - self._told)
            self._told = now


def check_unsketched(settings: Settings, material: Material) -> None:
    """Check that the budget allows the gradients of samples that the store lacks, if scores are read from sketches.

    Raises:
        OptionError: it does not.
    """
    rows, lengths = material.unsketched, material.encoded.lengths
    if not settings.free_scores or not len(rows):
        return
    limit, n_tokens = parse_budget("--budget", settings.budget), int(lengths[rows].sum())
    if isinstance(limit, Seconds):
        fits, expected = False, "a number of samples or tokens"
    elif isinstance(limit, Tokens):
        fits, expected = n_tokens <= limit.most, f"at least {n_tokens} tokens"
    else:
        fits, expected = len(rows) <= samples_of(limit, len(lengths)), f"at least {len(rows)}"
    if not fits:
        raise OptionError(
            f"--budget is {settings.budget}, and {counted(len(rows), 'sample')} of the pool, which the gradient store "
            f"{settings.store} does not hold, cost a gradient each; expected {expected}. Or leave out --scorer sketch: "
            "the budget is then spent on the most promising samples. Or add them to the store: `clusterucb sketch` "
            "with this pool"
        )


@contextmanager
def spending(
    run: Run,
    observer: Observer,
    lengths: NDArray[np.int64],
    limit: Tokens | Seconds | None,
    budget: int,
    done: tuple[int, int],
    note: Note,
) -> Iterator[Spending]:
    """Time the draws of the block, and show how much of the budget is spent.

    Args:
        run: the run. Its manifest holds the draw time of earlier sessions, and the seconds per token.
        observer: receives the progress.
        lengths: i64[N], the number of tokens of each sample.
        limit: the budget if it is a number of tokens or a time; None if it is a number of draws.
        budget: the number of draws, or the expected number.
        done: the number of draws already recorded, and their tokens.
        note: returns a remark to show after the block's own.
    """
    allowance: Allowance | None = None
    total, before, unit = budget, done[0], "draws"
    if isinstance(limit, Tokens):
        allowance = TokenAllowance(lengths, limit.most)
        total, before, unit = limit.most, done[1], "tokens"
    elif isinstance(limit, Seconds):
        before_now, per_token = run.seconds("draws"), run.manifest.search.seconds_per_token
        assert per_token is not None
        allowance = TimeAllowance(lengths, limit.most - before_now, per_token)
        total, before, unit = round(limit.most), round(before_now), "seconds"
    before = min(before, total)
    spent = Spending(allowance, unit, total - before)

    def notes() -> str:
        return "; ".join(filter(None, (spent.note, note())))

    with (
        observer.count("Scoring", total, done=before, unit=unit, note=notes) as spent.count,
        run.phase("draws"),
    ):
        yield spent
