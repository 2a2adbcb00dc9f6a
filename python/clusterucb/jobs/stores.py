"""List gradient stores, verify them, and merge several into one.

Decisions:
    - Stores can be merged if their sketches can be compared: the same model, encoding, options of the gradients,
      projection and checkpoints. Checkpoints are compared by their files, so a store that warmed a LoRA up and a store
      that was given this LoRA (``--adapter STORE/adapter``) go together.
    - A merged store is an ordinary one, which grows and is merged again. Its rows are in canonical order, without
      duplicates. A sample that several stores hold is taken from the first store by fingerprint, so the order in which
      the stores are named changes nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import whole_folder
from clusterucb.errors import OptionError, RunError
from clusterucb.options.gradients import FRESH_LORA
from clusterucb.options.kinds import option_name
from clusterucb.progress import AnyObserver, observer_of
from clusterucb.run import store_shards
from clusterucb.run.cost import Cost, PhaseCost
from clusterucb.run.folder import Run, check_folder
from clusterucb.run.gradient_store import SAME_CONTENTS, GradientStore, kept_adapter
from clusterucb.run.manifest import Identity, Inputs
from clusterucb.run.store_samples import SHAPES, ShardSamples
from clusterucb.run.store_shards import samples_name, shard_name, with_failures
from clusterucb.run.store_summary import StoreSummary

# Options that decide which LoRA is warmed up; stores are compared by the LoRA itself.
_OF_THE_CHECKPOINT = {option_name(name) for name in FRESH_LORA}


def stores(folders: Sequence[str | PathLike[str]], *, verify: bool = False) -> list[StoreSummary]:
    """Return what gradient stores hold.

    Args:
        folders: the stores' folders.
        verify: whether to read every file, and compare it with its recorded SHA-256.

    Raises:
        OptionError: no folder is given.
        RunError: a folder holds no finished store. Without ``verify``, also if the list of its samples is damaged.
    """
    return [StoreSummary.of(store, verify=verify) for store in _opened(folders)]


def merge_stores(
    folders: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
) -> GradientStore:
    """Merge gradient stores of one model and checkpoint into a new one, which holds each sample once.

    Args:
        folders: the stores' folders, which stay as they are. Their order changes nothing.
        out: the folder of the merged store. The same call again resumes the merge, or returns the finished store.
        overwrite: delete the earlier store or run in the folder and start again.
        observer: receives the progress, as in `clusterucb.select`.

    Raises:
        OptionError: the stores cannot be merged, or ``out`` is one of them.
        RunError: a folder holds no finished store, a file is damaged, or ``out`` holds something else.
    """
    found = _opened(folders)
    check_folder(Path(out))
    if Path(out).resolve() in {store.folder.resolve() for store in found}:
        raise OptionError(
            f"--merge {out} is one of the stores; expected another folder, which gets the samples of all"
        )
    for store in found:
        _check_like(found[0], store)
    found.sort(key=_content)
    plan = _Plan.of(found)
    watcher = observer_of(observer)
    identity = _identity(found)
    with Run(Path(out), identity, overwrite=overwrite) as run:
        watcher.step(run.progress_line("gradient store"))
        if run.manifest.identity.contents != identity.contents:
            raise _other_store(run)
        if not run.finished:
            _keep_adapters(run, found[0])
            with watcher.count("Merging", len(plan.rows)) as advance:
                for number, start in enumerate(range(0, len(plan.rows), store_shards.SHARD)):
                    part = slice(start, start + store_shards.SHARD)
                    _write_shard(run, found, plan, number, part)
                    advance(len(plan.rows[part]))
            run.finish(Inputs(pool_samples=len(plan.rows)), cost=_cost(found, len(plan.rows)))
    return GradientStore(Path(out))


@dataclass(frozen=True)
class _Plan:
    """The samples of a merged store, in canonical order.

    Attributes:
        stores: i64[M], the number of the store that each sample is taken from.
        rows: i64[M], its row there.
        samples: the M samples.
    """

    stores: NDArray[np.int64]
    rows: NDArray[np.int64]
    samples: ShardSamples

    @classmethod
    def of(cls, found: Sequence[GradientStore]) -> _Plan:
        contents = np.concatenate([store.kept.contents for store in found])
        tokens = np.concatenate([shard.tokens for store in found for shard in store.kept.samples])
        ids = [name for store in found for name in store.ids]
        stores = np.repeat(np.arange(len(found)), [len(store) for store in found])
        rows = np.concatenate([np.arange(len(store)) for store in found])
        _, first = np.unique(np.ascontiguousarray(contents).view("S32")[:, 0], return_index=True)
        return cls(
            stores[first],
            rows[first],
            ShardSamples(contents[first], tokens[first], [ids[at] for at in first]),
        )


def _opened(folders: Sequence[str | PathLike[str]]) -> list[GradientStore]:
    if isinstance(folders, str | PathLike) or not folders:
        raise OptionError(f"stores are {folders!r}; expected the folders of one or more gradient stores")
    return [GradientStore(Path(folder)) for folder in folders]


def _check_like(one: GradientStore, other: GradientStore) -> None:
    """Check that the sketches of two stores can be compared.

    Raises:
        OptionError: they cannot, or a store does not know its samples.
    """
    if not other.kept.knows_samples:
        raise OptionError(
            f"the gradient store {other.folder} does not know its samples, because an earlier version made it; repeat "
            "the `clusterucb sketch` that made it once, with its pool, and it knows them"
        )
    first, second = one.manifest.identity, other.manifest.identity
    differ = [
        f"{name} is {first.options.get(name)} and {second.options.get(name)}"
        for name in sorted({*first.options, *second.options} - _OF_THE_CHECKPOINT)
        if first.options.get(name) != second.options.get(name)
    ]
    for name, what in SAME_CONTENTS.items():
        if first.contents[name] != second.contents[name]:
            differ.append(f"the {what} differs")
    if first.projection != second.projection:
        differ.append("the projection differs")
    if one.adapters != other.adapters:
        differ.append(
            "the checkpoint differs (give the other --adapter STORE/adapter to make a store at the same one)"
        )
    if differ:
        raise OptionError(
            f"the gradient stores {one.folder} and {other.folder} cannot be merged: {'; '.join(differ)}. Expected "
            "stores of one model, checkpoint and projection, whose sketches can be compared"
        )


def _content(store: GradientStore) -> tuple[str, str]:
    """Return what a store is, by which stores are sorted: its fingerprint, and the SHA-256 of what it holds."""
    shards = {name: digest for name, digest in (store.manifest.files or {}).items() if "/" not in name}
    shards.pop("config.yaml", None)
    return store.fingerprint, hashlib.sha256(msgspec.json.encode(sorted(shards.items()))).hexdigest()


def _identity(found: Sequence[GradientStore]) -> Identity:
    """Return the identity of a merged store: that of the first, with all that the stores hold in place of a pool."""
    first = found[0].manifest.identity
    held = hashlib.sha256(msgspec.json.encode([_content(store) for store in found])).hexdigest()
    return msgspec.structs.replace(first, contents={**first.contents, "pool": held})


def _keep_adapters(run: Run, store: GradientStore) -> None:
    """Copy the checkpoints of a store into the run's folder."""
    for number in range(store.n_checkpoints):
        name = kept_adapter(number)
        if run.files.find_folder(name) is not None:
            continue
        with whole_folder(run.path(name)) as partial:
            shutil.copytree(store.folder / name, partial, dirs_exist_ok=True)
        run.files.record_folder(name)


