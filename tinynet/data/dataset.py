"""Any source, and Tiny ImageNet, as torchvision datasets for any DataLoader."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torchvision.datasets import VisionDataset  # type: ignore[import-untyped]  # has no stubs

from tinynet.data.decode import decode
from tinynet.data.download import get
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.packing import square
from tinynet.data.places import DEPTH, expand_user, locate
from tinynet.data.source import Source
from tinynet.data.sources import open_source
from tinynet.data.splits import split_train
from tinynet.data.tiny_imagenet import Archive
from tinynet.errors import InputError
from tinynet.values import brief

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SPLITS = ("train", "holdout", "val", "test")
_IMAGENET = "imagenet"


class HoldOut(TypedDict, total=False):
    """The part of the training images that is held out."""

    holdout: float
    split_seed: int


class Images(VisionDataset):
    """Images of any source with their labels, read in place at their own size.

    `root`: a folder with a folder for each class, with or without `train`, `val` and `test`; a zip
    or tar of it; a folder of parquet files; or Tiny ImageNet.

    `split`: `train`, `holdout`, `val` or `test`. `train` and `holdout` are disjoint parts of the
    training images. Without a folder `val`, a fifth of each class is `val`, as in every run.

    `holdout`: the fraction of each class in the hold-out (default: 0.05), sampled with `split_seed`
    (default: 42). With `holdout=0`, `train` has all training images.

    `transform`, `target_transform`: as in torchvision. They apply to this split alone, so the
    datasets `train` and `holdout` can have different transforms.

    `labels`: "imagenet" for the indices of ImageNet-1k, where the classes are wnids of it; or a
    file of labels, for images without class folders. Default: the rank of the class.

    Items are `(image, class index)`: a PIL image in RGB, upright, and an int. Items of a split
    without labels are the image alone. Attributes:

    - `classes`: class ids in sorted order. `class_names`: their names.
    - `class_to_idx`: class id -> class index.
    - `files`: names in the source.
    - `targets`: list of int, None without labels.
    - `boxes`: (N, 4) int16, x0, y0, x1, y1 in pixels, inclusive; -1 for images without a box.

    Each worker of a DataLoader opens a zip again, which takes a second: use
    `persistent_workers=True`.

    Raises `InputError` for an unknown split, or if `root` contains no usable images.

    Examples:
        >>> tinynet.Images("photos", "val", transform=transform)
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        labels: str | Path | None = None,
        **hold_out: "Unpack[HoldOut]",
    ):
        file = None if labels in (None, _IMAGENET) else str(labels)
        place = expand_user(root, "root")
        self._set_up(place, split, (transform, target_transform), hold_out)
        self._use(open_source(locate(place, labels=file), file), hold_out, labels == _IMAGENET)

    def _set_up(
        self,
        root: Path,
        split: str,
        transforms: tuple[Callable | None, Callable | None],
        hold_out: HoldOut,
    ) -> None:
        """Check the arguments, before anything is read."""
        if split not in _SPLITS:
            raise InputError(f"split {split!r}: unknown; choose one of {', '.join(_SPLITS)}")
        for name, function in zip(("transform", "target_transform"), transforms, strict=True):
            if function is not None and not callable(function):
                raise InputError(f"{name} is {brief(function)}; it must be a function, or None")
        if unknown := set(hold_out) - {"holdout", "split_seed"}:
            raise InputError(
                f"{min(unknown)}: not an argument of {type(self).__name__}; use holdout or "
                "split_seed"
            )
        super().__init__(root, transform=transforms[0], target_transform=transforms[1])
        self.split = split

    def _use(self, source: Source, hold_out: HoldOut, imagenet: bool) -> None:
        """Take the images of the split from `source`."""
        fraction, seed = hold_out.get("holdout", 0.05), hold_out.get("split_seed", 42)
        self.classes = list(source.wnids)
        self.class_names = list(source.names)
        indices = _imagenet_indices(source) if imagenet else range(len(source.wnids))
        self.class_to_idx = dict(zip(source.wnids, indices, strict=True))
        part, rows = source.train, np.arange(len(source.train.files))
        if self.split in ("val", "test"):
            part = source.part(self.split)
            rows = np.arange(len(part.files))
        elif self.split == "holdout" or fraction != 0:
            assert part.labels is not None  # only test has no labels
            parts = split_train(part.labels, fraction=fraction, seed=seed)
            rows = parts.train if self.split == "train" else parts.holdout
        self.files = [part.files[row] for row in rows]
        self.targets = (
            None if part.labels is None else np.array(indices)[part.labels[rows]].tolist()
        )
        self.boxes = part.boxes[rows]
        # Not the source itself: its table of all files would be pickled for every worker.
        self._container, self._folder = source.container, source.root
        self._one_size = source.one_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        file = self.files[index]
        data = self._container.read(self._folder + file)
        decoded = square(data, file) if self._one_size else decode(data, file, upright=True)
        image = decoded.image
        if self.transform is not None:
            image = self.transform(image)
        if self.targets is None:
            return image
        target = self.targets[index]
        return image, target if self.target_transform is None else self.target_transform(target)

    def extra_repr(self) -> str:
        """The line of `repr` that names the split."""
        return f"Split: {self.split}"


class TinyImageNet(Images):
    """Images of Tiny ImageNet with their labels, read in place from the zip, tar or folder.

    `root`: the archive, the extracted folder, or a folder that contains either. `download`: whether
    to download the official archive to `root` if it contains none. The other arguments, items and
    attributes are those of `Images`; `val` and `test` are the official ones, and `test` has no
    labels. `labels` can only be "imagenet".

    Raises `InputError` for an unknown split, or if `root` contains no usable archive.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
        labels: str | None = None,
        **hold_out: "Unpack[HoldOut]",
    ):
        if labels not in (None, _IMAGENET):
            raise InputError(f"labels is {brief(labels)}; use 'imagenet', or leave it out")
        place = expand_user(root, "root")
        self._set_up(place, split, (transform, target_transform), hold_out)
        self._use(Archive(_find_archive(place, download)), hold_out, labels is not None)


def _imagenet_indices(source: Source) -> list[int]:
    """The ImageNet-1k index of each class; raises `InputError` if one is not a class of it."""
    wnids = {wnid: index for index, wnid in enumerate(imagenet_wnids())}
    if foreign := [name for name in source.wnids if name not in wnids]:
        raise InputError(
            f"labels 'imagenet': {source.path} has {len(foreign):,} classes that are no wnids of "
            f"ImageNet-1k (first: {foreign[0]!r}); leave labels out"
        )
    return [wnids[wnid] for wnid in source.wnids]


def _find_archive(root: Path, download: bool) -> Path:
    try:
        return locate(root, 1 if download else DEPTH, any_images=False)
    except InputError:
        if not download:
            raise
    return get(root)
