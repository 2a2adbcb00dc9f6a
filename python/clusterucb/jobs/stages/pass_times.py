"""Estimate the time, memory, disk space and gradients of a selection from its samples' lengths and a few timed passes.

Decisions:
    - The pool is read and encoded as in a selection, because everything depends on the number and the lengths of the
      accepted samples. Gradients are expensive, so they are computed for a few samples only.
    - Every pass that the selection will make is laid out from the lengths (`pass_layout`), as if the draws were random.
      A pass takes a constant time, plus a time for each padded token. Two timed passes give both. If workers will
      share the cores, they are timed with the threads that a worker will have.
    - Memory is that of the process with the model loaded, plus what gradients (`memory_needs`) and strategies add at
      the stage that needs most. What strategies add is measured on a part of the pool.
"""

from __future__ import annotations

import pickle
import resource
import tempfile
import time
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.blame import blamed
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.large import is_large
from clusterucb.engine.poolview import PoolView
from clusterucb.features.base import Feature
from clusterucb.gradients import memory_needs as fitting
from clusterucb.gradients.accumulate import Accumulator
from clusterucb.gradients.largest_pass import largest_pass
from clusterucb.gradients.passes import single_pass
from clusterucb.gradients.session import AdaptedModel, load_base
from clusterucb.jobs.stages.cost import selection_cost
from clusterucb.jobs.stages.features import PoolFeatures
from clusterucb.jobs.stages.opening import Job, Session
from clusterucb.jobs.stages.page import page_bytes
from clusterucb.jobs.stages.pass_layout import Layout, Rate, Work
from clusterucb.jobs.stages.planned_workers import PlannedWorkers
from clusterucb.jobs.stages.strategies import ChosenStrategies
from clusterucb.machine import free_disk, resident_memory
from clusterucb.options.amounts import Seconds
from clusterucb.options.search import Settings
from clusterucb.progress import Observer, Silent
from clusterucb.report.plan import Plan
from clusterucb.run.cost import Cost, PhaseCost
from clusterucb.run.folder import Run
from clusterucb.run.manifest import Identity
from clusterucb.run.store_shards import SHARD
from clusterucb.samples.pool_and_target import WARMUP_BATCH, Material

_DESCRIBED = 64  # samples whose features are computed
_TIMINGS = 2  # timings of a pass; the faster one counts, because the slower one was slowed by something else
_CLUSTERED = 2048  # random points that are clustered
_LINE = 250  # bytes of a draw in scores.jsonl and the ledger
_SCORE = 40  # bytes that each subtask adds to a draw
_KEPT = 0.15  # share of a pass's memory that the C library keeps after it was freed
_FLOAT = 4
_LARGE_ROW = 400  # bytes of a row in a search of a large pool: ten million take 3.8 GB (benchmarks/README.md)


