"""Parse the amounts that users write: shares and counts of the pool, tokens, times and recalls."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from clusterucb.errors import OptionError

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_PERCENT = re.compile(rf"{_NUMBER}\s*%")
_TOKENS = re.compile(rf"{_NUMBER}\s*([kMG]?)\s*tok(?:ens)?")
_PERIOD = re.compile(rf"{_NUMBER}\s*(h|min|s)")
_LONGEST = 40  # characters of an amount; Python refuses to read numbers of thousands of digits
_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_SECONDS = {"h": 3600, "min": 60, "s": 1}


class Tokens(NamedTuple):
    """A number of tokens."""

    most: int


class Seconds(NamedTuple):
    """A time in seconds."""

    most: float


Amount: TypeAlias = Fraction | int | Tokens | Seconds  # of a budget; a fraction is a share of the pool


def parse_count(option: str, spec: str | int) -> Fraction | int:
    """Return a share (``"20%"``) as a fraction of one, or a count (``500``) as an int.

    Args:
        option: the option's name, for the error message.
        spec: the share or count as the user wrote it.

    Raises:
        OptionError: ``spec`` is neither. The message for ``0.2`` suggests ``20%``.
    """
    text = _short(option, spec)
    if (percent := _PERCENT.fullmatch(text)) and 0 < (share := Fraction(percent[1]) / 100) <= 1:
        return share
    if re.fullmatch(r"\d+", text) and not isinstance(spec, bool) and int(text) > 0:
        return int(text)
    hint = ""
    if re.fullmatch(r"0?\.\d*[1-9]\d*", text):
        hint = f" Write {(Decimal(text) * 100).normalize():f}% for that share."
    raise OptionError(
        f"{option} is {text!r}; expected a percentage of the pool such as 20%, or a whole number of samples."
        f"{hint}"
    )


def parse_budget(option: str, spec: str | int) -> Amount:
    """Return a share or a count as `parse_count` does, a number of tokens (``"30Mtok"``), or a time (``"1h 30min"``).

    Raises:
        OptionError: ``spec`` is none of these.
    """
    text = _short(option, spec)
    if (tokens := _TOKENS.fullmatch(text)) and (count := int(Fraction(tokens[1]) * _THOUSANDS[tokens[2]])):
        return Tokens(count)
    periods = _PERIOD.findall(text)
    if not _PERIOD.sub("", text).strip() and (
        seconds := sum(Fraction(number) * _SECONDS[unit] for number, unit in periods)
    ):
        return Seconds(float(seconds))
    try:
        return parse_count(option, spec)
    except OptionError as error:
        others = ", or a whole number of samples, tokens such as 30Mtok, or a time such as 2h or 1h 30min"
        raise OptionError(str(error).replace(", or a whole number of samples", others, 1)) from None


def _short(option: str, spec: str | int) -> str:
    """Return an amount as text.

    Raises:
        OptionError: it is longer than any amount.
    """
    text = str(spec).strip()
    if len(text) > _LONGEST:
        raise OptionError(
            f"{option} has {len(text):,} characters ({text:.20}…); expected an amount such as 20%"
        )
    return text


def parse_until(option: str, spec: str) -> float:
    """Return the recall in ``"recall=0.9"`` or ``"recall=90%"`` as a share of one.

    Raises:
        OptionError: ``spec`` has another form, or the recall is not above 0 and at most 1.
    """
    found = re.fullmatch(rf"recall\s*=\s*{_NUMBER}\s*(%?)", _short(option, spec))
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share <= 1:
        raise OptionError(f"{option} is {str(spec)!r}; expected a recall such as recall=0.9 or recall=90%")
    return share


def samples_of(count: Fraction | int, n_samples: int) -> int:
    """Return a count in samples. A share of ``n_samples`` is rounded down, but is at least 1."""
    return max(int(count * n_samples), 1) if isinstance(count, Fraction) else count
