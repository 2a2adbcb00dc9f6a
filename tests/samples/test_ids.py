"""Ids: files that are numbered from 0 keep all of their samples, whatever their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import Layout


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(number: object, answer: str) -> dict:
    return {"id": number, "prompt": "q", "completion": answer}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    first = write(tmp_path / "rivers.jsonl", [row(0, "Volga"), row(1, "Elbe"), row("own", "Nile")])
    return [first, write(tmp_path / "sums.jsonl", [row(0, "5"), row(1, "6")])]


def ids(files: list[Path], **options: str) -> dict[str, str]:
    pool = read_pool(files, Layout(**options))
    return {sample.answer: sample.id for sample in pool.samples} | {
        line.text: line.kind for line in pool.rejected
    }


def test_ids_that_several_files_have_are_told_apart_by_the_file(files: list[Path]) -> None:
    found = ids(files)
    assert found == {"Volga": "rivers:0", "Elbe": "rivers:1", "Nile": "own", "5": "sums:0", "6": "sums:1"}
    assert ids(files[::-1]) == found


def test_the_user_decides_what_an_id_is(files: list[Path]) -> None:
    assert ids(files, ids="file")["Nile"] == "rivers:own"
    by_content = ids(files, ids="content")
    assert len(set(by_content.values())) == 5
    assert all(len(name) == 64 for name in by_content.values())
    assert sorted(ids(files, ids="column").values()) == ["0", "1", "own", "same id", "same id"]


def test_an_id_that_a_file_has_twice_is_still_refused(tmp_path: Path, files: list[Path]) -> None:
    files.append(write(tmp_path / "more.jsonl", [row(0, "a"), row(0, "b"), row(7, "c"), row(7, "d")]))
    found = list(ids(files).values())
    assert sorted(found) == [
        "7", "more:0", "own", "rivers:0", "rivers:1", "same id", "same id", "sums:0", "sums:1",
    ]  # fmt: skip


def test_the_same_sample_in_two_files_is_a_duplicate(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [row(0, "a"), row(1, name)]) for name in "xy"]
    assert sorted(ids(files).values()) == ["0", "duplicate", "x:1", "y:1"]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdef")), max_size=5), min_size=2, max_size=3
    ),
    st.randoms(),
)
def test_the_order_of_files_and_lines_changes_no_id(tmp_path_factory, contents: list, chance) -> None:
    folder = tmp_path_factory.mktemp("ids")
    rows = {f"f{at}": [row(*one) for one in some] for at, some in enumerate(contents)}
    paths = [write(folder / f"{name}.jsonl", some) for name, some in rows.items()]
    if not any(rows.values()):
        return
    once = read_pool(paths)
    for name, some in rows.items():
        write(folder / f"{name}.jsonl", chance.sample(some, len(some)))
    again = read_pool(chance.sample(paths, len(paths)))
    assert [(s.id, s.content_hash) for s in once.samples] == [(s.id, s.content_hash) for s in again.samples]
    assert len({sample.id for sample in once.samples}) == len(once.samples)
    assert once.fingerprint == again.fingerprint
