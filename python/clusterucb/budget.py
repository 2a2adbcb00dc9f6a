"""Shares and counts of the pool, as users write them."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from clusterucb.errors import OptionError

_PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")


def parse_count(option: str, spec: str | int) -> Fraction | int:
    """Return a share (``"20%"``) as a fraction of one, or a count (``500``) as it is.

    Raises:
        OptionError: neither; ``0.2`` is refused with the right spelling.
    """
    text = str(spec).strip()
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


def resolve_count(option: str, spec: str | int, n_samples: int) -> int:
    """Return how many of ``n_samples`` samples ``spec`` means: floor of a share, and at least 1."""
    count = parse_count(option, spec)
    return max(int(count * n_samples), 1) if isinstance(count, Fraction) else count
