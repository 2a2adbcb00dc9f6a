"""A file that the system cannot read now is not called damaged, because a user would remove it."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from clusterucb.errors import RunError
from clusterucb.run import kept_files
from clusterucb.run.folder import Run
from clusterucb.run.kept_files import KeptFiles, load_arrays
from clusterucb.run.manifest import Identity
from clusterucb.run.manifest_file import read_manifest

EXPECTED = r"cannot read .*: Too many open files\. Its content may be right: repeat"


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    with Run(tmp_path / "run", Identity({"--seed": 0})) as run:
        run.save()
        run.files.write_arrays("features.safetensors", {"a": np.zeros(3)})
    digests = dict(run.manifest.files)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(kept_files, "load_file", refuse)
    path = tmp_path / "run" / "features.safetensors"
    for read in (
        lambda: read_manifest(tmp_path / "run"),
        lambda: KeptFiles(tmp_path / "run", digests).find("features.safetensors"),
        lambda: KeptFiles(tmp_path / "run", None).arrays("features.safetensors"),
        lambda: load_arrays(path),
    ):
        with pytest.raises(RunError, match=EXPECTED):
            read()
