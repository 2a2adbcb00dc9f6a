"""Comparisons: replays agree with real runs, measures with brute force, and nothing is scored twice."""

from __future__ import annotations

import io
import json
import subprocess

import numpy as np
import pytest
from rich.console import Console

import clusterucb as cu
from clusterucb import plugins
from clusterucb.engine import Rules, Schedule
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError, RunError
from clusterucb.gradients.scorer import Scorer
from clusterucb.jobs.comparison.replay import Terms, Truth, by_source, overlaps, replay, spread
from clusterucb.jobs.comparison.results import Comparison, show
from clusterucb.jobs.comparison.spelling import contender, split
from helpers.tiny import read_rows, rows, write_model, write_rows

N = 90


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model")
    write_rows(folder / "pool.jsonl", rows(N))
    write_rows(folder / "dev.jsonl", [{**row, "subtask": row["source"]} for row in rows(12, seed=9)])
    first = compare(folder, folder / "done")
    (folder / "first.json").write_text(json.dumps(first.content))
    return folder


def compare(folder, out, specs="random,ucb@kmeans[n_clusters=9],exhaustive,rds@hidden", **changes):
    installed = plugins.load()
    options = {
        "strategies": [contender(spec, installed) for spec in split(specs)],
        "budgets": ["10%", "40%"],
        "seeds": 3,
        "warmup_steps": 5,
        "batch_size": 4,
        **changes,
    }
    target = options.pop("target", folder / "dev.jsonl")
    return cu.compare(folder / "pool.jsonl", target, model=folder / "model", out=out, **options)


def points(content, name):
    found = next(one for one in content["strategies"] if one["name"] == name)
    return {point["budget"]: point for point in found["points"]}


def test_a_replay_finds_what_a_run_finds(job, tmp_path):
    content = json.loads((job / "first.json").read_text())
    found, everything = (
        cu.select(
            job / "pool.jsonl",
            job / "dev.jsonl",
            model=job / "model",
            out=tmp_path / budget,
            clusterer=cu.KMeans(n_clusters=9),
            policy=policy,
            budget=budget,
            warmup_steps=5,
            batch_size=4,
        )
        for policy, budget in ((cu.UCB(), "40%"), (cu.Exhaustive(), "100%"))
    )
    point = points(content, "ucb@kmeans[n_clusters=9]")["40%"]
    recall = len(set(found.ids) & set(everything.ids)) / len(everything.ids)
    assert point["recall"]["seeds"][0] == recall
    assert point["n_budget"] == 36
    assert point["cost"] == pytest.approx(found.cost.total)
    assert point["gradients"] == found.cost.gradients
    assert content["n_select"] == len(found.ids) == 4
    truth = content["sources"]["truth"]
    assert truth == {name: float(n) for name, n in everything.outcome.selected_by_source.items()}


def test_the_exhaustive_strategy_is_the_truth(job):
    content = json.loads((job / "first.json").read_text())
    (point,) = points(content, "exhaustive").values()
    assert point["budget"] == "100%"
    assert point["recall"] == point["mass"] == {"mean": 1.0, "std": 0.0, "seeds": [1.0] * 3}
    assert point["cost"] > 1
    for one in content["strategies"]:
        for point in one["points"]:
            assert 0 <= point["recall"]["mean"] <= 1
            assert point["mass"]["mean"] <= 1
            assert point["total_seconds"] >= point["seconds"] >= 0
            assert len(point["recall"]["seeds"]) == 3


def test_hidden_states_cost_a_part_of_a_pass_of_pool_and_target(job):
    content = json.loads((job / "first.json").read_text())
    free, hidden = points(content, "random")["10%"], points(content, "rds@hidden")["10%"]
    assert hidden["cost"] - free["cost"] == pytest.approx(0.43 * 0.15 * (N + 12) / N)
    assert free["cost"] == pytest.approx((20 + 12 + 9) / N)


def test_another_comparison_scores_nothing_again(job, monkeypatch):
    before = json.loads((job / "first.json").read_text())

    def refuse(self, rows):
        raise AssertionError("scored again")

    monkeypatch.setattr(Scorer, "__call__", refuse)
    again = compare(job, job / "done", "ucb@source,ucb@kmeans[n_clusters=9]", budgets=["40%"], seeds=3)
    same = "ucb@kmeans[n_clusters=9]"
    assert points(again.content, same)["40%"]["recall"] == points(before, same)["40%"]["recall"]
    assert again.recall(same, "40%") == points(before, same)["40%"]["recall"]["mean"]
    assert "2 strategies on 90 samples" in repr(again)
    standardized = compare(job, job / "done", "ucb", rule="standardized")
    assert standardized.content["rule"] == "standardized"
    weighted = compare(job, job / "done", "ucb", subtask_weights={"sums": 1000})
    assert weighted.content["subtask_weights"] == {"sums": 1000}


