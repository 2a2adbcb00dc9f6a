"""Compare the estimated recall with the true recall, and check searches that stop by the estimate.

    python benchmarks/bench_recall.py [--pools templated,diverse,code] [--seeds 2] [--json FILE]

The bench replays searches on the recorded scores of three real pools (`replay.py`): eleven targets a pool (its three,
and every subtask alone), three policies and two budgets. It compares each estimate and its interval with the truth.

`clusterucb.engine.recall` has one constant that was fitted to such replays: `VARIANCE`, a part of the variance of the
regression estimate. For each pool, the bench also fits this constant to the other pools alone and tests it on that
pool. The fitted value is the smallest of `VARIANCES` whose intervals cover nine tenths of the replays on every other
pool.

Then searches with the whole pool as budget stop when the estimate reaches .9 (``until=0.9``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from clusterucb.engine.loop import Selection
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import VARIANCE, Draws, Recall, RecallEstimator, averaged
from clusterucb.jobs.comparison.replay import Truth
from replay import Recorded, Searches, parser_of
from strategies import TARGETS

POLICIES = ("random", "ucb", "surrogate")
BUDGETS = (0.1, 0.2)
VARIANCES = tuple(round(0.05 * step, 2) for step in range(13))
UNTIL = 0.9


@dataclass(frozen=True)
class Replay:
    """One search, its true recall and its estimated recall.

    Attributes:
        pool: the name of the pool.
        policy: the name of the policy.
        budget: the budget as a share of the pool.
        truth: the true recall.
        said: the estimated recall for each of `VARIANCES`.
    """

    pool: str
    policy: str
    budget: float
    truth: float
    said: dict[float, Recall]

    def covered(self, variance: float) -> bool:
        """Return whether the interval contains the true recall."""
        return self.said[variance].low <= self.truth <= self.said[variance].high


class Audit(Searches):
    """Searches of one pool with one policy, and the estimates of their recall."""

    def __init__(self, name: str, pool: Recorded, policy: str) -> None:
        super().__init__(pool, policy)
        self.name, self.policy = name, policy

    def targets(self) -> Iterator[Truth]:
        """Yield the truth of each target: the three targets first, then each subtask alone."""
        n_subtasks = self.pool.scores.shape[1]
        yield from map(self.truth, (*TARGETS, *(slice(number, number + 1) for number in range(n_subtasks))))

    def said(self, found: Selection) -> dict[float, Recall]:
        """Return the estimated recall of a search for each of `VARIANCES`."""
        pool = PoolView(
            self.blocks,
            found.labels,
            np.zeros(len(found.labels)),
            dict(self.pool.columns),
            n_select=len(found.rows),
        )
        draws = Draws(found.drawn_rows, found.subtask_scores, found.drawn_probability)
        evidence = RecallEstimator(pool).evidence(draws, partial(np.max, axis=1))
        return {variance: averaged(evidence, variance) for variance in VARIANCES}

    def replays(self, seeds: int) -> Iterator[Replay]:
        """Yield a replay for every target, budget and seed."""
        for truth in self.targets():
            for budget in BUDGETS:
                for seed in range(seeds):
                    found = self.searched(truth, int(budget * len(truth.rewards)), seed)
                    yield Replay(self.name, self.policy, budget, truth.recall(found.rows), self.said(found))

    def stops(self) -> dict:
        """Return the recall and the cost of searches that stop when the estimate reaches `UNTIL`."""
        recalls, shares = [], []
        for truth in list(self.targets())[: len(TARGETS)]:
            found = self.searched(truth, len(truth.rewards), 0, until=UNTIL)
            recalls.append(truth.recall(found.rows))
            shares.append(found.n_scored / len(truth.rewards))
        return {
            "pool": self.name,
            "policy": self.policy,
            "recall": round(float(np.mean(recalls)), 3),
            "least": round(float(np.min(recalls)), 3),
            "scored": round(float(np.mean(shares)), 3),
        }


def summary(replays: list[Replay], variance: float) -> dict:
    """Return the accuracy of the estimates: mean error, coverage and width of the intervals."""
    said = [one.said[variance] for one in replays]
    off = np.array([recall.estimate - one.truth for recall, one in zip(said, replays, strict=True)])
    return {
        "replays": len(replays),
        "truth": round(float(np.mean([one.truth for one in replays])), 3),
        "estimate": round(float(np.mean([recall.estimate for recall in said])), 3),
        "error": round(float(np.abs(off).mean()), 3),
        "covered": round(float(np.mean([one.covered(variance) for one in replays])), 3),
        "width": round(float(np.median([recall.high - recall.low for recall in said])), 3),
    }


def held_out(replays: list[Replay], pool: str) -> dict:
    """Return the accuracy of the estimates on a pool, with the variance fitted to the other pools."""
    others = [[one for one in replays if one.pool == name] for name in {one.pool for one in replays} - {pool}]
    enough = (
        v for v in VARIANCES if min(np.mean([one.covered(v) for one in some]) for some in others) >= 0.9
    )
    variance = next(enough, VARIANCES[-1])
    return {"variance": variance, **summary([one for one in replays if one.pool == pool], variance)}


def table(rows: list[dict]) -> str:
    """Return the accuracy of the estimates as a Markdown table."""
    lines = [
        "| pool | policy | budget | replays | found | estimated | off by | covered | width |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        values = " | ".join(f"{row[key]:.2f}" for key in ("truth", "estimate", "error", "covered", "width"))
        lines.append(
            f"| {row['pool']} | `{row['policy']}` | {row['budget']:.0%} | {row['replays']} | {values} |"
        )
    return "\n".join(lines)


def stop_table(rows: list[dict]) -> str:
    """Return the results of searches that stopped by the estimate as a Markdown table."""
    lines = ["| pool | policy | found | least | scored |", "|---" * 5 + "|"]
    for row in rows:
        values = " | ".join(f"{row[key]:.2f}" for key in ("recall", "least", "scored"))
        lines.append(f"| {row['pool']} | `{row['policy']}` | {values} |")
    return "\n".join(lines)


def main() -> None:
    options = parser_of(__doc__, seeds=2).parse_args()
    names = options.pools.split(",")
    replays: list[Replay] = []
    rows, stops = [], []
    for name in names:
        pool = Recorded.of(name, options.folder / name)
        for policy in POLICIES:
            searches = Audit(name, pool, policy)
            here = list(searches.replays(options.seeds))
            replays += here
            for budget in BUDGETS:
                some = [one for one in here if one.budget == budget]
                rows.append({"pool": name, "policy": policy, "budget": budget, **summary(some, VARIANCE)})
                print(json.dumps(rows[-1]), flush=True)
            if policy != "random":  # random draws reach a recall only with that share of the pool
                stops.append(searches.stops())
                print(json.dumps(stops[-1]), flush=True)
    content = {
        "variance": VARIANCE,
        "seeds": options.seeds,
        "by_pool": rows,
        "by_budget": {
            f"{budget:.0%}": summary([one for one in replays if one.budget == budget], VARIANCE)
            for budget in BUDGETS
        },
        "held_out": {name: held_out(replays, name) for name in names} if len(names) > 1 else {},
        "until": {"recall": UNTIL, "searches": stops},
    }
    print(f"\n{table(rows)}\n\n{stop_table(stops)}\n")
    print(json.dumps({key: content[key] for key in ("by_budget", "held_out")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