def estimate(job: Job[Settings], strategies: ChosenStrategies, *, began: float, out: Path) -> Plan:
    """Return the plan of a selection: its time, memory, disk space and gradients.

    Args:
        job: the selection, with its files read.
        strategies: the strategies that describe, cluster and draw.
        began: the time (`time.monotonic`) at which the job began.
        out: the path of the future run folder.
    """
    prepared, settings, observer = job.prepared, job.settings, job.observer
    features, clusterer, policy = strategies
    material = prepared.material
    n_pool = len(material.samples)
    crew = PlannedWorkers.of(settings.workers, prepared.device)
    settings = replace(settings, workers=None)
    base = load_base(settings, prepared.source, prepared.device, material, observer, out)
    set_up = time.monotonic() - began
    observer.step(f"Timing a few passes of {prepared.source.name} on {prepared.device}")
    probing, few = replace(settings, warmup_steps=1), _first(material)
    with (
        tempfile.TemporaryDirectory(prefix="clusterucb-") as folder,
        Run(Path(folder), Identity()) as run,
        AdaptedModel(run, probing, prepared.source, prepared.device, few, Silent(), base) as adapted,
    ):
        probed = replace(job, settings=settings, prepared=replace(prepared, material=few), observer=Silent())
        found = _measure(Session(probed, run, adapted), material, features, crew)
    n_budget, n_select = len(found.drawn), settings.counts(material.encoded.lengths)[1]
    clustering, cluster_bytes = _clustering(clusterer, found.width, n_pool, n_budget, n_select)
    seconds = {**found.seconds, "clusters": clustering}
    of_phases = Cost(phases={name: PhaseCost(seconds=taken) for name, taken in seconds.items()})
    described = on_disk = n_pool * found.width * _FLOAT
    beside = described + cluster_bytes
    if is_large(n_pool):  # the features are in half precision, and stay on the disk
        on_disk, described = on_disk // 2, n_pool * _LARGE_ROW
        beside = described
    lines = float(np.mean([len(sample.raw) for sample in few.samples]))
    scores = n_budget * (_LINE + _SCORE * len(material.target))
    on_gpu = prepared.device.partition(":")[0] == "cuda"
    scores += page_bytes(n_pool, n_budget, n_select, lines)
    gradients = 0 if on_gpu else found.needs.total + round(_KEPT * found.needs.a_pass)
    with_gradients = described + gradients * (crew is None)
    workers, here = None, 0
    if crew is not None:
        workers = crew.plan(found.rate, found.shared, found.resident + gradients, found.bytes_per_token)
        here = crew.number_here * workers.memory
    return Plan(
        pool_samples=n_pool,
        target_samples=material.n_target,
        n_budget=n_budget,
        n_select=n_select,
        set_up=set_up,
        cost=selection_cost(
            of_phases, settings, material, found.drawn, features, policy, passes=found.passes
        ),
        memory=max(found.resident + max(beside, with_gradients), _peak()) + here,
        memory_free=fitting.available("cpu") + resident_memory(),
        device_memory=found.needs.total if on_gpu else None,
        device_free=fitting.available(prepared.device) if on_gpu else None,
        disk=found.kept + found.needs.directions + on_disk + scores + round(n_select * lines),
        disk_free=free_disk(out),
        temporary=round(n_pool * (lines + _FLOAT * float(material.encoded.lengths.mean()))),
        temporary_free=free_disk(Path(tempfile.gettempdir())),
        workers=workers,
    )


def _first(material: Material) -> Material:
    """Return the pool's first samples, and one sample of each subtask.

    In canonical order, the first samples are as good as random ones.
    """
    return replace(
        material,
        samples=material.samples[:_DESCRIBED],
        encoded=material.encoded[:_DESCRIBED],
        sources=material.sources[:_DESCRIBED],
        contents=material.contents[:_DESCRIBED],
        sketched=None if material.sketched is None else material.sketched[:_DESCRIBED],
        target={name: samples[:1] for name, samples in material.target.items()},
        target_samples={name: samples[:1] for name, samples in material.target_samples.items()},
    )


class _Measured(NamedTuple):
    """The time and memory that a model needs at its checkpoint.

    Attributes:
        seconds: the seconds of each phase except clustering.
        needs: the memory that gradients need.
        resident: the bytes of the process with everything loaded.
        kept: the bytes of the checkpoint that the run writes.
        width: the number of feature values of a sample.
        drawn: i64[n], rows that represent those that will be drawn.
        passes: the forward passes over each sample that the features take.
        rate: the time of a pass, on a worker if there are any.
        shared: the work that workers share.
        bytes_per_token: the bytes of a sample that is sent to a worker, for each of its tokens.
    """

    seconds: dict[str, float]
    needs: fitting.Needs
    resident: int
    kept: int
    width: int
    drawn: NDArray[np.int64]
    passes: float
    rate: Rate
    shared: list[Work]
    bytes_per_token: float


