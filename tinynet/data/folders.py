"""Pictures of any folder: which files, with which labels, decoded one at a time in any size.

Three layouts are known: a folder for each class; one flat folder and a file of labels (a wnid or a class index a
line, in the order of the file names, or `FILE LABEL`); ImageNet's val folder and its devkit.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from PIL import Image, ImageOps

from tinynet.errors import InputError

DEVKIT_TRUTH, DEVKIT_META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
# What PIL opens and nobody means by a picture: programs that draw, and containers of other data.
_NOT_PICTURES = {"EPS", "WMF", "PDF", "MPEG", "HDF5", "BUFR", "GRIB", "FITS"}
_THINNEST = 50  # a longer side by more than this is no picture, and resizing it would fill memory


@dataclass(frozen=True)
class Pictures:
    """Picture files in order, and their class indices where labels are known."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 class ids of ILSVRC 2012 in the order of every published network: sorted.

    The list is the one that timm publishes as `imagenet_synsets.txt`.
    """
    return tuple((resources.files("tinynet.data") / "imagenet_wnids.txt").read_text(encoding="ascii").split())


def picture_files(folder: Path) -> tuple[Path, ...]:
    """All files below `folder` that have the name of a picture, in sorted order."""
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items()
             if kind in Image.OPEN and kind not in _NOT_PICTURES}
    return tuple(sorted(path for path in folder.rglob("*")
                        if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")))


def labelled_pictures(folder: str | Path, classes: Sequence[str], labels: str | None = None) -> Pictures:
    """The pictures of `folder` with the index of their class in `classes` (wnids, or names of class folders).

    `labels`: None for a folder for each class; else a file of labels, or a folder that holds ImageNet's devkit.
    Raises `InputError` where the folder, a class or a label is not what it must be.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"--data {folder}: no such folder; name one that holds pictures")
    if labels is None:
        return _class_folders(root, classes)
    files = picture_files(root)
    if not files:
        raise InputError(f"--data {folder}: holds no pictures")
    given = Path(labels)
    if given.is_dir():
        return Pictures(files, _numbered(files, _devkit(given, classes), labels))
    if not given.is_file():
        raise InputError(f"--labels {labels}: no such file; name one with a wnid or class index a line, or the devkit")
    try:
        text = given.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"--labels {labels}: is not text; name one with a wnid or class index a line") from None
    lines = [line.rsplit(None, 1) for line in text.splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        return Pictures(files, _numbered(files, [_index(line[0], classes, labels) for line in lines], labels))
    if not all(len(line) == 2 for line in lines):
        raise InputError(f"--labels {labels}: a line is LABEL, or FILE LABEL, and not all lines are one of them")
    return Pictures(files, _by_name(root, files, {line[0]: _index(line[1], classes, labels) for line in lines}, labels))


def _by_name(root: Path, files: Sequence[Path], known: dict[str, int], source: str) -> tuple[int, ...]:
    """Labels by paths below the folder, or, where those are no paths of it, by file names if they are unique."""
    names = [file.relative_to(root).as_posix() for file in files]
    if not set(names) <= set(known):
        names, known_ends = [file.name for file in files], [name.rsplit("/", 1)[-1] for name in known]
        if len(set(names)) < len(names) or len(set(known_ends)) < len(known_ends):
            raise InputError(f"--labels {source}: its files are no paths below {root}, and file names alone are not "
                             "unique; write paths as they are below the folder")
        known = dict(zip(known_ends, known.values(), strict=True))
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"--labels {source}: has no label for {len(missing):,} of {len(files):,} pictures "
                         f"(first: {missing[0]})")
    return tuple(known[name] for name in names)


def _class_folders(root: Path, classes: Sequence[str]) -> Pictures:
    index = {name: number for number, name in enumerate(classes)}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [(folder.name, picture_files(folder)) for folder in folders]
    found = [(name, files) for name, files in found if files]
    if not found:
        raise InputError(f"--data {root}: holds no folders of pictures; where the pictures lie flat, name a file of "
                         "labels with --labels")
    foreign = [name for name, _ in found if name not in index]
    if foreign:
        raise InputError(f"--data {root}: {len(foreign)} of its {len(found)} class folders are none of the network's "
                         f"{len(classes)} classes (first: {foreign[0]!r}; the network's are like {classes[0]!r})")
    return Pictures(tuple(file for _, files in found for file in files),
                    tuple(index[name] for name, files in found for _ in files))


def _index(label: str, classes: Sequence[str], source: str) -> int:
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    raise InputError(f"--labels {source}: {label!r} is none of the network's {len(classes)} classes: neither a wnid "
                     f"like {classes[0]!r} nor an index from 0 to {len(classes) - 1}")


def _numbered(files: Sequence[Path], labels: Sequence[int], source: str) -> tuple[int, ...]:
    if len(files) != len(labels):
        raise InputError(f"--labels {source}: {len(labels):,} labels for {len(files):,} pictures")
    return tuple(labels)


def _devkit(folder: Path, classes: Sequence[str]) -> list[int]:
    """Class indices of ImageNet's val pictures, in order, from its devkit, whose numbers are its own."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(folder / DEVKIT_META, squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        numbers = [int(line) for line in (folder / DEVKIT_TRUTH).read_text().split()]
        return [classes.index(wnids[number]) for number in numbers]
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(f"--labels {folder}: not ImageNet's devkit for these classes ({type(error).__name__}: "
                         f"{error}); it holds {DEVKIT_TRUTH} and {DEVKIT_META}") from None


def open_picture(path: Path, upright: bool = False) -> Image.Image:
    """The picture in `path`, in RGB; `upright`: turned as its EXIF data say.

    Raises `InputError` naming the file where it cannot be read, or is too large to be one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if max(picture.size) > _THINNEST * min(picture.size):
                    raise ValueError(f"{picture.size[0]}x{picture.size[1]} pixels are a line")
                picture = ImageOps.exif_transpose(picture) if upright else picture
                return picture.convert("RGB")
    except Exception as error:  # a broken or hostile file raises nearly anything
        bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
        reason = str(error) if isinstance(error, bombs) or "a line" in str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a picture ({reason})") from None


def expand(paths: Iterable[str]) -> tuple[Path, ...]:
    """Files as they are named, and the pictures below folders.

    Raises `InputError` where one does not exist, or a folder holds no pictures.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise InputError(f"{name}: no such file or folder")
        inside = picture_files(path) if path.is_dir() else (path,)
        if not inside:
            raise InputError(f"{name}: holds no pictures")
        found += inside
    return tuple(found)
