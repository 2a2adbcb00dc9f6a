"""Reading: what is used, what is rejected and why, and the order that everything refers to."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.samples import lines
from clusterucb.samples.message import Message, Unreadable
from clusterucb.samples.pool import Pool, Sample, overlap, read_pool, read_target
from clusterucb.samples.sample import decode, sample_of
from clusterucb.samples.shapes import Layout
from helpers.bad_lines import BAD_LINES


def row(answer: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": "question", "completion": answer, **columns}


def write(path: Path, rows: list[Any]) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def reasons(pool: Pool) -> list[tuple[str, int, str]]:
    return [(Path(line.file).name, line.line, line.reason) for line in pool.rejected]


@pytest.fixture
def pool_of(tmp_path: Path):
    """Read a pool from rows (or lines of bytes) in one file, pool.jsonl."""
    return lambda *rows: read_pool([write(tmp_path / "pool.jsonl", list(rows))])


# What a row may be ---------------------------------------------------------------------------------------


def test_prompt_and_completion_are_a_conversation_of_two_turns(pool_of) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (sample,) = pool_of({"messages": turns}).samples
    (same,) = pool_of({"prompt": "q", "completion": "a"}).samples
    assert sample.messages == same.messages == (Message("user", "q"), Message("assistant", "a"))
    assert sample.content_hash == same.content_hash == sample.id


def test_conversation_of_several_turns_is_kept_in_order(pool_of) -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", ""), ("assistant", "ü\n🙂\x00")]
    (sample,) = pool_of({"messages": [{"role": r, "content": c, "extra": 1} for r, c in turns]}).samples
    assert [tuple(message) for message in sample.messages] == turns


def test_columns_are_kept_and_have_defaults(pool_of) -> None:
    pool = pool_of(row("a", id="x7", source="books"), row("b", id=12, source=None), row("c", id=None))
    by_answer = {sample.messages[1].content: sample for sample in pool.samples}
    assert (by_answer["a"].id, by_answer["a"].source) == ("x7", "books")
    assert (by_answer["b"].id, by_answer["b"].source) == ("12", "pool")
    assert by_answer["c"].id == by_answer["c"].content_hash
    assert {sample.subtask for sample in pool.samples} == {""}


def test_content_hash_depends_on_the_messages_alone(pool_of) -> None:
    (one,) = pool_of(row("a", id="1", source="s", note=[1, 2])).samples
    (other,) = pool_of(b'  {"completion":"\\u0061",  "prompt":"question"} ').samples
    (different,) = pool_of({"prompt": "questiona", "completion": ""}).samples
    assert one.content_hash == other.content_hash != different.content_hash


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[repr(line[:50]) for line, _ in BAD_LINES])
def test_bad_line_is_rejected_with_its_reason_and_stops_nothing(pool_of, line: bytes, reason: str) -> None:
    pool = pool_of(row("first"), line, row("last"))
    assert len(pool.samples) == 2
    (got,) = pool.rejected
    assert (Path(got.file).name, got.line) == ("pool.jsonl", 2)
    assert reason in got.reason
    assert got.text == line.decode("utf-8", "replace")[:200]


@given(place=st.integers(0, 40), byte=st.integers(0xF8, 0xFF), cut=st.integers(0, 45))
def test_bytes_that_are_not_text_are_the_reason_wherever_they_stand(place: int, byte: int, cut: int) -> None:
    line = b'{"prompt": "question", "completion": "an answer"}'
    bad = line[:place] + bytes([byte]) + line[place : len(line) - cut]
    with pytest.raises(Unreadable, match=f"^not UTF-8: byte 0x{byte:02x}$"):
        decode(bad)


def test_a_line_cut_inside_a_character_is_incomplete() -> None:
    whole = '{"prompt": "q", "completion": "naïve 🙂"}'.encode()
    for end in range(1, len(whole)):
        with pytest.raises(Unreadable, match=r"^not JSON: the line is incomplete$"):
            decode(whole[:end])


@given(st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line), max_size=5))
def test_no_line_of_bytes_stops_a_run(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", [row("good"), *lines])
    pool = read_pool([path])
    assert len(pool.samples) == 1
    assert len(pool.rejected) == sum(1 for line in lines if line.strip())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(["messages", "prompt", "completion", "id", "source", "subtask", "role", "content"])


@given(st.lists(st.dictionaries(columns, json_values, max_size=5), max_size=5))
def test_no_json_object_stops_a_run(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = write(
        tmp_path_factory.getbasetemp() / "any.jsonl", [*rows, row("a good row"), b'{"messages": [{}]}']
    )
    pool = read_target([path])
    assert len(pool.samples) + len(pool.rejected) == len(rows) + 2
    assert pool.fingerprint


# Lines and files -----------------------------------------------------------------------------------------


def test_byte_order_mark_crlf_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    first, second = json.dumps(row("one")).encode(), json.dumps(row("two")).encode()
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n  \t \n\n" + second)
    samples = sorted(read_pool([path]).samples, key=lambda sample: sample.line)
    assert [(sample.line, sample.raw) for sample in samples] == [(1, first), (5, second)]


def test_raw_is_the_line_as_it_was_read(pool_of) -> None:
    line = b'  { "completion" : "\\u00fc \xc3\xbc", "prompt":"q" ,  "x": 1.000 }\t'
    (sample,) = pool_of(line).samples
    assert sample.raw == line


def test_pool_without_a_good_sample_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    path = write(tmp_path / "pool.jsonl", [b"", b"{}", b"{", b"{}"])
    with pytest.raises(InputError) as caught:
        read_pool([path])
    message = str(caught.value)
    assert "has no usable sample in 3 lines (2 no conversation, 1 not JSON); the first is " in message
    assert f"{path}:2: no conversation: expected `messages`" in message
    write(path, [])
    with pytest.raises(InputError, match=r"the target \(.*\) has no lines; expected at least one"):
        read_target([path])


@pytest.mark.parametrize(
    ("line", "layout", "advice"),
    [
        ({"question": "q"}, Layout(), "give them: --columns prompt=question,completion=answer"),
        ({"q": "q"}, Layout(columns={"prompt": "Q"}), ". --columns names Q, which no row has"),
        (row("a"), Layout("alpaca"), ". --format alpaca accepts only rows of that shape; leave it out"),
        (b"{", Layout(columns={"prompt": "Q"}), "is incomplete"),
        (row("a", source=1), Layout(), "expected a string"),
    ],
)
def test_advice_on_a_pool_without_a_good_sample_fits_its_rows(tmp_path, line, layout, advice) -> None:
    with pytest.raises(InputError) as caught:
        read_pool([write(tmp_path / "pool.jsonl", [line])], layout)
    assert str(caught.value).endswith(advice)


def test_of_many_files_without_a_good_sample_the_first_are_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.jsonl", [b"{"]) for number in range(5)]
    with pytest.raises(InputError, match=r"0.jsonl, \S*1.jsonl, \S*2.jsonl and 2 more\) has"):
        read_pool(paths)


def test_strict_stops_at_the_first_line_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "pool.jsonl", [row("a"), b"{", b"["])
    with pytest.raises(
        InputError, match=r"pool.jsonl:2: not JSON: the line is incomplete; correct the line, or leave"
    ):
        read_pool([path], strict=True)
    write(path, [row("a"), row("b"), row("a")])
    with pytest.raises(InputError, match=r"pool.jsonl:3: duplicate of .*pool.jsonl:1; correct"):
        read_pool([path], strict=True)
    write(path, [row("a"), row("b")])
    assert len(read_pool([path], strict=True).samples) == 2


# Order, ids and duplicates -------------------------------------------------------------------------------

rows = st.builds(
    lambda answer, columns: row(answer, **columns),
    st.sampled_from("abcdefgh"),
    st.fixed_dictionaries(
        {"source": st.sampled_from(["s", "t"]), "subtask": st.sampled_from(["x", "y"])},
        optional={"id": st.sampled_from(["1", "2", "3", 3])},
    ),
)


@pytest.mark.parametrize("read", [read_pool, read_target])
@given(
    rows=st.lists(rows, min_size=1, max_size=16),
    chance=st.randoms(use_true_random=False),
    n_files=st.integers(1, 4),
)
def test_order_of_lines_and_files_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    read: Callable[..., Pool],
    rows: list[dict],
    chance: random.Random,
    n_files: int,
) -> None:
    folder = tmp_path_factory.mktemp("pool")

    def content(pool: Pool) -> list[tuple[str, ...]]:
        return [(sample.content_hash, sample.id, sample.source, sample.raw) for sample in pool.samples]

    def alone(row: dict[str, Any]) -> Sample:
        """Return the sample of a row, as if nothing else were read."""
        subtask = "s" if read is read_target else None
        line = json.dumps(row).encode()
        return sample_of(row, line, Layout(), file="pool", number=1, source="s", subtask=subtask)[-1]

    layout = Layout(ids="column")  # by default, an id that several files have is told apart by the file
    once = read([write(folder / "all.jsonl", rows)], layout)
    shuffled = chance.sample(rows, len(rows))
    paths = [write(folder / f"{number}.jsonl", shuffled[number::n_files]) for number in range(n_files)]
    again = read(chance.sample(paths, n_files), layout)
    assert content(again) == content(once)
    assert again.fingerprint == once.fingerprint
    assert len(again.rejected) == len(once.rejected) == len(rows) - len(once.samples)
    assert content(once) == [
        (one.content_hash, one.id, one.source, one.raw) for one in kept_of([alone(one) for one in rows])
    ]
    place = {f"{sample.file}:{sample.line}": sample for sample in again.samples}
    for line in again.rejected:
        lost = alone(json.loads(line.text))
        if line.kind == "duplicate":
            kept = place[line.reason.removeprefix("duplicate of ")]
            assert (kept.content_hash, kept.subtask) == (lost.content_hash, lost.subtask)
        else:
            kept = place[line.reason.split(" is also the id of ")[1].removesuffix(", with other content")]
            assert (kept.id, kept.content_hash == lost.content_hash) == (lost.id, False)


def kept_of(samples: list[Sample]) -> list[Sample]:
    """Return the samples that are kept, in canonical order, by comparing each with all before it."""
    kept: list[Sample] = []
    for one in sorted(samples, key=lambda one: (one.content_hash, one.subtask, one.id, one.source, one.raw)):
        duplicate = any(
            (one.content_hash, one.subtask) == (other.content_hash, other.subtask) for other in kept
        )
        clash = any(one.id == other.id and one.content_hash != other.content_hash for other in kept)
        if not duplicate and not clash:
            kept.append(one)
    return kept


@pytest.mark.parametrize(
    "rows",
    [
        lambda at: row("a" * 30_000),
        lambda at: row("a" * 30_000, id=at),
        lambda at: row(f"{at // 2} " * 6_000),
        lambda at: row(f"{at} " * 6_000, id=at // 2),
        lambda at: {**row(f"{at} " * 6_000), "prompt": "q" if at == 0 else at},
    ],
    ids=["equal", "equal-but-for-ids", "each-twice", "each-id-twice", "unusable"],
)
def test_rows_are_not_kept_in_memory_whatever_they_are(tmp_path, monkeypatch, rows) -> None:
    monkeypatch.setattr(lines, "_BATCH", 16)
    path = write(tmp_path / "pool.jsonl", [rows(at) for at in range(1, 1001)] + [rows(0)])
    read_pool([path])  # what is imported and made once
    tracemalloc.start()
    read_pool([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_canonical_order_is_content_hash_then_id(pool_of) -> None:
    pool = pool_of(*[row(str(number), id=str(-number)) for number in range(50)])
    hashes = [sample.content_hash for sample in pool.samples]
    assert hashes == sorted(hashes)


def test_duplicate_names_the_line_that_is_kept(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [row("a", source="s"), row("b", source="s")])
    two = write(tmp_path / "two.jsonl", [row("b", source="s"), row("a", source="s", note="differs in bytes")])
    pool = read_pool([one, two])
    kept = {sample.messages[1].content: sample for sample in pool.samples}
    assert reasons(pool) == [
        (Path(line.file).name, line.line, f"duplicate of {kept[answer].file}:{kept[answer].line}")
        for line, answer in zip(pool.rejected, "ba" if kept["a"].file == str(one) else "ab", strict=True)
    ]
    assert (kept["b"].file, kept["b"].line) == (str(one), 2)  # equal in every byte: the one read first


def test_of_an_id_with_two_contents_the_same_is_kept_in_any_order(tmp_path: Path) -> None:
    pair = [row("a", id="x"), row("b", id="x")]
    kept = set()
    for rows in (pair, pair[::-1]):
        pool = read_pool([write(tmp_path / "pool.jsonl", rows)])
        (sample,) = pool.samples
        ((_, line, reason),) = reasons(pool)
        assert line == 3 - sample.line
        assert reason == f"same id: 'x' is also the id of {sample.file}:{sample.line}, with other content"
        kept.add(sample.content_hash)
    assert len(kept) == 1


def test_rejected_lines_come_in_reading_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [row("a"), b"{", row("a"), b"["])
    two = write(tmp_path / "two.jsonl", [b"{", row("b"), row("b")])
    assert [where for *where, _ in reasons(read_pool([two, one]))] == [
        ["two.jsonl", 1],
        ["two.jsonl", 3],
        ["one.jsonl", 2],
        ["one.jsonl", 3],
        ["one.jsonl", 4],
    ]


def test_same_file_twice_is_all_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path / "pool.jsonl", [row("a"), row("b")])
    pool = read_pool([path, path])
    assert len(pool.samples) == 2
    assert [reason for *_, reason in reasons(pool)] == [f"duplicate of {path}:1", f"duplicate of {path}:2"]


def test_files_of_the_same_name_are_different_sources(tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "pool.jsonl", [row(folder)]))
    other = write(tmp_path / "other.jsonl", [row("z")])
    sources = {sample.source for sample in read_pool([*paths, other]).samples}
    assert sources == {"x/pool", "y/pool", "other"}
    assert {sample.source for sample in read_pool([paths[0], paths[0]]).samples} == {"pool"}


def test_fingerprint_changes_with_every_byte_that_matters(tmp_path: Path) -> None:
    variants = [
        [row("a", id="1", source="s")],
        [row("b", id="1", source="s")],
        [row("a", id="2", source="s")],
        [row("a", id="1", source="t")],
        [row("a", id="1", source="s", note=1)],
        [row("a", id="1", source="s"), row("b", id="2", source="s")],
    ]
    prints = {read_pool([write(tmp_path / "pool.jsonl", rows)]).fingerprint for rows in variants}
    assert len(prints) == len(variants)


def test_hash_is_stable_over_versions(pool_of) -> None:
    # Ids of samples without one are their hashes, and users keep them: they must never change.
    (sample,) = pool_of({"prompt": "q", "completion": "ü"}).samples
    expected = hashlib.sha256('[["user","q"],["assistant","ü"]]'.encode()).hexdigest()
    assert sample.content_hash == expected


# Targets -------------------------------------------------------------------------------------------------


def test_subtask_is_the_column_or_else_the_files_name(tmp_path: Path) -> None:
    math = write(tmp_path / "math.jsonl", [row("a"), row("b", subtask="algebra"), row("c", subtask=None)])
    law = write(tmp_path / "law.jsonl", [row("d")])
    target = read_target([math, law])
    assert {sample.messages[1].content: sample.subtask for sample in target.samples} == {
        "a": "math",
        "b": "algebra",
        "c": "math",
        "d": "law",
    }


def test_one_sample_may_serve_two_subtasks_but_only_once_each(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.jsonl", [row("a", subtask=subtask) for subtask in ("x", "y", "x")])
    target = read_target([path])
    assert [sample.subtask for sample in target.samples] == ["x", "y"]
    assert reasons(target) == [("dev.jsonl", 3, f"duplicate of {path}:1")]


def test_bad_subtask_is_rejected_in_a_target_and_no_matter_in_a_pool(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.jsonl", [row("a"), row("b", subtask=5)])
    assert reasons(read_target([path])) == [
        ("dev.jsonl", 2, "wrong type: `subtask` is a number; expected a string")
    ]
    assert len(read_pool([path]).samples) == 2


def test_overlap_finds_target_samples_in_the_pool_whatever_their_columns(tmp_path: Path) -> None:
    pool = read_pool([write(tmp_path / "pool.jsonl", [row("a", id="1"), row("b", id="2"), row("c", id="3")])])
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "b"}]
    target = read_target([write(tmp_path / "dev.jsonl", [{"messages": turns}, row("z")])])
    assert [sample.id for sample in overlap(pool, target)] == ["2"]


def test_whole_numbers_of_a_table_with_gaps_are_ids() -> None:
    samples = read_pool([{"id": 3.0, "text": "a"}, {"id": float("nan"), "text": "b"}]).samples
    assert {sample.id for sample in samples} == {
        "3",
        next(one.content_hash for one in samples if one.answer == "b"),
    }


def test_a_source_is_a_name(pool_of) -> None:
    pool = pool_of(row("a", source="s" * 500), row("b", source="s" * 501))
    assert [line.reason for line in pool.rejected] == [
        "wrong type: `source` has 501 characters; expected a name"
    ]


def test_an_empty_id_is_none(pool_of) -> None:
    samples = pool_of(
        {"id": "", "prompt": "a", "completion": "b"}, {"id": "", "prompt": "c", "completion": "d"}
    )
    assert [sample.id for sample in samples.samples] == [sample.content_hash for sample in samples.samples]


def test_rows_that_were_forgotten_are_read_again(tmp_path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(f'{{"prompt": "{number}", "completion": "yes"}}\n' for number in range(50)))
    samples = read_pool([path]).samples
    expected = list(samples)
    samples.forget()
    assert list(samples) == expected
