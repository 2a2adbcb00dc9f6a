"""Read and write ``manifest.json``.

Decisions:
    - The file records the SHA-256 of the files that later stages read (`clusterucb.run.kept_files`), and of its own
      content, so a value that was changed by hand or by a fault is noticed.
    - `read_manifest` also reads format 1 (version 0.1), where all fields lay side by side, and format 2, which had no
      SHA-256 of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clusterucb import filenames
from clusterucb.atomic import check_regular, unreadable, write_whole
from clusterucb.engine.aggregate import MEAN, PAPER, STANDARDIZED
from clusterucb.errors import RunError
from clusterucb.plugins import renewed
from clusterucb.run.manifest import (
    FORMAT,
    STORE,
    Identity,
    Inputs,
    Manifest,
    PassLimits,
    RunOutcome,
    SearchState,
)

_CHECKSUM = "checksum"
_OF_SKETCHES = ("version", "nonzeros")  # what a store's projection consists of
_OF_STORES = ("pool", "model", "encoding")  # the contents that a store is compared by
_FORMER_RULES = {"max": PAPER, "mean": MEAN, "standardized": STANDARDIZED}  # of --aggregate in version 0.1


class _Format1(msgspec.Struct):
    """The fields of format 1 that the present form has elsewhere."""

    settings: dict[str, Any]
    budget: str | None = None
    select: str | None = None
    spent: str | None = None
    outcome: dict[str, Any] | None = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a run folder, with its own SHA-256.

    Raises:
        RunError: the file cannot be written.
    """
    content = msgspec.to_builtins(manifest)
    content[_CHECKSUM] = _checksum(content)
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    write_whole(folder / filenames.MANIFEST, encoded + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a run folder, also one of format 1 or 2.

    Raises:
        FileNotFoundError: the folder has no manifest.
        RunError: the file cannot be read, or was written by another version in another format.
    """
    path = folder / filenames.MANIFEST
    check_regular(path)
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        manifest = msgspec.convert(_in_present_format(folder, content), Manifest)
        manifest.identity.options = _renamed(manifest.identity)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError) as error:
        raise RunError(
            f"{path} is damaged ({error}): restore it, or use --overwrite to start again"
        ) from error
    return manifest


def _renamed(identity: Identity) -> dict[str, Any]:
    """Return the options of an identity under today's names.

    Raises:
        ValidationError: the identity lacks a value that its job has, or has one that no version wrote.
    """
    options: dict[str, Any] = renewed(identity.options)
    _check_needed(identity, options)
    if former := options.pop("--aggregate", None):
        if not isinstance(former, str) or former not in _FORMER_RULES:
            raise msgspec.ValidationError(f"its --aggregate is {former!r:.40}")
        options["--rule"] = _FORMER_RULES[former]
    return options


def _check_needed(identity: Identity, options: Mapping[str, Any]) -> None:
    """Check the values that a job reads from its identity.

    Raises:
        ValidationError: one is missing or of another type.
    """
    needed: list[tuple[str, Mapping[str, Any], Mapping[str, type]]] = []
    if identity.job == "sketch":
        needed = [
            ("projection", identity.projection, dict.fromkeys(_OF_SKETCHES, int)),
            ("options", options, {"--sketch-dim": int, "--seed": int}),
            ("contents", identity.contents, dict.fromkeys(_OF_STORES, str)),
        ]
    elif options.get("--scorer") == "sketch":
        needed = [("options", options, {"--sketch-dim": int})]
    for part, values, types in needed:
        for name, expected in types.items():
            if type(values.get(name)) is not expected:
                raise msgspec.ValidationError(f"its {part} have no {name} of type {expected.__name__}")


def _in_present_format(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a manifest in the present form, as JSON values.

    Raises:
        RunError: the content has another format.
        ValidationError: the content is not what was written.
    """
    number, checksum = content.get("format"), content.pop(_CHECKSUM, None)
    if not isinstance(number, int):
        raise msgspec.ValidationError("it has no format")
    if number not in (1, 2, FORMAT):
        raise RunError(
            f"{folder} was written by clusterucb {content.get('clusterucb')} in another format; choose another "
            "--out, or start again with --overwrite"
        )
    has_checksum = number == FORMAT or checksum is not None or "files" in content
    if has_checksum and checksum != _checksum(content):
        raise msgspec.ValidationError("its content does not fit its checksum")
    return _from_format_1(content) if number == 1 else {**content, "format": FORMAT}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _from_format_1(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 1 in the present form, as JSON values."""

    def part(kind: type[msgspec.Struct]) -> dict[str, Any]:
        return {name: flat[name] for name in kind.__struct_fields__ if name in flat}

    former = msgspec.convert(flat, _Format1)
    outcome, spent, budget = former.outcome, former.spent or "", former.budget
    until = spent.partition(" until ")[2] or None
    try:
        identity = _identity_of_format_1(former.settings)
    except KeyError as error:
        raise msgspec.ValidationError(f"its settings have no {error}") from error
    return {
        **part(Manifest),
        "format": FORMAT,
        "identity": msgspec.to_builtins(identity),
        "asked": {"budget": budget, "select": former.select, "until": until},
        "inputs": part(Inputs),
        "search": {
            **part(SearchState),
            "spent": bool(budget) and spent in (budget, f"{budget} until {until}"),
        },
        "passes": part(PassLimits),
        "outcome": outcome and {**part(RunOutcome), **outcome},
    }


def _identity_of_format_1(settings: dict[str, Any]) -> Identity:
    """Return the identity that a manifest of format 1 recorded as ``settings``."""
    ending = " content"
    job: Any = "sketch" if STORE.items() <= settings.items() else settings.get("job", "select")
    return Identity(
        options={name: value for name, value in settings.items() if name.startswith("--")},
        contents={
            name.removesuffix(ending): value for name, value in settings.items() if name.endswith(ending)
        },
        job=job,
        projection={"version": settings["sketch version"], "nonzeros": settings["nonzeros"]}
        if job == "sketch"
        else {},
    )
