"""The ledger gives back bit for bit what was written, whenever the writer dies."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.draws import Batch
from clusterucb.errors import RunError
from clusterucb.run.ledger import Ledger

TOKENS = np.arange(1000) * 3
FIELDS = ["number", "phase", "rows", "arms", "probability", "scores"]


def open_ledger(path: Path, n_subtasks: int = 2) -> Ledger:
    subtasks = [f"subtask {number}" for number in range(n_subtasks)]
    return Ledger(path, subtasks=subtasks, tokens=TOKENS)


def batch_of(number: int, rows: list[int], scores: list[list[float]] | None = None) -> Batch:
    return Batch(
        number=number,
        phase="policy",
        rows=np.array(rows),
        arms=np.array(rows) % 3,
        probability=np.full(len(rows), math.nan),
        scores=None if scores is None else np.array(scores),
        failures={row: f"row {row} is bad" for row in rows},
    )


def equal(one: Batch, other: Batch) -> None:
    for name in FIELDS:
        got, expected = getattr(one, name), getattr(other, name)
        if isinstance(expected, np.ndarray):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            got, expected = got.tobytes(), expected.tobytes()
        assert got == expected, name


number = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Batch]]:
    n_subtasks = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True))
    batches = []
    while rows:
        size = draw(st.integers(1, len(rows)))
        mine, rows = rows[:size], rows[size:]
        score = st.lists(number, min_size=n_subtasks, max_size=n_subtasks) | st.just([math.nan] * n_subtasks)
        batches.append(
            Batch(
                number=len(batches),
                phase=draw(st.sampled_from(["cold", "random", "policy"])),
                rows=np.array(mine),
                arms=np.array(draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))),
                probability=np.array(
                    draw(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=size, max_size=size))
                )
                + 0.0,
                scores=np.array(draw(st.lists(score, min_size=size, max_size=size))),
                failures={row: f"row {row} is bad" for row in mine if row % 2},
            )
        )
    return n_subtasks, batches


@given(histories(), st.booleans())
def test_batches_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, history: tuple[int, list[Batch]], last_is_open: bool
) -> None:
    n_subtasks, batches = history
    path = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    with open_ledger(path, n_subtasks) as ledger:
        for batch in batches:
            ledger.begin(batch)
            if batch is not batches[-1] or not last_is_open:
                ledger.finish(batch)
    with open_ledger(path, n_subtasks) as ledger:
        recorded = list(ledger.recorded())
        done = batches[: len(batches) - last_is_open]
        rows = [row for batch in done for row in batch.rows.tolist()]
        failed = [
            row
            for batch in done
            for row, scores in zip(batch.rows.tolist(), batch.scores, strict=True)
            if np.isnan(scores).any()
        ]
        assert ledger.totals() == (len(rows), int(TOKENS[rows].sum()))
        unsaid = "its score is not a finite number"
        assert ledger.failures() == [(row, f"row {row} is bad" if row % 2 else unsaid) for row in failed]
    if last_is_open:
        batches[-1] = replace(batches[-1], scores=None)
    for got, expected in zip(recorded, batches, strict=True):
        equal(got, expected)


def test_columns_can_be_read_with_sqlite_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path) as ledger:
        ledger.begin(batch_of(0, [7, 4]))
        ledger.finish(batch_of(0, [7, 4], [[0.1, 0.2], [math.nan, math.nan]]))
        ledger.begin(batch_of(1, [5]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.sqlite"]  # the log is folded in
    db = sqlite3.connect(path)
    *columns, scores = zip(*db.execute("SELECT * FROM draws").fetchall(), strict=True)
    assert list(zip(*columns, strict=True)) == [
        (1, 0, "policy", 7, 1, None, 21, 1, None),
        (2, 0, "policy", 4, 1, None, 12, 1, "row 4 is bad"),
        (3, 1, "policy", 5, 2, None, 15, 0, None),
    ]
    assert np.frombuffer(scores[0]).tolist() == [0.1, 0.2]
    assert np.isnan(np.frombuffer(scores[1])).all()
    assert scores[2] is None
    assert db.execute("SELECT * FROM subtasks").fetchall() == [(0, "subtask 0"), (1, "subtask 1")]
    db.close()


KILLED = """
import os, signal, sys
tests = os.path.dirname(os.path.dirname(sys.argv[1]))
sys.path[:0] = [tests, os.path.join(tests, "run")]
from pathlib import Path
from test_ledger import batch_of, open_ledger
ledger = open_ledger(Path(sys.argv[2]))
ledger.begin(batch_of(0, [1, 2]))
ledger.finish(batch_of(0, [1, 2], [[0.1, 0.2], [0.3, 0.4]]))
ledger.begin(batch_of(1, [3, 4]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_leaves_what_it_began_and_what_it_finished(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED, __file__, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with open_ledger(path) as ledger:
        first, second = ledger.recorded()
        equal(first, batch_of(0, [1, 2], [[0.1, 0.2], [0.3, 0.4]]))
        equal(second, batch_of(1, [3, 4]))
        ledger.finish(batch_of(1, [3, 4], [[0.5, 0.6], [0.7, 0.8]]))
        assert ledger.totals() == (4, 30)


def test_interrupted_transaction_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    class Interrupting(dict[int, str]):
        def get(self, *_: object) -> str:
            raise KeyboardInterrupt

    with open_ledger(path, 1) as ledger:
        ledger.begin(batch_of(0, [1, 2]))
        batch = replace(batch_of(0, [1, 2], [[0.5], [math.nan]]), failures=Interrupting())
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(batch)
        assert [batch.scores for batch in ledger.recorded()] == [None]
        assert ledger.totals() == (0, 0)


def test_row_is_never_recorded_twice(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(batch_of(0, [1, 2]))
        with pytest.raises(RunError, match=r"UNIQUE constraint failed: draws\.row"):
            ledger.begin(batch_of(1, [3, 2]))
        assert [batch.rows.tolist() for batch in ledger.recorded()] == [[1, 2]]


def test_full_disk_is_named_and_leaves_the_ledger_whole(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin(batch_of(0, [1]))
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(
            RunError, match=r"cannot use .*ledger.sqlite: database or disk is full.*free some space"
        ):
            ledger.begin(batch_of(1, list(range(2, 1000))))
        assert [batch.rows.tolist() for batch in ledger.recorded()] == [[1]]


@pytest.mark.parametrize("content", [b"not a database" * 100, b"\x00" * 5000])
def test_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(
        RunError, match=r"ledger.sqlite is damaged \(file is not a database\): restore it .*--overwrite"
    ):
        open_ledger(path)
    assert path.read_bytes() == content


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot use .*unable to open database file"):
        open_ledger(tmp_path / "nowhere" / "ledger.sqlite")


def test_ledger_of_other_subtasks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    open_ledger(path, 1).__exit__(None, None, None)
    with pytest.raises(RunError, match=r"damaged \(it has the scores of 1 other subtasks"):
        open_ledger(path, 3)


# A damaged ledger ------------------------------------------------------------------------------------------

DONE = [batch_of(number, [3 * number, 3 * number + 1], [[0.5, number], [0.25, -1.0]]) for number in range(6)]


def write_run(path: Path, run: str = "a") -> bytes:
    """Write a ledger with five finished batches and one that is begun, and return the file's content."""
    with Ledger(path, subtasks=["x", "y"], tokens=TOKENS, run=run) as ledger:
        for batch in DONE:
            ledger.begin(batch)
            if batch is not DONE[-1]:
                ledger.finish(batch)
    return path.read_bytes()


def read(
    path: Path, *, read_only: bool = False
) -> tuple[list[Batch], list[tuple[int, str]], tuple[int, int]]:
    options = {"run": "a", "begun": True, "n_draws": 10, "read_only": read_only}
    with Ledger(path, subtasks=["x", "y"], tokens=TOKENS, **options) as ledger:
        return list(ledger.recorded()), ledger.failures(), ledger.totals()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_run(tmp_path_factory.mktemp("whole") / "ledger.sqlite")


@given(data=st.data(), read_only=st.booleans())
def test_damage_changes_nothing_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject, read_only: bool
) -> None:
    path = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=4))
        content[at : at + len(piece)] = piece
    path.write_bytes(content[: data.draw(st.sampled_from([len(whole), len(whole), 4096, 100]))])
    try:
        recorded, failures, totals = read(path, read_only=read_only)
    except RunError:
        return
    assert totals == (10, int(TOKENS[[row for batch in DONE[:5] for row in batch.rows]].sum()))
    assert failures == []
    for got, expected in zip(recorded, DONE, strict=True):
        equal(got, expected if expected is not DONE[-1] else replace(expected, scores=None))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE draws SET scores = x'0000' WHERE draw = 3",
        "UPDATE draws SET scores = 'text' WHERE draw = 3",
        "UPDATE draws SET scores = 5 WHERE draw = 3",
        "UPDATE draws SET row = 999 WHERE draw = 3",
        "UPDATE draws SET row = 999 WHERE draw = 12",
        "UPDATE draws SET arm = 'x' WHERE draw = 3",
        "UPDATE draws SET probability = 'x' WHERE draw = 3",
        "UPDATE draws SET tokens = 1 WHERE draw = 3",
        "UPDATE draws SET phase = 'cold' WHERE draw = 3",
        "UPDATE draws SET done = 0 WHERE draw = 3",
        "UPDATE draws SET done = 1 WHERE draw > 10",
        "UPDATE draws SET draw = 100 WHERE draw = 3",
        "UPDATE draws SET failure = x'ff' WHERE draw = 3",
        "DELETE FROM draws WHERE draw = 3",
        "DELETE FROM draws WHERE batch = 2",
        "DELETE FROM draws",
        "DELETE FROM batches",
        "DROP TABLE draws",
        "DROP TABLE batches",
        "UPDATE run SET token = 'b'",
        "DELETE FROM run",
        "UPDATE subtasks SET name = 'z' WHERE number = 0",
    ],
)
def test_every_change_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "ledger.sqlite"
    write_run(path)
    db = sqlite3.connect(path)
    db.execute(change)
    db.commit()
    db.close()
    with pytest.raises(RunError, match=r"ledger\.sqlite"):
        read(path)


