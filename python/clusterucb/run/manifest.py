"""Define ``manifest.json``: what a run was asked for, how far it is, what it cost and what it found.

Decisions:
    - The manifest has a part for each stage, and one stage writes it: the run folder writes `Identity` and `Asked`, the
      reading stage `Inputs`, the search `SearchState`, the passes of the model `PassLimits`, and the end of the job
      `Cost` and `RunOutcome`.
    - A gradient store's fingerprint is computed from the names of format 1, so that runs that used an older store can
      resume.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec

from clusterucb.engine.aggregate import PAPER
from clusterucb.errors import OptionError
from clusterucb.options.amounts import parse_budget
from clusterucb.plugins import is_description
from clusterucb.run.cost import Amount, Cost, Count
from clusterucb.versions import __version__
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clusterucb.samples.pool_and_target import Material
    from clusterucb.samples.sample import Sample

FORMAT = 3
STORE = {"what the folder holds": "a gradient store"}  # marks a store in format 1
Size = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
JobKind = Literal["select", "score", "sketch", "compare", "try"]
_JOBS: dict[JobKind, str] = {
    "select": "a selection",
    "score": "scores of a whole pool",
    "sketch": "a gradient store",
    "compare": "a comparison",
    "try": "a trial",
}


_CONTENTS = {"encoding": "tokenizer or chat template"}  # in words


class Identity(msgspec.Struct, omit_defaults=True):
    """Everything that determines the numbers of a job. A folder resumes only a job that has the same.

    Attributes:
        options: the values of options and the descriptions of strategies, by the option's name; options without effect
            are None, such as the rule if the target has a single subtask.
        contents: the fingerprints of what the job reads (pool, target, model, encoding, adapter, …), by name; None for
            what it does not read.
        job: the kind of job.
        projection: the version and the number of nonzeros of a gradient store's sketches.
    """

    options: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    job: JobKind = "select"
    projection: dict[str, int] = {}

    def changes(self, now: Identity) -> list[str]:
        """Return the differences between this identity and the present one, as phrases for an error message.

        A gradient store takes further pools, so another pool is no difference.
        """
        changed = [f"it held {_JOBS[self.job]}, now {_JOBS[now.job]}"] if self.job != now.job else []
        for name in {**self.options, **now.options}:
            old, new = self.options.get(name), now.options.get(name)
            if old != new and not (name == "--rule" and None in (old, new)):
                changed.append(f"{name} was {shown(old)}, now {shown(new)}")
        names = self.other_contents(now.contents)
        if self.job == now.job == "sketch":
            names = [name for name in names if name != "pool"]
        others = (_CONTENTS.get(name, f"{name} content") for name in names)
        return [*changed, *(f"the {name} has changed" for name in others)]

    def other_contents(self, contents: Mapping[str, Any]) -> list[str]:
        """Return the names of the contents that differ from ``contents``."""
        names = dict.fromkeys([*self.contents, *contents])
        return [name for name in names if self.contents.get(name) != contents.get(name)]

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of everything in the identity."""
        flat = {**self.options, **{f"{name} content": value for name, value in self.contents.items()}}
        if self.job == "sketch":
            flat |= {
                "sketch version": self.projection["version"],
                "nonzeros": self.projection["nonzeros"],
                **STORE,
            }
        elif self.job != "select":
            flat["job"] = self.job
        return hashlib.sha256(msgspec.json.encode(flat, order="sorted")).hexdigest()


class Asked(msgspec.Struct, frozen=True):
    """The amounts that the user asked for, as text. They may change when a run is resumed.

    Attributes:
        budget: the budget, which may only grow; None for a job without a budget.
        select: the number of samples to select; None for a job that selects none.
        until: the recall at which the search stops, or None.
    """

    budget: str | None = None
    select: str | None = None
    until: str | None = None

    def refusal(self, now: Asked) -> list[str]:
        """Return a complaint if the present budget is smaller than this one or has another unit."""
        if self.budget is None or now.budget is None or self.budget == now.budget:
            return []
        try:
            old: Any = parse_budget("--budget", self.budget)
        except OptionError:
            return [f"--budget was {one_line(self.budget)!r:.80}, which is none"]
        new: Any = parse_budget("--budget", now.budget)
        if type(old) is type(new) and new >= old:
            return []
        return [f"--budget was {self.budget}, now {now.budget} (it may only grow, in the same unit)"]


class Inputs(msgspec.Struct):
    """The samples that a job read.

    Attributes:
        pool_files, target_files: the files, as they were given.
        pool_samples, target_samples: the numbers of samples that are used.
        pool_rejected, target_rejected: the numbers of lines that are not used.
        pool_unsketched: the number of pool samples that the gradient store does not hold; 0 without a store.
        subtasks: the names of the target's subtasks.
        subtask_contents: the fingerprint of each subtask's contents.
        rejected: the number of rejected lines for each kind of reason.
        judges: the ids of the target samples that are held out, by subtask.
    """

    pool_files: list[str] = []
    target_files: list[str] = []
    pool_samples: Count = 0
    pool_rejected: Count = 0
    pool_unsketched: Count = 0
    target_samples: Count = 0
    target_rejected: Count = 0
    subtasks: list[str] = []
    subtask_contents: dict[str, str] = {}
    rejected: dict[str, Count] = {}
    judges: dict[str, list[str]] = {}

    @classmethod
    def of(
        cls, material: Material, rejected: dict[str, int] | None = None, judges: Iterable[Sample] = ()
    ) -> Self:
        """Return the record of what a job read.

        Args:
            material: the encoded pool and target.
            rejected: the number of rejected lines for each kind of reason.
            judges: the target samples that are held out.
        """
        by_subtask: dict[str, list[str]] = {}
        for sample in judges:
            by_subtask.setdefault(sample.subtask, []).append(sample.id)
        return cls(
            pool_files=list(material.pool_files),
            target_files=list(material.target_files),
            pool_samples=len(material.samples),
            pool_rejected=len(material.pool_rejected),
            pool_unsketched=0 if material.sketched is None else len(material.unsketched),
            target_samples=material.n_target,
            target_rejected=len(material.target_rejected),
            subtasks=list(material.target),
            subtask_contents=material.subtask_contents(),
            rejected=rejected or {},
            judges=by_subtask,
        )