def test_recorded_scores_take_the_place_of_scoring(job, tmp_path, monkeypatch):
    run = cu.select(
        job / "pool.jsonl",
        job / "dev.jsonl",
        model=job / "model",
        out=tmp_path / "run",
        policy=cu.Exhaustive(),
        budget="100%",
        warmup_steps=5,
    )
    monkeypatch.setattr(Scorer, "__call__", lambda self, rows: pytest.fail("scored again"))
    found = compare(job, tmp_path / "compared", "ucb@kmeans[n_clusters=9]", scores=run.out)
    before = json.loads((job / "first.json").read_text())
    assert (
        points(found.content, "ucb@kmeans[n_clusters=9]")["40%"]["recall"]
        == (points(before, "ucb@kmeans[n_clusters=9]")["40%"]["recall"])
    )


def test_recorded_scores_of_more_subtasks_do_for_some_of_them(job, tmp_path, monkeypatch):
    for name, seed in (("one", 5), ("two", 6), ("three", 7)):
        write_rows(tmp_path / f"{name}.jsonl", rows(4, seed=seed))
    wanted, every = [tmp_path / "two.jsonl", tmp_path / "one.jsonl"], tmp_path / "three.jsonl"
    scoring = {"model": job / "model", "warmup_steps": 5, "policy": cu.Exhaustive(), "budget": "100%"}
    alone = cu.select(job / "pool.jsonl", wanted, out=tmp_path / "alone", **scoring)
    among = cu.select(job / "pool.jsonl", [every, *wanted], out=tmp_path / "among", **scoring)
    monkeypatch.setattr(Scorer, "__call__", lambda self, rows: pytest.fail("scored again"))
    found = [
        compare(job, tmp_path / f"compared-{run.out.name}", "ucb", target=wanted, scores=run.out).content
        for run in (alone, among)
    ]
    assert found[0]["subtasks"] == found[1]["subtasks"] == ["one", "two"]
    assert found[0]["sources"] == found[1]["sources"]
    recalls = [[point["recall"] for point in one["strategies"][0]["points"]] for one in found]
    assert recalls[0] == recalls[1]


def test_what_many_searches_warn_of_is_said_once_with_the_strategy(job):
    with pytest.warns(ClusterUCBWarning) as caught:
        compare(job, job / "done", "ucb@kmeans[n_clusters=50],random", budgets=["10%"], seeds=4)
    about = [str(one.message) for one in caught if "too small" in str(one.message)]
    assert len(about) == 1
    assert about[0].startswith("strategy ucb@kmeans[n_clusters=50]: the budget of 9 draws is too small")
    assert about[0].endswith("(and in 3 more searches)")


class Fails(cu.IndexPolicy):
    def index(self, arms, rng):
        raise KeyError("lost")


@pytest.mark.parametrize(
    ("strategy", "error", "message"),
    [
        (
            cu.Contender("by sorce", cu.UCB(), cu.Source("sorce")),
            OptionError,
            "strategy by sorce: clusterer source: the pool has no column 'sorce'",
        ),
        (cu.Contender("broken", Fails()), PluginError, "strategy broken: .*Fails.ask failed: KeyError"),
        (
            cu.Contender("alike", cu.RDS(), features=cu.Gradient()),
            OptionError,
            "strategy alike compares gradients with the target, .* expected other features",
        ),
    ],
)
def test_strategies_that_do_not_work_are_refused_before_anything_is_scored(
    job, tmp_path, monkeypatch, strategy, error, message
):
    monkeypatch.setattr(Scorer, "__call__", lambda self, rows: pytest.fail("scored"))
    with pytest.raises(error, match=message):
        compare(job, tmp_path / "a", strategies=[cu.Contender("random", cu.Random()), strategy])


def test_order_and_spelling_of_budgets_do_not_matter(job):
    content = compare(job, job / "done", "random,ucb", budgets=["40%", "36", "10%"]).content
    for one in content["strategies"]:
        assert [point["budget"] for point in one["points"]] == ["10%", "40%"]
    assert content["overlap"]["budget"] == content["sources"]["budget"] == "40%"


