"""Compare strategies on the recorded scores of three real pools: `make bench-replay`.

    python benchmarks/replay.py [--pools templated,diverse,code] [--seeds 3] [--no-signal] [--json FILE]

The scores are those in `tests/data`, which `benchmarks/strategies.py` and `benchmarks/record.py` made. The bench writes
the pools and computes the features again. That needs no gradients and takes minutes, while scoring a pool takes half an
hour. Targets and budgets are those of `benchmarks/strategies.py`.

Strategies are spelled as for `clusterucb compare`. Two more exist only for this comparison: ``audited`` is a surrogate
that draws a tenth of every batch at random, and ``capped`` is a surrogate that draws from a micro-cluster (about ten
similar samples) at most one sample more than it has seen there.

With ``--no-signal`` the bench shuffles the scores among the samples, anew for every seed, so that features and sources
do not predict them. This shows what a policy that learns from features loses on such a pool.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import clusterucb as cu
from clusterucb import plugins
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.engine.loop import Selection
from clusterucb.features.base import FeatureBatch, Fitted
from clusterucb.features.similarity import similarity
from clusterucb.jobs.comparison.replay import Contender, Terms, Truth, replay
from clusterucb.jobs.comparison.spelling import contender, split
from clusterucb.jobs.stages.prepare import prepare
from clusterucb.options.search import Settings
from clusterucb.progress import Screen
from strategies import POOLS, TARGETS

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.searching import search

DATA = Path(__file__).parents[1] / "tests" / "data"
BUDGETS = (0.05, 0.10, 0.20)
STRATEGIES = (
    "random",
    "rds",
    "rds@ngrams",
    "rds@hidden",
    "ucb",
    "thompson",
    "thompson-mean",
    "threshold-hard",
    "threshold-normal",
    "ucb1",
    "cluster-mean",
    "ucb[parts=false]",
    "ucb@source",
    "thompson@source",
    "ucb@embedding+lexical",
    "ucb@ngrams",
    "ucb@hidden",
    *(f"ucb@{clusterer}" for clusterer in ("faiss-kmeans", "hdbscan", "hdbscan[noise=arms]")),
    *(f"ucb[n_clusters={n_clusters}]" for n_clusters in (50, 100, 200, 300)),
    *(f"ucb[beta={beta}]" for beta in (0, 0.5, 2)),
    *(f"ucb[cold_start={share}]" for share in (0, 0.02, 0.1)),
    "surrogate",
    "surrogate[parts=false]",
    "surrogate@lexical",
    "surrogate@embedding+lexical",
    "surrogate@ngrams",
    "surrogate@source",
    *(
        f"surrogate[{option}]"
        for option in ("kappa=0", "kappa=1", "batches=5", "batches=50", "cold_start=0", "n_clusters=1")
    ),
    "audited",
    "capped",
)
NO_SIGNAL = ("random", "ucb", "surrogate")


def subtasks_of(name: str) -> list[str]:
    """Return the subtasks of a pool with recorded scores, in alphabetical order."""
    return sorted(np.load(DATA / f"{name}.npz")["subtasks"].tolist())


def scores_of(name: str) -> np.ndarray:
    """Return recorded scores f64[N, S] with the subtasks in alphabetical order."""
    recorded = np.load(DATA / f"{name}.npz")
    return recorded["scores"][:, np.argsort(recorded["subtasks"])].astype(np.float64)


def sketches_of(name: str) -> np.ndarray:
    """Return the leading components of a pool's gradient sketches, f32[N, k]; they are recorded for one pool."""
    recorded: np.ndarray = np.load(DATA / f"{name}-components.npz")["components"]
    return recorded.astype(np.float32)


