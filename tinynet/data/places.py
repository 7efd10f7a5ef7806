"""Find the data of `--data`: a file, a folder, or an archive inside a folder."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tinynet.console import advice, option
from tinynet.data.containers import TARS
from tinynet.data.layout import subset_of
from tinynet.data.own_folders import MARKS, NAMES, own_folders
from tinynet.data.parquet import parquet_files
from tinynet.data.walk import skip_reason
from tinynet.errors import InputError
from tinynet.values import as_path

DEFAULT_PATH = Path("data/tiny-imagenet-200.zip")
_ENDINGS = (".zip", *TARS)
_CLASSES = "wnids.txt"
_SKIPPED_FOLDERS = {"train", "val", "test", "images", *NAMES}
DEPTH = 3  # levels of subfolders to search
_MAX_FOLDERS = 500  # to search on one level


def locate(
    path: str | Path, depth: int = DEPTH, any_images: bool = True, labels: str | None = None
) -> Path:
    """Find the zip, tar, extracted folder or folder of parquet files at `path` or inside it.

    `depth`: levels of subfolders to search. `any_images`: whether any other folder with images in
    it is a data set, too. `labels`: the file of labels, if there is one; then images without class
    folders are, too. Raises `InputError` if `path` does not exist, or contains no data set, or
    several.
    """
    path = expand_user(path)
    if path.is_file() and _is_image(path.name):
        raise InputError(f"{path}: is one image; name the folder that contains the class folders")
    if path.is_file() and path.suffix.lower() != ".parquet":
        return path
    place = _mirror_of(path) if path.is_file() else path
    if not place.is_dir():
        what = "is neither a file nor a folder" if place.exists() else "no such file"
        raise InputError(
            f"{path}: {what}; `python -m tinynet.data get` fetches the official archive to "
            f"{DEFAULT_PATH}, and {advice('--data or ')}TINYNET_DATA names another place"
        )
    data = _data_set(place, depth, labels)
    if data is None and any_images and _first_images(place, flat=True):
        return place
    if data is None:
        raise InputError(
            f"{path}: contains no images and no archive (looked for images below it, a zip or tar "
            f"in it, and {depth} folders deep for {DEFAULT_PATH.stem} archives, train/ and val/, "
            "or parquet files); name the archive or its folder" + advice(" with --data")
        )
    if any_images and (images := _images_beside(data, place, flat=labels is not None)):
        kind = "archive" if data.is_file() else "data set"
        what = "parquet files" if data == place else f"the {kind} {data.name}"
        name = "" if data == place else f", or name one of them{advice(' with --data')}"
        raise InputError(
            f"{place}: contains {what} and other images (first: {images}); move the ones you do "
            f"not want elsewhere{name}"
        )
    return data


def _data_set(place: Path, depth: int, labels: str | None) -> Path | None:
    """The data set that file names tell, in `place` or below it; None for any other images.

    Raises `InputError` for several data sets.
    """
    if _is_root(place) or _has_train(place, flat=labels is not None):
        return place
    level = [place]
    for _ in range(depth + 1):
        if roots := [root for folder in level for root in _roots(folder)]:
            return _one_of([*roots, *_archive_files(place)], place)
        level = [folder for parent in level for folder in _subfolders(parent)][:_MAX_FOLDERS]
    archives = _archive_files(place)
    return _one_of(archives, place) if archives else None


def _mirror_of(file: Path) -> Path:
    """The folder of a parquet file; raises `InputError` if the file would not be read there."""
    if not any(file in files for files in parquet_files(file.parent).values()):
        raise InputError(
            f"{file}: is not a file of a data set from the Hugging Face Hub; their names are like "
            "train-00000-of-00001.parquet (train, val or test, then no letter), and the folder "
            "must have one of train"
        )
    if (file.parent / _CLASSES).is_file():
        raise InputError(
            f"{file}: is in a folder with an extracted archive ({_CLASSES}); move the parquet "
            "files into a folder of their own"
        )
    return file.parent


def expand_user(path: str | Path, name: str = "data") -> Path:
    """Replace `~` by the home folder, where the shell has not done it.

    `name`: of the argument, for messages. Raises `InputError` for an unknown user, and for what is
    not a path.
    """
    try:
        return as_path(path, option(name)).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: unknown user after ~; write the full path") from None


def _roots(folder: Path) -> list[Path]:
    """The folder if it is an extracted archive, else a zip or tar in it with the official name."""
    if _is_root(folder):
        return [folder]
    archives = (folder / f"{DEFAULT_PATH.stem}{ending}" for ending in _ENDINGS)
    return [file for file in archives if file.is_file()][:1]


def _archive_files(folder: Path) -> list[Path]:
    """Zips and tars with any name in a folder."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(_ENDINGS) and file.is_file() and not skip_reason(file.name)
    )


