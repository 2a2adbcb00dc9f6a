"""Read rows of every shape that people write prompts and answers in as conversations.

A row's shape is determined by its own keys, so that a file may mix shapes and the order of its lines changes nothing.
If a row fits several shapes, the first in `SHAPES` is used: a conversation holds more than the text that was made
from it.

Sources: TRL's "dataset formats" (messages, prompt and completion, chosen and rejected with or without a prompt, text),
LLaMA-Factory's data README (ShareGPT, Alpaca with ``system`` and ``history``, preference data), ms-swift's custom data
sets (``query``, ``response``, ``history``), Dolly (``instruction``, ``context``, ``response``), OpenAI's chat format,
xLAM (``query``, ``tools``, ``answers``). `schemas` has others, whose fields are nested.

Decisions:
    - The ``input`` or ``context`` of a question follows it after a blank line.
    - Columns that the user names take precedence over the row's keys. Fields with a value take precedence over empty
      fields, because every row of a table has every column.
    - In preference data, the chosen answer alone is learnt: what stands before it is its prompt. Without a prompt
      column, the prompt is what the chosen and the rejected text begin with.
    - Answers inside a ``prompt`` are context, as in TRL. Those of a ``history`` are learnt, as in LLaMA-Factory and
      ms-swift. `Layout.learn` changes both.
    - Of an ``answer`` and a ``solution``, the longer one is learnt: the other is the bare result (LIMO), or nothing.
    - A row that is marked as a bad answer is rejected, and the reason names the mark. The label of a plain text is a
      class and no such mark.
    - If a row has a ``text`` and parts of another shape, it is not read as a plain text, because it is more likely
      an incomplete row of the other shape. A message of a tree is no sample either.
    - A row with content that a text model cannot be given (images, sounds) is rejected with the content's name, because
      the rest of the row may make no sense without it. `Layout.drop_unsupported` leaves the content out instead, and
      with it tools, their calls and results, and thoughts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from msgspec.structs import replace

from clusterucb.samples import schemas, tools
from clusterucb.samples.fields import text_of
from clusterucb.samples.message import NOTHING, TEXT, TOOLS, Message, Unreadable
from clusterucb.samples.preferences import REJECTED, chosen, good_alone
from clusterucb.samples.questions import (
    ANSWERED,
    ASKED,
    Row,
    answered,
    as_context,
    present,
    question_of,
    with_system,
)
from clusterucb.samples.turns import TurnReader
from clusterucb.wording import printable

_ROW_EXTRAS = ("images", "videos", "audios", "image", "video", "audio")
_YES, _NO = ("True", "true", "TRUE"), ("False", "false", "FALSE")
_VERDICTS = ("label", "kto_tag")  # whether an answer is good: TRL's column and LLaMA-Factory's
_SYNONYMS = {"conversations": ("conversation",), "system": ("system_prompt",)}
_OTHER_NAMES = schemas.KEYS.union(*_SYNONYMS.values())
_BESIDE = frozenset(("id", "source", "subtask"))  # read from rows of every shape
_WITH_TURNS = frozenset((*_BESIDE, *tools.DEFINED))
LEARN = ("all", "last")
IDS = ("content", "column", "file")


class _Renamed(dict[str, Any]):
    """A row with additional keys for its named columns.

    Attributes:
        own: the row as it was read.
        names: the column that each additional key stands for.
    """

    def __init__(self, own: Row, names: Mapping[str, str], values: Mapping[str, Any]) -> None:
        super().__init__(own, **values)
        self.own = own
        self.names = names


class Conversation(NamedTuple):
    """What a row holds.

    Attributes:
        shape: one of `SHAPES`.
        messages: the turns; at least one is learnt.
        unread: the row's columns with a value that is not read.
    """

    shape: str
    messages: tuple[Message, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a sample is read from a row.

    Attributes:
        shape: one of `SHAPES`, or None to determine the shape from each row's keys.
        columns: maps a field of a shape, ``id``, ``source`` or ``subtask`` to the column that holds it.
        drop_unsupported: whether to leave out images, tools, their calls and results, and thoughts.
        learn: one of `LEARN`: learn all answers, or only the last, whatever marks and shapes say. None to follow them.
        roles: further names of roles, each with one of ``system``, ``user`` and ``assistant``.
        ids: one of `IDS`: a sample's id is the hash of its content, the column ``id``, or this column after the name
            of its file. None for the column, after the name of the file if files share an id.
    """

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    drop_unsupported: bool = False
    learn: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    ids: str | None = None

    def renamed(self, row: Row) -> Row:
        """Return a row with its named columns under the fields' names. A missing or null column changes nothing.

        Raises:
            Unreadable: the row has a known schema, but no answer.
        """
        if not self.columns and row.keys().isdisjoint(_OTHER_NAMES):
            return row
        names = {name: column for name, column in self.columns.items() if row.get(column) is not None}
        for name, others in _SYNONYMS.items():
            if row.get(name) is None and name not in names:
                names.update((name, other) for other in others if row.get(other) is not None)
        values = {name: row[column] for name, column in names.items()}
        if not row.keys().isdisjoint(schemas.KEYS - {*self.columns.values()}):
            for name, (column, value) in schemas.nested(row).items():
                names.setdefault(name, column)
                values.setdefault(name, value)
        return _Renamed(row, names, values) if names else row

    def conversation(self, row: Row) -> Conversation:
        """Return the turns of a renamed row.

        Raises:
            Unreadable: the row holds no such conversation.
        """
        name = self.shape or _shape_of(row, self.columns)
        shape = SHAPES[name]
        if self.shape and (missing := shape.missing(row)):
            raise Unreadable(f"no conversation: {missing}, which {name} needs{_keys(row)}")
        if not self.drop_unsupported and not row.keys().isdisjoint(_ROW_EXTRAS):
            for key in _ROW_EXTRAS:
                if tools.has(row, key):
                    raise Unreadable(
                        f"unsupported content: the row has {key!r} (--drop-unsupported removes it)"
                    )
        self._reader.begin()
        self._reader.used.update(_verdicts(row, name))
        messages = self._learnt(_read(shape, name, row, self._reader))
        if not self.drop_unsupported and name != TEXT:
            messages = self._with_tools(row, messages)
        if not any(message.learnt for message in messages):
            answers = any(message.role == "assistant" for message in messages)
            raise Unreadable("no answer to learn: all are context" if answers else _no_answer(name))
        return Conversation(name, messages, self._unread(row, name))

    @cached_property
    def _reader(self) -> TurnReader:
        return TurnReader(self.drop_unsupported, self.roles, self.learn is None)

    def _with_tools(self, row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return turns after the definitions of tools, which stand in a column, or in one of the turns."""
        for place in (row, self._reader.tools):
            if not place.keys().isdisjoint(tools.DEFINED) and (defined := tools.definitions(place)):
                return (Message(TOOLS, defined), *messages)
        return messages

    def _learnt(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self.learn is None:
            return tuple(messages)
        answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
        context = set(answers[:-1]) if self.learn == "last" else set()
        return tuple(
            replace(message, context=at in context) if message.role == "assistant" else message
            for at, message in enumerate(messages)
        )

    def _unread(self, row: Row, shape: str) -> tuple[str, ...]:
        """Return the columns with a value, and the fields of turns, that nothing was read from."""
        extras = _ROW_EXTRAS if self.drop_unsupported else ()
        own, used = row, self._reader.used | (_BESIDE if shape == TEXT else _WITH_TURNS)
        if isinstance(row, _Renamed):
            own, used = row.own, {row.names.get(name, name) for name in used}
        left = own.keys() - used
        if not left and not self._reader.unread:
            return ()
        columns = [key for key in own if key in left and key not in extras and own[key] not in NOTHING]
        return (*columns, *sorted(self._reader.unread))


def _read(shape: _Shape, name: str, row: Row, reader: TurnReader) -> list[Message]:
    """Return a row's turns. Of a row that also has a bad answer, only the good one is learnt."""
    messages = shape.read(row, reader)
    if name == TEXT or row.keys().isdisjoint(REJECTED):
        return messages
    return good_alone(row, messages, reader)


def _verdicts(row: Row, shape: str) -> list[str]:
    """Return the columns that mark a row as a good answer. Other labels, such as classes, are not read.

    Raises:
        Unreadable: the row is marked as a bad answer. The label of a plain text is a class, and so is a number outside
            of the prompts and answers of unpaired preference data.
    """
    good: list[str] = []
    if shape == TEXT or row.keys().isdisjoint(_VERDICTS):
        return good
    numbers = shape in ("prompt-completion", "pair")
    for name in _VERDICTS:
        value = row.get(name)
        if value is False or value in (*_NO, *((0, "0") if numbers else ())):
            said = "false" if value is False else printable(str(value))
            raise Unreadable(
                f"unsupported content: the row is marked as a bad answer (`{name}` is {said}); expected a good one. If "
                f"`{name}` is a class, rename the column"
            )
        if value is True or value in (*_YES, *((1, "1") if numbers else ())):
            good.append(name)
    return good


def _messages(row: Row, reader: TurnReader) -> list[Message]:
    return with_system(row, reader.turns(row, "messages"), reader)


def _conversations(row: Row, reader: TurnReader) -> list[Message]:
    return with_system(row, reader.turns(row, "conversations"), reader)


def _prompt_completion(row: Row, reader: TurnReader) -> list[Message]:
    asked = as_context(reader.text_or_turns(row, "prompt", "user"))
    return with_system(row, [*asked, *reader.text_or_turns(row, "completion", "assistant")], reader)


def _alpaca(row: Row, reader: TurnReader) -> list[Message]:
    reader.used.add("output")
    answer = Message("assistant", text_of(row, "output"))
    return with_system(row, [*question_of(row, "instruction", reader), answer], reader)


def _pair(row: Row, reader: TurnReader) -> list[Message]:
    answer = reader.text_or_turns(row, answered(row), "assistant")
    return with_system(row, [*question_of(row, present(row, ASKED), reader), *answer], reader)


def _called(row: Row, reader: TurnReader) -> list[Message]:
    """Return a question and the calls that answer it (xLAM)."""
    reader.used.add("answers")
    given = row["answers"]
    if isinstance(given, str) and given.strip() and given.lstrip()[0] not in "[{":
        answer = [Message("assistant", given)]  # no tool fits the question
    else:
        calls = () if reader.drop_unsupported else tools.read_calls(given, "`answers`")
        answer = [Message("assistant", "", calls=calls)] if calls else []
    return with_system(row, [*question_of(row, present(row, ASKED), reader), *answer], reader)


def _plain(row: Row, reader: TurnReader) -> list[Message]:
    reader.used.add("text")
    return [Message(TEXT, text_of(row, "text"))]


@dataclass(frozen=True)
class _Shape:
    """A shape of rows.

    Attributes:
        needs: groups of fields; the row needs one field of each.
        read: reads the turns.
        optional: fields that are read if they are there.
    """

    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row, TurnReader], list[Message]]
    optional: tuple[str, ...] = ("system",)

    @cached_property
    def reads(self) -> frozenset[str]:
        """All fields that may be read."""
        return frozenset((*(name for names in self.needs for name in names), *self.optional))

    def fits(self, present: set[str]) -> bool:
        """Return whether a row with these fields has all that the shape needs."""
        return not any(map(present.isdisjoint, self.needs))

    def missing(self, row: Row) -> str:
        """Return which needed fields a row lacks, in words; "" if it has all."""
        lacks = [
            " or ".join(f"`{name}`" for name in names)
            for names in self.needs
            if all(row.get(name) is None for name in names)
        ]
        return f"{' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} missing" if lacks else ""


