"""The main job: read, encode, describe, cluster, draw and score, select, write.

`select` is what both `clusterucb select` and ``cu.select`` run. Everything it computes goes into the
run folder as it is computed, and everything that is in the folder is taken from there; so an
interrupted run, a larger budget, another number to select and a finished run all take the same path.

(The file is not called ``select.py``: a submodule of that name would hide the function ``cu.select``.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb.arms import check_labels
from clusterucb.atomic import whole_file
from clusterucb.budget import resolve_count
from clusterucb.clusterers.base import Clusterer
from clusterucb.clusterers.kmeans import KMeans
from clusterucb.engine import search
from clusterucb.errors import OptionError, blamed, one_line
from clusterucb.features.base import Feature
from clusterucb.features.embedding import Embedding
from clusterucb.ledger import Ledger
from clusterucb.plugins import KINDS, describe
from clusterucb.policies.base import Policy
from clusterucb.policies.ucb import UCB
from clusterucb.pool import read_pool, read_target
from clusterucb.poolview import PoolView
from clusterucb.progress import Observer, Silent
from clusterucb.report import Result, finish
from clusterucb.run import Run
from clusterucb.settings import Settings, settings_from

if TYPE_CHECKING:
    from clusterucb.influence import Influence
    from clusterucb.material import Material

Files = str | PathLike[str] | Sequence[str | PathLike[str]]


def select(
    pool: Files,
    target: Files,
    *,
    model: str | PathLike[str],
    out: str | PathLike[str],
    features: Feature | None = None,
    clusterer: Clusterer | None = None,
    policy: Policy | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> Result:
    """Select the pool samples that influence the target most, within a gradient budget.

    Args:
        pool, target: one or more JSONL files each (`clusterucb.pool`).
        model: folder of a causal language model in Hugging Face form, or a hub id.
        out: the run folder; the same call again resumes it, or returns what it found.
        features: what the pool is clustered by; `Embedding` by default.
        clusterer: what makes the arms; `KMeans` by default.
        policy: what spends the budget; `UCB` by default.
        overwrite: begin anew in a folder that holds another run.
        observer: who is told how the run gets on; nobody by default.
        **options: the fields of `clusterucb.settings.Settings`: ``budget``, ``select``, ``seed``, ...

    Raises:
        ClusterUCBError: an option, a file, the model or the folder cannot be used; the message says
            what to do. What was computed before stays in the folder.
    """
    settings = settings_from(options)
    for name, value in (("model", model), ("out", out)):
        if not isinstance(value, str | PathLike) or not str(value):
            raise OptionError(
                f"{name} is {value!r}; expected a path{' or a hub id' if name == 'model' else ''}"
            )
    observer = Silent() if observer is None else observer
    features = _checked("feature", Embedding() if features is None else features)
    clusterer = _checked("clusterer", KMeans() if clusterer is None else clusterer)
    policy = _checked("policy", UCB() if policy is None else policy)
    observer.step("Reading the pool and the target")
    pool_files, target_files = _paths("pool", pool), _paths("target", target)
    read, held_out = read_pool(pool_files), read_target(target_files)

    # torch takes seconds to import; bad options and files are told before.
    from clusterucb import checkpoint
    from clusterucb.encode import Encoder
    from clusterucb.influence import Influence, load_base
    from clusterucb.material import encode

    source = checkpoint.ModelSource(str(model), settings.revision, settings.trust_remote_code)
    device = checkpoint.resolve_device(settings.device)
    encoder = Encoder(source.tokenizer(), max_length=settings.max_length)
    deciding = {
        **settings.deciding(),
        "--device": device,
        "--features": describe(features),
        "--clusterer": describe(clusterer),
        "--policy": describe(policy),
        "pool content": read.fingerprint(),
        "target content": held_out.fingerprint(),
        "model content": source.fingerprint(),
        "encoding content": encoder.fingerprint,
        **checkpoint.adapter_fingerprints(settings.adapter, settings.optimizer_file),
    }
    material = encode(read, held_out, encoder)
    n_budget, n_select = _counts(settings, len(material.samples))
    # Before an earlier run is removed, everything that can refuse the new one has had its say.
    base = load_base(settings, source, device, material, observer) if overwrite else None
    with Run(Path(out), deciding, budget=settings.budget, select=settings.select, overwrite=overwrite) as run:
        observer.step(f"{'Going on with' if run.resumed else 'Beginning'} the run in {run.folder}")
        influence = Influence(run, settings, source, device, material, observer, base)
        with influence, _ledger(run, material, influence) as ledger:
            blocks = influence.features(features)
            with influence.drawing(n_budget, done=ledger.totals()[0]):
                selection = search(
                    blocks,
                    influence.score,
                    clusterer=_Recorded(clusterer, run),
                    policy=policy,
                    budget=n_budget,
                    n_select=n_select,
                    cold_start=settings.cold_start,
                    batch_size=settings.batch_size,
                    seed=settings.seed,
                    columns=material.columns(),
                    aggregate=settings.aggregate,
                    journal=ledger,
                )
            run.manifest.pool_files, run.manifest.target_files = pool_files, target_files
            run.manifest.n_budget, run.manifest.n_select = n_budget, n_select
            return finish(run, settings, material, selection, ledger.failures(), features.forward_passes)


class _Recorded(Clusterer):
    """A clusterer whose labels are computed once in a run and then read from ``labels.safetensors``."""

    def __init__(self, clusterer: Clusterer, run: Run) -> None:
        self._clusterer = clusterer
        self._run = run

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        path = self._run.path("labels.safetensors")
        if path.exists():
            return np.asarray(load_file(path)["labels"])
        with self._run.phase("clusters"):
            found = blamed(self._clusterer.fit_predict)(pool, rng)
        labels = check_labels(self._clusterer, found, len(pool))
        with whole_file(path) as partial:
            save_file({"labels": labels}, partial)
        return labels


def _ledger(run: Run, material: Material, influence: Influence) -> Ledger:
    return Ledger(
        run.path("ledger.sqlite"),
        subtasks=list(material.target),
        tokens=np.array([len(sample) for sample in material.encoded]),
        failure=influence.failure,
    )


def _counts(settings: Settings, n_samples: int) -> tuple[int, int]:
    """Return budget and number to select of a pool of ``n_samples``."""
    budget = resolve_count("--budget", settings.budget, n_samples)
    n_select = resolve_count("--select", settings.select, n_samples)
    if n_select > min(budget, n_samples):
        raise OptionError(
            f"--select {settings.select} is {n_select} of {n_samples} samples; expected at most the budget, "
            f"--budget {settings.budget}, which is {min(budget, n_samples)}. Only scored samples can be selected"
        )
    return budget, n_select


def _checked(kind: str, strategy: object) -> Any:
    if not isinstance(strategy, KINDS[kind]):
        base = KINDS[kind].__name__
        raise OptionError(
            f"{kind} is {one_line(repr(strategy)):.80}; expected an object of a class derived from clusterucb.{base}"
        )
    return strategy


def _paths(what: str, files: Files) -> list[str]:
    given = [files] if isinstance(files, str | PathLike) else files
    if not isinstance(given, Sequence) or not all(isinstance(one, str | PathLike) for one in given):
        raise OptionError(f"{what} is {files!r:.80}; expected the path of a JSONL file, or several")
    return [str(path) for path in given]


def _signature() -> inspect.Signature:
    """Return the signature of `select` with every option of `Settings` spelt out."""
    signature = inspect.signature(select)
    named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in fields(Settings)
    ]
    return signature.replace(parameters=[*named, *options])


select.__signature__ = _signature()  # type: ignore[attr-defined]
