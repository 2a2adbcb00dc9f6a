"""A loss of power at any moment gives the same bytes when the command is repeated: a few of the points of power.py."""

from __future__ import annotations

from whole.adversary import damage, power


def test_a_command_whose_power_failed_gives_the_same_bytes_when_it_is_repeated() -> None:
    with damage.world([]):
        wrong = dict(power.losses(every=193, first=60, scenarios=["select"]))
    assert len(wrong) > 5
    assert {label: fault for label, fault in wrong.items() if fault} == {}