def test_scores_that_do_not_fit_are_refused(job, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        compare(job, tmp_path / "a", scores=tmp_path)
    part = cu.select(
        job / "pool.jsonl", job / "dev.jsonl", model=job / "model", out=tmp_path / "part", warmup_steps=5
    )
    with pytest.raises(RunError, match="has scored 18 of 90 samples; expected all"):
        compare(job, tmp_path / "a", scores=part.out)
    write_rows(tmp_path / "dev.jsonl", rows(5, seed=77))
    other = cu.select(
        job / "pool.jsonl",
        tmp_path / "dev.jsonl",
        model=job / "model",
        out=tmp_path / "other",
        warmup_steps=5,
    )
    with pytest.raises(RunError, match="is a run of another target; expected"):
        compare(job, tmp_path / "a", scores=other.out)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ["1%"]}, r"--budgets: 1% is 1 of 90 samples; expected at least --select 5%, which is 4"),
        ({"budgets": ["500"]}, r"--budgets: 500 is 500 of 90 samples; .* at most the pool"),
        ({"budgets": ["0.2"]}, r"--budgets is '0.2'; .*Write 20%"),
        ({"seeds": 0}, "--seeds is 0; expected a whole number of at least 1"),
        ({"specs": ""}, "no strategies to compare"),
        ({"specs": "ucb,ucb"}, "named twice: ucb"),
        ({"budget": "20%"}, "a comparison has budgets"),
    ],
)
def test_what_cannot_be_compared_is_refused(job, tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        compare(job, tmp_path / "out", **changes)


def test_the_command_line_shows_the_best_first_and_writes_the_page(job, tmp_path, programs):
    command = ["compare", job / "pool.jsonl", "--target", job / "dev.jsonl", "--model", job / "model"]
    command += ["--out", tmp_path / "out", "--strategies", "random, ucb@source[beta=0.5]", "--budgets", "20%"]
    done = subprocess.run(
        [programs / "clusterucb", *command, "--seeds", "2", "--warmup-steps", "5"],
        capture_output=True,
        text=True,
        check=True,
    )
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    best = sorted(content["strategies"], key=lambda one: -one["points"][-1]["recall"]["mean"])
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == [one["name"].split()[0] for one in best]
    assert "comparison.html" in lines[-1]
    assert "ucb@source" in (tmp_path / "out" / "comparison.html").read_text()
    assert read_rows(job / "pool.jsonl")


# Specifications -------------------------------------------------------------------------------------------


def test_specifications_name_policy_clusterer_features_and_options():
    installed = plugins.load()
    one = contender(
        "ucb@kmeans@hidden[beta=0.5, n_clusters=7,depth=0.5,batch_size=2,cold_start=0.1]", installed
    )
    assert (one.policy, one.clusterer, one.features) == (cu.UCB(0.5), cu.KMeans(7), cu.Hidden(0.5))
    assert (one.batch_size, one.cold_start) == (2, 0.1)
    plain = contender("random", installed)
    assert (plain.policy, plain.clusterer, plain.features) == (cu.Random(), cu.KMeans(), cu.Embedding())
    assert contender("rds@hidden", installed).features == cu.Hidden()
    assert contender("ucb@source", installed).clusterer == cu.Source()
    assert contender("ucb[policy.beta=2]", installed).policy == cu.UCB(2.0)
    assert split("a, b[x=1,y=2] ,c@d[z=3],") == ["a", "b[x=1,y=2]", "c@d[z=3]"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ubc", "there is no policy 'ubc'.*Did you mean 'ucb'"),
        ("ucb@kmaens", "no clusterer or feature 'kmaens'.*Did you mean 'kmeans'"),
        ("ucb@kmeans@embedding@more", "has 4 parts"),
        ("ucb[beta=2", "cannot be read; expected policy"),
        ("ucb[beta]", "'beta' is not an option; expected key=value"),
        ("ucb[betta=2]", "has no option 'betta'.*Did you mean 'beta'"),
        ("ucb[batch_size=x]", "batch_size is 'x'; expected a whole number of at least 1"),
        ("ucb[batch_size=2.5]", "batch_size is '2.5'; expected a whole number of at least 1"),
        ("ucb[batch_size=0]", "batch_size is '0'; expected a whole number of at least 1"),
        ("ucb[cold_start=2]", "cold_start is '2'; expected a share between 0 and 1"),
        ("ucb[beta=1,beta=2]", "beta is given twice; expected it once"),
        ("@kmeans", "has an empty part; expected policy"),
        ("ucb@", "has an empty part"),
        ("ucb@@hidden", "has an empty part"),
        ("ucb[beta=x]", "policy ucb: beta is 'x'; expected a number"),
    ],
)
def test_wrong_specifications_are_refused(spec, message):
    with pytest.raises(OptionError, match=message):
        contender(spec, plugins.load())


