"""What is said of a run: one is said as one, large numbers can be read, and nothing is made of chance."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import clusterucb as cu
from clusterucb.cli import main as cli
from clusterucb.engine.draws import Batch
from clusterucb.errors import ClusterUCBError, ClusterUCBWarning
from clusterucb.report import screen as report
from clusterucb.run.cost import Cost, PhaseCost
from clusterucb.wording import counted, duration
from helpers.searching import search
from helpers.tiny import write_job


def rendered(table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, "cluster"), "0 clusters"),
        ((1, "cluster"), "1 cluster"),
        ((2, "cluster"), "2 clusters"),
        ((1234567, "cluster"), "1,234,567 clusters"),
        ((1, "line was", "lines were"), "1 line was"),
        ((2, "line was", "lines were"), "2 lines were"),
    ],
)
def test_what_is_counted_agrees_with_the_count(arguments, said):
    assert counted(*arguments) == said


def test_a_run_of_one_is_said_as_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_job(tmp_path))
    (tmp_path / "one.jsonl").write_text((tmp_path / "pool.jsonl").read_text().split("\n")[0] + "\nno JSON\n")
    job = "select one.jsonl --target dev.jsonl --model model --out run --warmup-steps 1 --budget 1 --select 1"
    assert cli.run(job.split()) == 0
    out, err = capsys.readouterr()
    assert "Warming up LoRA (1 step):" in err
    assert "Selected 1 of 1 sample after scoring 1 in 1 cluster\n" in out
    assert "1 line was rejected: 1 not JSON; listed in run/rejected.jsonl" in out


class Recorded:
    """A journal of a cold start of one draw."""

    def recorded(self):
        for number, phase in enumerate(("cold", "policy")):
            row = np.array([number])
            yield Batch(number, phase, row, np.zeros(1, np.int64), np.ones(1), np.ones((1, 1)))


class Twice(cu.Policy):
    cold_start = False

    def ask(self, n, available, rng):
        return np.array([0, 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_select": 2}, "expected at most the budget, 1 of 1 row"),
        ({"clusterer": [0.5]}, "an integer label for each of the 1 row"),
        ({"policy": Twice()}, "expected 1 distinct available row"),
        (
            {"features": np.zeros((9, 1)), "budget": 9, "cold_start": 0.5, "journal": Recorded()},
            "the journal's cold start had 1 draw, this one has 4; expected the cold_start of",
        ),
    ],
)
def test_mistakes_about_one_are_said_as_one(options, said):
    usable = {"features": np.zeros((1, 1)), "clusterer": None, "policy": cu.UCB(), "budget": 1, "n_select": 1}
    with pytest.raises(ClusterUCBError) as caught:
        search(score=lambda rows: rows * 1.0, **{**usable, **options})
    assert re.search(rf"{re.escape(said)}(?!\w)", str(caught.value))


@pytest.mark.parametrize(
    ("n_rows", "clusterer", "score", "said"),
    [
        (1, None, math.nan, "only 0 of 1 draw could be scored: fewer than the 1 row to be selected"),
        (2, None, 1.0, "the budget of 1 draw is too small for the whole cold start (1 arm, 2 draws with"),
        (2, [0, 1], 1.0, "the budget of 1 draw is too small for one draw of each arm (2 arms, 2 draws with"),
    ],
)
def test_warnings_about_one_are_said_as_one(n_rows, clusterer, score, said):
    with pytest.warns(ClusterUCBWarning) as caught:
        search(
            np.zeros((n_rows, 1)),
            lambda rows: np.full(len(rows), score),
            clusterer=clusterer,
            policy=cu.UCB(),
            budget=1,
            n_select=1,
            cold_start=1,
        )
    assert said in str(caught[0].message)


def test_a_selection_of_one_is_said_as_one():
    found = search(
        np.zeros((1, 1)), lambda rows: rows * 1.0, clusterer=None, policy=cu.UCB(), budget=1, n_select=1
    )
    assert repr(found) == "<Selection: 1 of 1 row selected, 1 scored in 1 arm, stopped by budget>"


def test_sources_beyond_the_eighth_are_one_line():
    for n, said in ((9, "1 other source "), (11, "3 other sources ")):
        counts = {f"source {number}": 1000 for number in range(n)}
        outcome = SimpleNamespace(selected_by_source=counts, n_selected=1000 * n)
        text = rendered(report._sources(outcome))
        assert said in text
        assert f"{1000 * (n - 8):,}" in text.splitlines()[-1]


def test_large_numbers_of_a_cost_can_be_read():
    phase = PhaseCost(gradients=12345, forward_passes=6789.0, seconds=3600)
    table = rendered(report.cost_table(Cost(pool_samples=10**6, phases={"draws": phase})))
    assert table.splitlines()[1].split() == ["draws", "12,345", "6,789", "0.015", "1", "h", "0", "min"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (119.7, "2 min 0 s"),
        (754, "12 min 34 s"),
        (3599.7, "1 h 0 min"),
        (36_300, "10 h 5 min"),
    ],
)
def test_times_have_no_sixty_seconds_or_minutes(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("correlation", "n_scores", "favoured"),
    [
        (0.31, 1000, "long"),
        (-0.31, 1000, "short"),
        (0.29, 1000, None),
        (0.87, 3, None),
        (1.0, 2, None),
        (-0.7, 10, "short"),
    ],
)
def test_a_length_is_favoured_where_it_is_more_than_chance(correlation, n_scores, favoured):
    said = f" ({favoured} answers are favoured)" if favoured else ""
    assert report._favoured(correlation, n_scores) == said
