"""Which files a path means: itself, what a pattern matches, or the data in a folder.

Decisions:
    - Links to folders are followed, as a hub's cache is made of links. What one pattern or one folder finds twice, by
      whatever way, is read once; what is given twice is read twice, and said to be duplicates.
    - A folder with several splits is refused: which one is meant, nobody else can say.
"""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clusterucb.errors import InputError
from clusterucb.wording import one_line

EXPECTED = "expected JSONL, a JSON array, CSV, TSV, Parquet or Arrow, the text ones perhaps in .gz or .zst"
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


def files_of(given: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a path means: itself, what a pattern matches, or the data in a folder; each of them once.

    A folder that ``datasets`` saved is one of them. A text of several words may be meant as a row, and is told so; a
    `Path` is meant as one.

    Raises:
        InputError: there is nothing there, a pattern matches nothing, or a folder holds no data, or that of several
            splits.
    """
    path = Path(given)
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        nameable = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        words = isinstance(given, str) and not (nameable and (is_word(given) or ending(path)))
        advice = ". A text that is itself a row goes into a dict: {'text': ...}" if words else ""
        if nameable and glob.has_magic(str(path)):
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise InputError(
                    f"no file matches {one_line(path):.300}; expected a pattern of files that exist{advice}"
                ) from error
            return _once(file for one in found for file in files_of(Path(one)))
        reason = getattr(error, "strerror", None) or error
        if nameable and not words:
            raise InputError(f"cannot read {path}: {reason}; {EXPECTED}") from error
        raise InputError(
            f"cannot read {str(path)!r:.80}: {reason}; expected the path of a file{advice}"
        ) from error
    if os.path.isdir(path):
        with explained(path):
            return _once(_files_in(path))
    return [path]


def is_word(text: str) -> bool:
    """Return whether a text has no blanks, as most paths have none."""
    return text.split() == [text]


def _once(files: Iterable[Path]) -> list[Path]:
    """Return the files with real paths of their own, without those of a saved dataset that is there as a whole."""
    found: dict[str, Path] = {}
    for file in files:
        real = os.path.realpath(file)
        if os.path.dirname(real) not in found:
            found.setdefault(real, file)
    return list(found.values())


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
    """Return each file's name without its endings; where two have the same, with as many folders as tell them apart.

    Files of one folder that differ in their endings alone share a name, as nothing tells them apart.
    """
    places = [(*file.parts[:-1], _stem(file)) for file in map(Path.absolute, files)]
    names: dict[tuple[str, ...], str] = {}
    n_parts, alike = 1, set(places)
    while alike:
        tried = {place: "/".join(place[-n_parts:]) for place in alike}
        counts = Counter(tried.values())
        names |= {place: name for place, name in tried.items() if counts[name] == 1}
        alike -= names.keys()
        n_parts += 1
    return [names[place] for place in places]


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
