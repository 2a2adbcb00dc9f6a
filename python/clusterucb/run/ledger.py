"""Record every draw of a search in one SQLite file before it is scored.

One transaction inserts a batch before it is scored; a second one adds its scores. After a kill at any moment, each draw
is therefore either scored or known to be unfinished. Scoring is pure by row, so an unfinished batch simply runs again:
a batch is executed at least once and recorded exactly once. SQLite's REAL is a 64-bit float, so scores are read back
bit for bit.

The file uses WAL. Nothing is lost when the process dies, and no score when the power fails.

Decisions:
    - New tables and scores are flushed to the disk (synchronous=FULL), because the manifest, which is always flushed,
      says later that the ledger is begun, that the budget is spent, or how many draws are scored. Draws without scores
      are not flushed (synchronous=NORMAL): if the power fails, they are drawn again. So a batch takes one flush, which
      lasts some milliseconds.
    - The scores of a draw are one value, f64[S] as bytes (little endian). SQLite has at most 2,000 columns, and a
      target may have more subtasks.
    - Every batch has a SHA-256 of its lines, written in the same transaction. A fault that changes a value, and that
      SQLite takes for valid, is noticed before the value is used.
    - The ledger records the token of its run, so that it cannot be taken for that of another run.
    - Version 0.1 had a column for each score. Such a ledger is read as it is, and rewritten before the first new draw.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import check_regular
from clusterucb.engine.draws import Batch, Phase
from clusterucb.errors import RunError
from clusterucb.wording import one_line, printable

_NO_NUMBER = "its score is not a finite number"
# The beginnings of SQLite's codes for errors that the disk or the folder causes, and not the file's content.
_OF_THE_DISK = tuple(
    f"SQLITE_{what}" for what in ("FULL", "IOERR", "CANTOPEN", "READONLY", "BUSY", "LOCKED", "PERM", "NOMEM")
)
# What every line of the table `draws` is, whatever else the file holds.
_SOUND = (
    "typeof(draw) = 'integer' AND typeof(batch) = 'integer' AND typeof(phase) = 'text' AND typeof(row) = 'integer' "
    "AND typeof(arm) = 'integer' AND typeof(probability) IN ('real', 'null') AND typeof(tokens) = 'integer' "
    "AND tokens >= 0 AND done IN (0, 1) AND typeof(failure) IN ('text', 'null')"
)
_LINE = "draw, batch, phase, row, arm, probability, tokens, done, failure"


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
    and scores (f64[S] as bytes; NaN where scoring failed). The table ``subtasks`` names the scores, ``batches`` has the
    SHA-256 of each batch, and ``run`` the token of the run.

    Args:
        path: the file. It is created if it does not exist.
        subtasks: the names of the S subtasks.
        tokens: i64[N], the number of tokens in each sample.
        run: the token of the run; None for a ledger without one.
        begun: whether the run has begun the ledger, which must then exist.
        n_draws: the number of draws that must be recorded as scored.
        read_only: whether the ledger is only read. Then the file must exist, and nothing is written beside it.

    Raises:
        RunError: the file cannot be used, is damaged or belongs to another run.
    """

    def __init__(
        self,
        path: Path,
        *,
        subtasks: Sequence[str],
        tokens: NDArray[np.int64],
        run: str | None = None,
        begun: bool = False,
        n_draws: int = 0,
        read_only: bool = False,
    ) -> None:
        self._path = path
        self._tokens = tokens
        self._subtasks = list(subtasks)
        for beside in ("", "-wal", "-shm"):
            check_regular(path.with_name(path.name + beside), written=True)
        if begun and not path.exists():
            raise RunError(
                f"{path} was removed, and with it the scores of the run: restore it from a copy, or start again with "
                "--overwrite"
            )
        with self._using():
            self._db = _opened(path, read_only=read_only)
            try:
                self._refuse_programs()
                if not read_only:
                    with self._transaction():
                        self._create(run, begun=begun)
                self._check(run, n_draws)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, folding the write-ahead log into it."""
        self._db.close()

    def recorded(self) -> Iterator[Batch]:
        """Yield the recorded batches in order. A batch that was begun but not finished has no scores.

        Raises:
            RunError: the file is damaged.
        """
        with self._using():
            digests = dict(self._db.execute("SELECT batch, sha256 FROM batches")) if self._has_blobs else None
            scores = "scores" if self._has_blobs else ", ".join(self._columns)
            lines = self._db.execute(f"SELECT {_LINE}, {scores} FROM draws ORDER BY draw").fetchall()
        groups = [(number, list(group)) for number, group in groupby(lines, key=itemgetter(1))]
        if digests is not None and [number for number, _ in groups] != sorted(digests):
            raise self._damaged("batches are missing")
        for number, group in groups:
            if digests is not None and digests[number] != _digest(group):
                raise self._damaged(f"batch {number} does not fit its SHA-256")
            yield self._batch(number, group)

    def scores(self) -> NDArray[np.float64]:
        """Return the scores f64[N, S] of all rows; NaN where a row was not scored or scoring failed."""
        scores = np.full((len(self._tokens), len(self._subtasks)), np.nan)
        for batch in self.recorded():
            if batch.scores is not None:
                scores[batch.rows] = batch.scores
        return scores

    def begin(self, batch: Batch) -> None:
        """Record that ``batch`` is about to be scored."""
        with self._using(), self._transaction(flushed=False):
            if not self._has_blobs:
                self._rewrite()
            self._db.executemany(
                "INSERT INTO draws (batch, phase, row, arm, probability, tokens) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (batch.number, batch.phase, row, arm, chance, int(self._tokens[row]))
                    for row, arm, chance in zip(
                        batch.rows.tolist(), batch.arms.tolist(), batch.probability.tolist(), strict=True
                    )
                ],
            )
            self._seal([batch.number])

    def finish(self, batch: Batch) -> None:
        """Record the scores of ``batch`` and mark it done."""
        assert batch.scores is not None
        with self._using(), self._transaction():
            if not self._has_blobs:
                self._rewrite()
            updated = self._db.executemany(
                "UPDATE draws SET done = 1, failure = ?, scores = ? WHERE row = ?",
                [
                    (
                        batch.failures.get(row, _NO_NUMBER) if np.isnan(scores).any() else None,
                        scores.astype("<f8").tobytes(),
                        row,
                    )
                    for row, scores in zip(batch.rows.tolist(), batch.scores, strict=True)
                ],
            )
            assert updated.rowcount == len(batch.rows), "a batch is finished that was not begun"
            self._seal([batch.number])

    def failures(self) -> list[tuple[int, str]]:
        """Return the row and the reason for every draw whose scoring failed, in order of the draws."""
        with self._using():
            return self._db.execute(
                "SELECT row, failure FROM draws WHERE failure IS NOT NULL ORDER BY draw"
            ).fetchall()

    def totals(self) -> tuple[int, int]:
        """Return the number of scored draws and the number of their tokens."""
        with self._using():
            done, tokens = self._db.execute(
                "SELECT count(*), coalesce(sum(tokens), 0) FROM draws WHERE done"
            ).fetchone()
        return int(done), int(tokens)

    @property
    def _columns(self) -> list[str]:
        """The columns of the scores in version 0.1."""
        return [f"score_{number}" for number in range(len(self._subtasks))]

    @property
    def _has_blobs(self) -> bool:
        """Whether the scores of a draw are one value."""
        return any(name == "scores" for _, name, *_ in self._db.execute("PRAGMA table_info(draws)"))

    def _create(self, run: str | None, *, begun: bool) -> None:
        """Create the tables if the file is new."""
        if self._db.execute("SELECT name FROM sqlite_master WHERE name = 'draws'").fetchone():
            return
        if begun:
            raise self._damaged("it has no draws")
        self._db.execute(
            "CREATE TABLE draws (draw INTEGER PRIMARY KEY, batch INTEGER NOT NULL, phase TEXT NOT NULL, "
            "row INTEGER NOT NULL UNIQUE, arm INTEGER NOT NULL, probability REAL, tokens INTEGER NOT NULL, "
            "done INTEGER NOT NULL DEFAULT 0, failure TEXT, scores BLOB)"
        )
        self._db.execute("CREATE TABLE batches (batch INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)")
        self._db.execute("CREATE TABLE subtasks (number INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        self._db.executemany("INSERT INTO subtasks VALUES (?, ?)", list(enumerate(self._subtasks)))
        self._db.execute("CREATE TABLE run (token TEXT)")
        self._db.execute("INSERT INTO run VALUES (?)", (run,))

    def _refuse_programs(self) -> None:
        """Refuse a file with views, triggers or virtual tables: SQLite would run them when a table is used.

        Raises:
            RunError: the file has one.
        """
        for kind, name, text in self._db.execute("SELECT type, name, sql FROM sqlite_master"):
            if kind not in ("table", "index") or str(text).upper().startswith("CREATE VIRTUAL"):
                raise self._damaged(f"it has a {kind} {printable(str(name)):.40}, which no ledger has")

    def _check(self, run: str | None, n_draws: int) -> None:
        """Check that the file is the ledger of this run.

        Raises:
            RunError: it is not, or it has too few draws.
        """
        (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise self._damaged(verdict)
        names = [name for (name,) in self._db.execute("SELECT name FROM subtasks ORDER BY number")]
        if names != self._subtasks:
            raise self._damaged(f"it has the scores of {len(names)} other subtasks")
        (n_odd,) = self._db.execute(f"SELECT count(*) FROM draws WHERE NOT ({_SOUND})").fetchone()
        if n_odd:
            raise self._damaged(f"it has {n_odd:,} draws with values of another type or range")
        if run is not None and self._db.execute("SELECT token FROM run").fetchone() != (run,):
            raise self._damaged("it belongs to another run")
        if self.totals()[0] < n_draws:
            raise self._damaged(f"it has {self.totals()[0]:,} of {n_draws:,} draws")

    def _batch(self, number: int, lines: list[tuple[Any, ...]]) -> Batch:
        """Return the lines of the table ``draws`` as a batch."""
        n_scores = len(self._subtasks)
        try:
            _, _, phases, rows, arms, chances, _, done, _, *scores = zip(*lines, strict=True)
            if self._has_blobs:
                values = np.frombuffer(b"".join(scores[0]), "<f8").astype(np.float64) if all(done) else None
            else:
                values = np.array(scores, np.float64).T.copy() if all(done) else None
            found = Batch(
                number=number,
                phase=phases[0],
                rows=np.array(rows, np.int64),
                arms=np.array(arms, np.int64),
                probability=np.array(chances, np.float64),
                scores=None if values is None else values.reshape(len(rows), n_scores),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise self._damaged(f"batch {number}: {error}") from error
        if found.phase not in get_args(Phase) or not (
            found.rows.min() >= 0 and found.rows.max() < len(self._tokens)
        ):
            raise self._damaged(f"batch {number} has other rows or phases than a search draws")
        return found

    def _seal(self, batches: Iterable[int]) -> None:
        """Record the SHA-256 of batches."""
        for number in batches:
            lines = self._db.execute(
                f"SELECT {_LINE}, scores FROM draws WHERE batch = ? ORDER BY draw", (number,)
            ).fetchall()
            self._db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", (number, _digest(lines)))

    def _rewrite(self) -> None:
        """Rewrite a ledger of version 0.1 in the present form."""
        recorded = list(self.recorded())
        self._db.execute("ALTER TABLE draws ADD COLUMN scores BLOB")
        self._db.execute("CREATE TABLE batches (batch INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)")
        for batch in recorded:
            if batch.scores is not None:
                self._db.executemany(
                    "UPDATE draws SET scores = ? WHERE row = ?",
                    [
                        (scores.astype("<f8").tobytes(), row)
                        for row, scores in zip(batch.rows.tolist(), batch.scores, strict=True)
                    ],
                )
        self._seal(batch.number for batch in recorded)

    @contextmanager
    def _transaction(self, *, flushed: bool = True) -> Iterator[None]:
        self._db.execute(f"PRAGMA synchronous={'FULL' if flushed else 'NORMAL'}")
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
        except (sqlite3.Error, UnicodeDecodeError) as error:
            name = getattr(error, "sqlite_errorname", "")
            if not name.startswith(_OF_THE_DISK):
                raise self._damaged(error) from error
            raise RunError(
                f"cannot use {self._path}: {error}. Earlier scores are kept: free some space or repair the "
                "folder, then repeat the command"
            ) from error

    def _damaged(self, reason: object) -> RunError:
        return RunError(
            f"{self._path} is damaged ({one_line(reason)}): restore it from a copy, or start again with --overwrite"
        )


def _opened(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        return db
    # A log beside the file holds draws that are not yet in it. Without one, the file can be read where nothing can be
    # written.
    immutable = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True, isolation_level=None)


def _digest(lines: Sequence[tuple[Any, ...]]) -> str:
    """Return the hex SHA-256 of lines of the table ``draws``."""
    return hashlib.sha256(repr([tuple(line) for line in lines]).encode(errors="replace")).hexdigest()
