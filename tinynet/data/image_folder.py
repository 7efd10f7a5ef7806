"""Pictures of any folder: which files, with which labels, decoded one at a time in any size.

Three layouts are known: a folder for each class; one flat folder and a file of labels
(`data.labels`); ImageNet's val folder and its devkit.
"""

import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from PIL import Image

from tinynet.console import log
from tinynet.data.decode import decode
from tinynet.data.devkit import devkit_labels
from tinynet.data.labels import Labels
from tinynet.data.walk import image_names, images_below
from tinynet.errors import InputError


@dataclass(frozen=True)
class Images:
    """Picture files in order, and their class indices where labels are known."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 class ids of ILSVRC 2012 in the order of every published network: sorted.

    The list is the one that timm publishes as `imagenet_synsets.txt`.
    """
    return tuple(
        (resources.files("tinynet.data") / "imagenet_wnids.txt").read_text(encoding="ascii").split()
    )


def labelled_images(
    folder: str | Path, classes: Sequence[str], labels: str | None = None
) -> Images:
    """The pictures of `folder` with the index of their class in `classes` (wnids, or names of class
    folders).

    `labels`: None for a folder for each class; else a file of labels, or a folder that holds
    ImageNet's devkit. Raises `InputError` where the folder, a class or a label is not what it must
    be.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"--data {folder}: no such folder; name one that holds pictures")
    names, left_out = image_names(root)
    if labels is None:
        names, indices = _class_folders(root, names, classes)
    elif not names:
        raise InputError(f"--data {folder}: holds no pictures")
    elif Path(labels).is_dir():
        indices = Labels(labels, classes, names).numbered(devkit_labels(Path(labels), classes))
    elif Path(labels).is_file():
        indices = Labels(labels, classes, names).read()
    else:
        raise InputError(
            f"--labels {labels}: no such file; name one with a wnid or class index a line, or the "
            "devkit"
        )
    left_out.report(root)
    return Images(tuple(root / name for name in names), tuple(indices))


def _class_folders(
    root: Path, names: Sequence[str], classes: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The names of files that lie in a folder of a class, and the indices of the classes."""
    index = {name: number for number, name in enumerate(classes)}
    inside = [name for name in names if "/" in name]
    counts = Counter(name.split("/")[0] for name in inside)
    if not inside:
        raise InputError(
            f"--data {root}: contains no folders of images; where all images lie in one folder, "
            "name a file of labels with --labels"
        )
    foreign = [name for name in counts if name not in index]
    if foreign:
        raise InputError(
            f"--data {root}: {len(foreign)} of {len(counts)} class folders are not among the "
            f"network's {len(classes)} classes (first: {foreign[0]!r}); name the folders like "
            f"{classes[0]!r}"
        )
    if flat := len(names) - len(inside):
        log(f"note: {root}: skipped {flat:,} images outside class folders")
    return inside, [index[name.split("/")[0]] for name in inside]


def open_image(path: Path, upright: bool = False) -> Image.Image:
    """The picture in `path`, in RGB; `upright`: turned as its EXIF data say.

    Raises `InputError` naming the file where it cannot be read, or is too large to be one.
    """
    return decode(path, str(path), upright).image


def expand(paths: Iterable[str]) -> tuple[Path, ...]:
    """Files as they are named, and the pictures below folders.

    Raises `InputError` where one does not exist or is no file, or a folder holds no pictures.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists() and not path.is_symlink():
            raise InputError(f"{name}: no such file or folder")
        if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{name}: is not a regular file; save the image to a file first")
        inside = images_below(path) if path.is_dir() else (path,)
        if not inside:
            raise InputError(f"{name}: holds no pictures")
        files += inside
    return tuple(files)