class SearchState(msgspec.Struct):
    """What a search decided when it began, and keeps when it resumes.

    Attributes:
        cold_start: the share of every arm that the cold start draws; None before the search begins.
        seconds_per_token: the estimated time to draw and score a token, measured for a time budget; else None.
        spent: whether the search came to its end with the amounts in `Asked`.
        begun: whether the ledger exists.
    """

    cold_start: Amount | None = None
    seconds_per_token: Amount | None = None
    spent: bool = False
    begun: bool = False


class Limit(msgspec.Struct, frozen=True):
    """A limit on the size of the model's passes, set because memory ran out.

    Attributes:
        call: the name of the computation in which memory ran out. A computation is done completely or not at all
            (`clusterucb.gradients.passes.Passes.over`).
        part: the number of the computation's part, from 0.
        done: the number of samples of that part that were done before the limit.
        tokens: the largest number of padded tokens in a pass after that.
    """

    call: str
    part: Count
    done: Count
    tokens: Size


class PassLimits(msgspec.Struct):
    """The size of the model's passes.

    Attributes:
        batch_tokens: the padded tokens of a pass that fit into the device's memory, measured once; None on a CPU.
        limits: the smaller limits that were set because memory ran out, in order.
    """

    batch_tokens: Size | None = None
    limits: list[Limit] = []


class RunOutcome(msgspec.Struct):
    """The result of a run.

    Attributes:
        n_selected: the number of samples in ``selected.jsonl``.
        n_scored: the number of draws, failures included.
        n_failed: the number of draws whose scoring failed.
        stopped: why the search ended: ``budget``, ``exhausted`` or ``recall``; ``interrupted`` while a run is
            interrupted.
        clusters: the number of arms.
        draws: the number of draws from each arm.
        selected_by_source: the number of samples selected from each source.
        standardized: the mean and deviation by which each subtask's scores were standardized; None under rules that
            need none.
        length_correlation: the Spearman correlation of score and answer length over the draws.
        recall: the estimated share of the best samples found, with the ends (low, high) of its interval and the
            interval's confidence; None if the recall cannot be estimated.
        served: the share of each subtask's own best samples that is selected, by subtask; None if it cannot be
            estimated, or if there is one subtask.
        captured_by: the subtask that captures the selection, or None (`clusterucb.engine.rules.capturing`).
        n_budget: the number of draws in the budget, or the expected number under a limit on tokens or time.
        n_select: the number of samples that were to be selected.
        rule: the rule that chose the samples.
        max_per_source: the largest number of samples from one source, or None.
        annotated: whether the lines of ``selected.jsonl`` have a field ``clusterucb``.
    """

    n_selected: Count
    n_scored: Count
    n_failed: Count
    stopped: str
    clusters: Count
    draws: list[Count]
    selected_by_source: dict[str, Count]
    length_correlation: float | None
    standardized: dict[str, list[float]] | None = None
    recall: dict[str, float] | None = None
    served: dict[str, float] | None = None
    captured_by: str | None = None
    n_budget: Count = 0
    n_select: Count = 0
    rule: str = PAPER
    max_per_source: Size | None = None
    annotated: bool = False

    @property
    def found(self) -> float | None:
        """The estimated share of the best samples found, or None."""
        return self.recall["estimate"] if self.recall else None


class Manifest(msgspec.Struct):
    """The content of ``manifest.json``.

    Attributes:
        identity: everything that determines the run's numbers.
        asked: the amounts that the user asked for.
        format: the version of the file's form.
        clusterucb: the version of clusterucb that began the run.
        versions: the versions of the packages that affect numbers.
        status: ``finished`` once all results are written.
        token: the fingerprint of the identity that began the run, by which its ledger is known; None in format 1 and 2.
        files: the hex SHA-256 of each file that a later stage reads, by its path in the folder; None in format 1 and 2.
        inputs, search, passes, cost, outcome: the parts that the stages write.
    """

    identity: Identity
    asked: Asked = Asked()
    format: int = FORMAT
    clusterucb: str = __version__
    versions: dict[str, str] = {}
    status: Literal["running", "finished"] = "running"
    token: str | None = None
    files: dict[str, str] | None = None
    inputs: Inputs = msgspec.field(default_factory=Inputs)
    search: SearchState = msgspec.field(default_factory=SearchState)
    passes: PassLimits = msgspec.field(default_factory=PassLimits)
    cost: Cost = msgspec.field(default_factory=Cost)
    outcome: RunOutcome | None = None


def shown(value: object) -> str:
    """Return the value of an option as text; a strategy as its name and its options."""
    if isinstance(value, dict) and is_description(value):
        options = ", ".join(f"{key}={_shown_option(option)}" for key, option in value["options"].items())
        return f"{value['class'].rpartition('.')[2]}({options})"
    return "unset" if value is None else str(value)


def _shown_option(option: object) -> str:
    """Return a hyper-parameter as text. It may be a strategy itself, or a list of strategies."""
    if isinstance(option, list) and any(isinstance(item, dict) for item in option):
        return f"[{', '.join(map(shown, option))}]"
    return shown(option) if isinstance(option, dict) else repr(option)