_QUESTION = ("input", "context", "history", "system")
SHAPES: dict[str, _Shape] = {
    "messages": _Shape((("messages",),), _messages),
    "conversations": _Shape((("conversations",),), _conversations),
    "prompt-completion": _Shape((("prompt",), ("completion",)), _prompt_completion),
    "alpaca": _Shape((("instruction",), ("output",)), _alpaca, _QUESTION),
    "chosen": _Shape((("chosen",),), chosen, ("messages", "conversations", *ASKED, *_QUESTION)),
    "calls": _Shape((ASKED, ("answers",), ("tools",)), _called, _QUESTION),
    "pair": _Shape((ASKED, ANSWERED), _pair, _QUESTION),
    TEXT: _Shape((("text",),), _plain, ()),
}
NO_SHAPE = (
    "no conversation: expected `messages`, `conversations`, `prompt` and `completion`, `instruction` and `output`, "
    "`question` and `answer`, `chosen` or `text`"
)
_EMPTY: tuple[object, ...] = ("", [])  # the values of a table's empty cells
_NEEDED = dict.fromkeys(name for shape in SHAPES.values() for names in shape.needs for name in names).keys()
# The fields that --columns may name: those of the shapes, and those besides a conversation.
FIELDS = (*_NEEDED, "context", "system", "history", "rejected", "id", "source", "subtask")


