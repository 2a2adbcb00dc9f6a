"""The tables of benchmarks/README.md are those of the committed results, and the defaults reach their targets.

The targets are those of the default rule, under which the list to find is another than under the paper's rule: each
subtask's best in turn, which are more scattered. Most of them are lower than they were for the paper's rule.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def results(name):
    return json.loads((BENCHMARKS / "results" / f"{name}-smollm2-135m.json").read_text())["pools"]


def recalls(name):
    """Return the recall of every strategy at every budget, by pool."""
    return {pool: {row["strategy"]: row["recall"] for row in rows} for pool, rows in results(name).items()}


@pytest.fixture
def bench(monkeypatch):
    """Return a function that imports a script of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for script in BENCHMARKS.glob("*.py"):
        sys.modules.pop(script.stem, None)


@pytest.fixture
def bench_replay(bench):
    return bench("replay")


def test_the_table_of_gradients_is_that_of_the_committed_results(bench):
    results = json.loads((BENCHMARKS / "results" / "gradients-x86.json").read_text())
    assert bench("bench_gradients").table(results["rows"]) in (BENCHMARKS / "README.md").read_text()


def test_the_table_of_parts_of_a_store_is_that_of_the_committed_results(bench):
    found = json.loads((BENCHMARKS / "results" / "store-parts-smollm2-135m.json").read_text())
    parts = bench("bench_store_parts")
    assert parts.table(found) in (BENCHMARKS / "README.md").read_text()
    of_code = [one["found"] for one in found["code"] if one["part"] == 0.95 and one["budget"] == 0.2]
    assert all(one["predicted, some drawn first"][1] > one["predicted"][1] for one in of_code)


def test_bytes_lose_less_recall_than_what_they_are_offered_for(bench):
    found = json.loads((BENCHMARKS / "results" / "store-types-smollm2-135m.json").read_text())
    assert bench("bench_store_types").table(found) in (BENCHMARKS / "README.md").read_text()
    assert all(one["halves"] - one["bytes"] < 0.005 for one in found.values())


@pytest.mark.parametrize("kind", ["replay", "no-signal", "gradient-clusters"])
def test_tables_of_replays_are_those_of_the_committed_results(kind, bench_replay):
    results = json.loads((BENCHMARKS / "results" / f"{kind}-smollm2-135m.json").read_text())
    for rows in results["pools"].values():
        assert bench_replay.table(rows, results["budgets"]) in (BENCHMARKS / "README.md").read_text()


def test_the_tables_of_trainings_are_those_of_the_committed_results(bench):
    tables, page = bench("training_tables"), (BENCHMARKS / "README.md").read_text()
    rows = json.loads((BENCHMARKS / "results" / "training-smollm2-135m.json").read_text())["rows"]
    arms = ("paper", "mean", "standardized", "round-robin", "search20", "search10")
    assert tables.losses(rows, ("nothing", "random", *arms)) in page
    assert tables.less_random(rows, arms) in page
    assert tables.kept(rows) in page


def test_training_on_the_default_selection_pays_and_a_search_keeps_the_gain():
    rows = json.loads((BENCHMARKS / "results" / "training-smollm2-135m.json").read_text())["rows"]
    rows = [row for row in rows if row["share"] == 0.05]
    found = {(*row["pools"], row["arm"]): row for row in rows if "pools" in row}
    for pool in ("templated", "diverse", "code"):
        default = found[pool, "round-robin"]
        assert default["high"] < 0
        assert found[pool, "search20"]["kept"] >= 0.9
        assert all(subtask["mean"] < 0.02 for subtask in default["subtasks"].values())
    assert found["templated", "diverse", "code", "search10"]["kept"] >= 0.75
    assert min(found[pool, "search10"]["kept"] for pool in ("templated", "diverse")) >= 0.75  # on code .66


