"""The exported call of `Reselect` selects as the selection did."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clusterucb as cu
from clusterucb.errors import OptionError
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.options.keywords import settings_from
from clusterucb.options.search import SelectSettings
from clusterucb.plugins import describe
from clusterucb.report.export.reselection import reselection


def written(
    pool: Any = "p.jsonl", target: Any = "t.jsonl", *, strategies: Any = (None, None, None), **options: Any
) -> str:
    settings = settings_from({"export": "trl", "every": "200", **options}, SelectSettings)
    return reselection(settings, pool, target, chosen(*strategies, store=False)._asdict(), 200)


def called(code: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the call."""
    found: list[Any] = []
    names = {name: getattr(cu, name) for name in ("KMeans", "UCB", "Surrogate", "Embedding", "plugins")}
    fake = SimpleNamespace(**names, Reselect=lambda *given, **options: found.extend((given, options)))
    exec(code, {"cu": fake})
    return found[0], found[1]


def test_the_call_has_the_options_that_are_not_the_defaults(tmp_path: Path) -> None:
    code = written(
        [tmp_path / "a.jsonl", "b.jsonl"],
        budget="10%",
        select="2%",
        rule="mean",
        subtask_weights={"food": 2.0},
        columns={"prompt": "q"},
        seed=3,
        annotate=True,
        lora_rank=4,
        device="cpu",
    )
    paths, options = called(code)
    assert paths == (
        [str(tmp_path / "a.jsonl"), str(Path("b.jsonl").absolute())],
        [str(Path("t.jsonl").absolute())],
    )
    assert {
        name: value for name, value in options.items() if name not in ("features", "clusterer", "policy")
    } == {
        "every": 200,
        "budget": "10%",
        "select": "2%",
        "rule": "mean",
        "subtask_weights": {"food": 2.0},
        "columns": {"prompt": "q"},
        "seed": 3,
    }


@pytest.mark.parametrize(
    "strategies",
    [
        (None, None, None),
        (None, cu.KMeans(n_clusters=7), cu.UCB(beta=2.0)),
        (cu.plugins.load().make("feature", "embedding+lexical", {}), None, None),
        (None, cu.plugins.load().make("clusterer", "hdbscan", {"noise": "arms"}), cu.UCB()),
    ],
)
def test_the_call_makes_the_same_strategies(strategies: Any) -> None:
    _, options = called(written(strategies=strategies))
    for name, strategy in chosen(*strategies, store=False)._asdict().items():
        assert describe(options[name]) == describe(strategy)


@pytest.mark.parametrize("name", ["a'b\".jsonl", "{x}\\n.jsonl", "line\nbreak.jsonl", '"""', "[a]*?.jsonl"])
def test_no_path_leads_out_of_its_quotes(name: str) -> None:
    assert called(written(name))[0][0] == [str(Path(name).absolute())]
    assert len(ast.parse(written(name)).body) == 1


def test_an_epoch_stays_a_word() -> None:
    for every in ("epoch", "auto"):
        assert called(written(every=every))[1]["every"] == every


class Own(cu.Policy):
    def start(self, pool: Any) -> None: ...

    def ask(self, n: int, available: Any, rng: Any) -> Any:
        return available.nonzero()[0][:n]


def test_what_no_script_can_name_is_refused() -> None:
    with pytest.raises(OptionError, match="--every is given with a pool in memory; expected files"):
        written([{"prompt": "a", "completion": "b"}])
    with pytest.raises(OptionError, match="--every is given with a policy that is not installed"):
        written(strategies=(None, None, Own()))
    with pytest.raises(OptionError, match="--every is given with --adapter; expected it without"):
        written(adapter=Path("a"))
    for every in ("0", "week", "-1", "1.5"):
        with pytest.raises(
            OptionError, match=rf"--every is '?{every}'?; expected a number of optimiser steps, epoch or auto"
        ):
            written(every=every)
    with pytest.raises(OptionError, match="--every is 200 without --export trl; expected both"):
        written(export="axolotl")
