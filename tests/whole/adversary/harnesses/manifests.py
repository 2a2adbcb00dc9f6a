"""``manifest.json`` of a run, a store and a comparison: its bytes, and any value in any field, with its checksum."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clusterucb import filenames
from clusterucb.errors import RunError
from clusterucb.jobs.stages.prior import earlier_runs
from clusterucb.jobs.trial.runs import SelectedRun
from clusterucb.options.search import ScoringSettings
from clusterucb.policies.surrogate import Surrogate
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest import Asked, Identity
from clusterucb.run.manifest_file import _checksum, read_manifest, write_manifest
from whole.adversary.harnesses.choices import Choices
from whole.adversary.harnesses.judged import outcome, scratch

FORMER = Path(__file__).parents[3] / "data" / "former"
FOLDERS = ("finished", "store", "compared", "interrupted")
"""Folders of version 0.1, whose manifests have format 1."""


@cache
def _contents(name: str) -> tuple[Any, Any]:
    """Return the manifest of a folder in format 1, and in the present format, as JSON values."""
    with scratch() as folder:
        former = json.loads((FORMER / name / filenames.MANIFEST).read_bytes())
        (folder / filenames.MANIFEST).write_bytes(json.dumps(former).encode())
        write_manifest(folder, read_manifest(folder))
        return former, json.loads((folder / filenames.MANIFEST).read_bytes())


def _change(choices: Choices, content: Any) -> None:
    """Replace, remove or add a value somewhere in a JSON value."""
    at = content
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = choices.one_of(keys)
        if isinstance(at[key], dict | list) and at[key] and choices.below(8):
            at = at[key]
            continue
        kind = choices.below(6)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, dict):
            at[choices.text()] = choices.value()
        else:
            at[key] = choices.value()
        return


def _content(choices: Choices, name: str) -> bytes:
    if not choices.below(4):
        return choices.rest()
    former, present = _contents(name)
    content = copy.deepcopy(former if choices.flag() else present)
    for _ in range(1 + choices.below(4)):
        _change(choices, content)
    if "checksum" in content and choices.below(8):
        try:
            content["checksum"] = _checksum({key: content[key] for key in content if key != "checksum"})
        except (msgspec.MsgspecError, UnicodeEncodeError):
            return b"{}"
    return json.dumps(content).encode()


def _resumed(folder: Path) -> None:
    """Open a folder for a job with the settings that its manifest names, and with other settings."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError as error:
        raise RunError("no manifest") from error
    manifest.identity.changes(Identity({"--seed": 1}, {"pool": "x"}))
    _ = manifest.cost.gradients, manifest.cost.seconds, manifest.cost.forward_passes, manifest.identity
    KeptFiles(folder, manifest.files).find(filenames.SCORES)
    with Run(folder, manifest.identity, asked=Asked("5", "2")) as run:
        for kept in filenames.KEPT:
            run.files.find(kept)


def _as_store(folder: Path) -> None:
    store = GradientStore(folder)
    _ = store.fingerprint
    store.check(dict.fromkeys(("pool", "model", "encoding"), "x"))


def _shown_store(folder: Path) -> None:
    store = GradientStore(folder)
    store.to_json()
    for _ in store.shards():
        pass
    store.applied_to(ScoringSettings())


def _as_prior(folder: Path) -> None:
    for earlier in earlier_runs([folder], Surrogate()):
        earlier.of_pool(["x"], np.zeros((1, 32), np.uint8), {"pool": "x"})


def _as_trial(folder: Path) -> None:
    run = SelectedRun.of(folder)
    _ = run.settings, run.search, run.ids, run.features


USES = (_resumed, _as_store, _shown_store, _as_prior, _as_trial)


def case(data: bytes) -> str:
    """Change the manifest of a folder, and use the folder for a job."""
    choices = Choices(data)
    name, use = choices.one_of(FOLDERS), choices.one_of(USES)
    content = _content(choices, name)
    with scratch() as place:
        folder = place / "work"
        shutil.copytree(FORMER / name, folder, ignore=shutil.ignore_patterns("README.md", "optimizer.pt"))
        (folder / filenames.MANIFEST).write_bytes(content)
        return outcome(lambda: use(folder))
