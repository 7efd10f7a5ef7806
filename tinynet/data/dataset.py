"""Tiny ImageNet as a torchvision dataset, for any DataLoader."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image
from torchvision.datasets import VisionDataset  # type: ignore[import-untyped]  # has no stubs

from tinynet.data.download import get
from tinynet.data.packed import decode
from tinynet.data.places import expand_user, locate
from tinynet.data.splits import split_train
from tinynet.data.tiny_imagenet import Archive
from tinynet.errors import InputError
from tinynet.values import brief

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SPLITS = ("train", "holdout", "val", "test")


class HoldOut(TypedDict, total=False):
    """The part of the training images that is held out."""

    holdout: float
    split_seed: int


class TinyImageNet(VisionDataset):
    """Images of Tiny ImageNet with their labels, read in place from the zip, tar or folder.

    `root`: the archive, the extracted folder, or a folder that contains either.

    `split`: `train`, `holdout`, `val` or `test`. `train` and `holdout` are disjoint parts of the
    official training images; `val` and `test` are the official ones.

    `holdout`: the fraction of each class in the hold-out (default: 0.05), sampled with `split_seed`
    (default: 42). With `holdout=0`, `train` has all official training images.

    `transform`, `target_transform`: as in torchvision. They apply to this split alone, so the
    datasets `train` and `holdout` can have different transforms.

    `download`: whether to download the official archive to `root` if it contains none.

    Items are `(image, class index)`: a PIL image in RGB and an int. Items of `test`, which has no
    labels, are the image alone. Attributes:

    - `classes`: wnids in sorted order; the class index is the rank. `class_names`: their names.
    - `class_to_idx`: wnid -> class index.
    - `files`: names in the archive.
    - `targets`: list of int, None for `test`.
    - `boxes`: (N, 4) int16, x0, y0, x1, y1 in pixels, inclusive; -1 for images without a box.

    Each worker of a DataLoader opens the zip again, which takes a second: use
    `persistent_workers=True`.

    Raises `InputError` for an unknown split, or if `root` contains no usable archive.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
        **hold_out: "Unpack[HoldOut]",
    ):
        if split not in _SPLITS:
            raise InputError(f"split {split!r}: unknown; choose one of {', '.join(_SPLITS)}")
        for name, function in (("transform", transform), ("target_transform", target_transform)):
            if function is not None and not callable(function):
                raise InputError(f"{name} is {brief(function)}; it must be a function, or None")
        fraction, seed = hold_out.pop("holdout", 0.05), hold_out.pop("split_seed", 42)
        if hold_out:
            raise InputError(
                f"{min(hold_out)}: not an argument of TinyImageNet; use holdout or split_seed"
            )
        root = expand_user(root, "root")
        super().__init__(root, transform=transform, target_transform=target_transform)
        archive = Archive(_find_archive(root, download))
        self.split = split
        self.classes = list(archive.wnids)
        self.class_names = list(archive.names)
        self.class_to_idx = {wnid: index for index, wnid in enumerate(archive.wnids)}
        part, rows = archive.train, np.arange(len(archive.train.files))
        if split in ("val", "test"):
            part = archive.part(split)
            rows = np.arange(len(part.files))
        elif split == "holdout" or fraction != 0:
            assert part.labels is not None  # only test has no labels
            parts = split_train(part.labels, fraction=fraction, seed=seed)
            rows = parts.train if split == "train" else parts.holdout
        self.files = [part.files[row] for row in rows]
        self.targets = None if part.labels is None else part.labels[rows].tolist()
        self.boxes = part.boxes[rows]
        # Not the archive itself: its table of 120,000 files would be pickled for every worker.
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
        """The line of `repr` that names the split."""
        return f"Split: {self.split}"


def _find_archive(root: Path, download: bool) -> Path:
    try:
        return locate(root, 1) if download else locate(root)
    except InputError:
        if not download:
            raise
    return get(root)
