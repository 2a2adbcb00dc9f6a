"""Check that the patterns with which an adapter names its layers are matched in a short time.

PEFT matches regular expressions of ``adapter_config.json`` against the name of every layer. An expression with repeats
inside repeats may need years for one name, and Python's matching cannot be ended from within.

Decisions:
    - The patterns are tried in a process of its own, which is ended when it takes too long. Rules about what makes a
      pattern slow would refuse good patterns and let bad ones pass.
    - Names without a repeat are not tried, so most adapters need no process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from clusterucb.errors import ModelError

_SECONDS = 10  # the longest time that all names may take
_REPEATS = frozenset("*+{")
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        matcher = re.compile(pattern)
    except Exception:
        continue
    for name in names:
        matcher.fullmatch(name), matcher.match(name)
"""


def check_patterns(model: nn.Module, adapter: Path, config: Any) -> None:
    """Check that an adapter's patterns are matched in a short time.

    Args:
        model: the base model.
        adapter: the adapter's folder, for the message.
        config: PEFT's configuration of the adapter.

    Raises:
        ModelError: a pattern takes more than ten seconds.
    """
    fields: dict[str, list[str]] = {}
    for field, pattern in _patterns(config):
        if _REPEATS & set(pattern):
            fields.setdefault(field, []).append(pattern)
    names = [name for name, _ in model.named_modules()]
    for field, patterns in fields.items():
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _TRY],
                input=json.dumps([patterns, names]).encode(),
                timeout=_SECONDS,
                check=False,
                capture_output=True,
            )
        except OSError:  # no process can be started; then PEFT alone tries them
            return
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{adapter} names layers by a pattern in {field} that takes more than {_SECONDS} s to match; expected "
                "a pattern without repeats inside repeats, or the layers' names: correct adapter_config.json"
            ) from error


def _patterns(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the field and the regular expression of everything that PEFT matches, in the form that PEFT gives it."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(value := getattr(config, field, None), str):
            yield field, value
    for field in ("rank_pattern", "alpha_pattern"):
        value = getattr(config, field, None)
        for key in value if isinstance(value, dict) else ():
            yield field, rf"(.*\.)?({key})$"
    value = getattr(config, "layers_pattern", None)
    for pattern in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
        yield "layers_pattern", rf".*\.{pattern}\.(\d+)\."
