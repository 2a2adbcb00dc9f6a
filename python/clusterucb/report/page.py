"""Render results as one page that needs no network, no library and no other file.

``page.html``, ``page.css`` and ``page.js`` beside this module hold what all pages share. A job has a file with the
title, the style and the elements of its own page, and beside it a file with the code. The results are embedded once, as
JSON in which no character can end the element that holds it, and the page turns them into text nodes only. A content
security policy allows the page's own style and script, by their hashes, and nothing else. Even if a name slipped
through, it could not run.

Decision: the charts are our own code, some twenty kilobytes. The plotting libraries that come as Python packages add
one to five megabytes to every page, and most of them compile code at run time, which the policy forbids.
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

# The elements of a page's own file, by the marks in the shared one that stand for them.
_OWN = {"TITLE": "title", "OWN STYLE": "style", "MAIN": "main"}
_FRAME = Path(__file__).with_name("page.html")
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def render(template: Path, content: Mapping[str, Any]) -> str:
    """Return an HTML page that shows results.

    Args:
        template: the HTML file with the page's elements ``title``, ``style`` and ``main``. The file of the same name
            that ends in .js has its code.
        content: the results as JSON values. Texts may hold anything. NaN and infinities are shown as missing.

    Returns:
        The page, to be written as UTF-8. All of it is ASCII except the templates' own text.
    """
    own, page = _text(template), _FRAME.read_text("utf-8")
    parts = {
        "STYLE": _text(_FRAME.with_suffix(".css")),
        "SCRIPT": _text(_FRAME.with_suffix(".js")),
        "OWN SCRIPT": _text(template.with_suffix(".js")),
        **{mark: _inside(own, tag) for mark, tag in _OWN.items()},
    }
    for mark, part in parts.items():
        page = page.replace(f"@@{mark}@@", part)
    before, after = page.replace("@@POLICY@@", _policy(page)).split("@@DATA@@")
    return before + _embedded(content) + after


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


def _text(path: Path) -> str:
    return path.read_text("utf-8").rstrip()


def _inside(page: str, tag: str) -> str:
    """Return what stands between the tags of the only element of its kind without attributes."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return str(content)


def _policy(template: str) -> str:
    """Return the content security policy that allows the template's style and script, and nothing else."""
    style, script = (_hash(template, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(template: str, tag: str) -> str:
    digest = hashlib.sha256(_inside(template, tag).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
