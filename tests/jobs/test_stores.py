"""Gradient stores are listed, verified and merged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import clusterucb as cu
from clusterucb.cli.main import run
from clusterucb.errors import OptionError, RunError
from clusterucb.jobs.stores import stores
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest_file import read_manifest, write_manifest
from clusterucb.run.store_shards import with_failures
from clusterucb.run.store_types import loaded, stored
from helpers.stores import by_content, small_shards  # noqa: F401
from helpers.tiny import rows, write_model, write_rows


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model and the stores a (rows 0 to 29), b (20 to 49, at a's checkpoint) and c (another)."""
    folder = tmp_path_factory.mktemp("stores")
    write_model(folder / "model")
    write_rows(folder / "dev.jsonl", rows(5, seed=9))
    make(folder, rows(50)[:30], "a")
    make(folder, rows(50)[20:], "b", adapter=folder / "a" / "adapter")
    make(folder, rows(50)[20:], "c")
    return folder


def make(job, pool, name, **changes):
    options = {"warmup_steps": 2, "sketch_dim": 256, **changes}
    return cu.sketch(pool, model=job / "model", out=job / name, **options)


def files(folder):
    names = ("sketches-*", "samples-*", "adapter/*", "manifest.json")
    found = {path.name: path.read_bytes() for name in names for path in folder.glob(name)}
    assert b'"status": "finished"' in found["manifest.json"]
    return found


def test_stores_are_listed(job):
    first, second = stores([job / "a", job / "b"], verify=True)
    assert (first.rows, first.dimension, first.dtype, first.checkpoints) == (30, 256, "float16", 1)
    assert first.bytes >= 30 * 256 * 2
    assert first.checksums == second.checksums == "hold"
    assert first.model == second.model
    assert first.fingerprint == cu.GradientStore(job / "a").fingerprint != second.fingerprint
    assert stores([job / "a"])[0].checksums is None


def test_a_merged_store_holds_each_sample_once_whatever_the_order(job, tmp_path):
    merged = cu.merge_stores([job / "a", job / "b"], tmp_path / "m")
    again = cu.merge_stores([job / "b", job / "a"], tmp_path / "n")
    assert files(merged.folder) == files(again.folder)
    assert len(merged) == 50
    assert merged.content_hashes == sorted(merged.content_hashes)
    assert set(merged.ids) == {row["id"] for row in rows(50)}
    parts = [by_content(cu.GradientStore(job / name)) for name in ("a", "b")]
    for name, sketch in by_content(merged).items():
        assert any(name in part and np.array_equal(part[name], sketch) for part in parts)
    assert merged.manifest.cost.gradients == 8 + 60
    result = cu.select(
        rows(50),
        job / "dev.jsonl",
        model=job / "model",
        store=merged.folder,
        scorer="sketch",
        out=tmp_path / "run",
    )
    assert result.selection.n_scored == 50
    assert result.cost.phases["draws"].gradients == 0


def test_a_merged_store_grows_and_merges(job, tmp_path):
    merged = cu.merge_stores([job / "a", job / "b"], tmp_path / "m")
    options = merged.manifest.identity.options
    adapter = {} if options["--warmup-steps"] else {"adapter": job / "a" / "adapter"}
    grown = make(job, rows(55), merged.folder, **adapter)
    assert len(grown) == 55
    twice = cu.merge_stores([grown.folder, job / "a"], tmp_path / "twice")
    assert len(twice) == 55
    assert cu.merge_stores([job / "b", job / "a"], grown.folder).fingerprint == merged.fingerprint


@pytest.mark.parametrize("count", range(1, 9, 2))
def test_a_merge_that_is_interrupted_goes_on_to_the_same_bytes(job, tmp_path, monkeypatch, count):
    record, left = KeptFiles._record, iter(range(count))

    def counted(self, digests):
        if next(left, None) is None:
            raise KeyboardInterrupt
        record(self, digests)

    with monkeypatch.context() as patch:
        patch.setattr(KeptFiles, "_record", counted)
        with pytest.raises(KeyboardInterrupt):
            cu.merge_stores([job / "a", job / "b"], tmp_path / "m")
    with pytest.raises(RunError, match="is not finished"):
        cu.GradientStore(tmp_path / "m")
    cu.merge_stores([job / "a", job / "b"], tmp_path / "m")
    cu.merge_stores([job / "a", job / "b"], tmp_path / "whole")
    assert files(tmp_path / "m") == files(tmp_path / "whole")


def test_failures_are_merged(job, tmp_path):
    folder = shutil.copytree(job / "a", tmp_path / "a")
    manifest, name = read_manifest(folder), "sketches-00000.safetensors"
    kept = KeptFiles(folder, manifest.files, lambda: write_manifest(folder, manifest))
    arrays = kept.arrays(name)
    arrays["sketches"][3] = np.nan
    kept.forget(name)
    kept.write_arrays(name, arrays, with_failures({3: "the gradient is zero"}))
    store = cu.GradientStore(folder)
    merged = cu.merge_stores([folder], tmp_path / "m")
    (row,) = merged.failures()
    assert merged.failures() == {row: "the gradient is zero"}
    assert merged.content_hashes[row] == store.content_hashes[3]
    assert np.isnan(merged.rows(range(row, row + 1))).all()