class Audited(cu.Surrogate):
    """A surrogate that draws a tenth of every batch at random."""

    def ask(self, n: int, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the rows with the largest bounds, and a tenth at random."""
        chosen = super().ask(n - n // 10, available, rng)
        left = available.copy()
        left[chosen] = False
        others = rng.permutation(np.flatnonzero(left))
        return np.concatenate([chosen, others[: n - len(chosen)]])


class Capped(cu.Surrogate):
    """A surrogate that draws from a micro-cluster, in a batch, at most one row more than it has seen there."""

    def start(self, pool: cu.PoolView) -> None:
        """Make the micro-clusters."""
        super().start(pool)
        clusterer = cu.KMeans(n_clusters=max(len(pool) // 10, 1))
        self._micro = clusterer.fit_predict(pool, np.random.default_rng(0))
        self._seen = np.zeros(self._micro.max() + 1, np.int64)

    def tell(self, rows: np.ndarray, rewards: np.ndarray, scores: np.ndarray) -> None:
        """Count the scored rows of each micro-cluster."""
        super().tell(rows, rewards, scores)
        np.add.at(self._seen, self._micro[rows], 1)

    def ask(self, n: int, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the rows with the largest bounds within the caps, then other rows if these are too few."""
        ranked = super().ask(int(available.sum()), available, rng)
        room = self._seen + 1
        chosen, others = [], []
        for row in ranked.tolist():
            room[self._micro[row]] -= 1
            (chosen if room[self._micro[row]] >= 0 else others).append(row)
        return np.array((chosen + others)[:n])


ABLATIONS = {"audited": Audited, "capped": Capped}


def contender_of(spec: str, installed: plugins.Strategies) -> Contender:
    """Return a strategy of `ABLATIONS`, or one spelled as on the command line."""
    if spec not in ABLATIONS:
        return contender(spec, installed)
    return replace(contender("surrogate", installed), name=spec, policy=ABLATIONS[spec]())


@dataclass(frozen=True)
class Recorded:
    """A pool with recorded scores.

    Attributes:
        scores: scores f64[N, S] with the subtasks in alphabetical order.
        columns: ``source`` and other columns, each [N].
        batch: the samples and the model from which features are computed.
        target: the samples of each subtask, in alphabetical order, with the same model.
    """

    scores: np.ndarray
    columns: dict[str, np.ndarray]
    batch: FeatureBatch
    target: dict[str, FeatureBatch]

    @classmethod
    def of(cls, name: str, folder: Path) -> Recorded:
        """Write the pool unless it exists, and load its recorded scores.

        Raises:
            SystemExit: if the pool differs from the pool that was scored.
        """
        if not (folder / "pool.jsonl").exists():
            POOLS[name](folder)
        settings = Settings()
        prepared = prepare(
            folder / "pool.jsonl", folder / "target.jsonl", demo_model(Screen()), settings, Screen()
        )
        material = prepared.material
        data = np.load(DATA / f"{name}.npz")
        lengths = np.log([[len(sample), sample.n_labels] for sample in material.encoded])
        if lengths.shape != data["length"].shape or np.abs(lengths - data["length"]).max() > 0.01:
            raise SystemExit(
                f"the pool {name} is another here than the one that was scored: run record.py anew"
            )
        model = prepared.source.model(settings.dtype, prepared.device)
        batch = FeatureBatch(material.samples, material.encoded, lambda: model, lambda: sketches_of(name))
        target = {
            subtask: replace(batch, samples=samples, encoded=material.target[subtask])
            for subtask, samples in sorted(material.target_samples.items())
        }
        return cls(scores_of(name), material.columns(), batch, target)

    def described(self, feature: cu.Feature) -> dict[str, np.ndarray]:
        """Return a feature's blocks by name."""
        return dict(feature.compute(replace(self.batch, fitted=self._fitted(feature))))

    def similarity(
        self, feature: cu.Feature, blocks: dict[str, np.ndarray], subtasks: list[str]
    ) -> np.ndarray:
        """Return each row's largest cosine with the mean features of a subtask, f64[N]."""
        fitted = self._fitted(feature)
        of_subtasks = [dict(feature.compute(replace(self.target[name], fitted=fitted))) for name in subtasks]
        return similarity({name: blocks[name] for name in feature.compared(blocks)}, of_subtasks)

    def _fitted(self, feature: cu.Feature) -> Fitted:
        if not feature.fit_samples:
            return {}
        return feature.fit(self.batch.spread(feature.fit_samples)) or {}


class Searches:
    """Searches of a recorded pool with one strategy.

    Args:
        pool: the recorded pool.
        strategy: the strategy, spelled as on the command line.
    """

    def __init__(self, pool: Recorded, strategy: str) -> None:
        self.pool = pool
        self._one = contender_of(strategy, plugins.load())
        blocks = pool.described(self._one.features)
        self.blocks = {name: np.asarray(block, np.float32) for name, block in blocks.items()}

    def truth(self, subtasks: slice) -> Truth:
        """Return the truth of the target that consists of these subtasks."""
        terms = Terms(n_select=len(self.pool.scores) // 20)
        return Truth.of(self.pool.scores[:, subtasks], self.pool.columns["source"], terms)

    def searched(self, truth: Truth, budget: int, seed: int, **options) -> Selection:
        """Run a search, with ``options`` passed on, and return its selection."""
        return search(
            self.blocks,
            lambda rows: truth.scores[rows],
            clusterer=self._one.clusterer,
            policy=self._one.policy,
            budget=budget,
            n_select=len(truth.best),
            batch_size=8,
            seed=seed,
            columns=self.pool.columns,
            **options,
        )


def recalls(
    pool: Recorded, one: Contender, budgets: tuple[float, ...], seeds: int, *, shuffled: bool
) -> tuple[np.ndarray, list[float]]:
    """Return the recall of a contender, f64[targets, budgets, seeds], and the seconds of searches at the last budget.

    If ``shuffled``, each seed shuffles the scores again, and every search uses the same seed.
    """
    n_samples = len(pool.scores)
    blocks = pool.described(one.features)
    terms = Terms(n_select=n_samples // 20)
    draws = [int(budget * n_samples) for budget in budgets]
    orders = (
        [np.random.default_rng(seed).permutation(n_samples) for seed in range(seeds)] if shuffled else [...]
    )
    found, seconds, clusterings = [], [], {}
    for target in TARGETS:
        by_budget = [[] for _ in budgets]
        columns = dict(pool.columns)
        if "similarity" in one.policy.columns:
            columns["similarity"] = pool.similarity(one.features, blocks, list(pool.target)[target])
        for order in orders:
            truth = Truth.of(pool.scores[order][:, target], pool.columns["source"], terms)
            searches = 1 if shuffled else seeds
            replays = replay(one, truth, blocks, columns, draws, searches, terms, clusterings)
            for recalls_of, of_budget in zip(by_budget, replays, strict=True):
                recalls_of += [truth.recall(once.selection.rows) for once in of_budget]
            seconds += [once.seconds for once in replays[-1]]
        found.append(by_budget)
    return np.array(found), seconds


def summary(
    pool: Recorded, strategies: list[str], budgets: tuple[float, ...], seeds: int, *, shuffled: bool
) -> list:
    """Return each strategy's mean recall over targets and seeds at each budget, and its deviation over seeds."""
    installed = plugins.load()
    rows = []
    for spec in strategies:
        found, seconds = recalls(pool, contender_of(spec, installed), budgets, seeds, shuffled=shuffled)
        rows.append(
            {
                "strategy": spec,
                "recall": found.mean(axis=(0, 2)).round(4).tolist(),
                "over_seeds": found.mean(axis=0).std(axis=1).round(4).tolist(),
                "by_target": found[:, -1].mean(axis=1).round(4).tolist(),
                "seconds": round(float(np.median(seconds)), 2),
            }
        )
    return rows


def held_out(found: dict[str, list[dict]], budget: int) -> dict[str, dict]:
    """Return for each pool the strategy that is best on the other pools, and its recall on this pool.

    Args:
        found: the summary of each pool.
        budget: the index of the budget in each summary.
    """
    chosen = {}
    for pool, rows in found.items():
        others = [of_pool for name, of_pool in found.items() if name != pool]
        means = [np.mean([one[place]["recall"][budget] for one in others]) for place in range(len(rows))]
        best = rows[int(np.argmax(means))]
        chosen[pool] = {"strategy": best["strategy"], "recall": best["recall"][budget]}
    return chosen


def table(rows: list[dict], budgets: list[float]) -> str:
    """Return the summary as a Markdown table."""
    heads = " | ".join(f"{budget:.0%}" for budget in budgets)
    lines = [f"| strategy | {heads} | by target | s |", "|---" * (len(budgets) + 3) + "|"]
    for row in rows:
        means = " | ".join(
            f"{mean:.2f} ± {std:.2f}" for mean, std in zip(row["recall"], row["over_seeds"], strict=True)
        )
        targets = " ".join(f"{one:.2f}" for one in row["by_target"])
        lines.append(f"| `{row['strategy']}` | {means} | {targets} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def parser_of(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every bench on recorded pools, and silence the warnings of searches."""
    warnings.simplefilter("ignore", cu.ClusterUCBWarning)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=cache_folder().parent / "bench")
    parser.add_argument("--pools", default=",".join(POOLS))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    parser = parser_of(__doc__, seeds=3)
    parser.add_argument("--strategies")
    parser.add_argument("--no-signal", action="store_true")
    options = parser.parse_args()
    budgets = BUDGETS[-1:] if options.no_signal else BUDGETS
    strategies = split(options.strategies or ",".join(NO_SIGNAL if options.no_signal else STRATEGIES))
    found = {}
    for name in options.pools.split(","):
        pool = Recorded.of(name, options.folder / name)
        found[name] = summary(pool, strategies, budgets, options.seeds, shuffled=options.no_signal)
        print(f"\n{name}: recall of the best 5 %, mean over {len(TARGETS)} targets ± deviation over seeds\n")
        print(table(found[name], list(budgets)), flush=True)
    held = {}
    if len(found) > 1:
        held = {f"{budget:.0%}": held_out(found, place) for place, budget in enumerate(budgets)}
        print(json.dumps({"held_out": held}, indent=1))
    if options.json:
        content = {"budgets": budgets, "seeds": options.seeds, "pools": found, "held_out": held}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
