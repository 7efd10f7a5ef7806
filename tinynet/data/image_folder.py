"""Image folders: list the files and their labels, and open images of any size.

There are three layouts: a folder for each class; one flat folder with a file of labels
(`tinynet.data.labels`); ImageNet's val folder with its devkit.
"""

import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from PIL import Image

from tinynet.console import advice, log, option
from tinynet.data.decode import decode
from tinynet.data.devkit import devkit_labels
from tinynet.data.labels import Labels
from tinynet.data.walk import image_names, images_below
from tinynet.errors import InputError


@dataclass(frozen=True)
class Images:
    """Image files in order, and their class indices."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 wnids of ILSVRC 2012, sorted, which is the order of published networks.

    Source: timm's `imagenet_synsets.txt`.
    """
    return tuple(
        (resources.files("tinynet.data") / "imagenet_wnids.txt").read_text(encoding="ascii").split()
    )


def labelled_images(
    folder: str | Path, classes: Sequence[str], labels: str | None = None
) -> Images:
    """List the images of `folder` with their class indices.

    `classes`: wnids, or names of class folders; the class index is the position in this list.
    `labels`: None if there is a folder for each class; else a file of labels, or the folder of
    ImageNet's devkit. Raises `InputError` if the folder, a class or a label cannot be used.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"{option('data')} {folder}: no such folder; name one that contains images"
        )
    names, skipped = image_names(root)
    indices: Sequence[int]
    if labels is None:
        names, indices = _class_folders(root, names, classes)
    elif not names:
        raise InputError(f"{option('data')} {folder}: contains no images; name another folder")
    elif Path(labels).is_dir():
        indices = Labels(labels, classes, names).numbered(devkit_labels(Path(labels), classes))
    elif Path(labels).is_file():
        indices = Labels(labels, classes, names).read()
    else:
        raise InputError(
            f"{option('labels')} {labels}: no such file; name one with a wnid or class index per "
            "line, or the devkit"
        )
    skipped.report(root)
    return Images(tuple(root / name for name in names), tuple(indices))


def _class_folders(
    root: Path, names: Sequence[str], classes: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The names of the files in class folders, and their class indices."""
    index = {name: number for number, name in enumerate(classes)}
    inside = [name for name in names if "/" in name]
    counts = Counter(name.split("/")[0] for name in inside)
    if not inside:
        raise InputError(
            f"{option('data')} {root}: contains no folders of images; if all images are in "
            "one folder, name a file of labels" + advice(" with --labels")
        )
    unknown = [name for name in counts if name not in index]
    if unknown:
        raise InputError(
            f"{option('data')} {root}: {len(unknown)} of {len(counts)} class folders are not "
            f"among the network's {len(classes)} classes (first: {unknown[0]!r}); name the "
            f"folders like {classes[0]!r}"
        )
    if flat := len(names) - len(inside):
        log(f"note: {root}: skipped {flat:,} images outside class folders")
    return inside, [index[name.split("/")[0]] for name in inside]


def open_image(path: Path, upright: bool = False) -> Image.Image:
    """Open an image in RGB; `upright` applies the EXIF orientation.

    Raises `InputError` with the path if the image cannot be read or is too large.
    """
    return decode(path, str(path), upright).image


def expand(paths: Iterable[str]) -> tuple[Path, ...]:
    """Replace folders by the images in them and their subfolders; keep files.

    Raises `InputError` if a path does not exist or is not a regular file, or a folder contains no
    images.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists() and not path.is_symlink():
            raise InputError(f"{name}: no such file or folder; check the path")
        if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{name}: is not a regular file; save the image to a file first")
        inside = images_below(path) if path.is_dir() else (path,)
        if not inside:
            raise InputError(f"{name}: contains no images; name image files, or another folder")
        files += inside
    return tuple(files)
