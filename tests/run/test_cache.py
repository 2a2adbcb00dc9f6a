"""The cache of features: reused where everything is the same, never trusted blindly, bounded, safe for several."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import clusterucb as cu
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.jobs.stages import features
from clusterucb.progress import Silent
from clusterucb.run import feature_cache as cache
from clusterucb.run.feature_cache import FeatureCache, feature_key
from helpers.tiny import write_job

DECIDING = {"pool content": "p", "dtype": "float32"}
DONE = ("features-fit.safetensors", "features-00000.safetensors")


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Switch the cache on, in a folder of the test."""
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", "1")
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


class Told(Silent):
    """Remembers the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


def select(job: Path, out: Path, features, **changes):
    told = Told()
    options = {"warmup_steps": 2, "budget": 8, "select": 2, "preconditioner": "sgd", **changes}
    result = cu.select(
        job / "pool.jsonl",
        job / "dev.jsonl",
        model=job / "model",
        out=out,
        features=features,
        observer=told,
        **options,
    )
    return result, [step for step in told.steps if step.startswith("Reading features")]


def files(folder: Path, *contents: bytes) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"f{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


# In runs ---------------------------------------------------------------------------------------------------


def test_another_run_takes_the_features_and_says_that_they_cost_nothing(job, tmp_path, monkeypatch):
    features = cu.Concatenation((cu.Hidden(depth=0.5), cu.Lexical(dim=4)))
    first, said = select(job, tmp_path / "a", features)
    assert not said
    assert first.cost.phases["features"].forward_passes == 20
    monkeypatch.setattr(type(features), "compute", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(type(features), "fit", lambda *_: pytest.fail("fitted again"))
    second, said = select(job, tmp_path / "b", features, budget=10)
    assert said == [f"Reading features from the cache: {tmp_path / 'cache'}"]
    cost = second.cost.phases["features"]
    assert (cost.forward_passes, cost.gradients, cost.tokens) == (0, 0, 0)
    assert second.cost.total < first.cost.total
    for name in DONE:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).stat().st_ino == (tmp_path / "b" / name).stat().st_ino
    again, said = select(job, tmp_path / "b", features, budget=10)
    assert (again.cost.total, said) == (second.cost.total, [])


def test_without_a_cache_the_result_is_the_same(job, tmp_path, monkeypatch):
    select(job, tmp_path / "a", cu.Lexical(dim=4))
    taken, said = select(job, tmp_path / "b", cu.Lexical(dim=4))
    assert said
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", "0")
    alone, said = select(job, tmp_path / "c", cu.Lexical(dim=4))
    assert not said
    for name in ("selected.jsonl", "scores.jsonl", *DONE):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert taken.ids == alone.ids


def test_the_target_is_still_described_at_its_own_cost(job, tmp_path):
    options = {"policy": cu.RDS()}
    select(job, tmp_path / "a", cu.Hidden(depth=1), **options)
    second, _ = select(job, tmp_path / "b", cu.Hidden(depth=1), **options)
    assert second.cost.phases["features"].forward_passes == 6


def test_what_was_computed_by_something_else_is_computed_again(job, tmp_path, monkeypatch):
    select(job, tmp_path / "a", cu.Lexical(dim=4))
    assert not select(job, tmp_path / "b", cu.Lexical(dim=5))[1]
    assert not select(job, tmp_path / "c", cu.Lexical(dim=4), dtype="bfloat16")[1]
    assert not select(job, tmp_path / "d", cu.Lexical(dim=4), max_length=20)[1]
    monkeypatch.setattr(cache, "version_of", lambda name: "another")
    assert not select(job, tmp_path / "e", cu.Lexical(dim=4))[1]


def test_gradients_are_never_kept(job, tmp_path, kept):
    with pytest.warns(ClusterUCBWarning, match="clustering by gradients computes"):
        select(job, tmp_path / "a", cu.Gradient())
    assert not kept.exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "no entry"])
def test_what_is_damaged_is_computed_again_and_replaced(job, tmp_path, kept, damage):
    first, _ = select(job, tmp_path / "a", cu.Hidden(depth=1))
    (entry,) = kept.glob("*/entry.json")
    shard = entry.parent / DONE[1]
    if damage == "cut":
        content = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        shard.unlink()
    else:
        entry.write_text("{")
    second, said = select(job, tmp_path / "b", cu.Hidden(depth=1))
    assert not said
    assert second.cost == first.cost or second.cost.total == first.cost.total
    assert not (tmp_path / "b" / "features-cached.json").exists()
    assert select(job, tmp_path / "c", cu.Hidden(depth=1))[1]


@pytest.mark.parametrize("still_there", [True, False])
def test_a_run_that_was_cut_short_while_it_took_them_goes_on(job, tmp_path, kept, monkeypatch, still_there):
    monkeypatch.setattr(features, "_SHARD", 15)
    select(job, tmp_path / "a", cu.Hidden(depth=1))
    put, count = cache._put, iter(range(2))

    def cut_short(source, path):
        next(count)
        put(source, path)

    with monkeypatch.context() as broken:
        broken.setattr(cache, "_put", cut_short)
        with pytest.raises((StopIteration, RuntimeError)):
            select(job, tmp_path / "b", cu.Hidden(depth=1))
    assert len(list((tmp_path / "b").glob("features-0*.safetensors"))) == 2
    if not still_there:
        (next(kept.glob("*/entry.json"))).unlink()
    second, said = select(job, tmp_path / "b", cu.Hidden(depth=1))
    assert bool(said) == still_there
    assert second.cost.phases["features"].forward_passes == (0 if still_there else 40)


def test_a_run_that_has_begun_to_compute_takes_nothing(job, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_SHARD", 15)
    select(job, tmp_path / "a", cu.Hidden(depth=1))
    select(job, tmp_path / "b", cu.Hidden(depth=1), seed=1)
    for name in ("features-cached.json", "features-00002.safetensors", "labels.safetensors"):
        (tmp_path / "b" / name).unlink()
    again, said = select(job, tmp_path / "b", cu.Hidden(depth=1), seed=1)
    assert not said
    assert again.cost.phases["features"].forward_passes == 40


def test_a_comparison_counts_features_with_what_they_once_took(job, tmp_path, monkeypatch):
    def compare(out):
        return cu.compare(
            job / "pool.jsonl",
            job / "dev.jsonl",
            model=job / "model",
            out=out,
            strategies=[cu.Contender("h", cu.Random(), features=cu.Hidden(depth=1))],
            budgets=["50%"],
            seeds=1,
            warmup_steps=2,
            preconditioner="sgd",
        ).content["strategies"][0]["points"][0]

    first = compare(tmp_path / "a")
    entry = next(cache.home().glob("features/*/entry.json"))
    about = json.loads(entry.read_text())
    entry.write_text(json.dumps({**about, "seconds": 1000.0}))
    second = compare(tmp_path / "b")
    assert second["cost"] == first["cost"]
    assert second["total_seconds"] > 1000


def test_a_cache_that_cannot_be_written_is_a_warning(job, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "file"))
    with pytest.warns(
        ClusterUCBWarning, match=r"cannot use the cache of features: .*Set CLUSTERUCB_CACHE to another"
    ):
        select(job, tmp_path / "a", cu.Lexical(dim=4))


# Keys ------------------------------------------------------------------------------------------------------


def test_a_key_changes_with_everything_that_decides():
    keys = [
        feature_key(cu.Lexical(dim=4), DECIDING),
        feature_key(cu.Lexical(dim=5), DECIDING),
        feature_key(cu.Hidden(), DECIDING),
        feature_key(cu.Concatenation((cu.Lexical(dim=4), cu.Hidden())), DECIDING),
        feature_key(cu.Lexical(dim=4), {**DECIDING, "dtype": "bfloat16"}),
        feature_key(cu.Lexical(dim=4), {**DECIDING, "pool content": "q"}),
    ]
    assert len({*keys}) == len(keys)
    assert feature_key(cu.Lexical(dim=4), dict(DECIDING)) == keys[0]
    assert None not in keys


def test_what_cannot_be_known_has_no_key():
    class Local(cu.Lexical):
        """Its code is part of a function."""

    assert feature_key(Local(), DECIDING) is None
    assert feature_key(cu.Concatenation((cu.Lexical(), Local())), DECIDING) is None
    assert feature_key(cu.Gradient(), DECIDING) is None
    assert feature_key(cu.Concatenation((cu.Lexical(), cu.Gradient())), DECIDING) is None
    assert feature_key(cu.Lexical(), {**DECIDING, "model content": None}) is None


def test_another_source_code_has_another_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "cucb_kept.py"
    module.write_text("import clusterucb as cu\nclass Mine(cu.Column):\n    pass\n")
    import cucb_kept

    before = feature_key(cucb_kept.Mine(), DECIDING)
    module.write_text("import clusterucb as cu\nclass Mine(cu.Column):\n    x = 1\n")
    assert before != feature_key(cucb_kept.Mine(), DECIDING) is not None


# The folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["-1", "ten", "inf", "nan"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, limit):
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", limit)
    with pytest.raises(
        OptionError, match=r"CLUSTERUCB_CACHE_LIMIT is .*; expected gigabytes, such as 10, or 0"
    ):
        FeatureCache()


def test_what_has_not_been_used_for_longest_goes_first(tmp_path, kept, monkeypatch):
    store = FeatureCache()
    for number, key in enumerate("abc"):
        store.keep(key, files(tmp_path / key, bytes(1000)), 1.0)
        os.utime(kept / key / "entry.json", (number, number))
    (tmp_path / "out").mkdir()
    assert store.take("a", tmp_path / "out", ["f0"]) == 1.0
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", "0.0000035")
    store = FeatureCache()
    store.keep("d", files(tmp_path / "d", bytes(1000)), 1.0)
    assert {path.parent.name for path in kept.glob("*/entry.json")} == {"a", "c", "d"}
    store.keep("e", files(tmp_path / "e", bytes(4000)), 1.0)
    assert not store.holds("e")
    assert store.holds("d")


def test_what_a_killed_process_left_goes(tmp_path, kept):
    files(kept / "x.partial", b"some")
    FeatureCache().keep("a", files(tmp_path / "a", b"1"), 1.0)
    assert [path.name for path in kept.iterdir() if path.is_dir()] == ["a"]


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    FeatureCache().keep("a", files(tmp_path / "a", b"one", b"two"), 1.0)
    (tmp_path / "out").mkdir()
    FeatureCache().take("a", tmp_path / "out", ["f0", "f1"])
    assert [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())] == [b"one", b"two"]


# A cache that someone else wrote, or that cannot be used ---------------------------------------------------


def kept_entry(tmp_path: Path, kept: Path) -> Path:
    FeatureCache().keep("a", files(tmp_path / "a", b"one", b"two"), 1.0)
    (tmp_path / "out").mkdir()
    return kept / "a"


@pytest.mark.parametrize("name", ["manifest.json", "../manifest.json", "ledger.sqlite", "lock", "f2"])
def test_an_entry_cannot_name_the_files_that_it_replaces(tmp_path, kept, name):
    entry = kept_entry(tmp_path, kept)
    about = json.loads((entry / "entry.json").read_text())
    (entry / name).write_bytes(b"one")
    (entry / "entry.json").write_text(
        json.dumps({**about, "files": {**about["files"], name: about["files"]["f0"]}})
    )
    with pytest.warns(ClusterUCBWarning, match=r"an entry of the cache .* is damaged \(it has other files"):
        assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) is None
    assert not list((tmp_path / "out").iterdir())
    assert not entry.exists()


def junk(entry: Path, content: bytes) -> None:
    """Replace the files of an entry by junk that has the recorded hashes."""
    about = json.loads((entry / "entry.json").read_text())
    for name in about["files"]:
        (entry / name).unlink()
        (entry / name).write_bytes(content)
        about["files"][name] = hashlib.sha256(content).hexdigest()
    (entry / "entry.json").write_text(json.dumps(about))


def of_another_width() -> bytes:
    return save({"embedding": np.zeros((40, 3), np.float32), "other": np.zeros((39, 3), np.float32)})


@pytest.mark.parametrize("content", [b"", b"junk", of_another_width()], ids=["empty", "junk", "rows"])
def test_junk_with_a_valid_hash_is_dropped_once(job, tmp_path, kept, content):
    first, _ = select(job, tmp_path / "a", cu.Lexical(dim=4))
    (entry,) = (path.parent for path in kept.glob("*/entry.json"))
    junk(entry, content)
    with pytest.warns(ClusterUCBWarning, match="is damaged"):
        second, _ = select(job, tmp_path / "b", cu.Lexical(dim=4))
    third, said = select(job, tmp_path / "c", cu.Lexical(dim=4))
    assert first.ids == second.ids == third.ids
    assert said


def test_the_cache_is_private(tmp_path, kept):
    os.umask(0o022)
    kept_entry(tmp_path, kept)
    assert kept.stat().st_mode & 0o777 == 0o700
    kept.chmod(0o755)
    FeatureCache().take("a", tmp_path / "out", ["f0", "f1"])
    assert kept.stat().st_mode & 0o777 == 0o700


def test_the_cache_of_another_user_is_not_used(tmp_path, kept, monkeypatch):
    kept_entry(tmp_path, kept)
    made = files(tmp_path / "b", b"one")
    monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)
    with pytest.warns(ClusterUCBWarning, match=r"cannot use the cache .* belongs to another user"):
        assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) is None
    with pytest.warns(ClusterUCBWarning, match=r"cannot use the cache .* belongs to another user"):
        FeatureCache().keep("b", made, 1.0)
    assert not (kept / "b").exists()


def test_a_link_is_not_a_cache(tmp_path, kept):
    entry = kept_entry(tmp_path, kept)
    moved = entry.parent.rename(tmp_path / "elsewhere")
    kept.symlink_to(moved)
    with pytest.warns(ClusterUCBWarning, match="is not a folder of its own"):
        assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) is None


@pytest.mark.parametrize("name", ["lock", "a/f0"])
def test_a_pipe_in_the_cache_is_not_waited_for(tmp_path, kept, name):
    kept_entry(tmp_path, kept)
    (kept / name).unlink()
    os.mkfifo(kept / name)
    with pytest.warns(ClusterUCBWarning, match="is a pipe; expected a file"):
        assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) is None


def test_without_a_home_there_is_no_cache(job, tmp_path, monkeypatch):
    monkeypatch.delenv("CLUSTERUCB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.warns(ClusterUCBWarning, match=r"no home folder .*; set CLUSTERUCB_CACHE"):
        select(job, tmp_path / "a", cu.Lexical(dim=4))


def test_a_lock_that_is_held_is_not_waited_for_without_end(tmp_path, kept, monkeypatch):
    kept_entry(tmp_path, kept)
    monkeypatch.setattr(cache, "_PATIENCE", 0.2)
    holder = os.open(kept / "lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.warns(ClusterUCBWarning, match=r"another process has held .*lock"):
        assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) is None
    os.close(holder)


def test_an_entry_that_cannot_be_dropped_is_a_warning(tmp_path, kept, monkeypatch):
    entry = kept_entry(tmp_path, kept)
    monkeypatch.setattr(cache, "_PATIENCE", 0.2)
    holder = os.open(kept / "lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.warns(ClusterUCBWarning, match=r"another process has held .*lock"):
        FeatureCache().drop("a", "junk")
    os.close(holder)
    assert entry.exists()


def test_without_file_locks_the_cache_works(tmp_path, kept, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    kept_entry(tmp_path, kept)
    assert FeatureCache().take("a", tmp_path / "out", ["f0", "f1"]) == 1.0


def use(folder: Path, number: int) -> None:
    store = FeatureCache()
    for turn in range(15):
        key = f"k{(turn + number) % 3}"
        out = folder / f"out-{number}-{turn}"
        out.mkdir()
        if store.take(key, out, ["f0", "f1"]) is None:
            store.keep(key, files(folder / f"made-{number}-{turn}", key.encode() * 400, b"x"), 1.0)
        else:
            assert (out / "f0").read_bytes() == key.encode() * 400
            assert (out / "f1").read_bytes() == b"x"


def test_processes_may_use_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", "0.000002")  # two entries: they drive each other out
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=use, args=(tmp_path, number)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
