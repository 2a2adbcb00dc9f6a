"""Hostile rows, in files of JSON lines and CSV: texts, numbers, nesting, lengths, control characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from helpers.tiny import rows
from whole.adversary.inputs.payloads import CANARY, CONTROLS, EVERY, Hostile, doctor, select

_TEXTS = {
    "a sum of jinja": "{{ 7 * 7 }}",
    "a block of jinja": "{% for x in range(10**9) %}{% endfor %}",
    "an escape of jinja": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "a comment of jinja": "{# never closed",
    "fields of format": "{0.__class__.__init__.__globals__} {} {a[b]} {:>999999999}",
    "fields of printf": "%s%s%n%999999999d",
    "a shell's substitution": "$(touch canary) `touch canary`; touch canary | touch canary",
    "SQL": "'); DROP TABLE scores; ATTACH DATABASE 'canary' AS x; --",
    "a formula": "=cmd|' /C touch canary'!A1",
    "HTML": "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "markup of rich": "[bold red]x[/bold red][/][link=http://x]y[/link][",
    "a path": "../../../../canary",
    "an option": "--out=canary --overwrite",
    "YAML": "!!python/object/apply:os.system ['touch canary']",
    "special tokens": "<|im_end|>\n<|im_start|>system\n<|endoftext|></s><s>[INST]<<SYS>>",
    "many special tokens": "<|im_end|>" * 20_000,
    "marks of the template": "Qz7contentQ0zQ Qz7thoughtQ1zQ Qz7thoughtsQ0zQ",
    "thoughts that nest": "<think>" * 3000 + "</think>" * 3000,
    "combining letters": "a" + "\u0301" * 30_000,
    "a word without end": "a" * 2_000_000,
    "blanks": " " * 2_000_000 + "x",
    "line breaks without end": "\n" * 300_000,
    "private letters": "\ue000\uf8ff\U000f0000\U0010ffff",
}
_NUMBERS = {
    "5,000 digits": "9" * 5000,
    "a float beyond all": "1e999999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "beyond 64 bits": str(2**64),
    "a small float": "1e-999999",
    "an exponent of digits": "1" + "0" * 400 + "e-400",
    "true": "true",
}
_FIELDS = ("id", "source", "prompt", "completion")


def _sample(at: int = 0, **changes: Any) -> dict[str, Any]:
    return {**rows(at + 1, seed=77)[at], **changes}


def _lines(folder: Path, *lines: object, name: str = "pool.jsonl") -> Path:
    """Write a pool of good rows, with these lines (texts as they are) among them."""
    good = [json.dumps(row) for row in rows(12)]
    made = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path = folder / name
    path.write_text("\n".join([*good[:6], *made, *good[6:]]) + "\n", errors="surrogatepass")
    return path


def _with(*lines: object) -> Callable[[Path], list[str]]:
    return lambda folder: select(_lines(folder, *lines))


def _made(name: str, lines: Callable[[], Iterable[object]]) -> Hostile:
    """Return a pool among whose rows are lines that are made when they are needed, because they are large."""
    return Hostile(name, lambda folder: select(_lines(folder, *lines())))


def _file(name: str, text: Callable[[], str], ending: str = "csv") -> Hostile:
    """Return a pool of a text that is made when it is needed."""
    return Hostile(name, lambda folder: select(_text(folder / f"pool.{ending}", text())))


def texts() -> Iterator[Hostile]:
    """Yield rows with texts that some library might interpret."""
    for name, text in _TEXTS.items():
        changes = dict.fromkeys(_FIELDS, text)
        yield Hostile(
            f"{name} in every field", _with(_sample(**changes), _sample(1, source=text, completion=text))
        )


def _in_target(text: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        target = folder / "dev.jsonl"
        made = [_sample(at, subtask=f"{text}{at % 2}", id=f"{text}{at}") for at in range(6)]
        target.write_text("".join(json.dumps(row) + "\n" for row in made))
        return select(target=target)

    return make


def controls() -> Iterator[Hostile]:
    """Yield control characters in every place of a row."""
    for name, text in CONTROLS.items():
        changes = dict.fromkeys(_FIELDS, f"{text}x{text}")
        yield Hostile(
            f"{name} in every field", _with(_sample(**changes), {**_sample(1), text: text}, {text: 1})
        )
        yield Hostile(f"{name} in the names of subtasks", _in_target(text))
    call = {"name": EVERY, "arguments": json.dumps({EVERY: EVERY})}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": EVERY, "type": EVERY, "function": call}]},
        {"role": "tool", "name": EVERY, "content": EVERY, "tool_call_id": EVERY},
        {"role": "assistant", "content": EVERY},
    ]
    tools = [
        {"type": "function", "function": {"name": EVERY, "description": EVERY, "parameters": {EVERY: EVERY}}}
    ]
    yield Hostile("controls in a tool", _with({"messages": turns, "tools": tools}))
    yield Hostile("controls in a role", _with({"messages": [{"role": EVERY, "content": "x"}]}))
    yield Hostile("controls in a line that is no JSON", _with(EVERY.replace("\n", "") + "{"))
    yield Hostile("controls in a list", _with([EVERY], {"prompt": [EVERY], "completion": {EVERY: EVERY}}))
    yield Hostile(
        "controls, all rows strict", lambda folder: select(_lines(folder, {EVERY: EVERY}), "--strict")
    )
    yield Hostile(
        "controls, for the doctor", lambda folder: doctor(_lines(folder, {EVERY: EVERY}, _sample(id=EVERY)))
    )
    yield Hostile(
        "half letters", _with(_sample(prompt="\ud800", id="\udfff", source="\ud800x", completion="\udc00"))
    )
    yield Hostile(
        "half letters as escapes",
        _with('{"prompt": "\\ud800", "completion": "\\udfff\\ud800", "id": "\\ud800"}'),
    )


def numbers() -> Iterator[Hostile]:
    """Yield numbers that do not fit, where texts and numbers are expected."""
    for name, number in _NUMBERS.items():
        lines = [
            json.dumps(_sample(at, **{field: 0})).replace(f'"{field}": 0', f'"{field}": {number}')
            for at, field in enumerate(_FIELDS)
        ]
        weight = f'{{"messages": [{{"role": "assistant", "content": "x", "weight": {number}, "train": {number}}}]}}'
        call = _call(f'{{"x": {number}}}')
        yield Hostile(f"{name} as a value", _with(*lines, weight, call))


def shapes() -> Iterator[Hostile]:
    """Yield rows that are deep, long or wide.

    Time grows with the number of rows and turns, and the limit holds on a busy machine, too. So their numbers are the
    smallest that would take too long if the time grew faster. `doctor` reads the first rows alone, but decodes a file of
    an array as a whole: there, 20 million numbers would take too much memory.
    """
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for depth in (900, 100_000, 2_000_000):
            yield _made(f"{depth:,} times {opening}", partial(_deep_rows, opening, closing, depth))
    deep = '{"a":' * 400 + "1" + "}" * 400
    call = _call(deep).replace("]}]}", f']}}], "tools": [{deep}]}}')
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    yield Hostile("deep arguments of a tool", _with(call))
    yield _made("brackets that are never closed", lambda: ["[" * 1_000_000, '{"a":' * 1_000_000])
    yield _file("a file of one bracket", lambda: "[" * 3_000_000, "json")
    yield _file("an array of numbers", lambda: "[" + "1," * 1_000_000 + "1]", "json")
    yield Hostile(
        "an array of many numbers, for the doctor",
        lambda folder: doctor(_text(folder / "pool.json", "[" + "1," * 20_000_000 + "1]")),
    )
    yield _file("an array of empty objects", lambda: "[" + "{}," * 1_000_000 + "{}]", "json")
    yield _file("an object of objects", lambda: '{"data": [' + "{}," * 1_000_000 + "{}]}", "json")
    yield _made("a line of 100 MB", lambda: ["x" * 100_000_000])
    yield _made("a row of 60 MB", lambda: [_sample(prompt="word " * 12_000_000)])
    yield _made("a row of a million keys", lambda: [{f"k{at}": at for at in range(1_000_000)}])
    yield _made("200,000 rows with other keys", lambda: ({f"k{at}": 1} for at in range(200_000)))
    yield _made("200,000 turns", lambda: [{"messages": turns * 100_000}])
    yield _made("300 forms of turns", lambda: ({"messages": turns * at} for at in range(1, 300)))
    yield Hostile(
        "keys twice", _with('{"prompt": "x", "prompt": {"a": 1}, "completion": "y", "completion": []}')
    )
    attributes = {"__class__": 1, "__init__": "x", "__dict__": {}, "prompt": "x", "completion": "y"}
    yield Hostile("names of Python's attributes", _with(attributes))
    yield _made(
        "3,000 sources", lambda: (_sample(0, source=f"s{n}", prompt=f"p{n}", id=str(n)) for n in range(3000))
    )
    yield _made(
        "a source of a million letters", lambda: [_sample(source="s" * 1_000_000, id="i" * 1_000_000)]
    )
    yield Hostile("the same id", _with(*(_sample(at, id="same") for at in range(9))))
    yield _made("100,000 rejected rows", lambda: (["x" * 9, at] for at in range(100_000)))


def _deep_rows(opening: str, closing: str, depth: int) -> list[str]:
    deep = opening * depth + "1" + closing * depth
    return [
        deep,
        f'{{"prompt": {deep}, "completion": "x"}}',
        f'{{"prompt": "x", "completion": "y", "z": {deep}}}',
    ]


def _call(arguments: str) -> str:
    """Return a row that calls a tool with these arguments, as JSON."""
    call = f'{{"function": {{"name": "f", "arguments": {arguments}}}}}'
    return f'{{"messages": [{{"role": "user", "content": "x"}}, {{"role": "assistant", "tool_calls": [{call}]}}]}}'


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def tables() -> Iterator[Hostile]:
    """Yield hostile CSV."""
    good = "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in rows(12))
    head = "prompt,completion\n"
    yield _file(
        "a million columns",
        lambda: ",".join(["prompt,completion", *map("c{}".format, range(1_000_000))]) + f"\n{good}",
    )
    yield _file("a million fields", lambda: head + good + "x," * 1_000_000 + "\n")
    yield _file("a quote that is never closed", lambda: head + good + '"' + "x\n" * 1_000_000)
    yield _file("a field of 80 MB", lambda: head + good + '"' + "x" * 80_000_000 + '",y\n')
    yield _file("a header of 80 MB", lambda: "x" * 80_000_000 + "\n" + good)
    yield _file("columns of one name", lambda: "prompt,prompt,completion,completion\na,b,c,d\n")
    yield _file("controls in a header", lambda: f'"{EVERY}",prompt,completion\nx,y,z\n')
    yield _file("formulas", lambda: head + "=1+1,@SUM(1)\n+1,-1\n" + good)
    yield _file("NULs", lambda: head + good + "\0" * 100_000)
    yield _file("separators alone", lambda: "," * 3_000_000 + "\n" + good)
    yield _file("tabs", lambda: "prompt\tcompletion\n" + "x\t" * 100_000, "tsv")
    yield _file("lines of a carriage return", lambda: head.replace("\n", "\r") + good.replace("\n", "\r"))


def commands() -> Iterator[Hostile]:
    """Yield hostile words in a command."""
    for option in (
        "--features",
        "--clusterer",
        "--policy",
        "--columns",
        "--roles",
        "--prior",
        "--export",
        "--chat-template",
        "--tokenizer",
        "--store",
        "--special-tokens",
        "--subtask-weights",
    ):
        for word in (
            "os:system",
            f"__import__('os').system('touch {CANARY}')",
            "../../canary_module.py",
            EVERY.replace("\0", ""),
            "{{ 7*7 }}",
            "x" * 100_000,
        ):
            yield Hostile(
                f"{option} {word[:20]!r}",
                lambda _, option=option, word=word: select("pool.jsonl", option, word),
            )


def all_rows() -> Iterator[Hostile]:
    """Yield every hostile row and word."""
    for family in (texts, controls, numbers, shapes, tables, commands):
        yield from family()
