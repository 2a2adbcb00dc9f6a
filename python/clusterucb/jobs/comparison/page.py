"""Render a comparison of strategies as one page that needs no network, no library and no other file.

The template beside this module holds all elements and all code. The results are embedded once, as JSON in which no
character can end the element that holds it, and the page turns them into text nodes only. A content security policy
allows the template's own style and script, by their hashes, and nothing else. Even if a name slipped through, it could
not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_suffix(".html")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def render(comparison: Mapping[str, Any]) -> str:
    """Return an HTML page that shows how strategies compare.

    Args:
        comparison: JSON values: what was compared (``pool``, ``target``, ``model``, ``pool_samples``,
            ``n_select``, ``seeds``, ...), ``strategies`` with the ``points`` of each, and optionally ``overlap`` and
            ``sources``. Texts may hold anything. NaN and infinities are shown as missing.

    Returns:
        The page, to be written as UTF-8. All of it is ASCII except the template's own text.
    """
    template = _TEMPLATE.read_text("utf-8")
    before, after = template.replace("@@POLICY@@", _policy(template)).split("@@DATA@@")
    return before + _embedded(comparison) + after


def _embedded(value: object) -> str:
    """Return JSON that is safe inside a script element: ASCII, without ``<``, ``>`` and ``&``."""
    return json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(
        _ESCAPES
    )


def _finite(value: object) -> object:
    """Return a JSON value with None in place of every number that JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _policy(template: str) -> str:
    """Return the content security policy that allows the template's style and script, and nothing else."""
    style, script = (_hash(template, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(template: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