def _write_shard(run: Run, found: Sequence[GradientStore], plan: _Plan, number: int, part: slice) -> None:
    """Write a shard of the merged store, unless it is there.

    Raises:
        RunError: other samples are there.
    """
    samples = plan.samples.part(part)
    there = run.files.arrays(samples_name(number), SHAPES)
    if there is None:
        run.files.write_arrays(samples_name(number), samples.arrays())
    elif not np.array_equal(there["contents"], samples.contents):
        raise _other_store(run)
    if run.files.find(shard_name(number)) is not None:
        return
    arrays: dict[str, NDArray[Any]] = {}
    reasons: dict[int, str] = {}
    for at, row, here, failed in _sources(found, plan, part):
        for name, values in here.items():
            if name not in arrays:
                size = len(plan.rows[part])
                arrays[name] = np.empty((size, *values.shape[1:]), values.dtype)
            arrays[name][at] = values[row]
        if failed:
            reasons[part.start + at] = failed
    run.files.write_arrays(shard_name(number), arrays, with_failures(reasons))


def _sources(
    found: Sequence[GradientStore], plan: _Plan, part: slice
) -> Iterator[tuple[int, int, dict[str, NDArray[Any]], str | None]]:
    """Yield, for each sample of a part: its place there, the arrays of its shard, its row in these, and its failure."""
    for at, (number, place) in enumerate(
        zip(plan.stores[part].tolist(), plan.rows[part].tolist(), strict=True)
    ):
        shards = found[number].kept
        shard = int(np.searchsorted(shards.starts, place, side="right")) - 1
        yield at, place - int(shards.starts[shard]), shards.arrays(shard), shards.failures(shard).get(place)


def _other_store(run: Run) -> RunError:
    return RunError(
        f"{run.folder} holds another gradient store than these make; choose another --merge, or start again with "
        "--overwrite"
    )


def _cost(found: Sequence[GradientStore], n_rows: int) -> Cost:
    """Return the cost of several stores together."""
    cost = Cost(pool_samples=n_rows)
    for store in found:
        for name, phase in store.manifest.cost.phases.items():
            so_far = cost.phases.setdefault(name, PhaseCost())
            so_far.gradients += phase.gradients
            so_far.tokens += phase.tokens
            so_far.seconds += phase.seconds
    cost.total = sum(map(cost.share, cost.phases.values()))
    return cost
