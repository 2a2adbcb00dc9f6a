"""Record every draw of a search in one SQLite file before it is scored.

One transaction inserts a batch before it is scored; a second one adds its scores. After a kill at any moment, each draw
is therefore either scored or known to be unfinished. Scoring is pure by row, so an unfinished batch simply runs again:
a batch is executed at least once and recorded exactly once. SQLite's REAL is a 64-bit float, so scores are read back
bit for bit.

The file uses WAL with synchronous=NORMAL. Nothing is lost when the process dies. A power cut may lose the last batches,
which then run again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.draws import Batch
from clusterucb.errors import RunError

_NO_NUMBER = "its score is not a finite number"


class ScoredBatches:
    """A read-only journal of a ledger's scored batches."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def recorded(self) -> Iterator[Batch]:
        """Return the scored batches in order."""
        return (batch for batch in self._ledger.recorded() if batch.scores is not None)

    def begin(self, batch: Batch) -> None:
        """Refuse to record a batch.

        Raises:
            AssertionError: always.
        """
        raise AssertionError(f"batch {batch.number} is drawn after the last")

    finish = begin


class Ledger:
    """The journal of a search: a context manager with one writer at a time.

    The table ``draws`` has a row for each draw in order, with the columns draw, batch, phase (cold | random | policy),
    row, arm, probability (of inclusion; NULL where a policy chose the row), tokens, done, failure (why scoring failed)
    and ``score_0`` ... ``score_S-1``. The table ``subtasks`` names the scores.

    Args:
        path: the file. It is created if it does not exist.
        subtasks: the names of the S subtasks.
        tokens: i64[N], the number of tokens in each sample.

    Raises:
        RunError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        subtasks: Sequence[str],
        tokens: NDArray[np.int64],
    ) -> None:
        self._path = path
        self._tokens = tokens
        self._columns = [f"score_{number}" for number in range(len(subtasks))]
        with self._using():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                self._create(subtasks)

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, folding the write-ahead log into it."""
        self._db.close()

    def recorded(self) -> Iterator[Batch]:
        """Yield the recorded batches in order. A batch that was begun but not finished has no scores."""
        columns = ", ".join(["batch", "phase", "row", "arm", "probability", "done", *self._columns])
        with self._using():
            draws = self._db.execute(f"SELECT {columns} FROM draws ORDER BY draw").fetchall()
        for number, group in groupby(draws, key=itemgetter(0)):
            lines = list(group)
            _, phases, rows, arms, chances, done, *scores = zip(*lines, strict=True)
            yield Batch(
                number=number,
                phase=phases[0],
                rows=np.array(rows, np.int64),
                arms=np.array(arms, np.int64),
                probability=np.array(chances, np.float64),
                scores=np.array(scores, np.float64).T.copy() if all(done) else None,
            )

    def scores(self) -> NDArray[np.float64]:
        """Return the scores f64[N, S] of all rows; NaN where a row was not scored or scoring failed."""
        scores = np.full((len(self._tokens), len(self._columns)), np.nan)
        for batch in self.recorded():
            if batch.scores is not None:
                scores[batch.rows] = batch.scores
        return scores

    def begin(self, batch: Batch) -> None:
        """Record that ``batch`` is about to be scored."""
        with self._using(), self._transaction():
            self._db.executemany(
                "INSERT INTO draws (batch, phase, row, arm, probability, tokens) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (batch.number, batch.phase, row, arm, chance, int(self._tokens[row]))
                    for row, arm, chance in zip(
                        batch.rows.tolist(), batch.arms.tolist(), batch.probability.tolist(), strict=True
                    )
                ],
            )

    def finish(self, batch: Batch) -> None:
        """Record the scores of ``batch`` and mark it done."""
        assert batch.scores is not None
        assignments = ", ".join(f"{column} = ?" for column in self._columns)
        with self._using(), self._transaction():
            self._db.executemany(
                f"UPDATE draws SET done = 1, failure = ?, {assignments} WHERE row = ?",
                [
                    (
                        batch.failures.get(row, _NO_NUMBER) if np.isnan(scores).any() else None,
                        *scores.tolist(),
                        row,
                    )
                    for row, scores in zip(batch.rows.tolist(), batch.scores, strict=True)
                ],
            )

    def failures(self) -> list[tuple[int, str]]:
        """Return the row and the reason for every draw whose scoring failed, in order of the draws."""
        return self._db.execute(
            "SELECT row, failure FROM draws WHERE failure IS NOT NULL ORDER BY draw"
        ).fetchall()

    def totals(self) -> tuple[int, int]:
        """Return the number of scored draws and the number of their tokens."""
        done, tokens = self._db.execute(
            "SELECT count(*), coalesce(sum(tokens), 0) FROM draws WHERE done"
        ).fetchone()
        return int(done), int(tokens)

    def _create(self, subtasks: Sequence[str]) -> None:
        scores = "".join(f", {column} REAL" for column in self._columns)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS draws (draw INTEGER PRIMARY KEY, batch INTEGER NOT NULL, "
            "phase TEXT NOT NULL, row INTEGER NOT NULL UNIQUE, arm INTEGER NOT NULL, probability REAL, "
            f"tokens INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, failure TEXT{scores})"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS subtasks (number INTEGER PRIMARY KEY, name TEXT NOT NULL)"
        )
        self._db.executemany("INSERT OR IGNORE INTO subtasks VALUES (?, ?)", list(enumerate(subtasks)))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # if the disk is full, SQLite has already rolled back
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"cannot use {self._path}: {error}. Earlier scores are kept: free some space or repair the "
                "folder, then repeat the command"
            ) from error
