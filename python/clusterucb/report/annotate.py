"""A field of our own in a line of JSON whose other bytes stay as they are.

Decoding a line and encoding it again would change it: numbers (``1.0``, ``1e400``, integers of 30 digits), escapes,
spaces, and keys that stand there twice. So the field is put before the closing brace, and only where a row has
such a field already is the line cut at the commas between its fields, to leave the old one out.

Whether lines are annotated is asked anew with every call, and not taken from the file that an earlier one wrote: the
field may have come with the pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

FIELD = "clusterucb"

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{},]', re.DOTALL)


def annotated(line: bytes, value: dict[str, Any]) -> bytes:
    """Return a JSON object with `FIELD` as its last field, in place of any that it had.

    Args:
        line: a JSON object.
        value: what the field holds.
    """
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    first, last = line.index(b"{") + 1, line.rindex(b"}")
    kept = [line[first:last]] if fields else []
    if FIELD in fields:
        kept = [field for field in _fields(line[first:last]) if _key(field) != FIELD]
    ours = msgspec.json.encode({FIELD: value})[1:-1]
    return b"".join((line[:first], b",".join([*kept, ours]), line[last:]))


def _fields(inside: bytes) -> Iterator[bytes]:
    """Yield what stands between the commas of an object's own level."""
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