def _shape_of(row: Row, named: Mapping[str, str]) -> str:
    """Return a row's shape. Shapes with a named column come first, and fields with a value before empty ones."""
    present = {key for key in row.keys() & _NEEDED if row[key] is not None}
    filled = {key for key in present if row[key] not in _EMPTY}
    if "input" in filled:
        filled |= {"instruction"} & present  # the input of an empty instruction
    if (
        "chosen" in filled
        and row.get("rejected") not in NOTHING
        and named.keys().isdisjoint(filled - {"chosen"})
    ):
        return "chosen"
    if {"text"} <= present <= {"text"} and isinstance(row.get("role"), str) and "parent_id" in row:
        raise Unreadable(
            "no conversation: the row is one message of a tree (`role`, `parent_id`); expected a conversation. Join "
            "the messages on each path to an answer as `messages`"
        )
    names = sorted(SHAPES, key=lambda name: named.keys().isdisjoint(SHAPES[name].reads)) if named else SHAPES
    for keys in filter(None, (filled, present)):  # no shape fits a row without fields
        for name in names:
            if SHAPES[name].fits(keys) and (name != TEXT or name in named or present == {TEXT}):
                return name
    own = row.own if isinstance(row, _Renamed) else row
    raise Unreadable(f"{NO_SHAPE}{_keys(row)}{schemas.advice(own)}")


def _no_answer(shape: str) -> str:
    if shape not in ("messages", "conversations"):
        return "no assistant turn: the row has no answer; expected one"
    return (
        "no assistant turn: no turn is an answer; expected one. If its role has another name: --roles NAME=assistant. "
        f"If the answer is in a column: --columns prompt={shape},completion=COLUMN"
    )


def _keys(row: Row) -> str:
    keys = list(row.own if isinstance(row, _Renamed) else row)
    names = [f"`{printable(key):.40}`" for key in keys[:8]]
    return (
        f"; its keys are {', '.join(names)}{', ...' if len(keys) > 8 else ''}"
        if names
        else "; it has no keys"
    )
