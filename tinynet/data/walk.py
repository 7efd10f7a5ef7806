"""List the data files in a folder and its subfolders.

Hidden files and system files are skipped at any depth. Links to folders are followed, but each
folder is listed once.
"""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tinynet.console import log, printable
from tinynet.data.own_folders import is_below, own_folders
from tinynet.errors import InputError

# Folders that programs add to data: macOS in zips, Synology, Windows, file systems, Python.
SYSTEM_FOLDERS = frozenset(
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
_SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini"})
# Reasons to skip a file.
HIDDEN, SYSTEM, NO_IMAGES, NO_FILES = "hidden", "system files", "not images", "not regular files"
OWN = "written by tinynet"
_EXAMPLES = 3  # names in a message


@dataclass
class SkippedFiles:
    """Counts of skipped files.

    `counts`: number of files for each reason. `examples`: a few of their names. `links`: links to
    folders that are not followed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count skipped files; `name`: one of the files, or their folder."""
        self.counts[reason] += count
        names = self.examples.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(printable(name))

    def report(self, place: str | Path) -> None:
        """Log the skipped files of `place` in one line, and the links in another."""
        if total := self.counts.total():
            reasons = [
                f"{count:,} {reason} "
                f"({', '.join(self.examples[reason])}{', ...' if count > _EXAMPLES else ''})"
                for reason, count in self.counts.items()
                if count
            ]
            log(f"note: {place}: skipped {total:,} file{'s' * (total != 1)}: {'; '.join(reasons)}")
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
    """A file in a folder or its subfolders.

    `name`: relative to the folder, with `/`. `size`: in bytes, -1 for a broken link. `mark`: see
    `file_mark`.
    """

    name: str
    size: int = -1
    mark: int = 0


class Walk(NamedTuple):
    """The data files of a folder sorted by name, its subfolders, and the files to skip."""

    entries: list[Entry]
    folders: list[str]
    skipped: SkippedFiles


def skip_reason(name: str) -> str | None:
    """Why to skip a file: `HIDDEN`, `SYSTEM`, or None for data; `name`: its path with `/`."""
    pieces = name.split("/")
    if any(piece.startswith(".") and piece not in (".", "..") for piece in pieces):
        return HIDDEN
    return SYSTEM if pieces[-1] in _SYSTEM_FILES or not SYSTEM_FOLDERS.isdisjoint(pieces) else None


def walk(root: Path) -> Walk:
    """List the data files in `root` and its subfolders, these subfolders, and the skipped files.

    Real folders come before links to folders. So a folder that is also linked has its own name.
    Raises `InputError` for a folder that cannot be read, because its files would be missing.
    """
    skipped = SkippedFiles()
    entries: list[Entry] = []
    folders: list[str] = []
    links: list[tuple[str, str]] = []
    pending, visited = [("", str(root))], {_identity(root)}

    def enter(name: str, path: str) -> None:
        if (identity := _identity(path)) in visited:  # a link may lead to a parent folder
            skipped.links.append(f"{name} (already included)")
        else:
            visited.add(identity)
            folders.append(name)
            pending.append((name + "/", path))

    while pending or links:
        if not pending:
            enter(*links.pop(0))
            continue
        prefix, folder = pending.pop()
        for entry in _scan(folder):
            name = prefix + entry.name
            if reason := skip_reason(entry.name):
                skipped.add(reason, name, _files_below(entry))
            elif entry.is_symlink() and _is_folder(entry):
                links.append((name, entry.path))
            elif _is_folder(entry):
                enter(name, entry.path)
            elif item := _file(entry, name, skipped):
                entries.append(item)
        links.sort()
    return Walk(sorted(entries, key=lambda entry: entry.name.split("/")), folders, skipped)


def _scan(folder: str) -> list[os.DirEntry[str]]:
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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(entry: os.DirEntry[str], name: str, skipped: SkippedFiles) -> Entry | None:
    """The entry of a regular file; None for anything else, which is counted in `skipped`."""
    from tinynet.data.decode import image_endings

    try:
        status = entry.stat()
    except OSError:
        # A broken link. With an image's extension it is an image that cannot be read; otherwise it
        # may have led to a folder.
        if os.path.splitext(name)[1].lower() in image_endings():
            return Entry(name)
        skipped.links.append(f"{name} (broken link)")
        return None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        skipped.add(NO_FILES, name)
        return None
    return Entry(name, status.st_size, file_mark(status))


def file_mark(status: os.stat_result) -> int:
    """Return a number that changes if a file is modified, replaced or renamed."""
    # Files of an archive often have one modification time, and bitmaps one size. If two such files
    # change places, only the time of the last status change (ctime) shows it. If their folders
    # change places, only the inode shows it.
    return status.st_mtime_ns + status.st_ctime_ns + status.st_ino


def _files_below(entry: os.DirEntry[str]) -> int:
    """The number of files in a folder and its subfolders; 1 for a file."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def images_below(folder: Path) -> tuple[Path, ...]:
    """List all images in `folder` and its subfolders, sorted; log the skipped files."""
    files, skipped = image_names(folder)
    skipped.report(folder)
    return tuple(folder / name for name in files)


def image_names(folder: Path) -> tuple[list[str], SkippedFiles]:
    """List the names of the images in `folder` and its subfolders, and the skipped files."""
    entries, _, skipped = walk(folder)
    names = [entry.name for entry in entries]
    return images_of(names, skipped), skipped


def images_of(names: Sequence[str], skipped: SkippedFiles) -> list[str]:
    """Return the names of images that tinynet did not write; count the others in `skipped`."""
    from tinynet.data.decode import image_endings

    images, endings, own = [], image_endings(), own_folders(names)
    for name in names:
        if own and is_below(name, own):
            skipped.add(OWN, name)
        elif os.path.splitext(name)[1].lower() in endings:
            images.append(name)
        else:
            skipped.add(NO_IMAGES, name)
    return images
