"""The layout of the Tiny ImageNet archive: the one place that knows its file names and its labels.

`tiny-imagenet-200/` holds `wnids.txt` (the classes, not sorted), `words.txt` (human names),
`train/<wnid>/images/*.JPEG` with `train/<wnid>/<wnid>_boxes.txt`, `val/images/*.JPEG` with
`val/val_annotations.txt`, and `test/images/*.JPEG`, which has no labels.
"""

import hashlib
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tinynet.errors import InputError

DEFAULT_PATH = Path("data/tiny-imagenet-200.zip")
SPLITS = ("train", "val", "test")
_PICTURES = (".jpeg", ".jpg", ".png")
_NO_BOX = (-1, -1, -1, -1)


class ZipSource:
    """Files inside a zip, read in place; safe to send to worker processes, which open it again."""

    def __init__(self, path: Path):
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._pid = 0
        self._open()

    def _open(self) -> zipfile.ZipFile:
        # A forked child shares the parent's file position, so each process opens its own handle.
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile:
                raise InputError(
                    f"{self.path}: not a zip, or cut short ({self.path.stat().st_size:,} bytes); "
                    "fetch it again with `python -m tinynet.data get`, or name another with --data"
                ) from None
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read ({error.strerror}); name another with --data") from None
            self._pid = os.getpid()
        return self._zip

    def __getstate__(self) -> dict:
        return {"path": self.path, "_zip": None, "_pid": 0}

    def table(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and CRC-32 of every file."""
        return [(i.filename, i.file_size, i.CRC) for i in self._open().infolist() if not i.is_dir()]

    def read(self, name: str) -> bytes:
        try:
            return self._open().read(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
            raise InputError(f"{self.path}: cannot read {name} ({error}); fetch the archive again") from None


class FolderSource:
    """Files below a folder."""

    def __init__(self, path: Path):
        self.path = path

    def table(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and modification time in nanoseconds of every file."""
        rows, pending = [], [str(self.path)]
        cut = len(str(self.path)) + 1
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append(entry.path)
                    else:
                        stat = entry.stat()
                        rows.append((entry.path[cut:].replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns))
        return rows

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class Part:
    """One part of the archive (`train`, `val` or `test`), in the order of sorted file names.

    `files`: names inside the source, without the archive's own root folder.
    `labels`: (N,) int64 class indices, or None where there are none (`test`).
    `boxes`: (N, 4) int16 of x0, y0, x1, y1 in pixels, inclusive; -1 where none is given.
    """

    files: tuple[str, ...]
    labels: np.ndarray | None
    boxes: np.ndarray


class Archive:
    """Tiny ImageNet as published, or a part of it: classes, labels, boxes and the bytes of its pictures.

    `source` and `root` say where the bytes are: `source.read(root + file)`.
    `wnids` are the class ids in *sorted* order: the class index is the rank in that list, whatever
    the order of `wnids.txt`. `names` are their human names. `train`, `val` and `test` are `Part`s.

    Raises `InputError` when the source is not Tiny ImageNet or contradicts itself.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.source, self.root, self._table = _find(self.path)
        self._names = {row[0][len(self.root):] for row in self._table if row[0].startswith(self.root)}
        self.wnids = tuple(sorted(self._text("wnids.txt").split()))
        self._rank = {wnid: rank for rank, wnid in enumerate(self.wnids)}
        if not self.wnids or len(self._rank) < len(self.wnids):
            raise InputError(f"{self.path}: wnids.txt is empty or names a class twice; it must list each class once")
        words = dict(line.split("\t", 1) for line in self._optional_text("words.txt").splitlines() if "\t" in line)
        self.names = tuple(words.get(wnid, wnid) for wnid in self.wnids)
        by_top: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._names):
            hidden = name.rsplit("/", 1)[-1].startswith(".")  # macOS leaves ._x.JPEG beside x.JPEG on foreign disks
            if name.lower().endswith(_PICTURES) and not hidden:
                by_top[name.split("/", 1)[0]].append(name)
        self.train = self._read_train(by_top["train"])
        self.val = self._read_val(by_top["val"])
        self.test = Part(tuple(by_top["test"]), None, np.full((len(by_top["test"]), 4), -1, np.int16))

    def part(self, name: str) -> Part:
        """The part called `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def read(self, file: str) -> bytes:
        """The bytes of one file, named as in `Part.files`."""
        return self.source.read(self.root + file)

    def digest(self) -> str:
        """SHA-256 (hex) of the table of contents: name, size and CRC-32 (time, in a folder) of its own files."""
        own = ("wnids.txt", "words.txt", "train/", "val/", "test/")
        rows = sorted((name[len(self.root):], size, mark) for name, size, mark in self._table
                      if name.startswith(self.root))
        lines = "\n".join(f"{name}\t{size}\t{mark}" for name, size, mark in rows if name.startswith(own))
        return hashlib.sha256(lines.encode()).hexdigest()

    def __repr__(self) -> str:
        counts = ", ".join(f"{s} {len(self.part(s).files):,}" for s in SPLITS)
        return f"Archive({str(self.path)!r}: {len(self.wnids)} classes, {counts})"

    def _text(self, name: str) -> str:
        if name not in self._names:
            raise InputError(f"{self.path}: {name} is missing, so this is not Tiny ImageNet as published; "
                             "fetch it again with `python -m tinynet.data get`")
        try:
            return self.read(name).decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {name} is not text; fetch the archive again") from None

    def _optional_text(self, name: str) -> str:
        return self._text(name) if name in self._names else ""

    def _read_train(self, files: list[str]) -> Part:
        if not files:
            raise InputError(f"{self.path}: no pictures under train/; expected train/<wnid>/images/*.JPEG")
        labels, boxes = [], []
        known: dict[str, dict[str, tuple[int, ...]]] = {}
        for file in files:
            wnid = self._class_folder(file, "train")
            if wnid not in known:
                known[wnid] = self._boxes(f"train/{wnid}/{wnid}_boxes.txt")
            labels.append(self._rank[wnid])
            boxes.append(known[wnid].get(file.rsplit("/", 1)[1], _NO_BOX))
        return Part(tuple(files), np.array(labels, np.int64), np.array(boxes, np.int16))

    def _boxes(self, name: str) -> dict[str, tuple[int, ...]]:
        rows = (line.split("\t") for line in self._optional_text(name).splitlines())
        try:
            return {row[0]: tuple(map(int, row[1:5])) for row in rows if len(row) == 5}
        except ValueError:
            raise InputError(f"{self.path}: {name} must hold lines 'file TAB x0 TAB y0 TAB x1 TAB y1' "
                             "of whole numbers; fetch the archive again") from None

    def _class_folder(self, file: str, part: str) -> str:
        """The wnid in `part/<wnid>/[images/]<picture>`; raises where the path is another one."""
        pieces = file.split("/")
        if len(pieces) == 3 or (len(pieces) == 4 and pieces[2] == "images"):
            if pieces[1] in self._rank:
                return pieces[1]
            raise InputError(f"{self.path}: {file} lies in {part}/{pieces[1]}, which wnids.txt does not list; "
                             f"every folder of {part}/ must be one of its {len(self.wnids)} classes")
        raise InputError(f"{self.path}: do not know the class of {file}; expected {part}/<wnid>/images/*.JPEG")

    def _read_val(self, files: list[str]) -> Part:
        """Labels of val from its annotations; from class folders where somebody sorted it into them."""
        if not files:
            return Part((), np.zeros(0, np.int64), np.zeros((0, 4), np.int16))
        annotations = self._annotations()
        flat = [f for f in files if f.startswith("val/images/")]
        if flat and len(flat) < len(files):
            raise InputError(f"{self.path}: val/ holds {len(flat)} pictures in val/images and "
                             f"{len(files) - len(flat)} in class folders; keep one of the two")
        labels, boxes = [], []
        for file in files:
            picture = file.rsplit("/", 1)[1]
            annotated = annotations.get(picture)
            wnid = self._class_folder(file, "val") if not flat else annotated and annotated[0]
            if wnid is None:
                raise InputError(f"{self.path}: val/val_annotations.txt has {len(annotations)} lines and none for "
                                 f"{file}; it must name each of the {len(files)} pictures, so fetch the archive again")
            if annotated and annotated[0] != wnid:
                raise InputError(f"{self.path}: {file} lies in class {wnid} and val/val_annotations.txt says "
                                 f"{annotated[0]}; one of them is wrong, so fetch the archive again")
            labels.append(self._rank[wnid])
            boxes.append(annotated[1] if annotated else _NO_BOX)
        return Part(tuple(files), np.array(labels, np.int64), np.array(boxes, np.int16))

    def _annotations(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """`val/val_annotations.txt` as file -> (wnid, box)."""
        name = "val/val_annotations.txt"
        if name not in self._names and any(f.startswith("val/images/") for f in self._names):
            raise InputError(f"{self.path}: {name} is missing, and it alone holds the labels of val/images; "
                             "fetch the archive again with `python -m tinynet.data get`")
        found = {}
        for number, line in enumerate(self._optional_text(name).splitlines(), 1):
            row = line.split("\t")
            try:
                picture, wnid, box = row[0], row[1], tuple(map(int, row[2:6])) or _NO_BOX
            except (IndexError, ValueError):
                raise InputError(f"{self.path}: {name}, line {number}: {line[:60]!r} is not "
                                 "'file TAB wnid TAB x0 TAB y0 TAB x1 TAB y1'") from None
            if wnid not in self._rank:
                raise InputError(f"{self.path}: {name}, line {number}: {wnid} is not one of the "
                                 f"{len(self.wnids)} classes of wnids.txt")
            found[picture] = (wnid, box if len(box) == 4 else _NO_BOX)
        return found


def classes_called(text: str, wnids: Sequence[str], names: Sequence[str]) -> list[int]:
    """The indices of the classes that `text` means: a wnid, or part of a name, in any case.

    "coral" finds brain coral and coral reef. Raises `InputError` where there is none, with the nearest names.
    """
    wanted = text.strip().lower()
    found = [index for index, (wnid, name) in enumerate(zip(wnids, names, strict=True))
             if wanted == wnid or (wanted and wanted in name.lower())]
    if not found:
        words = {part.strip().lower(): part.strip() for name in names for part in name.split(",")}
        near = [words[word] for word in get_close_matches(wanted, words, 3, 0.5)]
        raise InputError(f"no class called {text!r}" + (f"; near it are {', '.join(near)}" if near else
                                                        "; `python -m tinynet.data show` draws some of all"))
    return found


def locate(path: str | Path) -> Path:
    """The zip or extracted folder that `path` stands for: itself, or what the folder `path` holds.

    Raises `InputError` when there is no such file, or when a folder holds nothing that fits.
    """
    path = Path(path)
    if path.is_file() or (path / "wnids.txt").is_file():
        return path
    if path.is_dir():
        for inside in (path / DEFAULT_PATH.name, path / DEFAULT_PATH.stem):
            if inside.is_file() or (inside / "wnids.txt").is_file():
                return inside
        raise InputError(f"{path}: this folder holds neither {DEFAULT_PATH.name} nor an extracted "
                         f"{DEFAULT_PATH.stem}/ (wnids.txt, train/, val/); name one of them with --data")
    raise InputError(f"{path}: no such file; `python -m tinynet.data get` fetches the official archive to "
                     f"{DEFAULT_PATH}, and --data or TINYNET_DATA names another place")


def _find(path: Path) -> tuple[ZipSource | FolderSource, str, list[tuple[str, int, int]]]:
    """The source at `path`, the archive's root folder inside it ('' or 'name/'), and its files."""
    path = locate(path)
    source = ZipSource(path) if path.is_file() else FolderSource(path)
    table = source.table()
    roots = sorted((n[: -len("wnids.txt")] for n, _, _ in table if n.split("/")[-1] == "wnids.txt"), key=len)
    if not roots:
        example = f", for instance {table[0][0]}" if table else ""
        raise InputError(f"{path}: not Tiny ImageNet: no wnids.txt among its {len(table):,} files{example}; "
                         "`python -m tinynet.data get` fetches the official archive")
    return source, roots[0], table
