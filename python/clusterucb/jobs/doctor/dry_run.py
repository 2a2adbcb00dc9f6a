"""A dry run: what a job would make of the first rows of its files, and about what it would take.

Decisions:
    - It is the job itself that runs, on the first rows: the same reading, encoding, model and gradients. What goes
      wrong here goes wrong there, in the same words.
    - Time and memory are those of the plan for these rows (`clusterucb.jobs.plan`), multiplied; they are a guide, and
      called one.
    - Nothing is written but into a temporary folder.
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

from clusterucb.jobs.stages.opening import Job
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, check_model, prepare
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.options.search import Settings
from clusterucb.progress import Observer
from clusterucb.run.gradient_store import GradientStore
from clusterucb.samples.pool import Pool, overlap, read_pool, read_target
from clusterucb.samples.sample import Rejected, by_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clusterucb.samples.encode import Encoded

FIRST = 200  # lines of every file that are looked at


class FileFacts(msgspec.Struct):
    """What the first lines of a file are.

    Attributes:
        read: lines looked at.
        total: lines in all: exact where the file is shorter, an estimate where it is not; None if unknown.
        shapes: rows of each shape.
        rejected: lines of each kind of reason.
    """

    read: int
    total: int | None
    shapes: dict[str, int]
    rejected: dict[str, int]


class Lengths(msgspec.Struct):
    """Tokens of samples: the shortest, the median and the longest; and how many are cut at the limit."""

    shortest: int
    median: int
    longest: int
    answers: int
    at_limit: int


class Expected(msgspec.Struct):
    """What a selection would take, about.

    Attributes:
        samples: of the pool, as far as its size is known.
        whole: whether it is.
        gradients: of the pool, the target and the warm-up.
        seconds: for them.
        memory: bytes, at the peak.
        disk: bytes in the run's folder and in the temporary folder.
    """

    samples: int
    whole: bool
    gradients: int
    seconds: float
    memory: int
    disk: int


class DryRun(msgspec.Struct):
    """What a job would make of its files.

    Attributes:
        files: by place, those of the pool first.
        duplicates: among the lines looked at.
        overlap: pool samples that also stand in the target, where there is one.
        sources: samples of each source of the pool.
        lengths: of the pool and of the target, where there is a model.
        sample: a sample as the model sees it: pieces of text, each ``template``, ``content`` or ``label``.
        expected: where there are a model and a target.
    """

    files: dict[str, FileFacts]
    duplicates: int
    overlap: int | None
    sources: dict[str, int]
    lengths: dict[str, Lengths] = {}
    sample: list[tuple[str, str]] = []
    expected: Expected | None = None


def examine(
    pool: Rows, target: Rows | None, model: Model | None, settings: Settings, observer: Observer
) -> DryRun:
    """Find out what a job would make of the first rows of its files.

    Raises:
        ClusterUCBError: as the job would.
    """
    began = time.monotonic()
    if model is not None:
        check_model(model)
    read = read_pool(pool, settings.layout, limit=FIRST)
    held_out = None if target is None else read_target(target, settings.layout, limit=FIRST)
    pools = [read, *([held_out] if held_out else [])]
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
    found.lengths["pool"] = _lengths(list(material.encoded), settings.max_length)
    if held_out:
        targets = [sample for samples in material.target.values() for sample in samples]
        found.lengths["target"] = _lengths(targets, settings.max_length)
    median = int(np.argsort(material.encoded.lengths)[len(material.encoded) // 2])
    found.sample = _pieces(material.encoded[median], prepared.source.tokenizer())
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
            by_kind(rejected[file]),
        )
        for file in pool.files
    }


def _total(file: Path) -> int | None:
    """Return how many lines a file has, as far as its own count says, or its size and its first lines, good or bad."""
    if not file.is_file():
        return None  # a pipe has none, and is read but once
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
    """Return a sample's text in pieces, each with what it is."""
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
    """Return what the plan for the first rows says of the whole pool."""
    from clusterucb.jobs.stages.pass_times import estimate

    store = GradientStore(settings.store) if settings.store else None
    job = Job(store.applied_to(settings) if store else settings, prepared, store, observer)
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