def test_the_ledger_of_another_run_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "ledger.sqlite", run="b")
    with pytest.raises(RunError, match=r"damaged \(it belongs to another run"):
        read(tmp_path / "ledger.sqlite")


@pytest.mark.parametrize("content", [None, b""])
def test_a_ledger_that_was_removed_or_emptied_is_not_begun_anew(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ledger.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"restore it from a copy, or start again with --overwrite"):
        read(path)


@pytest.mark.parametrize("beside", ["", "-wal", "-shm"])
def test_links_are_not_written_through(tmp_path: Path, beside: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    path = tmp_path / "ledger.sqlite"
    path.with_name(path.name + beside).symlink_to(elsewhere)
    with pytest.raises(RunError, match=rf"ledger\.sqlite{beside} is a link; expected a file"):
        open_ledger(path)
    assert elsewhere.read_bytes() == b"mine"


def test_a_ledger_is_read_where_nothing_can_be_written(tmp_path: Path, whole: bytes) -> None:
    folder = tmp_path / "run?é #%"
    folder.mkdir()
    (folder / "ledger.sqlite").write_bytes(whole)
    assert read(folder / "ledger.sqlite", read_only=True)[2][0] == 10
    assert [entry.name for entry in folder.iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize("n_subtasks", [1_999, 10_000])
def test_subtasks_are_not_limited_by_columns(tmp_path: Path, n_subtasks: int) -> None:
    scores = np.arange(2.0 * n_subtasks).reshape(2, n_subtasks)
    for _ in range(2):
        with open_ledger(tmp_path / "ledger.sqlite", n_subtasks) as ledger:
            if not ledger.totals()[0]:
                ledger.begin(batch_of(0, [1, 2]))
                ledger.finish(batch_of(0, [1, 2], scores.tolist()))
            (batch,) = ledger.recorded()
            assert batch.scores is not None
            assert np.array_equal(batch.scores, scores)


def test_tables_and_scores_are_flushed_to_the_disk(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        levels = [ledger._db.execute("PRAGMA synchronous").fetchone()]
        for record, batch in (
            (ledger.begin, batch_of(0, [1])),
            (ledger.finish, batch_of(0, [1], [[1.0, 2.0]])),
        ):
            record(batch)
            levels.append(ledger._db.execute("PRAGMA synchronous").fetchone())
    normal, full = (1,), (2,)
    assert levels == [full, normal, full]
