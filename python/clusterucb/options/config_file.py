"""Read options from a file for ``--config``. Every run writes such a file, ``config.yaml``.

    pool: [data/pool.jsonl]
    target: data/dev.jsonl
    model: path/to/model
    budget: 20%
    policy: {name: ucb, beta: 1.5}
    out: runs/a

Decisions:
    - A value is the text in the file, and the option interprets it, as on the command line. So ``20%``, ``1e-4``, a
      revision ``0123456`` and a source ``no`` keep the text that the user wrote, whatever YAML 1.1 would read. An empty
      value and ``null`` leave an option unset.
    - YAML is parsed to events, and no objects are constructed from them. Tags, anchors and aliases are refused, so no
      tag can run code and no alias can expand into a huge value. JSON files may hold the same options. TOML is not
      supported, because a line of dotted keys makes Python's reader use all memory.
    - The command line overrides the file, and the file overrides the defaults. A list on the command line replaces the
      file's list. A strategy's options are overridden key by key. If the command line names another strategy, none of
      the file's options for the strategy apply. ``--trust-remote-code=false`` switches off what a file switches on.
    - Relative paths are relative to the working directory, as on the command line. ``~/`` is the home folder.
    - ``overwrite``, ``debug`` and ``config`` are allowed only on the command line. With ``overwrite`` in a file, using
      the file again would remove the results. The other two act before a file is read.
    - cyclopts' own ``cyclopts.config.Yaml`` does not serve: it supports neither positional arguments nor our
      strategies, keeps the last of duplicate keys, expands aliases, and reads ``no`` and ``0123456`` as YAML 1.1 does.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from cyclopts import Token

from clusterucb.errors import OptionError
from clusterucb.options.kinds import list_fields
from clusterucb.options.search import SelectSettings
from clusterucb.wording import did_you_mean, in_words, one_line

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.argument import Argument


_Value = str | list[Any] | dict[str, Any] | None  # lists and mappings hold such values again

_HERE = ("config", "debug", "overwrite")  # options that are allowed only on the command line
_LARGEST = 1 << 18  # the largest file, in bytes
_DEEPEST = 8  # the deepest nesting of lists and mappings
_TOO_DEEP = f"lists and mappings are nested more than {_DEEPEST} deep; expected options and their values"
_NULLS = ("", "~", "null", "Null", "NULL")
_SWITCHES = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_FORMS: dict[type, re.Pattern[str]] = {
    bool: re.compile(rf"(?i)({'|'.join(_SWITCHES)})"),
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"(?i)[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)"),
}
_LISTS = {*list_fields(SelectSettings), "strategies", "budgets"}  # the last two are options of compare


def read(path: Path) -> dict[str, _Value]:
    """Return the options in a file by key. The values are texts, None, or lists and mappings of these.

    Raises:
        OptionError: the file cannot be read, or its content is not YAML or JSON of one mapping with distinct keys.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise OptionError(f"--config is {str(path)!r}; expected a file name ending in {', '.join(_PARSERS)}")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise OptionError(f"--config {path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise OptionError(f"--config {path} is larger than 256 KiB; expected a file of options")
    try:
        values = _plain(path, parse(path, content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise OptionError(f"{path}: {_TOO_DEEP}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise OptionError(f"{path} is {_show(values)}; expected a mapping of options, such as `budget: 20%`")
    return values


def fill(
    arguments: ArgumentCollection, command: str, documented: Callable[[], Mapping[str, ArgumentCollection]]
) -> None:
    """Set the arguments that the command line leaves unset to the values in the file of ``--config``.

    Args:
        arguments: the command's arguments, with the tokens of the command line.
        command: the command's name.
        documented: a function that returns the arguments, with their help, of every command that takes a file, by the
            command's name.

    Raises:
        OptionError: the file cannot be read, has an option that the command lacks, or has a value of another type.
    """
    named = by_key(arguments)
    if "config" not in named or not named["config"].tokens:
        return
    path = Path(named["config"].tokens[0].value)
    values: dict[str, _Value] = {}
    for spelt, value in read(path).items():
        key = spelt.replace("-", "_")
        if key in values:
            raise OptionError(f"{path} gives {key!r} twice; expected each option once")
        if key in _HERE:
            raise OptionError(f"{path}: {key!r} is allowed only on the command line; remove it from the file")
        if key not in named:
            _refuse(path, spelt, key, command, documented())
        values[key] = value
    for kind in [key for key in named if option_key(key) in named]:
        _fill_strategy(path, kind, values, named)
    for key, value in values.items():
        argument = named[key]
        if argument.tokens:
            continue
        if isinstance(value, list) and key in _LISTS:
            value = ",".join(_text(path, key, item, "a list of strings") for item in value)
        _give_value(path, key, argument, value)


def by_key(arguments: ArgumentCollection) -> dict[str, Argument]:
    """Return the arguments that take values, by their keys in a file."""
    named = {}
    for argument in arguments:
        if not argument.children:
            options = [name.removeprefix("--") for name in argument.names if name.startswith("--")]
            key = options[0] if options else argument.field_info.name
            named[key.replace("-", "_")] = argument
    return named


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return an option's value on a command line, or None if the option is not there."""
    for at, one in enumerate(arguments):
        name, equals, value = one.partition("=")
        if name == option:
            return value if equals else "".join(arguments[at + 1 : at + 2])
    return None


def placed(message: str, arguments: Sequence[str]) -> str:
    """Return an error message about an option. If the option comes from the file of ``--config``, name the file."""
    option, path = re.match(r"--[a-z-]+", message), value_of("--config", arguments)
    if option is None or path is None or value_of(option[0], arguments) is not None:
        return message
    with suppress(OptionError):
        key = option[0].removeprefix("--").replace("-", "_")
        if any(spelt.replace("-", "_") == key for spelt in read(Path(path))):
            return f"{path}: {key}{message.removeprefix(option[0])}"
    return message


def _refuse(
    path: Path,
    spelt: str,
    key: str,
    command: str,
    documented: Mapping[str, ArgumentCollection],
) -> NoReturn:
    owners = [name for name, arguments in documented.items() if key in by_key(arguments)]
    if owners:
        raise OptionError(
            f"{path}: {spelt!r} is an option of {' and '.join(owners)}, not of {command}; remove it from the file"
        )
    known = [one for one in by_key(documented[command]) if one not in _HERE]
    raise OptionError(
        f"{path}: {command} has no option {spelt!r}.{did_you_mean(key, known)} `clusterucb {command} --help` lists "
        "its options"
    )


def option_key(kind: str) -> str:
    """Return the key of a strategy's options: ``policy_option`` for ``policy``, ``feature_option`` for ``features``."""
    return kind.removesuffix("s") + "_option"


def _fill_strategy(path: Path, kind: str, values: dict[str, _Value], named: Mapping[str, Argument]) -> None:
    """Set a strategy's options from the file, and leave only the strategy's name in ``values``.

    Args:
        path: the file.
        kind: the option that names the strategy, such as ``policy``.
        values: the file's options by key. The strategy's options are removed from it.
        named: the command's arguments by key.
    """
    key = option_key(kind)
    at_name, at_options = named[kind], named[key]
    options = _options_of(path, key, values.pop(key, []))
    name = values.get(kind, at_name.field_info.default)
    if isinstance(name, dict):
        nested = dict(name)
        name = nested.pop("name", None)
        if not isinstance(name, str):
            raise OptionError(
                f"{path}: {kind} is a mapping without a name; expected `{kind}: {{name: NAME, OPTION: 1}}`"
            )
        if twice := options.keys() & nested.keys():
            raise OptionError(f"{path} gives the option {min(twice)!r} of {kind} twice; expected it once")
        options = {**nested, **options}
        values[kind] = name
        if isinstance(options.get("options"), dict):
            raise OptionError(
                f"{path}: {kind} holds its options in a mapping of their own; expected them beside the name: "
                f"`{kind}: {{name: {name}, OPTION: 1}}`"
            )
    if isinstance(name, list) and kind == "features":
        joined = "+".join(map(str, name))
        raise OptionError(f"{path}: features is a list; expected names joined with +: {joined}")
    if options and name is None:
        raise OptionError(f"{path}: {key} is given without {kind}; expected both")
    if at_name.tokens and at_name.tokens[-1].value != name:
        return  # the file's options belong to another strategy
    taken = {token.value.partition("=")[0] for token in at_options.tokens}
    pairs = [f"{option}={option_text(value)}" for option, value in options.items() if option not in taken]
    _give(path, key, at_options, pairs)


def _options_of(path: Path, key: str, value: _Value) -> dict[str, _Value]:
    """Return a strategy's options, which the file gives as a mapping, as ``key=value`` or as a list of the latter."""
    if isinstance(value, dict):
        return value
    options: dict[str, _Value] = {}
    for pair in value if isinstance(value, list) else [value]:
        name, equals, text = pair.partition("=") if isinstance(pair, str) else ("", "", "")
        if not (name and equals):
            raise OptionError(f"{path}: {key} is {_show(pair)}; expected key=value, or a mapping")
        if name in options:
            raise OptionError(f"{path}: {key} gives {name!r} twice; expected each option once")
        options[name] = text
    return options


def option_text(value: _Value) -> str:
    """Return the value of a strategy's option as the text in ``key=value``."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    return "none" if value is None else value


def _give(path: Path, key: str, argument: Argument, texts: Sequence[str]) -> None:
    first = len(argument.tokens)
    for index, text in enumerate(texts):
        argument.append(Token(keyword=f"{key} of {path}", value=text, source=str(path), index=first + index))


def _give_value(path: Path, key: str, argument: Argument, value: _Value) -> None:
    """Set an argument to a value, as if the value stood on the command line.

    Raises:
        OptionError: the value's type is not the option's.
    """
    hint, default = argument.resolved_hint, argument.field_info.default
    if value is None and (default is None or NoneType in get_args(argument.hint)):
        argument.append(Token(keyword=f"{key} of {path}", source=str(path), implicit_value=None))
    elif get_origin(hint) is dict and isinstance(value, dict):
        of = get_args(hint)[1]
        expected = "a string" if of is str else in_words(of)
        texts = {name: _text(path, f"{key}: {name}", one, expected) for name, one in value.items()}
        for name, text in texts.items():
            if of in _FORMS and not _FORMS[of].fullmatch(text):
                _mistaken(path, f"{key}: {name}", text, expected)
        given = {name: of(text) for name, text in texts.items()}
        argument.append(Token(keyword=f"{key} of {path}", source=str(path), implicit_value=given))
    elif get_origin(hint) in (list, tuple):
        several = value if isinstance(value, list) else [value]
        if not several and argument.field_info.required:
            raise OptionError(f"{path}: {key} is an empty list; expected at least one string")
        _give(path, key, argument, [_text(path, key, one, "a string, or a list of them") for one in several])
    else:
        expected = in_words(hint if hint in _FORMS else str)
        text = _text(path, key, value, expected)
        if hint in _FORMS and not _FORMS[hint].fullmatch(text):
            _mistaken(path, key, value, expected)
        _give(path, key, argument, [_SWITCHES[text.lower()] if hint is bool else text])


def _text(path: Path, key: str, value: _Value, expected: str) -> str:
    if not isinstance(value, str):
        _mistaken(path, key, value, expected)
    return os.path.expanduser(value) if value.startswith("~/") else value


def _mistaken(path: Path, key: str, value: _Value, expected: str) -> NoReturn:
    raise OptionError(f"{path}: {key} is {_show(value)}; expected {expected}")


def _show(value: _Value) -> str:
    if isinstance(value, str):
        return f"{value!r:.80}"
    if value is None:
        return "empty"
    return "a list" if isinstance(value, list) else "a mapping"


def _parse_yaml(path: Path, text: str) -> _Value:
    import yaml  # type: ignore[import-untyped]

    def fail(event: Any, why: str) -> NoReturn:
        raise OptionError(f"{path}, line {event.start_mark.line + 1}: {why}")

    def value(event: Any, depth: int) -> _Value:
        if getattr(event, "anchor", None):
            fail(event, f"{event.anchor!r} is an anchor or alias; expected the value itself, written in full")
        if event.tag is not None:
            fail(event, f"{event.tag!r} is a tag, which is not supported; expected a plain value")
        if depth > _DEEPEST:
            fail(event, _TOO_DEEP)
        if isinstance(event, yaml.ScalarEvent):
            return None if event.style is None and event.value in _NULLS else str(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return [value(one, depth + 1) for one in until(yaml.SequenceEndEvent)]
        found: dict[str, _Value] = {}
        for key in until(yaml.MappingEndEvent):
            name = value(key, depth + 1)
            if not isinstance(name, str):
                fail(key, f"a key is {_show(name)}; expected a string")
            if name in found:
                fail(key, f"{name!r} is given twice; expected each key once")
            found[name] = value(next(events), depth + 1)
        return found

    def until(end: type) -> Iterator[Any]:
        while not isinstance(event := next(events), end):
            yield event

    events = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        content = value(next(events), 0)
        next(events)  # the document's end
        if not isinstance(event := next(events), yaml.StreamEndEvent):
            fail(event, "a second YAML document begins; expected one document")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise OptionError(f"{path}{place} is not valid YAML: {one_line(error.problem)}") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not valid YAML: {one_line(error)}") from error
    return content


def _parse_json(path: Path, text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise OptionError(f"{path}: {twice!r} is given twice; expected each key once")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise OptionError(f"{path} is not valid JSON: {error}") from error


_PARSERS: dict[str, Callable[[Path, str], object]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
}


def _plain(path: Path, value: object, depth: int = 0) -> _Value:
    """Return a parsed value with numbers and booleans as texts."""
    if depth > _DEEPEST:
        raise OptionError(f"{path}: {_TOO_DEEP}")
    if isinstance(value, dict):
        return {str(_plain(path, key)): _plain(path, one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(path, one, depth + 1) for one in value]
    if value is None:
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise OptionError(
            f"{path}: {_show(text)} has characters that a command line cannot hold; remove them"
        )
    return text
