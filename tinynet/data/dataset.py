"""Tiny ImageNet as a torchvision dataset, for any DataLoader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import VisionDataset

from tinynet.data.download import get
from tinynet.data.packed import decode
from tinynet.data.places import home, locate
from tinynet.data.splits import split_train
from tinynet.data.tiny_imagenet import Archive
from tinynet.errors import InputError

_SPLITS = ("train", "holdout", "val", "test")


class TinyImageNet(VisionDataset):
    """Pictures of Tiny ImageNet with their labels, read in place from the zip or folder.

    `root`: the zip, the extracted folder, or a folder that holds either. `split`: `train` and
    `holdout` divide the official train pictures between them and never overlap; `val` and `test`
    are the official ones. `holdout` is the hold-out's share of every class and `split_seed` draws
    it; `holdout=0` leaves all official train pictures in `train`. `transform` and
    `target_transform` belong to this split alone: two datasets, `train` and `holdout`, carry their
    own. `download` fetches the official archive to `root` if no archive is there.

    Items are `(picture, class)`: a PIL image in RGB and an int; in `test`, which has no labels, the
    picture alone. `classes`: wnids in sorted order, whose rank is the class. `class_names`: their
    human names. `class_to_idx`: wnid -> class. `files`: names in the archive. `targets`: list of
    int, None for `test`. `boxes`: (N, 4) int16, x0, y0, x1, y1 in pixels, inclusive; -1 where there
    is none.

    A worker opens the zip anew, which takes a second: give the DataLoader
    `persistent_workers=True`.

    Raises `InputError` for an unknown split and where `root` holds no usable archive.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
        *,
        holdout: float = 0.05,
        split_seed: int = 42,
    ):
        if split not in _SPLITS:
            raise InputError(f"split {split!r} is unknown; there are {', '.join(_SPLITS)}")
        root = home(root)
        super().__init__(root, transform=transform, target_transform=target_transform)
        archive = Archive(_located(root, download))
        self.split = split
        self.classes = list(archive.wnids)
        self.class_names = list(archive.names)
        self.class_to_idx = {wnid: index for index, wnid in enumerate(archive.wnids)}
        part, rows = archive.train, np.arange(len(archive.train.files))
        if split in ("val", "test"):
            part = archive.part(split)
            rows = np.arange(len(part.files))
        elif split == "holdout" or holdout:
            divided = split_train(part.labels, fraction=holdout, seed=split_seed)
            rows = divided.train if split == "train" else divided.holdout
        self.files = [part.files[row] for row in rows]
        self.targets = None if part.labels is None else part.labels[rows].tolist()
        self.boxes = part.boxes[rows]
        # Not the archive itself: its table of 120,000 files would travel to every worker.
        self._source, self._folder = archive.source, archive.root

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        file = self.files[index]
        image = Image.fromarray(decode(self._source.read(self._folder + file), file))
        if self.transform is not None:
            image = self.transform(image)
        if self.targets is None:
            return image
        target = self.targets[index]
        return image, target if self.target_transform is None else self.target_transform(target)

    def extra_repr(self) -> str:
        """A line for `repr`, as torchvision's datasets have."""
        return f"Split: {self.split}"


def _located(root: Path, download: bool) -> Path:
    try:
        return locate(root, 1) if download else locate(root)
    except InputError:
        if not download:
            raise
    return get(root)
