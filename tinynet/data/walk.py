"""List the data files below a folder; used for archives, folders and predictions.

Hidden and machine-made files and folders are left out at any depth. Links to folders are followed,
each folder once.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinynet.console import log, printable
from tinynet.errors import InputError

# Folders that programs make beside data: macOS in zips, Synology, Windows, file systems, Python.
MACHINE_MADE = frozenset(
    {
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__pycache__",
    }
)
_MACHINE_FILES = frozenset({"Thumbs.db", "desktop.ini"})
# why skipped
HIDDEN, SYSTEM, NO_IMAGES, NO_FILES = "hidden", "system files", "not images", "not regular files"
_EXAMPLES = 3


@dataclass
class LeftOut:
    """The files that are left out: how many for each reason, with a few names; links that are not
    followed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count files that are left out for a reason; `name`: one of them, or their folder."""
        self.counts[reason] += count
        names = self.examples.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(printable(name))

    def report(self, place: str | Path) -> None:
        """Tell the user in one line what is left out of `place`, and in another which links are not
        followed.
        """
        if total := self.counts.total():
            parts = [
                f"{count:,} {reason} "
                f"({', '.join(self.examples[reason])}{', ...' if count > _EXAMPLES else ''})"
                for reason, count in self.counts.items()
                if count
            ]
            log(f"note: {place}: skipped {total:,} file{'s' * (total != 1)}: {'; '.join(parts)}")
        if self.links:
            more = (
                f" and {len(self.links) - _EXAMPLES:,} more" if len(self.links) > _EXAMPLES else ""
            )
            log(
                f"note: {place}: links not followed: "
                f"{', '.join(map(printable, self.links[:_EXAMPLES]))}{more}"
            )


@dataclass(frozen=True)
class Entry:
    """A file below a folder: its `name` relative to the folder with `/`, size in bytes,
    modification time in ns.

    `size` is -1 where a link leads to no file.
    """

    name: str
    size: int = -1
    modified: int = 0


def reason_to_leave_out(name: str) -> str | None:
    """Why a file is no data, by its path with `/`: `HIDDEN`, `SYSTEM`, or None."""
    pieces = name.split("/")
    if any(piece.startswith(".") and piece not in (".", "..") for piece in pieces):
        return HIDDEN
    return SYSTEM if pieces[-1] in _MACHINE_FILES or not MACHINE_MADE.isdisjoint(pieces) else None


def walk(root: Path) -> tuple[list[Entry], LeftOut]:
    """All data files below `root`, sorted by name, and what is left out.

    Folders that lie there come before links to folders, so that a folder has its own name where it
    has two. Raises `InputError` for a folder that cannot be read: what lies in it would be missing
    in silence.
    """
    left_out, entries, links = LeftOut(), [], []
    pending, visited = [("", str(root))], {_identity(root)}

    def enter(name: str, path: str) -> None:
        if (identity := _identity(path)) in visited:  # a folder above may be reached through a link
            left_out.links.append(f"{name} (already included)")
        else:
            visited.add(identity)
            pending.append((name + "/", path))

    while pending or links:
        if not pending:
            enter(*links.pop(0))
            continue
        prefix, folder = pending.pop()
        for entry in _scan(folder):
            name = prefix + entry.name
            if reason := reason_to_leave_out(entry.name):
                left_out.add(reason, name, _files_below(entry))
            elif entry.is_symlink() and _is_folder(entry):
                links.append((name, entry.path))
            elif _is_folder(entry):
                enter(name, entry.path)
            elif item := _file(entry, name, left_out):
                entries.append(item)
        links.sort()
    return sorted(entries, key=lambda entry: entry.name.split("/")), left_out


def _scan(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); make it readable, or move it out of the "
            "data folder"
        ) from None


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(entry: os.DirEntry, name: str, left_out: LeftOut) -> Entry | None:
    """The file, or None for what is none."""
    from tinynet.data.decode import image_endings

    try:
        status = entry.stat()
    except OSError:
        # a link that leads nowhere: an image that cannot be read, or what may have been a folder
        if os.path.splitext(name)[1].lower() in image_endings():
            return Entry(name)
        left_out.links.append(f"{name} (broken link)")
        return None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        left_out.add(NO_FILES, name)
        return None
    return Entry(name, status.st_size, status.st_mtime_ns)


def _files_below(entry: os.DirEntry) -> int:
    """The files in what is left out: one, or those below a folder."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def images_below(folder: Path) -> tuple[Path, ...]:
    """All images below `folder` in sorted order; what is left out is told to the user."""
    files, left_out = image_names(folder)
    left_out.report(folder)
    return tuple(folder / name for name in files)


def image_names(folder: Path) -> tuple[list[str], LeftOut]:
    """The names below `folder` that images have, and what is left out."""
    from tinynet.data.decode import image_endings

    entries, left_out = walk(folder)
    return list(_images([entry.name for entry in entries], image_endings(), left_out)), left_out


def _images(names: Sequence[str], endings: frozenset[str], left_out: LeftOut) -> Iterator[str]:
    for name in names:
        if os.path.splitext(name)[1].lower() in endings:
            yield name
        else:
            left_out.add(NO_IMAGES, name)
