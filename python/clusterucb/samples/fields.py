"""Read a field of a row as a text, and say what to do about a field that is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clusterucb.samples.message import TEXT, Unreadable, kind_of
from clusterucb.wording import printable

_CHOICES = ("choices", "options", "endings")  # columns with the texts that an answer's number chooses from
# A list of turns in Python's notation. White space is never tried twice: a text may hold a million blanks.
_PYTHON = re.compile(r"\s*+\[?+\s*+\{\s*+'(?:role|from|content|value|tool_calls)'\s*+:")


def text_of(row: Mapping[str, Any], key: str) -> str:
    """Return a field's text.

    Raises:
        Unreadable: it is not a string, or it is a list of turns in Python's notation, but for a plain text.
    """
    value = row[key]
    if not isinstance(value, str):
        column = printable(getattr(row, "names", {}).get(key, key))
        advice = _instead(value, f".{column}" if column.isidentifier() else f'.["{column}"]', row)
        raise Unreadable(f"wrong type: `{column}` is {kind_of(value)}; expected a string{advice}")
    if key != TEXT:
        refuse_python(value, key)
    return value


def _instead(value: object, path: str, row: Mapping[str, Any]) -> str:
    """Return what to do about a field that is no text; ``path`` is the field for jq."""
    if isinstance(value, bool):
        return ", such as yes or no: write the answer in words"
    if isinstance(value, int | float):
        choices = next((name for name in _CHOICES if isinstance(row.get(name), list)), None)
        if choices:
            return f". If it is the number of a choice: jq -c '{path} = .{choices}[{path}]'"
        return f". If the number is the text: jq -c '{path} |= tostring'"
    if isinstance(value, list) and value and isinstance(value[0], str):
        return f". If each of its texts will do, take one: jq -c '{path} = {path}[0]'"
    if isinstance(value, dict) and (names := [name for name, text in value.items() if isinstance(text, str)]):
        name = f"{printable(names[0]):.40}"
        return f". If its field `{name}` is the text: jq -c '{path} = {path}[\"{name}\"]'"
    return ""


def refuse_python(value: object, key: str) -> None:
    """Refuse a text that is a list of turns in Python's notation, as a table has it that was written without JSON.

    Raises:
        Unreadable: it is one.
    """
    if isinstance(value, str) and _PYTHON.match(value):
        raise Unreadable(
            f"wrong type: `{key}` is a list in Python's notation, in a text; expected JSON. Write the table with "
            f"json.dumps, or convert it: frame[{key!r}] = frame[{key!r}].map(ast.literal_eval).map(json.dumps)"
        )