def test_what_is_said_of_the_recall_covers_the_truth(bench):
    bench_recall = bench("bench_recall")
    found = json.loads((BENCHMARKS / "results" / "recall-smollm2-135m.json").read_text())
    page = (BENCHMARKS / "README.md").read_text()
    assert bench_recall.table(found["by_pool"]) in page
    assert bench_recall.stop_table(found["until"]["searches"]) in page
    assert found["variance"] == bench_recall.VARIANCE
    assert {row["pool"] for row in found["by_pool"]} == {"templated", "diverse", "code"}
    assert sum(of_budget["replays"] for of_budget in found["by_budget"].values()) >= 200
    for of_budget in found["by_budget"].values():
        assert of_budget["covered"] >= 0.85
    assert found["by_budget"]["20%"]["width"] <= 0.30
    assert all(of_pool["covered"] >= 0.8 for of_pool in found["held_out"].values())


def test_an_earlier_run_helps_and_noise_does_no_harm(bench):
    pools = results("prior")
    bench_prior, page = bench("bench_prior"), (BENCHMARKS / "README.md").read_text()
    assert bench_prior.table(pools) in page
    assert list(pools) == ["templated", "diverse", "code"]
    for known in pools.values():
        assert known["all scores"][-1] > known["nothing"][-1]
        assert all(
            noise >= nothing - 0.03 for noise, nothing in zip(known["noise"], known["nothing"], strict=True)
        )


def test_what_an_earlier_checkpoint_has_shown_helps_and_is_not_trusted_alone(bench):
    content = json.loads((BENCHMARKS / "results" / "prior-smollm2-135m.json").read_text())
    bench_prior = bench("bench_prior")
    assert bench_prior.table(content["later"]) in (BENCHMARKS / "README.md").read_text()
    (known,) = content["later"].values()
    assert known["scores and sketches"][-1] >= 0.80
    for before, more in (
        ("a run", 0.0),
        ("all scores", 0.05),
        ("sketches", 0.05),
        ("scores and sketches", 0.05),
    ):
        for place, nothing in enumerate(known["nothing"]):
            assert known[before][place] >= nothing + more
            assert known[before][place] > known[bench_prior.RANKED][place]
    assert all(
        noise >= nothing - 0.02 for noise, nothing in zip(known["noise"], known["nothing"], strict=True)
    )


def test_a_store_finds_next_to_all(bench):
    pools = results("store")
    assert bench("bench_store").table(pools) in (BENCHMARKS / "README.md").read_text()
    for pool, of_ten in (("templated", 0.98), ("diverse", 0.90)):
        recall = pools[pool]["recall"]
        assert recall["a store"][2] >= of_ten
        assert recall["a store"][2] >= recall["best by sketch, re-scored"][2]
    for pool in pools.values():
        assert pool["recall"]["a store"][2] >= pool["recall"]["best by sketch, re-scored"][2] - 0.02
        assert pool["stated"]["error"] <= 0.035
        assert pool["stated"]["covered"] >= 0.9


def test_the_default_reaches_what_is_promised():
    pools = recalls("replay")
    for pool, of_ten, of_twenty in (("templated", 0.86, 0.96), ("diverse", 0.45, 0.75)):
        _, ten, twenty = pools[pool]["surrogate"]
        assert ten >= of_ten
        assert twenty >= of_twenty
    assert pools["code"]["surrogate"][-1] >= pools["code"]["ucb"][-1] + 0.1
    for recall in recalls("no-signal").values():
        assert recall["surrogate"][-1] >= recall["random"][-1] - 0.01


def test_clusters_find_what_is_promised():
    pools = recalls("replay")
    for pool, least in (("templated", 0.88), ("diverse", 0.58)):
        assert pools[pool]["ucb"][-1] >= least
        assert pools[pool]["thompson"][-1] >= pools[pool]["ucb"][-1] - 0.07
    assert recalls("gradient-clusters")["diverse"]["ucb@gradient"][-1] >= 0.75


def test_every_strategy_of_the_replays_is_in_the_results(bench_replay):
    for rows in results("replay").values():
        assert [row["strategy"] for row in rows] == list(bench_replay.STRATEGIES)
