"""A damaged folder gives the right result or is refused: one case in forty of those of damage.py."""

from __future__ import annotations

import pytest

from whole.adversary import damage


@pytest.mark.parametrize("part", range(4))
def test_no_damage_is_believed(part: int) -> None:
    with damage.world():
        wrong = {str(case): damage.fault(case) for case in list(damage.cases())[10 * part :: 40]}
    assert wrong
    assert {case: fault for case, fault in wrong.items() if fault} == {}
