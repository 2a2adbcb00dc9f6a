"""Read the prompt and the good answer of a row of preference data: only the answer is learnt."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from clusterucb.samples.message import NOTHING, Message, Unreadable
from clusterucb.samples.questions import ASKED, Row, as_context, present, question_of, with_system
from clusterucb.samples.turns import TurnReader, listed


def chosen(row: Row, reader: TurnReader) -> list[Message]:
    """Return the prompt of a row of preference data as context, and its chosen answer."""
    answer = reader.text_or_turns(row, "chosen", "assistant")
    reader.used.add("rejected")
    if any(message.role == "user" for message in answer):  # the prompt is part of `chosen`
        bad = listed(row.get("rejected"))
        other = reader.turns(row, "rejected") if isinstance(bad, list) and bad else []
        return with_system(row, [*_prompt_before(row, answer, reader), *_after_prompt(answer, other)], reader)
    before = next((key for key in ("messages", "conversations") if row.get(key) not in NOTHING), None)
    if row.get("prompt") not in (None, []):
        if isinstance(listed(row["prompt"]), str) and row["prompt"]:
            asked = question_of(row, "prompt", reader)
        else:
            asked = reader.text_or_turns(row, "prompt", "user")
    elif before:
        asked = reader.turns(row, before)
        if asked[-1].role == "assistant":
            raise Unreadable(
                f"no conversation: `{before}` ends with an answer and `chosen` is another one; expected a user's turn "
                f"at the end. With --format {before}, `chosen` is not read"
            )
    elif any(row.get(name) for name in ASKED):
        asked = question_of(row, present(row, ASKED), reader)
    else:
        return with_system(row, _split(row, answer), reader)
    return with_system(row, [*as_context(asked), *answer], reader)


REJECTED = ("rejected_response", "rejected_messages")  # ms-swift's columns beside a whole conversation


def good_alone(row: Row, messages: list[Message], reader: TurnReader) -> list[Message]:
    """Return a conversation with its earlier answers as context, if the row has a bad answer beside it (ms-swift).

    ``rejected_messages`` is another conversation: what differs from it is learnt. ``rejected_response`` is a bad answer
    in place of the last one.
    """
    names = [name for name in REJECTED if row.get(name) not in NOTHING]
    if not names or not any(message.role == "assistant" for message in messages):
        return messages
    reader.used.update(names)
    if "rejected_messages" in names and any(message.role == "user" for message in messages):
        bad = reader.turns(row, "rejected_messages")
        said = [message for message in messages if message.role != "system"]
        start = len(messages) - len(said)
        return [*messages[:start], *_after_prompt(said, [one for one in bad if one.role != "system"])]
    last = max(at for at, message in enumerate(messages) if message.role == "assistant")
    return [*as_context(messages[:last]), *messages[last:]]


def _prompt_before(row: Row, chosen: list[Message], reader: TurnReader) -> list[Message]:
    """Return the turns of a ``prompt`` that belong before a chosen conversation, which mostly holds its prompt itself.

    These are system turns, if the conversation has none; the question to an answer that the conversation begins with;
    and earlier turns that end with an answer. A question is not put before another question: if the conversation does
    not have it, the ``prompt`` is named as not read.
    """
    if row.get("prompt") in (None, [], ""):
        return []
    asked = reader.text_or_turns(row, "prompt", "user")
    system = [] if chosen[0].role == "system" else [one for one in asked if one.role == "system"]
    said = [one for one in asked if one.role != "system"]
    first = [one for one in chosen if one.role != "system"]
    if not said or _holds(first, said):
        return system
    if said[-1].role == "assistant" or first[0].role == "assistant":
        return as_context([*system, *said])
    reader.used.discard("prompt")
    return []


def _holds(chosen: Sequence[Message], asked: Sequence[Message]) -> bool:
    """Return whether the turns of a prompt stand in a conversation, one after the other, but for whitespace.

    A prompt that is one text may also be one of the conversation's questions as a template writes it, or a part of it.
    """
    wanted = [(one.role, one.content.strip()) for one in asked]
    turns = [(one.role, one.content.strip()) for one in chosen]
    if any(turns[at : at + len(wanted)] == wanted for at in range(len(turns))):
        return True
    questions = [content for role, content in turns if role == "user" and content]
    text = wanted[0][1]
    is_question = len(asked) == 1 and turns[0][0] == "user"
    return is_question and any(question in text or text in question for question in questions)


def _after_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return a conversation whose answers are context up to where it differs from the rejected one."""
    first = _alike(as_context(chosen), as_context(rejected))  # marks make no difference
    if first == min(len(chosen), len(rejected)):  # they do not differ
        first = 1 + max(at for at, message in enumerate(chosen) if message.role == "user")
    return [*as_context(chosen[:first]), *chosen[first:]]


def _alike(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items two sequences begin with that are the same."""
    differing = (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(first), len(second)))


def _split(row: Row, answer: list[Message]) -> list[Message]:
    """Return what a chosen and a rejected text both begin with as the prompt, and the rest of the chosen as the answer.

    The prompt ends before a blank, so that no word is cut (TRL's ``extract_prompt`` compares characters).
    """
    bad = row.get("rejected")
    if not (isinstance(bad, str) and isinstance(row["chosen"], str)):
        raise Unreadable("no conversation: `chosen` is only an answer; expected a `prompt` too")
    text = row["chosen"]
    end = max((at for at in range(_alike(text, bad)) if text[at].isspace()), default=0)
    if not text[:end].strip():
        raise Unreadable(
            "no conversation: `chosen` is only an answer, and begins differently from `rejected`; expected a `prompt`, "
            "or texts that both begin with it"
        )
    return [Message("user", text[:end]), *(replace(message, content=text[end:]) for message in answer)]
