"""Inputs that fuzzing begins with, and those that once ended in a fault, are accepted or refused with a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from whole.adversary import fuzz

INPUTS = sorted(path for name in fuzz.HARNESSES for path in (fuzz.CORPUS / name).iterdir())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_is_accepted_or_refused_with_a_message(path: Path) -> None:
    assert fuzz.fault(fuzz.harness(path.parent.name), path.read_bytes()) == ("", "")


@pytest.mark.parametrize("name", fuzz.HARNESSES)
def test_some_inputs_are_accepted_and_some_refused(name: str) -> None:
    case = fuzz.harness(name)
    messages = [case(path.read_bytes()) for path in INPUTS if path.parent.name == name]
    assert "" in messages
    assert any(messages)


def test_a_harness_notices_a_fault_and_shortens_its_input() -> None:
    def case(data: bytes) -> str:
        return "" if b"x" not in data else str(1 // 0)

    name, shown = fuzz.fault(case, b"aaxaa")
    assert name.startswith("ZeroDivisionError")
    assert "1 // 0" in shown
    assert fuzz.minimised(case, b"aaaaaaaxaaaa") == b"x"
