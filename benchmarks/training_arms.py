"""The pool rows that each arm of `bench_training.py` trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import clusterucb as cu
from clusterucb.engine import Rules, Schedule, SideInformation, search
from clusterucb.engine.poolview import unit_rows
from clusterucb.jobs.comparison.replay import Terms, Truth
from clusterucb.jobs.trial.arms import of_tokens
from clusterucb.samples.pool_and_target import Material
from replay import DATA, Recorded, scores_of, sketches_of, subtasks_of

Rows = np.ndarray

RULES = {
    "paper": Rules(rule="paper"),
    "mean": Rules(rule="mean"),
    "standardized": Rules(rule="standardized"),
    "round-robin": Rules(),
}
# Scores of another kind: the preconditioner, and whether the score is the inner product in place of the cosine.
KINDS = {
    "adam": ("adam", False),
    "second_moment": ("second_moment", False),
    "sgd": ("sgd", False),
    "inner": ("adam_less", True),
    "sgd-inner": ("sgd", True),
}
ALIKE = 0.99  # cosine of embeddings above which two samples are near-duplicates
REDUNDANCY = 0.5  # weight of the similarity to what is already selected


@dataclass(frozen=True)
class Arms:
    """Chooses rows of a pool with recorded scores.

    Attributes:
        name: the pool's name.
        folder: the folder with the pool's files.
        material: the encoded pool.
    """

    name: str
    folder: Path
    material: Material

    def rows(self, arm: str, subtasks: list[str], n: int, seed: int) -> Rows:
        """Return the rows of an arm.

        Args:
            arm: ``random``, a rule of `RULES`, a kind of `KINDS`, or the name of one of the functions below.
            subtasks: the target's subtasks.
            n: the number of rows to select.
            seed: the seed of random rows.
        """
        scores = _recorded_scores(self.name, subtasks)
        if arm == "random":
            lengths = self.material.encoded.lengths
            wanted = int(lengths[self._by_rule("round-robin", scores, n)].sum())
            return of_tokens(lengths, n, wanted, np.random.default_rng([seed, 99]))
        if arm in RULES:
            return self._by_rule(arm, scores, n)
        if arm in KINDS:
            return self._by_rule("round-robin", self._of_kind(arm, subtasks), n)
        made: dict[str, Callable[[np.ndarray, int, list[str]], Rows]] = {
            "search10": lambda *given: self._searched(*given, budget=0.1),
            "search20": lambda *given: self._searched(*given, budget=0.2),
            "rds": self._most_similar,
            "capped": self._capped,
            "distinct": self._distinct,
            "spread": self._spread,
            "later": lambda _, n, names: self._by_rule("round-robin", self._later(names), n),
            "summed": lambda now, n, names: self._by_rule("round-robin", now + self._later(names), n),
        }
        return made[arm](scores, n, subtasks)

    def _later(self, subtasks: list[str]) -> np.ndarray:
        """Return the scores after 150 warm-up steps; they are recorded for one pool (`bench_prior.LATER`)."""
        return _recorded_scores(f"{self.name}-later", subtasks)

    def _of_kind(self, arm: str, subtasks: list[str]) -> np.ndarray:
        """Return the scores of another kind; they are recorded for one pool (`score_kinds.py`)."""
        kind, by_length = KINDS[arm]
        recorded = np.load(DATA / f"{self.name}-kinds.npz")
        names = recorded["subtasks"].tolist()
        scores = recorded[kind][:, [names.index(subtask) for subtask in subtasks]].astype(np.float64)
        return scores * recorded[f"{kind}-lengths"][:, None] if by_length else scores

    @cached_property
    def _recorded(self) -> Recorded:
        return Recorded.of(self.name, self.folder)

    @cached_property
    def _blocks(self) -> dict[str, np.ndarray]:
        described = self._recorded.described(cu.Embedding())
        return {name: np.asarray(block, np.float32) for name, block in described.items()}

    def _by_rule(self, rule: str, scores: np.ndarray, n: int) -> Rows:
        return Truth.of(scores, self.material.sources, Terms(n, RULES[rule])).best

    def _searched(self, scores: np.ndarray, n: int, _: list[str], *, budget: float) -> Rows:
        """Return what a selection with the defaults finds with a share of the gradients."""
        found = search(
            self._blocks,
            scores.__getitem__,
            clusterer=cu.KMeans(),
            policy=cu.Surrogate(),
            budget=int(budget * len(scores)),
            n_select=n,
            side=SideInformation(columns=self._recorded.columns),
            schedule=Schedule(batch_size=8),
        )
        return found.rows

    def _most_similar(self, scores: np.ndarray, n: int, subtasks: list[str]) -> Rows:
        """Return the rows whose embeddings are most similar to the target's (RDS)."""
        del scores
        alike = self._recorded.similarity(cu.Embedding(), self._blocks, subtasks)
        return np.argsort(-alike, kind="stable")[:n]

    def _capped(self, scores: np.ndarray, n: int, _: list[str]) -> Rows:
        """Return each subtask's best in turn, at most a tenth of the selection from one source."""
        rules = Rules(max_per_source=max(n // 10, 1))
        return Truth.of(scores, self.material.sources, Terms(n, rules)).best

    def _distinct(self, scores: np.ndarray, n: int, _: list[str]) -> Rows:
        """Return each subtask's best in turn, without rows that are near-duplicates of rows before them."""
        units = unit_rows(np.concatenate([self._blocks["prompt"], self._blocks["answer"]], axis=1))
        chosen: list[int] = []
        for row in (
            Rules().choose(np.arange(len(scores)), scores, scores.max(axis=1), len(scores), None).tolist()
        ):
            if not chosen or float((units[chosen] @ units[row]).max()) < ALIKE:
                chosen.append(row)
            if len(chosen) == n:
                break
        return np.array(chosen, np.int64)

    def _spread(self, scores: np.ndarray, n: int, _: list[str]) -> Rows:
        """Return rows in turn whose scores are large and whose gradients differ from those selected before.

        A subtask takes the row with the largest z-score less `REDUNDANCY` times the largest cosine of the row's sketch
        with those of its rows so far (maximal marginal relevance, Carbonell and Goldstein 1998).
        """
        units = unit_rows(sketches_of(self.name))
        z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
        alike = np.zeros_like(z)
        free = np.ones(len(z), np.bool_)
        chosen: list[int] = []
        while len(chosen) < n:
            turn = len(chosen) % z.shape[1]
            worth = np.where(free, z[:, turn] - REDUNDANCY * alike[:, turn], -np.inf)
            row = int(worth.argmax())
            chosen.append(row)
            free[row] = False
            alike[:, turn] = np.maximum(alike[:, turn], units @ units[row])
        return np.array(chosen, np.int64)


def _recorded_scores(recorded: str, subtasks: list[str]) -> np.ndarray:
    """Return the recorded scores of some subtasks, f64[N, S]."""
    names = subtasks_of(recorded)
    return scores_of(recorded)[:, [names.index(subtask) for subtask in subtasks]]