def test_table_stands_on_a_narrow_screen(job):
    content = json.loads((job / "first.json").read_text())
    screen = Console(width=80, file=io.StringIO())
    show(Comparison(content, job), screen)
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["strategy", "10%", "40%", "100%", "cost", "time", "own"]
    for one in content["strategies"]:
        (line,) = (line for line in lines if line.startswith(f"{one['name']:.14} "[:14]))
        for point in one["points"]:
            spread = f"{point['recall']['std']:.2f}".removeprefix("0")
            assert f"{point['recall']['mean']:.2f} ±{spread}" in line
        assert f"{one['points'][-1]['cost']:.3f} " in line


# Measures -------------------------------------------------------------------------------------------------


def truth_of(scores, **rules):
    sources = np.array(["a", "b"] * (len(scores) // 2))
    return Truth.of(np.array(scores, float)[:, None], sources, Terms(2, Rules(**rules)))


def test_recall_and_mass_are_those_of_the_definition():
    truth = truth_of([0.0, 1.0, 4.0, 3.0])
    assert truth.best.tolist() == [2, 3]
    assert truth.recall(np.array([2, 0])) == 0.5
    assert truth.mass(np.array([2, 3])) == 1
    assert truth.mass(np.array([1, 2])) == pytest.approx((1 + 4 - 2 * 2) / (4 + 3 - 2 * 2))
    assert truth_of([1.0, 1.0, 1.0, 1.0]).mass(np.array([0, 1])) == 1


def test_mass_is_at_most_one_whatever_decides_about_the_selection():
    scores = np.array([[9.0, 0.0], [8.0, 0.1], [7.0, 0.2], [0.0, 0.3]])
    truth = Truth.of(scores, np.array(["a"] * 4), Terms(2, Rules()))
    assert sorted(truth.best) == [0, 3]
    assert truth.mass(np.array([0, 1])) == pytest.approx((1 - 1 / 3) / 2)  # .1 lies below the mean, .15
    assert truth.mass(truth.best) == 1
    assert truth.served(truth.best).tolist() == [1, 1]
    paper = Truth.of(scores, np.array(["a"] * 4), Terms(2, Rules(rule="paper")))
    assert paper.mass(np.array([0, 1])) == 1
    assert paper.served(paper.best).tolist() == [1, 0]
    weights = np.array([1.0, 100.0])
    weighted = Truth.of(scores, np.array(["a"] * 4), Terms(2, Rules(rule="paper", weights=weights)))
    assert weighted.rewards.tolist() == [9.0, 10.0, 20.0, 30.0]
    assert weighted.best.tolist() == [3, 2]
    assert weighted.mass(np.array([3, 2])) == 1
    assert truth_of([0.0, 1.0, 4.0, np.nan], max_per_source=1).best.tolist() == [2, 1]


def test_overlap_and_sources_are_means_over_seeds():
    truth = truth_of([0.0, 1.0, 4.0, 3.0])
    random = cu.Contender("random", cu.Random(), clusterer=None)
    blocks, terms = {"x": np.zeros((4, 1), np.float32)}, Terms(2, schedule=Schedule(batch_size=1))
    (found,) = replay(random, truth, blocks, {}, [2], 3, terms)
    selections = [one.selection for one in found]
    rows = [set(one.rows.tolist()) for one in selections]
    expected = np.mean([len(a & b) / len(a | b) for a, b in zip(rows, rows[1:] + rows[:1], strict=True)])
    rotated = selections[1:] + selections[:1]
    matrix = overlaps({"one": selections, "two": rotated})
    assert matrix[0] == [1.0, pytest.approx(expected)]
    counts = by_source([one.rows for one in selections], truth.sources)
    assert sum(counts.values()) == 2
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": 1.0, "seeds": [1.0, 3.0]}
