"""An audit keeps the rows of an earlier round while its ranking holds, for a tenth of the gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.engine.rules import Rules
from clusterucb.errors import OptionError
from clusterucb.gradients.scorer import Scorer
from clusterucb.training import Reselect, audit
from helpers.loops import trained
from helpers.selections import write_job

BUDGET, N_SELECT, N_SUBTASKS = 60, 12, 3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_job(folder)
    return folder


@given(
    seed=st.integers(0, 9),
    n=st.integers(2, 40),
    n_subtasks=st.integers(1, 4),
    rule=st.sampled_from(["round-robin", "paper", "mean", "standardized"]),
)
def test_the_recall_is_one_for_the_same_order_and_zero_for_the_reverse(
    seed: int, n: int, n_subtasks: int, rule: str
) -> None:
    scores = np.random.default_rng(seed).normal(size=(2 * (n // 2), n_subtasks))
    assert audit.recall(scores, 3 * scores, Rules(rule=rule)) == 1
    one = scores[:, :1]
    assert audit.recall(one, -one, Rules(rule=rule)) == 0


def test_the_recall_of_an_unrelated_ranking_is_a_half() -> None:
    rng = np.random.default_rng(0)
    found = [audit.recall(*rng.normal(size=(2, 20, 3)), Rules()) for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)
    assert np.mean(np.array(found) >= audit.HOLDS) < 0.03


def test_an_audit_is_a_tenth_of_the_budget_half_of_it_selected() -> None:
    selected, scored = list(range(100, 160)), list(range(100, 400))
    rows = audit.rows_of_audit(selected, scored, 250, seed=3)
    assert len(set(rows.tolist())) == 24
    assert len({*rows.tolist()} & {*selected}) == 12
    assert {*rows.tolist()} <= {*scored}
    assert rows.tolist() == audit.rows_of_audit(selected, scored, 250, seed=3).tolist()
    assert rows.tolist() != audit.rows_of_audit(selected, scored, 250, seed=4).tolist()


@pytest.mark.parametrize(
    ("n_selected", "n_scored", "budget"), [(60, 300, 199), (9, 300, 250), (60, 69, 250), (60, 60, 250)]
)
def test_an_audit_that_would_say_too_little_is_left_out(n_selected: int, n_scored: int, budget: int) -> None:
    assert not len(audit.rows_of_audit(range(n_selected), range(n_scored), budget, seed=0))


def audits(job: Path, out: Path, monkeypatch: pytest.MonkeyPatch, holds: float) -> Reselect:
    monkeypatch.setattr(audit, "FEWEST", 6)
    monkeypatch.setattr(audit, "HOLDS", holds)
    return trained(job, out, every="auto", budget=str(BUDGET), select=N_SELECT)


def test_rows_stay_for_a_tenth_of_the_gradients(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *later = audits(job, tmp_path, monkeypatch, 0.0).rounds
    n_target = first.gradients - BUDGET
    assert n_target > 0
    assert first.audit is None
    assert len(later) == 2
    for one in later:
        assert one.stayed
        assert one.rows == first.rows
        assert one.gradients == BUDGET // 10 + n_target
        assert one.overlap == 1
        assert one.audit is not None
        assert {*one.scored} <= {*first.scored}


def test_a_ranking_that_does_not_hold_is_made_anew_within_the_budget(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round goes on with what the audit has computed: no sample is computed twice."""
    scorer, computed = Scorer.__call__, []

    def spied(self: Scorer, rows: Any) -> Any:
        computed.extend(rows.tolist())
        return scorer(self, rows)

    monkeypatch.setattr(Scorer, "__call__", spied)
    rounds = list(audits(job, tmp_path, monkeypatch, 1.1).rounds)
    n_target = rounds[0].gradients - BUDGET
    for one in rounds:
        assert not one.stayed
        assert one.gradients == BUDGET + n_target
        assert (one.audit is not None) == (one.number > 1)
        assert len(one.rows) == N_SELECT
        assert sorted(computed[:BUDGET]) == sorted(one.scored)
        del computed[:BUDGET]
    assert not computed


@pytest.mark.parametrize(
    "options", [{"schedule": "dynamic"}, {"schedule": "paper"}, {"budget": "2h"}, {"budget": "3Mtok"}]
)
def test_what_cannot_be_audited_is_refused(job: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="every is 'auto' with a schedule that computes every gradient, or"):
        cu.Reselect(job / "pool.jsonl", job / "dev.jsonl", every="auto", **options)
