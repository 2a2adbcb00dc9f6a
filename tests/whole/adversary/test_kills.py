"""A command that is killed at any moment gives the same bytes when it is repeated: a few of the points of kills.py."""

from __future__ import annotations

from whole.adversary import damage, kills


def test_a_killed_command_gives_the_same_bytes_when_it_is_repeated() -> None:
    with damage.world(["run", "other-run", "store"]):
        found = list(kills.kills(every=101, first=23))
    assert {scenario for scenario, *_ in found} == set(kills.SCENARIOS)
    assert [one for one in found if one[2]] == []
