"""Make a gradient store: read, encode, warm up, and sketch every pool sample's gradient.

Sketches are written one shard of rows at a time, as soon as they are computed. The same command again resumes after
the last complete shard, and writes the same bytes as an uninterrupted job.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Unpack

import numpy as np

from clusterucb import filenames
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.cost import store_cost
from clusterucb.jobs.stages.opening import Session, open_job
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths
from clusterucb.kernels.projection import VERSION
from clusterucb.model.loaded import borrowing
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.keywords import settings_from, spelt_out
from clusterucb.options.typed import GradientOptions
from clusterucb.progress import AnyObserver
from clusterucb.run.gradient_store import SHARD, GradientStore, failures, shard_name, with_failures
from clusterucb.run.manifest import Inputs
from clusterucb.samples.rejected import write_rejected


@borrowing
@spelt_out(GradientSettings)
def sketch(
    pool: Rows,
    *,
    model: Model,
    out: str | PathLike[str],
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[GradientOptions],
) -> GradientStore:
    """Sketch the gradient of every pool sample, so that further targets need no pass over the pool.

    Args:
        pool: files, or rows in memory, as in `select`.
        model: the folder of a causal language model, a hub id, or a loaded model together with its ``tokenizer``.
        out: the store's folder. The same call again resumes the job, or returns the finished store.
        overwrite: delete the earlier store or run in the folder and start again.
        observer: receives the progress, as in `select`.
        **options: the options of `clusterucb.select` about rows and gradients, such as ``sketch_dim`` and ``adapter``;
            see the documentation's list.

    Raises:
        ClusterUCBError: an option, a file, the model or the folder cannot be used.
    """
    settings = settings_from(options, GradientSettings)
    check_paths(model, out, needed=True)
    job = open_job(pool, None, model, settings, observer)
    identity = job.identity("sketch", sketches=True)
    identity.projection = {"version": VERSION, "nonzeros": settings.sketch.nonzeros}
    config = resolved(settings, pool=pool, model=model, out=out)
    with job.session(out, identity, config=config, overwrite=overwrite) as session:
        run = session.run
        job.observer.step(run.progress_line("gradient store"))
        _sketch_missing(session)
        shards = [shard_name(start // SHARD) for start in range(0, len(job.material.samples), SHARD)]
        failed = {row: reason for shard in shards for row, reason in failures(run.path(shard)).items()}
        material = job.material
        rejected = write_rejected(
            run.path(filenames.REJECTED), material.pool_rejected, material.rejected_rows(failed.items())
        )
        inputs = Inputs.of(material, rejected)
        inputs.pool_rejected += len(failed)
        run.finish(inputs, cost=store_cost(run.manifest.cost, settings, material))
    return GradientStore(Path(out))


def _sketch_missing(session: Session[GradientSettings]) -> None:
    """Sketch the shards that the run folder does not hold yet."""
    from clusterucb.gradients.accumulate import unit_sketches

    run, adapted, material = session.run, session.model, session.material
    starts = range(0, len(material.samples), SHARD)
    missing = [start for start in starts if run.files.find(shard_name(start // SHARD)) is None]
    if not missing:
        return
    adapted.base  # noqa: B018  (loading checks the checkpoints before they are kept)
    adapted.keep_checkpoints()
    accumulators = adapted.accumulators(sketch=session.settings.sketch)
    total, done = len(material.samples), (len(starts) - len(missing)) * SHARD
    count = session.observer.count("Sketching", total, done=done, note=adapted.note)
    with run.phase("sketches"), count as advance:
        for start in missing:
            sketches, faults = unit_sketches(
                accumulators,
                material.encoded[start : start + SHARD],
                adapted.passes,
                f"sketches from {start}",
                advance=advance,
            )
            reasons = {start + at: fault for at, fault in enumerate(faults) if fault}
            arrays = {"sketches": sketches.astype(np.float16)}
            run.files.write_arrays(shard_name(start // SHARD), arrays, with_failures(reasons))
