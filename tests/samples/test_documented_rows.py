"""Every row in the tables of docs/reading.md is read as the tables say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clusterucb.samples.message import TOOLS, Message
from clusterucb.samples.shapes import Layout

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
ROW = re.compile(r"^\| `(\{.*\})` \| (.*?) ?\| (.*?) \|$", re.MULTILINE)
TABLES = ROW.findall(PAGE.read_text(encoding="utf-8"))


def words(message: Message) -> str:
    if message.role == TOOLS:
        return "tools"
    parts = (message.thought, " ".join(message.content.split()), "call" if message.calls else "")
    return " ".join(part for part in parts if part)


def test_the_page_has_its_tables() -> None:
    assert len(TABLES) > 25


@pytest.mark.parametrize(("row", "context", "learnt"), TABLES, ids=range(len(TABLES)))
def test_a_documented_row_is_read_as_documented(row: str, context: str, learnt: str) -> None:
    layout = Layout()
    messages = layout.conversation(layout.renamed(json.loads(row))).messages
    for expected, is_learnt in ((context, False), (learnt, True)):
        assert " ".join(words(one) for one in messages if one.learnt is is_learnt).strip() == expected
