"""Find the data of `--data`: a file, a folder, or an archive inside a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from tinynet.console import advice, option
from tinynet.data.containers import TARS
from tinynet.data.parquet import parquet_files
from tinynet.data.walk import skip_reason
from tinynet.errors import InputError
from tinynet.values import as_path

DEFAULT_PATH = Path("data/tiny-imagenet-200.zip")
_ENDINGS = (".zip", *TARS)
_SKIPPED_FOLDERS = {"train", "val", "test", "images", "cache", "runs"}
_DEPTH = 3  # levels of subfolders to search
_MAX_FOLDERS = 500  # to search on one level


def locate(path: str | Path, depth: int = _DEPTH, any_images: bool = True) -> Path:
    """Find the zip, tar, extracted folder or folder of parquet files at `path` or inside it.

    `depth`: levels of subfolders to search. `any_images`: whether any other folder with images in
    it is a data set, too. Raises `InputError` if `path` does not exist, or contains no data set, or
    several.
    """
    path = expand_user(path)
    if path.is_file():
        return path.parent if path.suffix == ".parquet" else path
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file; `python -m tinynet.data get` fetches the official archive to "
            f"{DEFAULT_PATH}, and {advice('--data or ')}TINYNET_DATA names another place"
        )
    if _is_root(path) or (path / "train").is_dir():
        return path
    level = [path]
    for _ in range(depth + 1):
        if roots := [root for folder in level for root in _roots(folder)]:
            return _one_of(roots, path)
        level = [folder for parent in level for folder in _subfolders(parent)][:_MAX_FOLDERS]
    if archives := _archive_files(path):
        if any_images and (folders := _folders_of_images(path)):
            raise InputError(
                f"{path}: contains an archive ({archives[0].name}) and folders of images (first: "
                f"{folders[0].name}); move one of them elsewhere, or name the archive"
                + advice(" with --data")
            )
        return _one_of(archives, path)
    if any_images and _contains_images(path):
        return path
    raise InputError(
        f"{path}: contains no images and no archive (looked for images below it, a zip or tar in "
        f"it, and {depth} folders deep for {DEFAULT_PATH.stem} archives, train/ and val/, or "
        "parquet files); name the archive or its folder" + advice(" with --data")
    )


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
        (folder / "wnids.txt").is_file()
        or bool(parquet_files(folder))
        or (
            (folder / "train").is_dir()
            and ((folder / "val").is_dir() or (folder / "test").is_dir())
        )
    )


def _contains_images(folder: Path) -> bool:
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not skip_reason(name)]
        if (real := os.path.realpath(place)) in visited:  # links may lead in circles
            folders.clear()
        elif any(map(_is_image, files)):
            return True
        visited.add(real)
    return False


def _folders_of_images(parent: Path) -> list[Path]:
    """The subfolders that directly contain images."""
    return [folder for folder in _subfolders(parent) if any(map(_is_image, os.listdir(folder)))]


def _is_image(name: str) -> bool:
    from tinynet.data.decode import image_endings

    return os.path.splitext(name)[1].lower() in image_endings() and not skip_reason(name)


def _subfolders(parent: Path) -> Iterator[Path]:
    try:
        yield from sorted(
            folder
            for folder in parent.iterdir()
            if folder.is_dir()
            and folder.name not in _SKIPPED_FOLDERS
            and not skip_reason(folder.name)
        )
    except OSError:  # a folder without read permission cannot hold the archive
        return


def _one_of(roots: list[Path], path: Path) -> Path:
    """The only root, or the only one with the official name."""
    official = [root for root in roots if root.name.split(".")[0] == DEFAULT_PATH.stem]
    if len(official or roots) > 1:
        raise InputError(
            f"{path}: contains several data sets ({', '.join(map(str, roots[:3]))}); name one of "
            "them" + advice(" with --data")
        )
    return (official or roots)[0]
