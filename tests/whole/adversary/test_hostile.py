"""Hostile inputs neither run nor escape nor take the machine: a few of those of hostile.py."""

from __future__ import annotations

from whole.adversary import hostile


def test_hostile_inputs_are_read_or_refused() -> None:
    every = hostile.inputs()
    assert len(every) > 500
    with hostile.world():
        wrong = {one.name: hostile.fault(one) for one in every[9::110]}
    assert {name: fault for name, fault in wrong.items() if fault} == {}
