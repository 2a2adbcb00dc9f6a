"""Run a job on the first rows of its files, and estimate what the whole job would take.

Decisions:
    - The dry run uses the job's own code to read, encode, load the model and compute gradients. What fails here would
      fail in the job, with the same message.
    - Time and memory come from the plan for the first rows (`clusterucb.jobs.plan`), scaled to the whole pool. They are
      a guide, and are presented as one.
    - Files are written to a temporary folder only.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from clusterucb.engine.aggregate import ROUND_ROBIN
from clusterucb.errors import warn
from clusterucb.jobs.stages.opening import Job
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, check_model, prepare
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.options.search import Settings
from clusterucb.progress import Observer
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.pool_sketches import PoolSketches
from clusterucb.samples.pool import Pool, overlap, read_pool, read_target
from clusterucb.samples.sample import Rejected, counts_by_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clusterucb.samples.encoded import Encoded

FIRST = 200  # lines that are read of every file
_REASONS = 5  # reasons that are listed


class FileFacts(msgspec.Struct):
    """Facts about the first lines of a file.

    Attributes:
        read: the number of lines read.
        total: the number of lines in the file. It is exact if the whole file was read, and may be an estimate
            otherwise; None if unknown.
        shapes: the number of rows of each shape.
        rejected: the number of rejected lines for each kind of reason.
        unread: the columns with values that nothing is read from.
    """

    read: int
    total: int | None
    shapes: dict[str, int]
    rejected: dict[str, int]
    unread: list[str]


class Lengths(msgspec.Struct):
    """Token counts of samples.

    Attributes:
        shortest, median, longest: the number of tokens of the shortest, the median and the longest sample.
        answers: the median number of label tokens in a sample.
        at_limit: the number of samples that reach the limit, which is where longer samples are cut.
    """

    shortest: int
    median: int
    longest: int
    answers: int
    at_limit: int


class Expected(msgspec.Struct):
    """An estimate of what a selection would take.

    Attributes:
        samples: the number of pool samples, or of those read if the size of the pool is unknown.
        whole: whether the size of the pool is known.
        gradients: the number of gradients of the pool, the target and the warm-up.
        seconds: the time of the whole selection.
        memory: the bytes of memory at the peak.
        disk: the bytes in the run folder and in the temporary folder.
    """

    samples: int
    whole: bool
    gradients: int
    seconds: float
    memory: int
    disk: int


class DryRun(msgspec.Struct):
    """The results of a dry run.

    Attributes:
        files: the facts about each file, pool files first.
        duplicates: the number of duplicates among the lines read.
        overlap: the number of pool samples that are also in the target; None without a target.
        sources: the number of samples from each source of the pool.
        unusable: why the model's chat template or tokenizer cannot take some samples that were read, and how many;
            empty without a model.
        lengths: the token counts of the pool and of the target; empty without a model.
        sample: a sample as the model sees it, as pieces of text, each with its kind: ``template``, ``content`` or
            ``label``. Empty without a model.
        expected: what a selection would take; None without a model or a target.
    """

    files: dict[str, FileFacts]
    duplicates: int
    overlap: int | None
    sources: dict[str, int]
    unusable: dict[str, int] = {}
    lengths: dict[str, Lengths] = {}
    sample: list[tuple[str, str]] = []
    expected: Expected | None = None


def examine_files(
    pool: Rows, target: Rows | None, model: Model | None, settings: Settings, observer: Observer
) -> DryRun:
    """Run a job on the first rows of its files, as far as the model and the target allow.

    Raises:
        ClusterUCBError: the job itself would raise the same error.
    """
    began = time.monotonic()
    if model is not None:
        check_model(model)
    read = read_pool(pool, settings.layout, limit=FIRST)
    held_out = None if target is None else read_target(target, settings.target_layout, limit=FIRST)
    pools = [read, *([held_out] if held_out else [])]
    subtasks = {sample.subtask for sample in held_out.samples} if held_out else set()
    if len(subtasks) > 1 and settings.rule != ROUND_ROBIN:
        warn(
            f"--rule is {settings.rule}, and the target has {len(subtasks)} subtasks: scores for different subtasks "
            f"have different sizes, so one may capture the selection. With --rule {ROUND_ROBIN}, they select in turn"
        )
    found = DryRun(
        files={file: facts for one in pools for file, facts in _files(one).items()},
        duplicates=sum(line.kind == "duplicate" for one in pools for line in one.rejected),
        overlap=len(overlap(read, held_out)) if held_out else None,
        sources=dict(Counter(sample.source for sample in read.samples).most_common()),
    )
    if model is None:
        return found
    prepared = prepare(read, held_out, model, settings, observer)
    material = prepared.material
    read_before = {(line.file, line.line) for one in pools for line in one.rejected}
    refused = (*material.pool_rejected, *material.target_rejected)
    reasons = Counter(line.reason for line in refused if (line.file, line.line) not in read_before)
    found.unusable = dict(reasons.most_common(_REASONS))
    found.lengths["pool"] = _lengths(list(material.encoded), settings.max_length)
    if held_out:
        targets = [sample for samples in material.target.values() for sample in samples]
        found.lengths["target"] = _lengths(targets, settings.max_length)
    median = int(np.argsort(material.encoded.lengths)[len(material.encoded) // 2])
    found.sample = _pieces(material.encoded[median], prepared.encoder.tokenizer)
    if held_out:
        totals = [found.files[file].total for file in read.files]
        share = len(material.samples) / sum(found.files[file].read for file in read.files)
        known = [total for total in totals if total is not None]
        whole = len(known) == len(totals)
        n_samples = round(share * sum(known)) if whole else len(material.samples)
        found.expected = _expected(prepared, n_samples, settings, observer, began)
        found.expected.whole = whole
    return found


def _files(pool: Pool) -> dict[str, FileFacts]:
    accepted = Counter(sample.file for sample in pool.samples)
    rejected: dict[str, list[Rejected]] = {file: [] for file in pool.files}
    for line in pool.rejected:
        rejected[line.file].append(line)
    return {
        file: FileFacts(
            read := accepted[file] + len(rejected[file]),
            read if read < FIRST else _total(Path(file)),
            dict(pool.shapes[file].most_common()),
            counts_by_kind(rejected[file]),
            sorted(pool.unread[file]),
        )
        for file in pool.files
    }


def _total(file: Path) -> int | None:
    """Return the number of lines in a file: its own count, or an estimate; None if neither is possible.

    The estimate uses the size of the file and its first lines, whether they are accepted or not.
    """
    if not file.is_file():
        return None  # a pipe has no size, and can be read only once
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(file).metadata.num_rows)
    if file.suffix in (".jsonl", ".ndjson"):
        with file.open("rb") as content:
            n_first = sum(1 for _ in islice((line for line in content if line.strip()), FIRST))
            return round(file.stat().st_size / content.tell() * FIRST) if n_first == FIRST else None
    return None


def _lengths(samples: Sequence[Encoded], limit: int) -> Lengths:
    lengths = np.array([len(sample) for sample in samples])
    answers = np.array([sample.n_labels for sample in samples])
    return Lengths(
        int(lengths.min()),
        int(np.median(lengths)),
        int(lengths.max()),
        int(np.median(answers)),
        int((lengths >= limit).sum()),
    )


def _pieces(sample: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Return a sample's text in pieces, each with its kind."""
    kinds = np.where(sample.labels, "label", np.where(sample.content, "content", "template"))
    ends = [*(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
    starts = [0, *ends[:-1]]
    return [
        (
            str(tokenizer.decode(sample.tokens[start:end], clean_up_tokenization_spaces=False)),
            str(kinds[start]),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _expected(
    prepared: Prepared, n_samples: int, settings: Settings, observer: Observer, began: float
) -> Expected:
    """Plan a selection from the first rows, and scale the plan to the whole pool."""
    from clusterucb.jobs.stages.pass_times import estimate

    store = GradientStore(settings.store) if settings.store else None
    sketches = None
    if store:  # only the first rows were read; a store of version 0.1 cannot tell which they are
        hashes = prepared.material.contents
        known = store.kept.knows_samples
        places = store.places(hashes, None) if known else np.arange(len(hashes)) % len(store)
        sketches = PoolSketches(store, places)
    job = Job(store.applied_to(settings) if store else settings, prepared, sketches, observer)
    strategies = chosen(None, None, None, store=store is not None)
    plan = estimate(job, strategies, began=began, out=Path(tempfile.gettempdir()))
    drawing, tokens = plan.cost.phases["draws"], float(prepared.material.encoded.lengths.mean())
    per_token = drawing.seconds / drawing.tokens if drawing.tokens else None
    n_budget = min(settings.draws(n_samples, tokens, per_token), n_samples)
    share, phases = n_samples / plan.pool_samples, plan.cost.phases
    more = {"draws": n_budget / plan.n_budget, "features": share, "clusters": share}
    seconds = sum(phase.seconds * more.get(name, 1.0) for name, phase in phases.items())
    gradients = sum(phase.gradients * more.get(name, 1.0) for name, phase in phases.items())
    return Expected(
        samples=n_samples,
        whole=True,
        gradients=round(gradients),
        seconds=plan.set_up + seconds,
        memory=plan.memory,
        disk=round(share * (plan.disk + plan.temporary)),
    )
