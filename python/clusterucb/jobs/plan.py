"""Estimate the time, memory, disk space and gradients of a selection before it runs.

Both the command ``clusterucb plan`` and the function ``cu.plan`` run `plan`.
"""

from __future__ import annotations

import tempfile
import time
from os import PathLike
from pathlib import Path
from typing import Unpack

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.features.base import Feature
from clusterucb.jobs.stages.opening import open_job
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths
from clusterucb.jobs.stages.spending import check_unsketched
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.model.loaded import borrowing
from clusterucb.options.keywords import settings_from, spelt_out
from clusterucb.options.search import SelectSettings, Settings
from clusterucb.options.typed import SelectOptions
from clusterucb.progress import AnyObserver
from clusterucb.report.plan import Plan


@borrowing
@spelt_out(SelectSettings)
def plan(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str] | None = None,
    features: Feature | str | None = None,
    clusterer: Clusterer | str | None = None,
    policy: Policy | str | None = None,
    observer: AnyObserver | None = None,
    **options: Unpack[SelectOptions],
) -> Plan:
    """Estimate the time, memory, disk space and gradients that `select` needs with the same arguments.

    Nothing is kept.

    Args:
        pool, target, model, features, clusterer, policy, observer: see `clusterucb.select`.
        out: the intended run folder; the plan reports the free space on its disk. The default is the folder for
            temporary files.
        **options: the options of `clusterucb.select`; see the documentation's list.

    Raises:
        ClusterUCBError: `select` would refuse these arguments, or the job does not fit on this machine.
    """
    began = time.monotonic()
    settings: Settings = settings_from(options, SelectSettings)
    check_paths(model, out, target=target)
    strategies = chosen(features, clusterer, policy, store=settings.store is not None)
    job = open_job(pool, target, model, settings, observer, settings.held_out)
    check_unsketched(job.settings, job.material)

    from clusterucb.jobs.stages.pass_times import estimate

    return estimate(job, strategies, began=began, out=Path(out or tempfile.gettempdir()))
