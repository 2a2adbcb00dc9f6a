"""Make a gradient store, or let it grow: read, encode, warm up, and sketch every pool sample that it does not hold.

Sketches are written one shard of rows at a time, as soon as they are computed. The same command again resumes after
the last complete shard, and writes the same bytes as an uninterrupted job. With a pool that has grown, shrunk or been
re-ordered, the store gets the missing samples and loses none.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Unpack

from clusterucb import filenames
from clusterucb.errors import RunError
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.cost import WARM_UP, store_cost, warm_up_cost
from clusterucb.jobs.stages.opening import Session, open_job
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths
from clusterucb.kernels.projection import VERSION
from clusterucb.model.loaded import borrowing
from clusterucb.options.gradients import SketchSettings
from clusterucb.options.keywords import settings_from, spelt_out
from clusterucb.options.typed import SketchOptions
from clusterucb.progress import AnyObserver
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest import Inputs
from clusterucb.run.store_growth import Shard, shards_for
from clusterucb.run.store_samples import SHAPES, ShardSamples
from clusterucb.run.store_shards import failures, samples_name, shard_name, with_failures
from clusterucb.run.store_types import stored
from clusterucb.samples.pool_and_target import Material
from clusterucb.samples.rejected import write_rejected
from clusterucb.wording import counted


@borrowing
@spelt_out(SketchSettings)
def sketch(
    pool: Rows,
    *,
    model: Model,
    out: str | PathLike[str],
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[SketchOptions],
) -> GradientStore:
    """Sketch the gradient of every pool sample, so that further targets need no pass over the pool.

    A store that exists gets the samples that it lacks; those that it holds are not computed again.

    Args:
        pool: files, or rows in memory, as in `select`.
        model: the folder of a causal language model, a hub id, or a loaded model together with its ``tokenizer``.
        out: the store's folder. The same call again resumes the job, or returns the finished store. Another pool adds
            its samples.
        overwrite: delete the earlier store or run in the folder and start again.
        observer: receives the progress, as in `select`.
        **options: the options of `clusterucb.select` about rows and gradients, such as ``sketch_dim`` and ``adapter``;
            see the documentation's list.

    Raises:
        ClusterUCBError: an option, a file, the model or the folder cannot be used.
    """
    settings = settings_from(options, SketchSettings)
    check_paths(model, out, needed=True)
    job = open_job(pool, None, model, settings, observer)
    identity = job.identity("sketch", sketches=True)
    identity.projection = {"version": VERSION, "nonzeros": settings.sketch.nonzeros}
    config = resolved(settings, pool=pool, model=model, out=out)
    with job.session(out, identity, config=config, overwrite=overwrite) as session:
        run, material = session.run, job.material
        job.observer.step(run.progress_line("gradient store"))
        first_pool = run.manifest.identity.contents["pool"] == job.prepared.contents["pool"]
        shards = shards_for(run.files, material.contents, first_pool=first_pool)
        if missing := [shard for shard in shards if not (shard.has_samples and shard.has_sketches)]:
            _begin(session, shards, first_pool=first_pool)
            _write_missing(session, missing)
        if not run.read_only:
            _finish(session, shards)
    return GradientStore(Path(out))


def _begin(session: Session[SketchSettings], shards: Sequence[Shard], *, first_pool: bool) -> None:
    """Say what is computed, and record that the store is not finished.

    Raises:
        RunError: the folder cannot be written.
    """
    run, manifest = session.run, session.run.manifest
    if run.read_only:
        raise RunError(
            f"{run.folder} cannot be written, and the pool has samples that the store lacks; choose another --out"
        )
    there = [shard for shard in shards if shard.has_sketches]
    if manifest.status == "finished" or not first_pool:
        n_new = sum(shard.size for shard in shards) - sum(shard.size for shard in there)
        n_other = sum(int((shard.rows < 0).sum()) for shard in there)
        others = f", {n_other:,} of them not in this pool" if n_other else ""
        n_held = counted(sum(shard.size for shard in there), "sample")
        session.observer.step(f"The store holds {n_held}{others}; {n_new:,} of this pool are new")
    if first_pool and session.settings.warms_up:
        manifest.cost.phases[WARM_UP] = warm_up_cost(manifest.cost, session.settings, session.material)
    manifest.status = "running"
    run.save()


def _write_missing(session: Session[SketchSettings], missing: Sequence[Shard]) -> None:
    """Write the files of shards that the run folder does not hold yet."""
    from clusterucb.gradients.accumulate import unit_sketches

    run, adapted, material = session.run, session.model, session.material
    to_sketch = [shard for shard in missing if not shard.has_sketches]
    for shard in missing:
        if shard.has_sketches:
            _write_samples(run.files, shard, material)
    if not to_sketch:
        return
    adapted.base  # noqa: B018  (loading checks the checkpoints before they are kept)
    adapted.keep_checkpoints()
    accumulators = adapted.accumulators(sketch=session.settings.sketch)
    total = len(material.samples)
    done = total - sum(shard.size for shard in to_sketch)
    count = session.observer.count("Sketching", total, done=done, note=adapted.note)
    with run.phase("sketches"), count as advance:
        for shard in to_sketch:
            if not shard.has_samples:
                _write_samples(run.files, shard, material)
            sketches, faults = unit_sketches(
                accumulators,
                [material.encoded[row] for row in shard.rows.tolist()],
                adapted.passes,
                f"sketches from {shard.start}",
                advance=advance,
            )
            reasons = {shard.start + at: fault for at, fault in enumerate(faults) if fault}
            arrays = stored(sketches, session.settings.store_dtype)
            run.files.write_arrays(shard_name(shard.number), arrays, with_failures(reasons))


def _write_samples(files: KeptFiles, shard: Shard, material: Material) -> None:
    """Write which samples a shard holds."""
    ids = [sample.id for sample in material.samples.take(shard.rows)]
    samples = ShardSamples(material.contents[shard.rows], material.encoded.lengths[shard.rows], ids)
    files.write_arrays(samples_name(shard.number), samples.arrays())


def _finish(session: Session[SketchSettings], shards: Sequence[Shard]) -> None:
    """Write the rejected lines of this pool, and record the cost of all samples that the store holds."""
    run, material = session.run, session.material
    row_of = {
        shard.start + at: row for shard in shards for at, row in enumerate(shard.rows.tolist()) if row >= 0
    }
    failed = sorted(
        (row_of[place], reason)
        for shard in shards
        for place, reason in failures(run.path(shard_name(shard.number))).items()
        if place in row_of
    )
    rejected = write_rejected(
        run.path(filenames.REJECTED), material.pool_rejected, material.rejected_rows(failed)
    )
    inputs = Inputs.of(material, rejected)
    inputs.pool_rejected += len(failed)
    n_rows, n_tokens = sum(shard.size for shard in shards), 0
    for shard in shards:
        samples = run.files.arrays(samples_name(shard.number), SHAPES)
        assert samples is not None
        n_tokens += int(samples["tokens"].sum())
    run.finish(inputs, cost=store_cost(run.manifest.cost, session.settings, n_rows, n_tokens))
