"""What every source of labelled images offers: classes, and subsets of files that can be read.

`tiny_imagenet.Archive` reads Tiny ImageNet's own layout, `class_folders.ClassFolders` any other.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tinynet.console import log
from tinynet.data.containers import Container

SPLITS = ("train", "val", "test")
# Of each class of a source without val. The seed makes val the same for all runs.
VAL_FRACTION, VAL_SEED = 0.2, 42


@dataclass(frozen=True)
class Subset:
    """One subset of a source (`train`, `val` or `test`), sorted by file name.

    `files`: names in the source, without its root folder.
    `labels`: (N,) int64 class indices; None for images without labels.
    `boxes`: (N, 4) int16, x0, y0, x1, y1 in pixels, inclusive; -1 for images without a box.
    """

    files: tuple[str, ...]
    labels: np.ndarray | None
    boxes: np.ndarray


def draw_val(path: Path, train: Subset) -> tuple[Subset, Subset]:
    """Split the training images of a source without val: return its train and its val.

    Each image has its place by a digest of its name. So images that are added or removed later
    hardly change which of the others are in val.
    """
    assert train.labels is not None
    places = np.array([_place(file) for file in train.files])
    in_val = np.zeros(len(places), bool)
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label)
        count = min(max(1, round(len(rows) * VAL_FRACTION)), len(rows) - 1)
        in_val[rows[np.argsort(places[rows], kind="stable")[:count]]] = True
    log(
        f"note: {path}: has no val; {in_val.sum():,} images of train are used as val, "
        f"{VAL_FRACTION:.0%} of each class with seed {VAL_SEED}"
    )
    files = np.array(train.files, object)
    part, val = (
        Subset(tuple(files[rows]), train.labels[rows], train.boxes[rows])
        for rows in (~in_val, in_val)
    )
    return part, val


def _place(file: str) -> int:
    """A number for an image that is as good as random; not its folder: a label may change."""
    text = f"{VAL_SEED} {file.rsplit('/', 1)[-1]}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def without_boxes(files: tuple[str, ...], labels: np.ndarray | None) -> Subset:
    """Return a subset whose images have no boxes."""
    return Subset(files, labels, np.full((len(files), 4), -1, np.int16))


class Source(Protocol):
    """Labelled images; the classes that read them inherit from it.

    `path`: the zip, tar or folder. `container`, `root`: `container.read(root + file)` reads a file.
    `wnids`: the class ids in the order of their indices. `names`: the class names.
    `train`, `val`, `test`: the subsets; `val` and `test` may be empty. `one_size`: whether all
    images must be squares of one size; else any size is packed. `labels_file`: the file of labels,
    None: the source has its own.
    """

    path: Path
    container: Container
    root: str
    wnids: tuple[str, ...]
    names: tuple[str, ...]
    train: Subset
    val: Subset
    test: Subset
    one_size: bool
    labels_file: str | None

    def part(self, name: str) -> Subset:
        """Return the subset `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def read(self, file: str) -> bytes:
        """Read one file, named as in `Subset.files`; raises `InputError` if it is damaged."""
        return self.container.read(self.root + file)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(self.part(name).files):,}" for name in SPLITS)
        kind = type(self).__name__
        return f"{kind}({str(self.path)!r}: {len(self.wnids)} classes, {counts})"

    def digest(self) -> str:
        """SHA-256 (hex) of the list of files: names, sizes, numbers that change with content."""