def _is_root(folder: Path) -> bool:
    """Whether a folder is an extracted archive, with or without `wnids.txt`."""
    return (
        (folder / _CLASSES).is_file()
        or bool(parquet_files(folder))
        or (
            (folder / "train").is_dir()
            and ((folder / "val").is_dir() or (folder / "test").is_dir())
        )
    )


def _has_train(folder: Path, flat: bool) -> bool:
    """Whether a subfolder is called train, in upper or lower case, and has classes.

    `flat`: whether its classes are in a file of labels. As in `find_layout`, a folder `train` that
    directly contains its images is a class.
    """
    trains = [
        child for child in folder.iterdir() if subset_of(child.name) == "train" and child.is_dir()
    ]
    places = trains if flat else [each for train in trains for each in _subfolders(train, ())]
    return any(_first_images(place, flat=True) for place in places)


def _images_beside(data: Path, place: Path, flat: bool) -> str:
    """An image in `place` outside of `data`, if there are enough for a data set; else ''."""
    if data != place:
        return _first_images(place, flat, beside=data)
    if (data / _CLASSES).is_file() or not parquet_files(data):
        return ""
    return _first_images(place, flat, beside=data / _CLASSES)


def _first_images(place: Path, flat: bool, beside: Path | None = None) -> str:
    """The first image below `place`, if images there can be a data set; else ''.

    These are images in two folders or more; with `flat`, any. `beside`: a data set, which does not
    count; then copies of the official archive and what tinynet writes do not count, either.
    """
    visited: set[str] = set()
    first = ""
    for folder, subfolders, files in os.walk(place, followlinks=True):
        own = own_folders([*files, *_recipes(folder, subfolders)]) if beside else set()
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not (
                skip_reason(name) or name in own or (beside and name.startswith(DEFAULT_PATH.stem))
            )
        )
        real = os.path.realpath(folder)  # links may lead in circles
        if real in visited or Path(folder) == beside:
            subfolders.clear()
        elif image := next(filter(_is_image, sorted(files)), ""):
            if first:
                return first
            name = (Path(folder) / image).relative_to(place).as_posix()
            if flat:
                return name
            first = name if Path(folder) != place else ""
        visited.add(real)
    return ""


def _recipes(folder: str, subfolders: Iterable[str]) -> list[str]:
    """The files in `subfolders` that show that tinynet wrote them."""
    names = [f"{name}/{file}" for name in subfolders for file in MARKS]
    return [name for name in names if os.path.isfile(os.path.join(folder, name))]


def _is_image(name: str) -> bool:
    from tinynet.data.decode import image_endings

    return os.path.splitext(name)[1].lower() in image_endings() and not skip_reason(name)


def _subfolders(parent: Path, skipped: Collection[str] = _SKIPPED_FOLDERS) -> Iterator[Path]:
    try:
        yield from sorted(
            folder
            for folder in parent.iterdir()
            if folder.is_dir() and folder.name not in skipped and not skip_reason(folder.name)
        )
    except OSError:  # a folder without read permission cannot hold the archive
        return


def _one_of(roots: list[Path], path: Path) -> Path:
    """The only root, or the only one with the official name."""
    official = [root for root in roots if root.name.split(".")[0] == DEFAULT_PATH.stem]
    # Links may lead to the same data.
    distinct = {os.path.realpath(root): root for root in reversed(official or roots)}
    if len(distinct) > 1:
        names = ", ".join(sorted(map(str, distinct.values()))[:3])
        raise InputError(
            f"{path}: contains several data sets ({names}); name one of them"
            + advice(" with --data")
        )
    return next(iter(distinct.values()))
