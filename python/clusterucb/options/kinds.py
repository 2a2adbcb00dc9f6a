"""Define the types of option values, and how the command line reads and checks them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from clusterucb.engine.aggregate import RULES
from clusterucb.errors import OptionError, check_choice
from clusterucb.filenames import EXPORTS
from clusterucb.kernels.preconditioner import PRECONDITIONERS
from clusterucb.samples.shapes import FIELDS, IDS, LEARN, SHAPES
from clusterucb.wording import did_you_mean

AUTO = "auto"  # the shape of a row follows from its keys
# Metadata of a field that affects no computed number: its value may change when a run is resumed.
FREE = {"decides": False}
# Metadata of a field whose text holds several values with commas between them. Python and files may give a list.
LIST = {"list": True}
# Metadata of a field that names a file or folder. On resuming, the fingerprints of the contents are compared.
FILE = {"file": True}


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """Convert text to an integer. (The conversion of cyclopts would round 1.5 to 2.)

    Raises:
        ValueError: the text is not a whole number.
    """
    if not re.fullmatch(r"[+-]?[0-9]+", text := tokens[0].value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def columns_of(_: type, tokens: Sequence[Token]) -> dict[str, str]:
    """Convert ``prompt=question,completion=answer`` to a dictionary."""
    return _pairs(tokens[0].value, "prompt=question,completion=answer")


def roles_of(_: type, tokens: Sequence[Token]) -> dict[str, str]:
    """Convert ``Advisor=assistant,Client=user`` to a dictionary."""
    return _pairs(tokens[0].value, "Advisor=assistant,Client=user")


def _pairs(text: str, form: str) -> dict[str, str]:
    """Convert pairs of a name and a word to a dictionary.

    Raises:
        ValueError: the text has another form.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name.strip() and equals and word.strip() for name, equals, word in pairs):
        raise ValueError(f"{text!r} is not of the form {form}")
    return {name.strip(): word.strip() for name, _, word in pairs}


def check_columns(option: str, columns: object) -> None:
    """Check names of columns that were given for the fields of a shape.

    Raises:
        OptionError: a field is unknown, or a name is no text.
    """
    for name, column in columns.items() if isinstance(columns, dict) else ():
        if name not in FIELDS or not isinstance(column, str):
            raise OptionError(
                f"{option_name(option)} has {name}={column}; expected the name of a column for one of "
                f"{', '.join(FIELDS)}.{did_you_mean(name, FIELDS)}"
            )


def weights_of(_: type, tokens: Sequence[Token]) -> dict[str, float]:
    """Convert ``food=2,words=0.5`` to a dictionary.

    Raises:
        ValueError: the text has another form or names a subtask twice.
    """
    expected = f"{tokens[0].value!r} is not of the form food=2,words=0.5"
    try:
        pairs = [pair.rpartition("=") for pair in tokens[0].value.split(",")]
        weights = {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(expected) from error
    if "" in weights or len(weights) < len(pairs):
        raise ValueError(expected)
    return weights


Whole = Annotated[int, Parameter(converter=whole_number)]
Paths = Annotated[tuple[Path, ...], Parameter(json_list=False)]
Columns = Annotated[dict[str, str], Parameter(converter=columns_of, accepts_keys=False, n_tokens=1)]
Roles = Annotated[dict[str, str], Parameter(converter=roles_of, accepts_keys=False, n_tokens=1)]
Weights = Annotated[dict[str, float], Parameter(converter=weights_of, accepts_keys=False, n_tokens=1)]
ROWS = Parameter(group=Group("Rows", sort_key=1.5))
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTOCASTS = ("bfloat16", "float16")
QUANTIZED = ("4bit", "8bit")
FLOAT16, INT8 = STORE_DTYPES = ("float16", "int8")
SCORERS = ("auto", "exact", "sketch")


def offered(choices: Iterable[str]) -> Parameter:
    """Return a parameter that makes a shell complete ``choices``. `Checked` refuses other values, also from Python."""
    return Parameter(completer=lambda _: list(choices))


Autocast = Annotated[str | None, offered(AUTOCASTS)]
Dtype = Annotated[str, offered(DTYPES)]
Format = Annotated[str | None, offered(SHAPES), ROWS]
TargetFormat = Annotated[str | None, offered((AUTO, *SHAPES)), ROWS]
Ids = Annotated[str | None, offered(IDS), ROWS]
Learn = Annotated[str | None, offered(LEARN), ROWS]
Preconditioner = Annotated[str, offered(PRECONDITIONERS)]
Quantize = Annotated[str | None, offered(QUANTIZED)]
Rule = Annotated[str, offered(RULES)]
Scorer = Annotated[str, offered(SCORERS)]
StoreDtype = Annotated[str, offered(STORE_DTYPES)]
Tools = Annotated[str | None, offered(EXPORTS)]


def field_names(kind: type[Checked]) -> list[str]:
    """Return the names of a settings class's options."""
    return [field.name for field in dataclasses.fields(kind)]


def list_fields(kind: type[Checked]) -> set[str]:
    """Return the names of a settings class's options that hold several values."""
    return {field.name for field in dataclasses.fields(kind) if field.metadata.get("list")}


def values_of(settings: Checked) -> dict[str, Any]:
    """Return the values of a settings object's options, by name."""
    return {name: getattr(settings, name) for name in field_names(type(settings))}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base class of settings, with the checks that they apply to their fields."""

    def check(self, name: str, good: bool, expected: str) -> None:
        """Check a field's value.

        Args:
            name: the field.
            good: whether the value can be used.
            expected: the values that can be used, for the error message.

        Raises:
            OptionError: ``good`` is false.
        """
        if not good:
            raise OptionError(f"{option_name(name)} is {getattr(self, name)!r}; expected {expected}")

    def check_whole(self, *names: str) -> None:
        """Check that fields hold whole numbers of at least 1.

        Raises:
            OptionError: a field does not.
        """
        for name in names:
            value = getattr(self, name)
            self.check(name, isinstance(value, int) and value >= 1, "a whole number of at least 1")

    def check_choice(self, name: str, choices: Sequence[str]) -> None:
        """Check that a field holds one of ``choices``.

        Raises:
            OptionError: it does not.
        """
        check_choice(option_name(name), getattr(self, name), choices)


def option_name(field: str) -> str:
    """Return a field's name on the command line, such as ``--lora-rank``."""
    return "--" + field.replace("_", "-")
