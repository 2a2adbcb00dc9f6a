"""A page of results: its outline as it stands in the file, and how it looks in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = [
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "<!--<script>",
    "\"'`${window.ran = 1}",
    "line\u2028para\u2029&amp;&lt;",
    "\u202eevil\u0000\u001b[31m\ud800",
    "__proto__",
    "constructor",
    "אבג[n=1]",
    "@@DATA@@ @@POLICY@@",
]


class Outline(HTMLParser):
    """The tags of a page, the text of its scripts and everything that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.loads += [named[name] or "" for name in ("src", "href", "action", "data") if name in named]
        self.handlers += [name for name in named if name.startswith("on") or name == "style"]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


@contextmanager
def launched() -> Iterator[Any]:
    """Yield a browser, or skip the test where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: .venv/bin/python -m pip install playwright"
    )
    program = shutil.which("chromium-headless-shell")
    if program is None:
        pytest.skip("no browser: apt-get install -y chromium-headless-shell")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


class Shown:
    """A page in a browser, and what the browser complained about."""

    def __init__(self, browser: Any, tmp_path: Path, html: str, width: int = 1400) -> None:
        path = tmp_path / "page.html"
        path.write_text(html, "utf-8")
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *error: object) -> None:
        complaints, asked = self.complaints, [url for url in self.asked if not url.startswith("data:")]
        room = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        ran = self.page.evaluate("window.ran")
        self.page.close()
        if error == (None, None, None):
            assert complaints == []
            assert len(asked) == 1
            assert (ran, room) == (None, 0)

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_text_contents()]

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())
