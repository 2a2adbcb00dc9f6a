"""A command that meets a limit of the machine names it, and gives the same bytes without it: a few of limits.py."""

from __future__ import annotations

from whole.adversary import damage, kills, limits

SCENARIO = "sketch"


def test_a_command_that_meets_a_limit_names_it_and_can_be_repeated() -> None:
    chosen = [
        limits.injected("a full disk", 12),
        limits.injected("a damaged disk", 20),
        next(limit for limit in limits.descriptors() if limit.name == "3 more descriptors"),
        next(limit for limit in limits.file_sizes() if limit.name == "files of 3,000 bytes"),
    ]
    with damage.world([]):
        expected = kills.undisturbed(SCENARIO)
        wrong = {limit.name: limits.fault(SCENARIO, limit, expected) for limit in chosen}
    assert {name: fault for name, fault in wrong.items() if fault} == {}
