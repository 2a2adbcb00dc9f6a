"""Parse the option that says how many workers compute, and where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterucb.errors import OptionError


@dataclass(frozen=True)
class WorkersAsked:
    """The workers that a user asks for.

    Attributes:
        size: their number; None for as many as there are devices.
        address: the address of a Ray cluster; None for this machine, unless the environment names a cluster.
    """

    size: int | None = None
    address: str | None = None

    @classmethod
    def of(cls, spec: str | int) -> WorkersAsked:
        """Return what ``--workers`` says: a number, ``all``, or the address of a Ray cluster.

        Raises:
            OptionError: ``spec`` is none of these.
        """
        text = str(spec).strip()
        if re.fullmatch(r"\d{1,5}", text) and not isinstance(spec, bool) and int(text) > 0:
            return cls(int(text))
        if text == "all":
            return cls()
        if re.fullmatch(r"ray://\S+|[\w.-]+:\d+", text):
            return cls(address=text)
        raise OptionError(
            f"--workers is {text!r}; expected a number of workers, all, or the address of a Ray cluster such as "
            "ray://head:10001"
        )
