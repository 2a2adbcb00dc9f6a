"""A gradient store that exists takes another pool: it computes the missing samples alone, whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import clusterucb as cu
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.run.kept_files import KeptFiles
from helpers.stores import TRIED, by_content, count_gradients, small_shards  # noqa: F401
from helpers.tiny import read_rows, rows, write_model, write_rows

FIRST, ALL = 40, 60


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model, rows to make pools of, a target, and a store of the first rows."""
    folder = tmp_path_factory.mktemp("growth")
    write_model(folder / "model")
    write_rows(folder / "pool.jsonl", rows(FIRST))
    write_rows(folder / "dev.jsonl", rows(5, seed=9))
    make(folder, rows(FIRST), folder / "store")
    return folder


@pytest.fixture
def grown_pool():
    """Return further rows and most of the first, in another order."""
    return [*rows(ALL)[FIRST:], *rows(FIRST)[:5:-1]]


def make(job, pool, out, **changes):
    options = {"warmup_steps": 2, "sketch_dim": 256, **changes}
    return cu.sketch(pool, model=job / "model", out=out, **options)


def copied(job, tmp_path):
    return Path(shutil.copytree(job / "store", tmp_path / "store"))


def files(folder):
    names = ("sketches-*", "samples-*", "adapter/*", "rejected.jsonl")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def interrupted(job, pool, out, monkeypatch, count):
    """Make a store, and interrupt it before it records its file number ``count``, when the file is in place."""
    record, left = KeptFiles._record, iter(range(count))

    def counted(self, digests):
        if next(left, None) is None:
            raise KeyboardInterrupt
        record(self, digests)

    with monkeypatch.context() as patch:
        patch.setattr(KeptFiles, "_record", counted)
        with pytest.raises(KeyboardInterrupt):
            make(job, pool, out)


def test_a_grown_pool_costs_the_gradients_of_its_new_samples(job, tmp_path, grown_pool, monkeypatch):
    folder, said = copied(job, tmp_path), []
    before, first = files(folder), cu.GradientStore(folder)
    sizes = count_gradients(monkeypatch)
    store = make(job, grown_pool, folder, observer=lambda text, done, total: said.append(text))
    assert sum(sizes) == TRIED + ALL - FIRST
    assert "The store holds 40 samples, 6 of them not in this pool; 20 of this pool are new" in said
    assert len(store) == ALL
    assert store.manifest.inputs.pool_samples == ALL - 6
    assert len(set(store.content_hashes)) == ALL
    assert store.ids[:FIRST] == first.ids
    after = files(folder)
    assert {name: after[name] for name in before} == before
    assert store.fingerprint == first.fingerprint
    cost = {name: phase.gradients for name, phase in store.manifest.cost.phases.items()}
    assert cost == {"warm-up": 8, "sketches": ALL}
    whole = by_content(make(job, rows(ALL), tmp_path / "whole", adapter=folder / "adapter"))
    for name, sketch in by_content(store).items():  # half precision, and what a float32 pass changes
        np.testing.assert_allclose(sketch, whole[name], rtol=2e-3, atol=1e-5)


def test_a_pool_that_shrank_or_was_reordered_costs_nothing(job, tmp_path, monkeypatch):
    folder = copied(job, tmp_path)
    before = {name: content for name, content in files(folder).items() if name != "rejected.jsonl"}
    sizes = count_gradients(monkeypatch)
    store = make(job, rows(FIRST)[7:2:-1], folder)
    assert not sizes
    sketches = store.rows(range(FIRST))
    np.testing.assert_array_equal(np.concatenate(list(store.shards())), sketches)
    np.testing.assert_allclose(
        store.scores(sketches[:2].astype(np.float32)), sketches @ sketches[:2].T, atol=2e-3
    )
    assert len(store) == FIRST
    assert store.manifest.inputs.pool_samples == 5
    assert files(folder).items() >= before.items()


@pytest.mark.parametrize("count", range(1, 5))  # the first file is config.yaml
def test_growth_that_is_interrupted_goes_on_to_the_same_bytes(job, tmp_path, grown_pool, monkeypatch, count):
    folder = copied(job, tmp_path)
    interrupted(job, grown_pool, folder, monkeypatch, count)
    with pytest.raises(RunError, match="is not finished"):
        cu.GradientStore(folder)
    make(job, grown_pool, folder)
    whole = shutil.copytree(job / "store", tmp_path / "whole")
    make(job, grown_pool, whole)
    assert files(folder) == files(whole)


def test_interrupted_growth_takes_another_pool(job, tmp_path, grown_pool, monkeypatch):
    folder = copied(job, tmp_path)
    # the samples of a new shard are recorded, and not its sketches
    interrupted(job, grown_pool, folder, monkeypatch, 2)
    other = [*rows(FIRST), *rows(3, seed=7)]
    store = make(job, other, folder)
    assert len(store) == FIRST + 3
    whole = by_content(make(job, other, tmp_path / "whole", adapter=folder / "adapter"))
    assert by_content(store).keys() == whole.keys()
    for name, sketch in by_content(store).items():
        np.testing.assert_allclose(sketch, whole[name], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["samples", "sketches"])
def test_a_lost_file_is_made_again_from_a_pool_that_has_its_samples(job, tmp_path, kind):
    folder, name = copied(job, tmp_path), f"{kind}-00001.safetensors"
    before = files(folder)
    (folder / name).unlink()
    with pytest.warns(ClusterUCBWarning, match="was removed"), pytest.raises(RunError, match=f"{name} .*"):
        make(job, rows(FIRST)[:3], folder)
    with pytest.warns(ClusterUCBWarning, match="was removed"):
        make(job, rows(FIRST), folder)
    assert files(folder) == before


def test_a_damaged_list_of_samples_is_refused(job, tmp_path):
    folder = copied(job, tmp_path)
    (folder / "samples-00000.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(RunError, match=r"samples-00000\.safetensors is damaged"):
        cu.GradientStore(folder).ids  # noqa: B018
    with pytest.raises(RunError, match=r"samples-00000\.safetensors is damaged"):
        make(job, rows(FIRST), folder)


def test_growth_with_other_options_is_refused(job, tmp_path, grown_pool):
    with pytest.raises(RunError, match="--seed was 0, now 1"):
        make(job, grown_pool, copied(job, tmp_path), seed=1)


def test_a_part_of_the_stored_pool_is_served(job, tmp_path):
    part = rows(FIRST)[10:30]
    result = cu.select(
        part, job / "dev.jsonl", model=job / "model", store=job / "store", scorer="sketch", out=tmp_path / "a"
    )
    whole = cu.select(
        rows(FIRST),
        job / "dev.jsonl",
        model=job / "model",
        store=job / "store",
        scorer="sketch",
        out=tmp_path / "b",
    )
    scores = {line["id"]: line["subtasks"] for line in read_rows(tmp_path / "b" / "scores.jsonl")}
    for line in read_rows(tmp_path / "a" / "scores.jsonl"):
        assert line["subtasks"] == scores[line["id"]]
    assert result.selection.n_scored == 20
    assert whole.selection.n_scored == FIRST
