"""Add clusterucb's own field to a line of JSON, and leave all other bytes as they are.

Decisions:
    - A line is not decoded and encoded again, because that would change it: numbers (``1.0``, ``1e400``, integers of 30
      digits), escapes, spaces and duplicate keys. Instead, the field is inserted before the closing brace. Only if the
      line has such a field already is it cut at the commas between its fields, to leave the old one out.
    - Each call states whether lines are annotated. A file that an earlier call wrote cannot tell, because its field may
      have come with the pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

FIELD = "clusterucb"

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{},]', re.DOTALL)


def annotated(line: bytes, value: dict[str, Any]) -> bytes:
    """Return a JSON object with `FIELD` as its last field; it replaces any field of that name.

    Args:
        line: a JSON object.
        value: the value of the field.
    """
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    first, last = line.index(b"{") + 1, line.rindex(b"}")
    kept = [line[first:last]] if fields else []
    if FIELD in fields:
        kept = [field for field in _fields(line[first:last]) if _key(field) != FIELD]
    ours = msgspec.json.encode({FIELD: value})[1:-1]
    return b"".join((line[:first], b",".join([*kept, ours]), line[last:]))


def _fields(inside: bytes) -> Iterator[bytes]:
    """Yield an object's fields, the parts between the commas of its own level.

    Args:
        inside: the object without its braces.
    """
    depth = begin = 0
    for token in _TOKEN.finditer(inside):
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        elif token[0] == b"," and not depth:
            yield inside[begin : token.start()]
            begin = token.end()
    yield inside[begin:]


def _key(field: bytes) -> str:
    name = _TOKEN.search(field)
    assert name is not None
    return str(msgspec.json.decode(name[0]))