def _measure(
    session: Session[Settings], material: Material, features: Feature, crew: PlannedWorkers | None
) -> _Measured:
    """Measure the time and memory of a job. The session's model works on a few of the samples of ``material``."""
    settings, adapted = session.settings, session.model
    checkpoints, resident = adapted.checkpoints, resident_memory()
    layout = Layout(settings, material, adapted)
    together = SHARD if features.gradients else max(settings.batch_size, WARMUP_BATCH)
    needs = fitting.needs(
        checkpoints[0],
        largest_pass(settings, material, adapted.passes.limit, together),
        counts=fitting.Counts.of(settings, material.target),
        device=adapted.device,
    )
    fitting.check_memory(needs, adapted.device, checkpointing=settings.checkpointing)
    timing = partial(timed, adapted, layout, len(material.target))
    here = timing()
    rate, number = (here, None) if crew is None else (crew.rate(timing, here), crew.number)
    if isinstance(settings.limit, Seconds):
        layout = Layout(settings, material, adapted, layout.per_token(partial(rate.seconds, workers=number)))
    shared = {"target": layout.target, "draws": layout.draws}
    if features.gradients and session.store is None:
        shared["features"] = layout.everything
    seconds = {name: len(checkpoints) * rate.seconds(work, number) for name, work in shared.items()}
    seconds = {"warm-up": here.seconds(layout.warm_up), "features": 0.0, **seconds}
    passes, width = features.forward_passes, settings.sketch_dim
    if not features.gradients:
        pool = PoolFeatures(session)
        pool.blocks(features)  # not counted, because the first call loads libraries
        blocks = pool.blocks(features, "again")
        passes = pool.passes(features)
        width = sum(block.shape[1] for block in blocks.values())
        taken = session.run.seconds("again") / (number if number and passes else 1)
        seconds["features"] = taken * len(material.samples) / len(session.material.samples)
    kept = sum(file.stat().st_size for file in session.run.folder.glob("adapter/*"))
    tokens = sum(map(len, layout.typical))
    return _Measured(
        seconds,
        needs,
        resident,
        kept,
        width,
        layout.drawn,
        passes,
        rate,
        shared=[*shared.values()] * len(checkpoints),
        bytes_per_token=len(pickle.dumps(layout.typical)) / tokens,
    )


def seconds_per_token(
    adapted: AdaptedModel, settings: Settings, material: Material, observer: Observer
) -> float:
    """Time a few passes, and return the seconds that scoring takes for each token of the pool."""
    observer.step("Timing a few passes, to estimate the number of draws in the budget")
    layout, crew = Layout(settings, material, adapted), PlannedWorkers.of(settings.workers, adapted.device)
    timing = partial(timed, adapted, layout, len(material.target))
    if crew is None:
        return layout.per_token(timing().seconds)
    return layout.per_token(partial(crew.rate(timing).seconds, workers=crew.number))


def timed(adapted: AdaptedModel, layout: Layout, n_subtasks: int) -> Rate:
    """Time two passes, and return the time of any pass."""
    checkpoint = adapted.checkpoints[0]
    directions = np.ones((n_subtasks, checkpoint.size), np.float32)
    sizes, seconds = [], []
    with Accumulator(checkpoint, device=adapted.device, directions=directions) as accumulator:
        for samples in (layout.typical, layout.large):
            # Not timed: the first pass takes memory from the system.
            single_pass(samples, adapted.device, accumulator).faults()
            timings = []
            for _ in range(_TIMINGS):
                began = time.monotonic()
                single_pass(samples, adapted.device, accumulator).faults()
                timings.append(time.monotonic() - began)
            seconds.append(min(timings))
            sizes.append(len(samples) * max(map(len, samples)))
    per_token = (seconds[1] - seconds[0]) / max(sizes[1] - sizes[0], 1)
    constant = seconds[0] - per_token * sizes[0]
    if constant < 0 or per_token <= 0:  # both passes have one size, or they are too small to measure
        constant, per_token = 0.0, sum(seconds) / sum(sizes)
    return Rate(constant, per_token)


def _clustering(
    clusterer: Clusterer, width: int, n_pool: int, n_budget: int, n_select: int
) -> tuple[float, int]:
    """Return the seconds and bytes that clustering needs, extrapolated from a smaller pool of random points.

    The number of clusters is about the square root of the pool's size, so the time grows with its power of 1.5.
    """
    part = min(_CLUSTERED, n_pool)
    rng = np.random.default_rng(0)
    view = PoolView(
        {"features": rng.standard_normal((part, max(width, 1)), np.float32)},
        np.zeros(part, np.int64),
        rng.random(part),
        columns={"source": np.zeros(part, "U1"), "tokens": np.ones(part), "label_tokens": np.ones(part)},
        budget=max(n_budget * part // n_pool, 1),
        n_select=max(n_select * part // n_pool, 1),
    )
    began = time.monotonic()
    blamed(clusterer.fit_predict)(view, np.random.default_rng(0))
    seconds = time.monotonic() - began
    traced = tracemalloc.is_tracing()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        blamed(clusterer.fit_predict)(view, np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not traced:
            tracemalloc.stop()
    return seconds * (n_pool / part) ** 1.5, peak * n_pool // part


def _peak() -> int:
    """Return the most bytes of memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
