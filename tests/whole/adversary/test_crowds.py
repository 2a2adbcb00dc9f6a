"""Several processes that use one folder leave what one would: two of the crowds of crowds.py."""

from __future__ import annotations

from whole.adversary import damage, kills
from whole.adversary.crowds import Crowd, fault

CROWDS = (Crowd("sketch", 3, "together", "lease"), Crowd("sketch", 2, "killed", "lock", point=20))


def test_of_several_processes_those_that_end_have_the_same_bytes() -> None:
    with damage.world([]):
        expected = kills.undisturbed("sketch")
        wrong = {str(crowd): fault(crowd, expected) for crowd in CROWDS}
    assert {crowd: fault for crowd, fault in wrong.items() if fault} == {}
