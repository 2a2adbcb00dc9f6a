"""A value that no clusterucb writes into a manifest is used or refused, and is no bug: a few of edits.py."""

from __future__ import annotations

from whole.adversary import damage, edits


def test_no_value_in_a_manifest_is_a_bug() -> None:
    with damage.world(["store"]):
        wrong = {str(edit): edits.fault(edit) for edit in list(edits.edits())[5::300]}
    assert len(wrong) > 2
    assert {edit: fault for edit, fault in wrong.items() if fault} == {}
