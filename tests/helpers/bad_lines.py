"""Lines that cannot be used, and what is said of each: one for every way in which people's files go wrong."""

from __future__ import annotations

BAD_LINES: list[tuple[bytes, str]] = [
    (b"{", "not JSON: the line is incomplete"),
    (b'{"prompt": "q", "completion": "a"', "not JSON: the line is incomplete"),
    (b"{'a': 1}", "not JSON: "),
    (b'{"prompt": "q", "completion": NaN}', "not JSON: NaN is not a JSON number; expected null"),
    (b'{"prompt": "q", "completion": "a", "x": -Infinity}', "not JSON: Infinity is not a JSON number"),
    (b'{"prompt": "q", "completion": "a", "x": 1e999}', "not JSON: Number out of range"),
    (b'{"prompt": "q", "completion": "\xff"}', "not UTF-8: byte 0xff"),
    (b'{"prompt": "q", "completion": "\xed\xa0\x80"}', "not UTF-8: byte 0xed"),
    (b'{"prompt": "q", "completion": "\\ud800\\u0041"}', "not JSON: half of a surrogate pair, \\ud800"),
    (b'{"prompt": "q", "completion": "\\udc00"}', "not JSON: half of a surrogate pair, \\udc00"),
    (b'{"prompt": "q", "completion": "\\ud800"}', "not JSON: half of a surrogate pair, \\ud800"),
    (b'{"prompt": "q", "completion": "a", "\\ud800": 1}', "not JSON: half of a surrogate pair"),
    (b'{"prompt": "q", "completion": "a\0"}', "not JSON: a NUL byte at 32"),
    (b"\0" * 100, "not JSON: a NUL byte at 0"),
    (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON: nested too deeply"),
    (
        b'{"id": ' + b"9" * 5000 + b', "prompt": "q", "completion": "a"}',
        "not JSON: Integer value out of range",
    ),
    (b'{"prompt": "q", "completion": "a"} x', "not JSON: "),
    (b"[1, 2]", "not an object: the line is a list"),
    (b'"text"', "not an object: the line is a string"),
    (b"5", "not an object: the line is a number"),
    (b"true", "not an object: the line is true or false"),
    (b"null", "not an object: the line is null"),
    (b"{}", "no conversation: expected `messages`, `conversations`, `prompt` and `completion`, "),
    (b"{}", "; it has no keys"),
    (b'{"prompt": "q", "text": "t"}', "or `text`; its keys are `prompt`, `text`"),
    (b'{"topic": "q", "reply": "t"}', "; its keys are `topic`, `reply`"),
    (b'{"prompt": 5, "completion": "a"}', "wrong type: `prompt` is a number; expected a string"),
    (b'{"prompt": "q", "completion": null}', "no conversation: expected"),
    (b'{"prompt": "q", "completion": {"a": 1}}', "wrong type: `completion` is an object; expected a string"),
    (b'{"text": ["a"]}', "wrong type: `text` is a list; expected a string"),
    (b'{"messages": "hello"}', "wrong type: `messages` is a string; expected a list of turns"),
    (b'{"messages": []}', "wrong type: `messages` is empty; expected a list of turns"),
    (
        b'{"messages": ["hello"]}',
        "wrong type: turn 1 of `messages` is not an object with `role` and `content`",
    ),
    (
        b'{"messages": [{"content": "a"}]}',
        "wrong type: turn 1 of `messages` is not an object with `role` and",
    ),
    (b'{"messages": [{"role": "user"}]}', "wrong type: the content of turn 1 is null; expected a string"),
    (
        b'{"messages": [{"role": "boss", "content": "a"}]}',
        "unknown role: 'boss' in turn 1; expected system, user, as",
    ),
    (
        b'{"messages": [{"role": ["user"], "content": "a"}]}',
        "unknown role: ['user'] in turn 1; expected system",
    ),
    (b'{"messages": [{"role": "assistant", "content": 7}]}', "wrong type: the content of turn 1 is a number"),
    (
        b'{"messages": [{"role": "assistant", "content": [7]}]}',
        "wrong type: a part of turn 1 is not an object with `type`",
    ),
    (b'{"messages": [{"role": "user", "content": "q"}]}', "no assistant turn"),
    (b'{"conversations": [{"from": "human", "value": "q"}]}', "no assistant turn"),
    (b'{"conversations": [{"from": "gpt"}]}', "wrong type: the content of turn 1 is null; expected a string"),
    (
        b'{"id": 1.5, "prompt": "q", "completion": "a"}',
        "wrong type: `id` is a number; expected a string or a whole",
    ),
    (
        b'{"id": true, "prompt": "q", "completion": "a"}',
        "wrong type: `id` is true or false; expected a string or",
    ),
    (
        b'{"id": ["a"], "prompt": "q", "completion": "a"}',
        "wrong type: `id` is a list; expected a string or a whole",
    ),
    (
        b'{"source": 3, "prompt": "q", "completion": "a"}',
        "wrong type: `source` is a number; expected a string",
    ),
    (
        b'{"instruction": "i", "output": "o", "history": ["q"]}',
        "wrong type: `history` is not a list of pairs",
    ),
    (
        b'{"chosen": "\\n\\nHuman: q"}',
        "no conversation: `chosen` is only an answer; expected a `prompt` too",
    ),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}]}',
        "unsupported content: turn 1 holds a part of type 'image_url'; expected text (--drop-unsupported removes",
    ),
    (
        b'{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}',
        "wrong type: a tool call in turn 1 has no `name`; expected the tool's name and `arguments`",
    ),
    (
        b'{"messages": [{"role": "tool_call", "content": "f(x)"}, {"role": "assistant", "content": "a"}]}',
        "not JSON: the tool call in turn 1 is a text that is no JSON; expected an object or a list",
    ),
    (
        b'{"tools": "weather", "messages": [{"role": "assistant", "content": "a"}]}',
        "not JSON: `tools` is a text that is no JSON; expected an object or a list",
    ),
    (
        b'{"images": ["a.png"], "prompt": "q", "completion": "a"}',
        "unsupported content: the row has 'images' (--drop-unsupported removes it)",
    ),
]
