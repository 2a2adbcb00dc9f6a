"""Folders of torch.distributed.checkpoint are joined exactly; incomplete and odd ones are refused, and nothing runs."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import checkpoint_fingerprints, optimizer_file
from clusterucb.model.moments import load_moments
from helpers.moments import asked, assert_moments

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_dcp_states as made


def written(kind: str) -> Path:
    folder = made.FOLDER / kind
    return folder / "optimizer_0" if kind.startswith("accelerate") else folder


@pytest.mark.parametrize("kind", made.KINDS)
def test_moments_are_those_of_the_run(kind):
    model, manifest = asked(whole=False)
    got = load_moments(written(kind), model, manifest)
    assert_moments(got, model, manifest)
    assert not got.by_position
    assert got.matched == "8 parameters matched by name; FSDP, 2 files"


def test_the_folder_is_found_and_hashed(tmp_path):
    shutil.copytree(made.FOLDER / "accelerate-fsdp2", tmp_path / "checkpoint")
    folder = optimizer_file(tmp_path / "checkpoint")
    assert folder == tmp_path / "checkpoint" / "optimizer_0"
    before = checkpoint_fingerprints([(None, folder)])["optimizer"]
    (folder / "__1_0.distcp").write_bytes((folder / "__1_0.distcp").read_bytes() + b"x")
    assert checkpoint_fingerprints([(None, folder)])["optimizer"] != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "__1_0.distcp").unlink(),
            r"lacks 1 file that its \.metadata names, such as __1_0\.distcp",
        ),
        (lambda folder: (folder / ".metadata").write_bytes(b"\x80\x04x"), r"\.metadata is damaged"),
        (lambda folder: (folder / ".metadata").write_bytes(b""), r"\.metadata is damaged"),
        (
            lambda folder: (folder / "__0_0.distcp").write_bytes(b"x" * 30000),
            r"is damaged: .* cannot be read",
        ),
        (
            lambda folder: (folder / "__1_0.distcp").write_bytes(b""),
            r"is damaged: .* cannot be read \(it is cut short, or not a file of torch\.save\); save it again",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, change, message):
    folder = shutil.copytree(written("torch"), tmp_path / "state")
    change(folder)
    model, manifest = asked(whole=False)
    with pytest.raises(ModelError, match=message):
        load_moments(folder, model, manifest)


def test_another_optimiser_is_named(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.SGD([weight], momentum=0.9)
    optimizer.step()
    state = {"w": optimizer.state[weight]}
    groups = [{**optimizer.param_groups[0], "params": ["w"]}]
    dcp.save(
        {"optimizer": {"state": state, "param_groups": groups}}, checkpoint_id=tmp_path / "sgd", no_dist=True
    )
    model, manifest = asked(whole=False)
    with pytest.raises(ModelError, match="is the state of SGD with momentum"):
        load_moments(tmp_path / "sgd", model, manifest)


def test_a_folder_of_weights_is_no_state(tmp_path):
    dcp.save({"model": {"w": torch.zeros(3)}}, checkpoint_id=tmp_path / "model", no_dist=True)
    model, manifest = asked(whole=False)
    with pytest.raises(ModelError, match=r"holds no optimiser state, only model\.w and the like"):
        load_moments(tmp_path / "model", model, manifest)


class Runs:
    """Runs code when it is loaded by pickle."""

    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_nothing_in_the_metadata_runs(tmp_path):
    folder = shutil.copytree(written("torch"), tmp_path / "state")
    (folder / ".metadata").write_bytes(pickle.dumps(Runs()))
    model, manifest = asked(whole=False)
    with pytest.raises(ModelError, match=r"\.metadata is damaged"):
        load_moments(folder, model, manifest)
