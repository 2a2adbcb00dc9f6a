"""A damaged folder gives the right result or is refused: one case in sixty of those of damage.py."""

from __future__ import annotations

from whole.adversary import damage


def test_no_damage_is_believed() -> None:
    with damage.world():
        wrong = {str(case): damage.fault(case) for case in list(damage.cases())[17::60]}
    assert len(wrong) > 20
    assert {case: fault for case, fault in wrong.items() if fault} == {}