def test_stores_that_do_not_go_together_are_refused(job, tmp_path):
    with pytest.raises(
        OptionError, match=r"cannot be merged: the checkpoint differs .*Expected stores of one model"
    ):
        cu.merge_stores([job / "a", job / "c"], tmp_path / "m")
    make(job, rows(3), tmp_path / "d", sketch_dim=512, adapter=job / "a" / "adapter")
    with pytest.raises(OptionError, match="--sketch-dim is 256 and 512"):
        cu.merge_stores([job / "a", tmp_path / "d"], tmp_path / "m")
    with pytest.raises(OptionError, match="is one of the stores; expected another folder"):
        cu.merge_stores([job / "a", job / "b"], job / "b")
    with pytest.raises(OptionError, match="expected the folders of one or more gradient stores"):
        cu.merge_stores([], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    first = min((job / "a", job / "b"), key=lambda folder: cu.GradientStore(folder).fingerprint)
    cu.merge_stores([first], tmp_path / "m")
    with pytest.raises(RunError, match="holds another gradient store than these make"):
        cu.merge_stores([job / "a", job / "b"], tmp_path / "m")
    assert len(cu.merge_stores([job / "a", job / "b"], tmp_path / "m", overwrite=True)) == 50


def test_the_command_line_lists_verifies_and_merges(job, tmp_path, capsys):
    both = ["stores", str(job / "a"), str(job / "b")]
    assert run(both) == 0
    shown = capsys.readouterr().out
    assert f"{job / 'a'}: 30 samples in 256 dimensions, float16, " in shown
    assert cu.GradientStore(job / "a").fingerprint[:12] in shown
    assert run([*both, "--verify", "--json"]) == 0
    assert [one["checksums"] for one in json.loads(capsys.readouterr().out)] == ["hold", "hold"]
    assert run([*both, "--merge", str(tmp_path / "m")]) == 0
    assert "Sketched 50 of 50 samples" in capsys.readouterr().out
    assert run([*both, "--merge", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 50
    assert run([*both, "--overwrite"]) == 2
    assert "--overwrite is given without --merge" in capsys.readouterr().err
    shutil.copytree(job / "a", tmp_path / "a")
    (tmp_path / "a" / "adapter" / "optimizer.pt").write_bytes(b"other")
    assert run(["stores", str(job / "b"), str(tmp_path / "a"), "--verify"]) == 2
    shown = capsys.readouterr()
    assert "DAMAGED" in shown.out
    assert "1 of 2 stores cannot be used" in shown.err
    assert run(["stores", str(tmp_path)]) == 2
    assert "is not a gradient store" in capsys.readouterr().err


def test_a_byte_for_each_element_is_half_the_size_and_nearly_the_same(job, tmp_path):
    make(job, rows(50)[:30], tmp_path / "bytes", adapter=job / "a" / "adapter", store_dtype="int8")
    whole, small = cu.GradientStore(job / "a"), cu.GradientStore(tmp_path / "bytes")
    assert small.content_hashes == whole.content_hashes
    assert stores([small.folder], verify=True)[0].dtype == "int8"
    exact, found = (store.rows(range(30)).astype(np.float64) for store in (whole, small))
    steps = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - exact) <= 0.6 * steps).all()  # half a step, and the rounding of half precision
    assert (found != exact).any()
    sizes = [sum(path.stat().st_size for path in store.folder.glob("sketches-*")) for store in (whole, small)]
    assert sizes[1] < 0.6 * sizes[0]
    scores = []
    for store in (whole, small):
        options = {"store": store.folder, "scorer": "sketch", "out": tmp_path / f"run-{store.dtype}"}
        result = cu.select(rows(50)[:30], job / "dev.jsonl", model=job / "model", select="100%", **options)
        scores.append(dict(zip(result.ids, result.scores, strict=True)))
    assert scores[1] == pytest.approx(scores[0], abs=5e-3)
    assert scores[1] != scores[0]


def test_stores_of_bytes_grow_and_merge_among_themselves(job, tmp_path):
    small = {"adapter": job / "a" / "adapter", "store_dtype": "int8"}
    made = make(job, rows(50)[:20], tmp_path / "bytes", **small)
    grown = make(job, rows(50)[:30], made.folder, **small)
    other = make(job, rows(50)[25:35], tmp_path / "other", **small)
    merged = cu.merge_stores([other.folder, grown.folder], tmp_path / "m")
    assert merged.dtype == "int8"
    parts = [by_content(store) for store in (grown, other)]
    for name, sketch in by_content(merged).items():
        assert any(name in part and np.array_equal(part[name], sketch) for part in parts)
    with pytest.raises(OptionError, match="--store-dtype is int8 and None"):
        cu.merge_stores([grown.folder, job / "b"], tmp_path / "n")
    with pytest.raises(RunError, match="--store-dtype was int8, now unset"):
        make(job, rows(50)[:30], made.folder, adapter=job / "a" / "adapter")
    with pytest.raises(OptionError, match="--store-dtype is 'int4'; expected one of float16, int8"):
        make(job, rows(3), tmp_path / "no", store_dtype="int4")


def test_a_sketch_that_does_not_exist_stays_none_in_bytes():
    sketches = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    sketches[1], sketches[2] = np.nan, 0
    found = loaded(stored(sketches, "int8"))
    assert np.isnan(found[1]).all()
    assert (found[2] == 0).all()
    np.testing.assert_allclose(found[0], sketches[0], atol=np.abs(sketches[0]).max() / 250)
