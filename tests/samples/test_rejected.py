"""Rejected lines: on the disk, in reading order, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.samples.pool import read_pool
from clusterucb.samples.rejected import RejectedLines, write_rejected
from clusterucb.samples.sample import Rejected

FILES = ("b.jsonl", "a.jsonl", "caf\udce9.jsonl")  # a name that is no UTF-8

lines = st.lists(
    st.builds(
        Rejected,
        st.sampled_from(FILES),
        st.integers(1, 1 << 40),
        st.text() | st.just("duplicate of caf\udce9.jsonl:1"),
        st.text(),
    ),
    unique_by=lambda line: (line.file, line.line),
)


@given(lines)
def test_lines_come_back_as_they_were_in_reading_order(added: list[Rejected]) -> None:
    rejected = RejectedLines(FILES)
    for line in added:
        rejected.add(line)
    expected = sorted(added, key=lambda line: (FILES.index(line.file), line.line))
    assert list(rejected) == rejected[:] == expected
    assert [rejected[at] for at in range(len(rejected))] == expected
    assert rejected[1:3] == expected[1:3]
    assert rejected.by_file() == {file: sum(line.file == file for line in added) for file in FILES}


@given(lines, st.integers(0, 9), st.integers(0, 9))
def test_what_is_added_to_a_copy_is_not_in_the_original(
    added: list[Rejected], n_first: int, n_second: int
) -> None:
    first, second, third = added[:n_first], added[n_first:][:n_second], added[n_first:][n_second:]
    original = RejectedLines(FILES)
    for line in first:
        original.add(line)
    copied = original.copy()
    for line in second:
        copied.add(line)
    for line in third:
        original.add(line)
    assert set(original) == {*first, *third}
    assert set(copied) == {*first, *second}


def test_a_sorted_sequence_takes_further_lines() -> None:
    rejected = RejectedLines(["a"])
    rejected.add(Rejected("a", 2, "not JSON: x"))
    assert rejected[0].line == 2
    rejected.add(Rejected("a", 1, "not JSON: y"))
    assert [line.line for line in rejected] == [1, 2]


def test_what_is_written_is_counted_by_kind(tmp_path: Path) -> None:
    parts = [
        [Rejected("a", 1, "not JSON: x", "{"), Rejected("a", 2, "duplicate of a:1")],
        [Rejected("b", 1, "duplicate of a:1"), Rejected("b", 2, "no assistant turn")],
    ]
    counts = write_rejected(tmp_path / "rejected.jsonl", *parts)
    assert list(counts.items()) == [("duplicate", 2), ("no assistant turn", 1), ("not JSON", 1)]
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_bytes().splitlines()]
    assert written == [line._asdict() for part in parts for line in part]


@pytest.mark.parametrize(
    "text", ["\n" * 300_000, " " * 300_000 + "[ {", "user: " * 100_000, "[" + "\n" * 300_000]
)
def test_texts_that_patterns_might_try_in_many_ways_are_read(tmp_path: Path, text: str) -> None:
    """A pattern that tries white space twice takes minutes for each of these."""
    rows = [{"prompt": text, "completion": text}, {"chat": text}, {"messages": text}]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = read_pool([path])
    assert len(pool.samples) == 1
    assert len(pool.rejected) == 2
