"""What is on a disk after a loss of power: a model of files and folders whose last changes may be missing.

After a flush (fsync) of a file, its content is safe; after one of a folder, the names in it are. Each later change may
be on the disk or not, whatever the order, but with two limits that file systems keep: a write is torn only between
sectors, and a rename within a folder is one change. A file whose name is on the disk, but whose content is not, is
empty. The model promises less than ext4, XFS and Btrfs do, so what survives here survives there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from whole.adversary.changes import Change, Tree

_SECTOR = 512
_GONE = " (deleted)"  # the end of the path of an open file that was removed


@dataclass(frozen=True)
class Data:
    """A change of a file's content: bytes at an offset, or a new size if there are no bytes."""

    offset: int
    content: bytes | None

    def on(self, former: bytes) -> bytes:
        """Return the changed content."""
        kept = former[: self.offset].ljust(self.offset, b"\0")
        if self.content is None:
            return kept
        return kept + self.content + former[self.offset + len(self.content) :]


@dataclass
class File:
    """A file: the content that is safe, and the later changes in order."""

    safe: bytes = b""
    later: list[Data] = field(default_factory=list)


Names = dict[str, "File | Folder | None"]  # what names stand for after a change; None if they are gone


@dataclass
class Folder:
    """A folder: the names that are safe, and the later changes in order."""

    safe: Names = field(default_factory=dict)
    later: list[Names] = field(default_factory=list)


@dataclass(frozen=True)
class Loss:
    """What is left of files and folders: a function of each."""

    content: Callable[[File], bytes]
    names: Callable[[Folder], Names]


def _content_now(file: File) -> bytes:
    content = file.safe
    for change in file.later:
        content = change.on(content)
    return content


def _names_now(folder: Folder) -> Names:
    names = dict(folder.safe)
    for change in folder.later:
        names |= change
    return names


NOTHING_LOST = Loss(_content_now, _names_now)
ALL_LOST = Loss(lambda file: file.safe, lambda folder: folder.safe)
DATA_LOST = Loss(lambda file: file.safe, _names_now)


def any_lost(rng: random.Random) -> Loss:
    """Return a loss that is drawn for each change. Of a write, some sectors may be left, or the new size with zeros."""

    def content(file: File) -> bytes:
        content = file.safe
        for change in file.later:
            left = rng.choice(("all", "nothing", "sectors", "size"))
            if left == "all":
                content = change.on(content)
            elif change.content is not None and left != "nothing":
                end = change.offset + len(change.content)
                if left == "size":
                    content = content.ljust(end, b"\0")
                elif (n_left := rng.randrange(change.offset, end) // _SECTOR * _SECTOR - change.offset) > 0:
                    content = Data(change.offset, change.content[:n_left]).on(content)
        return content

    def names(folder: Folder) -> Names:
        return _names_now(Folder(folder.safe, [change for change in folder.later if rng.random() < 0.5]))

    return Loss(content, names)


class Disk:
    """A disk with a folder ``work``.

    Args:
        before: what the folder holds, all of it safe; empty if there is no folder.
    """

    def __init__(self, before: Tree) -> None:
        self._root = Folder()
        paths = {"work": None, **{f"work/{path}": content for path, content in before.items()}}
        for path, content in paths.items() if before else ():
            folder, name = self._place(path)
            folder.safe[name] = Folder() if content is None else File(content)

    def apply(self, change: Change) -> None:
        """Apply a change, which is safe after a flush."""
        if change.path.endswith(_GONE) or change.other.endswith(_GONE):
            return
        if change.path == ".":
            self._root.safe, self._root.later = _names_now(self._root), []
            return
        folder, name = self._place(change.path)
        node = _names_now(folder).get(name)
        if change.what in "cmu":
            folder.later.append({name: {"c": File, "m": Folder}.get(change.what, lambda: None)()})
        elif change.what in "rl":
            if node is None:  # a rename that was logged when it was done, and again by close
                return
            other, new = self._place(change.other)
            if change.what == "l":
                other.later.append({new: node})
            elif other is folder:
                folder.later.append({name: None, new: node})
            else:  # two changes, which is less than file systems promise
                other.later.append({new: node})
                folder.later.append({name: None})
        elif change.what in "wt":
            node.later.append(Data(change.offset, change.data if change.what == "w" else None))
        elif change.what == "s" and isinstance(node, File):
            node.safe, node.later = _content_now(node), []
        elif change.what == "s":
            node.safe, node.later = _names_now(node), []

    def left(self, loss: Loss) -> Tree | None:
        """Return what the folder holds after a loss of power; None if there is no folder."""
        found: Tree = {}

        def walk(folder: Folder, inside: str) -> None:
            for name, node in loss.names(folder).items():
                if isinstance(node, Folder):
                    found[inside + name] = None
                    walk(node, f"{inside}{name}/")
                elif node is not None:
                    found[inside + name] = loss.content(node)

        walk(self._root, "")
        if not found:
            return None
        return {path.removeprefix("work/"): content for path, content in found.items() if path != "work"}

    def _place(self, path: str) -> tuple[Folder, str]:
        """Return the folder in which a path lies now, and the path's name."""
        *above, name = path.split("/")
        folder = self._root
        for part in above:
            folder = _names_now(folder)[part]
        return folder, name
