"""What of a row is learnt: marks of turns, prompts, histories, preference data, and what the user asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.samples.message import Unreadable
from clusterucb.samples.shapes import Layout


def learnt(row: dict[str, Any], **options: Any) -> list[str]:
    """Return the contents of a row, those that are learnt with a star."""
    layout = Layout(**options)
    messages = layout.conversation(layout.renamed(row)).messages
    return [f"{message.content}*" if message.learnt else message.content for message in messages]


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **marks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **marks}


CONTEXT = [
    {"train": False},
    {"training": False},
    {"loss": False},
    {"loss": 0},
    {"loss_weight": 0.0},
    {"weight": 0},
    {"masked": True},
    {"output_with_loss": False},
    {"train": True, "weight": 0},
]
LEARNT = [
    {"train": True},
    {"loss": None},
    {"loss_weight": 1.0},
    {"weight": 1},
    {"masked": False},
    {"train_detail": []},
]


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize(("mark", "star"), [*((m, "") for m in CONTEXT), *((m, "*") for m in LEARNT)])
def test_a_marked_answer_is_context(key: str, mark: dict, star: str) -> None:
    row = {key: [asked("q"), said("a", **mark), asked("r"), said("b")]}
    assert learnt(row) == ["q", f"a{star}", "r", "b*"]
    sharegpt = {key: [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **mark}, said("b")]}
    assert learnt(sharegpt) == ["q", f"a{star}", "b*"]


@given(
    st.dictionaries(
        st.sampled_from(["train", "training", "loss", "loss_scale", "loss_weight", "weight", "masked"]),
        st.sampled_from([0, 1, True, False, None, 0.0, 1.0]),
    )
)
def test_an_answer_is_context_if_any_mark_says_so(marks: dict) -> None:
    row = {"messages": [asked("q"), said("a", **marks), asked("r"), said("b")]}
    unlearnt = any(value is not None and bool(value) == (name == "masked") for name, value in marks.items())
    assert learnt(row) == ["q", "a" if unlearnt else "a*", "r", "b*"]


def test_pairs_have_the_marks_of_their_answers() -> None:
    pair = {"system": "", "input": "q", "output": "a", "output_with_loss": False}
    row = {"conversation": [pair, {"input": "r", "output": "b", "output_with_loss": True}]}
    assert learnt(row) == ["q", "a", "r", "b*"]
    assert Layout().conversation(Layout().renamed(row)).unread == ()


UNCLEAR = [
    {"weight": 0.5},
    {"loss_scale": 2.0},
    {"train": "false"},
    {"weight": 2},
    {"train_detail": [{"begin_offset": 0}]},
]


@pytest.mark.parametrize("mark", UNCLEAR)
def test_what_the_user_says_counts_whatever_marks_say(mark: dict) -> None:
    row = {"messages": [asked("q"), said("a", **mark), asked("r"), said("b", weight=0)]}
    with pytest.raises(Unreadable, match="--learn all or --learn last sets marks aside"):
        learnt(row)
    assert learnt(row, learn="all") == ["q", "a*", "r", "b*"]
    assert learnt(row, learn="last") == ["q", "a", "r", "b*"]


def test_marks_of_other_turns_change_nothing() -> None:
    marks = {"train": False, "loss": 0.3, "weight": 0, "masked": True}
    row = {"messages": [{"role": "system", "content": "s", **marks}, {**asked("q"), **marks}, said("a")]}
    assert learnt(row) == ["s", "q", "a*"]


def test_a_row_without_an_answer_to_learn_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"^no answer to learn: all are context$"):
        learnt({"messages": [asked("q"), said("a", train=False)]})


def test_answers_inside_a_prompt_are_context() -> None:
    prompt = [asked("q"), said("a"), asked("r")]
    assert learnt({"prompt": prompt, "completion": [said("b")]}) == ["q", "a", "r", "b*"]
    assert learnt({"prompt": prompt, "completion": "b"}) == ["q", "a", "r", "b*"]
    assert learnt({"prompt": prompt, "chosen": [said("b")], "rejected": [said("c")]}) == ["q", "a", "r", "b*"]
    assert learnt({"prompt": [said("a")], "completion": "b"}) == ["a", "b*"]


def test_answers_of_a_history_are_learnt() -> None:
    row = {"instruction": "r", "output": "b", "history": [["q", "a"]]}
    assert learnt(row) == ["q", "a*", "r", "b*"]
    assert learnt({"query": "r", "response": "b", "history": [["q", "a"]]}) == ["q", "a*", "r", "b*"]
    for history in ([asked("q"), said("a")], json.dumps([asked("q"), said("a")])):
        assert learnt({"query": "r", "response": "b", "history": history}) == ["q", "a*", "r", "b*"]
    with pytest.raises(Unreadable, match="expected such pairs, or turns"):
        learnt({"query": "r", "response": "b", "history": ["q", "a"]})


HISTORY = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "r"}]
GOOD, BAD = {"from": "gpt", "value": "b"}, {"from": "gpt", "value": "c"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": HISTORY, "chosen": GOOD, "rejected": BAD}, ["q", "a", "r", "b*"]),
        ({"messages": HISTORY, "chosen": [GOOD], "rejected": [BAD]}, ["q", "a", "r", "b*"]),
        ({"conversations": HISTORY[:1], "chosen": "b", "rejected": "c"}, ["q", "b*"]),
        ({"conversations": HISTORY[:1], "chosen": GOOD, "rejected": BAD, "system": "s"}, ["s", "q", "b*"]),
        ({"instruction": "q", "input": "i", "chosen": "b", "rejected": "c"}, ["q\n\ni", "b*"]),
        (
            {"instruction": "r", "history": [["q", "a"]], "chosen": "b", "rejected": "c"},
            ["q", "a", "r", "b*"],
        ),
        ({"chosen": [*HISTORY, GOOD], "rejected": [*HISTORY, BAD]}, ["q", "a", "r", "b*"]),
        ({"chosen": [*HISTORY, GOOD], "rejected": [HISTORY[0], BAD]}, ["q", "a*", "r", "b*"]),
        ({"chosen": [*HISTORY, GOOD]}, ["q", "a", "r", "b*"]),
        (
            {
                "prompt": "q",
                "messages": [asked("q"), said("b")],
                "chosen": [asked("q"), said("b")],
                "rejected": [asked("q"), said("c")],
            },
            ["q", "b*"],
        ),
        (
            {"chosen": "Human: q Assistant: yes it is", "rejected": "Human: q Assistant: no"},
            ["Human: q Assistant:", " yes it is*"],
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: Sure", "rejected": "\n\nHuman: q\n\nAssistant: Sorry"},
            ["\n\nHuman: q\n\nAssistant:", " Sure*"],
        ),
        ({"question": "q", "chosen": "b", "rejected": "c", "prompt": "q"}, ["q", "b*"]),
        (
            {"prompt": HISTORY[:2], "chosen": [asked("r"), said("b")], "rejected": [asked("r"), said("c")]},
            ["q", "a", "r", "b*"],
        ),
        (
            {"prompt": "other", "chosen": [asked("q"), said("b")], "rejected": [asked("q"), said("c")]},
            ["q", "b*"],
        ),
    ],
)
def test_of_preference_data_the_good_answer_alone_is_learnt(row: dict, expected: list[str]) -> None:
    assert learnt(row) == expected


SYSTEM = {"role": "system", "content": "s"}
BEFORE = [SYSTEM, asked("Why?"), said("a"), asked(" Which one?\n")]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "prompt",
    [
        "Which one?",
        "Which one?  ",
        [asked("Which one?")],
        [asked("Why?"), said("a"), asked("Which one?")],
        [SYSTEM, asked("Why?"), said("a"), asked("Which one?\n")],
        "<|user|>\nWhy?</s>\n<|assistant|>\na</s>\n<|user|>\nWhich one?</s>\n<|assistant|>\n",
        json.dumps([asked("Which one?")]),
        asked("Which one?"),
    ],
)
def test_a_prompt_that_the_chosen_conversation_holds_is_not_repeated(first: int, prompt: object) -> None:
    before = BEFORE[first:]
    row = {"prompt": prompt, "chosen": [*before, said("b")], "rejected": [*before, said("c")]}
    system = ["s"] if not first or (isinstance(prompt, list) and prompt[0] == SYSTEM) else []
    assert learnt(row) == [*system, "Why?", "a", " Which one?\n", "b*"]
    assert Layout().conversation(row).unread == ()


def test_a_prompt_that_the_chosen_conversation_does_not_hold_is_named() -> None:
    row = {"prompt": "x", "chosen": [asked("q"), said("b")], "rejected": [asked("q"), said("c")]}
    assert Layout().conversation(row).unread == ("prompt",)


@pytest.mark.parametrize(
    ("row", "expected", "unread"),
    [
        ({"question": "q", "solution": "2 + 2 is 4", "answer": "4"}, ["q", "2 + 2 is 4*"], ("answer",)),
        ({"question": "q", "solution": "4", "answer": "2 + 2 is 4"}, ["q", "2 + 2 is 4*"], ("solution",)),
        ({"question": "q", "completion": "2 + 2 is 4", "answer": "4"}, ["q", "2 + 2 is 4*"], ("answer",)),
        ({"question": "q", "solution": "", "answer": "4"}, ["q", "4*"], ()),
        ({"question": "q", "solution": None, "answer": "4"}, ["q", "4*"], ()),
        ({"question": "q", "solution": ["2 + 2"], "answer": "4"}, ["q", "4*"], ("solution",)),
        (
            {"question": "q", "solution": "2 + 2 is 4", "response": "a", "answer": "4"},
            ["q", "a*"],
            ("solution", "answer"),
        ),
    ],
)
def test_of_a_solution_and_its_result_the_solution_is_learnt(
    row: dict, expected: list[str], unread: tuple[str, ...]
) -> None:
    assert learnt(row) == expected
    assert Layout().conversation(row).unread == unread


def test_an_answer_that_the_user_names_is_learnt_beside_a_solution() -> None:
    row = {"problem": "q", "solution": "2 + 2 is 4", "final": "4"}
    assert learnt(row, columns={"question": "problem", "answer": "final"}) == ["q", "4*"]
    assert learnt(row, columns={"question": "problem", "answer": "solution"}) == ["q", "2 + 2 is 4*"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [*HISTORY, GOOD], "rejected_response": "c"}, ["q", "a", "r", "b*"]),
        ({"messages": [SYSTEM, asked("q"), said("b")], "rejected_response": "c"}, ["s", "q", "b*"]),
        (
            {"messages": [*HISTORY, said("b")], "rejected_messages": [*HISTORY, said("c")]},
            ["q", "a", "r", "b*"],
        ),
        (
            {
                "messages": [SYSTEM, *HISTORY, said("b"), asked("t"), said("d")],
                "rejected_messages": [*HISTORY, said("c"), asked("t"), said("d")],
            },
            ["s", "q", "a", "r", "b*", "t", "d*"],
        ),
        (
            {
                "messages": [asked("q"), said("a", loss=False), asked("r"), said("b"), asked("t"), said("d")],
                "rejected_messages": [asked("q"), said("a"), asked("r"), said("b"), asked("t"), said("e")],
            },
            ["q", "a", "r", "b", "t", "d*"],
        ),
        ({"messages": [*HISTORY, GOOD], "rejected_messages": [asked("x"), BAD]}, ["q", "a*", "r", "b*"]),
        (
            {"query": "r", "response": "b", "history": [["q", "a"]], "rejected_response": "c"},
            ["q", "a", "r", "b*"],
        ),
        (
            {"instruction": "r", "output": "b", "history": [["q", "a"]], "rejected_response": "c"},
            ["q", "a", "r", "b*"],
        ),
        ({"messages": [*HISTORY, GOOD], "rejected_response": None}, ["q", "a*", "r", "b*"]),
        ({"messages": [*HISTORY, GOOD], "rejected_messages": []}, ["q", "a*", "r", "b*"]),
    ],
)
def test_beside_a_bad_answer_the_good_one_alone_is_learnt(row: dict, expected: list[str]) -> None:
    assert learnt(row) == expected
    assert Layout().conversation(row).unread == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "yes", "rejected": "no"}, "begins differently from `rejected`; expected a `prompt`"),
        ({"chosen": "yes"}, "`chosen` is only an answer; expected a `prompt` too"),
        (
            {"messages": [*HISTORY, BAD], "chosen": "b", "rejected": "c"},
            "`messages` ends with an answer and `chosen`",
        ),
    ],
)
def test_preference_data_without_a_clear_prompt_is_refused(row: dict, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^no conversation: .*{reason}"):
        learnt(row)


def test_the_user_may_have_all_answers_learnt_or_the_last() -> None:
    marked = {"messages": [asked("q"), said("a", weight=0), asked("r"), said("b"), asked("t")]}
    assert learnt(marked, learn="all") == ["q", "a*", "r", "b*", "t"]
    assert learnt(marked, learn="last") == ["q", "a", "r", "b*", "t"]
    prompt = {"prompt": [asked("q"), said("a"), asked("r")], "completion": "b"}
    assert learnt(prompt, learn="all") == ["q", "a*", "r", "b*"]
    assert learnt({"text": "t"}, learn="last") == ["t*"]
