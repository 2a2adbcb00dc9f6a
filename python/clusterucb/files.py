"""Which files a path means: itself, what a pattern matches, or the data in a folder.

Decisions:
    - Links to folders are followed, as a hub's cache is made of links; a folder that is found twice is read once.
    - A folder with several splits is refused: which one is meant, nobody else can say.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clusterucb.errors import InputError, one_line

EXPECTED = "expected JSONL, a JSON array, CSV, TSV, Parquet or Arrow, the text ones perhaps in .gz or .zst"
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


def files_of(path: Path) -> list[Path]:
    """Return the files that a path means: itself, what a pattern matches, or the data in a folder.

    A folder that ``datasets`` saved is one of them. A path of nothing is, too: who opens it is told.

    Raises:
        InputError: a pattern matches nothing, or a folder holds no data, or that of several splits.
    """
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        nameable = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        pattern = nameable and glob.has_magic(str(path))
        if pattern and (found := sorted(glob.glob(str(path), recursive=True))):
            return [file for one in found for file in files_of(Path(one))]
        if not nameable or (re.search(r"\s", str(path)) and not ending(path)):
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot read {str(path)!r:.80}: {reason}; expected the path of a file. A text that is itself a row "
                "goes into a dict: {'text': ...}"
            ) from error
        if pattern:
            raise InputError(f"no file matches {path}; expected a pattern of files that exist") from error
    if os.path.isdir(path):
        with explained(path):
            return _files_in(path)
    return [path]


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's data files: of a dataset that ``datasets`` saved, or of a copy from a hub."""
    if (folder / "state.json").is_file():
        return [folder]
    saved = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if saved:
        raise InputError(
            f"{folder} holds the splits {', '.join(saved)}; expected one: {folder / likely(saved)}"
        )
    found = sorted(_within(folder, set()))
    if not found:
        raise InputError(
            f"{folder} is a folder without data files; expected files ending in {', '.join(_ENDINGS)}"
        )
    splits = {split for path in found if (split := _split(path))}
    if len(splits) > 1:
        raise InputError(
            f"{folder} holds the splits {', '.join(sorted(splits))}; expected files of one, such as "
            f"'{folder}/**/{likely(splits)}*' (in quotes)"
        )
    return found


def likely(splits: Iterable[str]) -> str:
    """Return the split that people mean."""
    return "train" if "train" in splits else min(splits)


def _within(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the data files of a folder and of the folders in it, but of none whose real path has been seen."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    with explained(folder):
        inside = sorted(folder.iterdir())
    for path in inside:
        if path.name.startswith(".") or path.name in ("dataset_info.json", "state.json"):
            continue
        if path.is_dir():
            yield from _within(path, seen)
        elif path.is_file() and ending(path):
            yield path


def _split(path: Path) -> str | None:
    """Return the split that a hub's file name begins with, if it does."""
    name = path.name.split("-")[0].split(".")[0]
    return name if name in ("train", "test", "validation", "valid", "dev") else None


def ending(path: Path) -> str:
    """Return the ending that says what a file is, without that of its compression; "" for an unknown one."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def short_names(files: Sequence[Path]) -> list[str]:
    """Return each file's name without its endings; where two have the same, with as many folders as tell them apart."""
    places = [file.absolute() for file in files]
    longest = max(len(place.parts) for place in places)

    def name(place: Path, n_folders: int) -> str:
        folders = place.parts[len(place.parts) - 1 - n_folders : -1] if n_folders else ()
        return "/".join([*folders, _stem(place)])

    def distinct(place: Path, n_folders: int) -> bool:
        return all(other == place or name(other, n_folders) != name(place, n_folders) for other in places)

    needed = [next((n for n in range(longest) if distinct(place, n)), longest) for place in places]
    return [name(place, n) for place, n in zip(places, needed, strict=True)]


def _stem(file: Path) -> str:
    packed = file.suffix.lower() in (".gz", ".zst") and ending(file)
    return Path(file.stem).stem if packed else file.stem


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system or pyarrow says of a file into one clear line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        broken = "truncated" in reason.lower()
        advice = "the file breaks off: fetch it again" if broken else EXPECTED
        raise InputError(f"cannot read {path}: {reason:.200}; {advice}") from error
