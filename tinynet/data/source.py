"""What every source of labelled images offers: classes, and subsets of files that can be read.

`tiny_imagenet.Archive` reads Tiny ImageNet's own layout, `folder_source.ClassFolders` any other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tinynet.console import log
from tinynet.data.containers import Container
from tinynet.data.splits import split_train

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
    """Split the training images of a source without val: return its train and its val."""
    assert train.labels is not None
    split = split_train(train.labels, fraction=VAL_FRACTION, seed=VAL_SEED)
    files = np.array(train.files, object)
    log(
        f"note: {path}: has no val; {len(split.holdout):,} images are drawn for it, "
        f"{VAL_FRACTION:.0%} of each class with seed {VAL_SEED}"
    )
    part, val = (
        Subset(tuple(files[rows]), train.labels[rows], train.boxes[rows])
        for rows in (split.train, split.holdout)
    )
    return part, val


def without_boxes(files: tuple[str, ...], labels: np.ndarray | None) -> Subset:
    """Return a subset whose images have no boxes."""
    return Subset(files, labels, np.full((len(files), 4), -1, np.int16))


class Source(Protocol):
    """Labelled images.

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

    def read(self, file: str) -> bytes:
        """Read one file, named as in `Subset.files`; raises `InputError` if it is damaged."""

    def digest(self) -> str:
        """SHA-256 (hex) of what the files list says: names, sizes, and dates or check sums."""
