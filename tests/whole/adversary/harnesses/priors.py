"""What ``--prior`` and ``--scores`` read: lines of scores, shards of sketches, and the ledger's SQLite file."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clusterucb import filenames
from clusterucb.engine.draws import Batch
from clusterucb.jobs.stages.prior import earlier_runs
from clusterucb.policies.surrogate import Surrogate
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.ledger import _LINE, Ledger, _digest
from clusterucb.run.pool_sketches import PoolSketches
from whole.adversary.harnesses.choices import Choices
from whole.adversary.harnesses.judged import check, outcome, scratch

STORE = Path(__file__).parents[3] / "data" / "former" / "store"
SHARD = "sketches-00000.safetensors"
SUBTASKS, TOKENS, RUN = ["x", "y"], np.arange(1, 9), "a" * 64
_PAGE = 512  # bytes of a page of the ledger, so that each byte of a small file matters


def _with_scores(content: bytes) -> None:
    with scratch() as folder:
        (folder / filenames.SCORES).write_bytes(content)
        ids = ["a", "1", "user", "x"]
        features = {"f": np.arange(8, dtype=np.float32).reshape(4, 2)}
        columns = {"source": np.array(["s", "s", "t", "t"], object)}
        for earlier in earlier_runs([folder], Surrogate()):
            block = earlier.of_pool(ids, np.zeros((len(ids), 32), np.uint8), {}).block(features, columns)
            check(block.shape[0] == 4 and block.dtype == np.float32, f"a prior of {block.shape}")
            check(np.isfinite(block).all(), "a prior that is not finite")


def _raw_scores(choices: Choices) -> None:
    _with_scores(choices.rest())


def _odd_scores(choices: Choices) -> None:
    lines: list[Any] = []
    subtasks = {choices.text(): choices.number() for _ in range(1 + choices.below(3))}
    for _ in range(1 + choices.below(5)):
        line = {"id": choices.one_of(("a", "1", "user", "x", "é")), "subtasks": subtasks}
        if not choices.below(4):
            line[choices.one_of(("id", "subtasks", "score"))] = choices.value()
        if choices.flag():
            line["subtasks"] = dict.fromkeys(subtasks, choices.number())
        lines.append(line)
    _with_scores("".join(json.dumps(line) + "\n" for line in lines).encode())


def _sketches(choices: Choices) -> None:
    """Put a shard with odd bytes, or with an odd header, into a gradient store of version 0.1, which has no digests."""
    with scratch() as place:
        folder = place / "store"
        shutil.copytree(STORE, folder, ignore=shutil.ignore_patterns("adapter"))
        if choices.flag():
            (folder / SHARD).write_bytes(choices.rest())
        else:
            header = choices.rest()
            whole = (STORE / SHARD).read_bytes()
            (start,) = struct.unpack("<Q", whole[:8])
            content = struct.pack("<Q", len(header)) + header + whole[8 + start :]
            (folder / SHARD).write_bytes(content)
        store = GradientStore(folder)
        store.failures()
        for shard in store.shards():
            check(shard.dtype == np.float16, "a shard of another type")
        sketches = PoolSketches(store, np.arange(len(store)))
        sketches.scores(np.ones((1, store.sketch.dimension), np.float32))
        contents = {"pool": store.manifest.identity.contents["pool"]}
        for earlier in earlier_runs([folder], Surrogate()):
            earlier.of_pool(["x"] * len(store), np.zeros((len(store), 32), np.uint8), contents).block({}, {})


@cache
def _good_ledger() -> bytes:
    """Return the bytes of a small ledger with three batches, one of them unfinished."""
    with scratch() as folder:
        path = folder / "empty.sqlite"
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA page_size={_PAGE}")
            db.execute("VACUUM")
        with Ledger(path, subtasks=SUBTASKS, tokens=TOKENS, run=RUN) as ledger:
            for number, rows in enumerate(([0, 3], [5], [1, 2])):
                size = len(rows)
                scores = np.arange(2.0 * size).reshape(size, 2) if number < 2 else None
                chances = np.full(size, np.nan)
                batch = Batch(number, "policy", np.array(rows), np.zeros(size, int), chances, scores)
                ledger.begin(batch)
                if scores is not None:
                    ledger.finish(batch)
        return path.read_bytes()


def _use_ledger(path: Path, *, read_only: bool, run: str | None = RUN) -> None:
    options: dict[str, Any] = {"subtasks": SUBTASKS, "tokens": TOKENS, "run": run, "begun": True}
    with Ledger(path, **options, n_draws=1, read_only=read_only) as ledger:
        scores = ledger.scores()
        check(scores.shape == (8, 2), f"scores of {scores.shape}")
        n_scored, tokens = ledger.totals()
        check(n_scored >= 0 and tokens >= 0, "negative totals")
        for row, reason in ledger.failures():
            check(isinstance(row, int) and isinstance(reason, str), "a failure of another type")
        batches = list(ledger.recorded())
        if not read_only and batches and batches[-1].scores is None:
            ledger.finish(replace(batches[-1], scores=np.zeros((len(batches[-1].rows), 2))))


def _ledger_bytes(choices: Choices) -> None:
    """Change bytes of a ledger in place."""
    read_only, whole = choices.flag(), choices.flag()
    content = bytearray(_good_ledger())
    if whole:
        content = bytearray(choices.rest())
    while choices:
        at = choices.below(65536) % len(content)
        content[at : at + 1] = choices.bytes(1)
    with scratch() as folder:
        (folder / "ledger.sqlite").write_bytes(bytes(content))
        _use_ledger(folder / "ledger.sqlite", read_only=read_only)


def _ledger_values(choices: Choices) -> None:
    """Put odd values into the tables of a ledger, whose digests fit or do not."""
    columns = [*_LINE.split(", "), "scores"]
    with scratch() as folder:
        path = folder / "ledger.sqlite"
        path.write_bytes(_good_ledger())
        read_only, sealed, run = choices.flag(), choices.below(4), choices.one_of((RUN, None))
        endless = choices.below(16) == 1
        db = sqlite3.connect(path, isolation_level=None)
        try:
            while choices:
                with suppress(sqlite3.Error, OverflowError):  # SQLite refuses some values
                    _change(choices, db, columns)
            if sealed:
                lines = db.execute(f"SELECT {_LINE}, scores FROM draws ORDER BY batch, draw").fetchall()
                for number in {line[1] for line in lines}:
                    digest = _digest([line for line in lines if line[1] == number])
                    db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", (number, digest))
            if endless:
                db.executescript(_ENDLESS)
        except (sqlite3.Error, OverflowError, UnicodeDecodeError):
            pass  # its tables are gone, or hold text that is not UTF-8
        finally:
            db.close()
        _use_ledger(path, read_only=read_only, run=run)


def _change(choices: Choices, db: sqlite3.Connection, columns: list[str]) -> None:
    value = (choices.number(), choices.text().encode(errors="replace"), choices.bytes(16), None)[
        choices.below(4)
    ]
    if isinstance(value, bytes) and choices.flag():
        value = value.decode(errors="replace")
    kind = choices.below(8)
    if kind < 5:
        db.execute(
            f"UPDATE draws SET {choices.one_of(columns)} = ? WHERE draw = ?", (value, choices.below(6))
        )
    elif kind == 5:
        db.execute(f"UPDATE draws SET {choices.one_of(columns)} = ?", (value,))
    elif kind == 6:
        table, column = choices.one_of((("subtasks", "name"), ("batches", "sha256"), ("run", "token")))
        db.execute(f"UPDATE {table} SET {column} = ?", (value,))
    else:
        db.execute(choices.one_of(_STATEMENTS))


_ENDLESS = (  # a view that SQLite computes without end
    "ALTER TABLE draws RENAME TO gone; CREATE VIEW draws AS "
    "WITH RECURSIVE n(draw) AS (SELECT 1 UNION ALL SELECT draw + 1 FROM n) SELECT draw, 0 batch, 'policy' phase, "
    "0 row, 0 arm, NULL probability, 1 tokens, 1 done, NULL failure, x'00' scores FROM n"
)
_STATEMENTS = (
    "DELETE FROM draws WHERE batch = 1",
    "DELETE FROM batches",
    "DROP TABLE subtasks",
    "ALTER TABLE draws RENAME TO gone",
    "ALTER TABLE draws DROP COLUMN scores",
    "ALTER TABLE draws RENAME COLUMN scores TO score_0",
    "CREATE TRIGGER t AFTER UPDATE ON draws BEGIN UPDATE draws SET scores = x'00'; END",
    "CREATE VIEW v AS SELECT 1",
    "INSERT INTO draws (batch, phase, row, arm, tokens) VALUES (7, 'policy', 7, 0, 1)",
    "INSERT INTO subtasks VALUES (2, 'z')",
    "ALTER TABLE draws RENAME COLUMN tokens TO t",
)

KINDS: tuple[Callable[[Choices], None], ...] = (
    _raw_scores, _odd_scores, _sketches, _ledger_bytes, _ledger_values,
)  # fmt: skip


def case(data: bytes) -> str:
    """Use a prior or a ledger of the kind that the first byte names."""
    choices = Choices(data)
    kind = choices.one_of(KINDS)
    return outcome(lambda: kind(choices))
