"""Find the files that a path stands for: the file itself, a pattern's matches, or the data files in a folder.

Decisions:
    - Links to folders are followed, because a hub's cache is made of links. A file that one pattern or one folder
      finds twice, by whatever path, is read once. A file that the user gives twice is read twice, and its second copy
      is reported as duplicates.
    - A folder with several splits is refused, because only the user can say which split is meant.
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

EXPECTED = "expected JSONL, a JSON array, CSV, TSV, Parquet or Arrow; text formats also as .gz or .zst"
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


def files_of(given: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a path stands for: itself, a pattern's matches, or the data files in a folder; each once.

    A folder that ``datasets`` saved counts as one file. A string of several words may be meant as a row of text, so
    its error also says how to give a row. A `Path` is always a path.

    Raises:
        InputError: the path does not exist, a pattern matches nothing, or a folder holds no data or several splits.
    """
    path = Path(given)
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        nameable = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        words = isinstance(given, str) and not (nameable and (is_word(given) or ending(path)))
        advice = ". To give a text as a row, use a dict: {'text': ...}" if words else ""
        if nameable and glob.has_magic(str(path)):
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise InputError(
                    f"no file matches {one_line(path):.300}; expected a pattern of existing files{advice}"
                ) from error
            return _once(file for match in matches for file in files_of(Path(match)))
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
    """Return whether a text is a single word without blanks, as most paths are."""
    return text.split() == [text]


def _once(files: Iterable[Path]) -> list[Path]:
    """Return the files with distinct real paths, without the files inside a saved dataset that is itself listed."""
    by_real_path: dict[str, Path] = {}
    for file in files:
        real = os.path.realpath(file)
        if os.path.dirname(real) not in by_real_path:
            by_real_path.setdefault(real, file)
    return list(by_real_path.values())


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's data files. A dataset that ``datasets`` saved is returned as the folder itself."""
    if (folder / "state.json").is_file():
        return [folder]
    saved = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if saved:
        raise InputError(
            f"{folder} holds the splits {', '.join(saved)}; expected one of them, such as {folder / likely(saved)}"
        )
    files = sorted(_within(folder, set()))
    if not files:
        raise InputError(
            f"{folder} is a folder without data files; expected files ending in {', '.join(_ENDINGS)}"
        )
    splits = {split for path in files if (split := _split(path))}
    if len(splits) > 1:
        raise InputError(
            f"{folder} holds the splits {', '.join(sorted(splits))}; expected files of one split, such as "
            f"'{folder}/**/{likely(splits)}*' (in quotes)"
        )
    return files


def likely(splits: Iterable[str]) -> str:
    """Return the split that a user most likely means."""
    return "train" if "train" in splits else min(splits)


def _within(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the data files of a folder and its subfolders; skip folders whose real paths are in ``seen``."""
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
    """Return the split that a file name begins with, as in datasets from a hub; None if it begins with none."""
    name = path.name.split("-")[0].split(".")[0]
    return name if name in ("train", "test", "validation", "valid", "dev") else None


def ending(path: Path) -> str:
    """Return the ending that names a file's format, without the compression's ending; "" if it is unknown."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def short_names(files: Sequence[Path]) -> list[str]:
    """Return each file's name without its endings, with as many parent folders as distinguish files of the same name.

    Files in one folder that differ only in their endings share a name.
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
    """Turn an error of the system or pyarrow about a file into an `InputError` of one clear line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # pyarrow decodes the names of columns
        reason = getattr(error, "strerror", None) or one_line(error)
        broken = "truncated" in reason.lower()
        advice = "the file is incomplete: download it again" if broken else EXPECTED
        raise InputError(f"cannot read {path}: {reason:.200}; {advice}") from error
