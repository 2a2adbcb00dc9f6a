"""Sum up what a gradient store holds, and whether its files are what it recorded."""

from __future__ import annotations

from typing import Self

import msgspec

from clusterucb.errors import RunError
from clusterucb.run.gradient_store import GradientStore

HOLD = "hold"  # what `StoreSummary.checksums` says of whole files


class StoreSummary(msgspec.Struct):
    """What a gradient store holds.

    Attributes:
        out: the store's folder.
        rows: the number of samples that it holds; 0 if a file is damaged.
        dimension: the dimension of its sketches.
        dtype: how a sketch is stored.
        bytes: the bytes of its files.
        checkpoints: the number of its checkpoints; 0 if a file is damaged.
        model: the hex SHA-256 of the model.
        fingerprint: the hex SHA-256 of everything that affected the sketches.
        knows_samples: whether it knows its samples' ids and contents; stores of version 0.1 do not.
        checksums: whether its files are what it recorded: ``hold``, what is wrong, or None if that was not asked.
    """

    out: str
    rows: int
    dimension: int
    dtype: str
    bytes: int
    checkpoints: int
    model: str
    fingerprint: str
    knows_samples: bool
    checksums: str | None = None

    @classmethod
    def of(cls, store: GradientStore, *, verify: bool) -> Self:
        """Return the summary of a store.

        Args:
            store: the store.
            verify: whether to read every file, and compare it with its recorded SHA-256.

        Raises:
            RunError: without ``verify``, the list of the store's samples or its checkpoint is damaged.
        """
        checksums = None
        if verify:
            try:
                store.verify()
                checksums = HOLD
            except RunError as error:
                checksums = str(error)
        whole = checksums in (None, HOLD)
        return cls(
            out=str(store.folder),
            rows=len(store) if whole else 0,
            dimension=store.sketch.dimension,
            dtype=store.dtype,
            bytes=sum(path.lstat().st_size for path in store.folder.rglob("*") if not path.is_dir()),
            checkpoints=store.n_checkpoints if whole else 0,
            model=str(store.manifest.identity.contents["model"]),
            fingerprint=store.fingerprint,
            knows_samples=store.kept.knows_samples,
            checksums=checksums,
        )
