"""Find the data that `--data` names: a file, a folder, or an archive inside a folder."""

from collections.abc import Iterator
from pathlib import Path

from tinynet.data.containers import TARS
from tinynet.data.parquet import parquet_files
from tinynet.data.walk import reason_to_leave_out
from tinynet.errors import InputError

DEFAULT_PATH = Path("data/tiny-imagenet-200.zip")
_ENDINGS = (".zip", *TARS)
_NOT_ENTERED = {"train", "val", "test", "images", "cache", "runs"}
_DEPTH = 3  # folders within folders that are looked into
_MOST = 500  # folders of one level that are looked at


def locate(path: str | Path, node: int = _DEPTH) -> Path:
    """The zip, tar, extracted folder or folder of parquet files that `path` stands for: itself, or
    what lies in it.

    `depth`: how many folders within one another are looked into. Raises `InputError` when there is
    no such file, or when a folder holds nothing that fits, or several that do.
    """
    path = home(path)
    if path.is_file():
        return path.parent if path.suffix == ".parquet" else path
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file; `python -m tinynet.data get` fetches the official archive to "
            f"{DEFAULT_PATH}, and --data or TINYNET_DATA names another place"
        )
    if _is_root(path) or (path / "train").is_dir():
        return path
    level = [path]
    for _ in range(node + 1):
        if roots := [place for folder in level for place in _roots(folder)]:
            return _one_of(roots, path)
        level = [folder for above in level for folder in _folders(above)][:_MOST]
    if packed := _packed_otherwise(path):
        return _one_of(packed, path)
    raise InputError(
        f"{path}: contains no Tiny ImageNet (looked for a zip or tar here, and {node} folders "
        f"deep for {DEFAULT_PATH.stem} archives, train/ and val/, or parquet files); name the "
        "archive or its folder with --data"
    )


def home(path: str | Path) -> Path:
    """The path with `~` as the user's home, which a shell does not always write out.

    Raises `InputError` for a user that there is not.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: unknown user after ~; write the full path") from None


def _roots(folder: Path) -> list[Path]:
    """The archives in a folder: itself, or else the one that is packed under the official name."""
    if _is_root(folder):
        return [folder]
    packed = (folder / f"{DEFAULT_PATH.stem}{ending}" for ending in _ENDINGS)
    return [file for file in packed if file.is_file()][:1]


def _packed_otherwise(folder: Path) -> list[Path]:
    """Zips and tars of any name in a folder."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(_ENDINGS)
        and file.is_file()
        and not reason_to_leave_out(file.name)
    )


def _is_root(folder: Path) -> bool:
    """Whether an archive is here; the list of its classes may be missing."""
    return (
        (folder / "wnids.txt").is_file()
        or bool(parquet_files(folder))
        or (
            (folder / "train").is_dir()
            and ((folder / "val").is_dir() or (folder / "test").is_dir())
        )
    )


def _folders(above: Path) -> Iterator[Path]:
    try:
        yield from sorted(
            folder
            for folder in above.iterdir()
            if folder.is_dir()
            and folder.name not in _NOT_ENTERED
            and not reason_to_leave_out(folder.name)
        )
    except OSError:  # what cannot be looked into is not where the archive is
        return


def _one_of(roots: list[Path], path: Path) -> Path:
    """The only one of these, or the one of the official name."""
    official = [place for place in roots if place.name.split(".")[0] == DEFAULT_PATH.stem]
    if len(official or roots) > 1:
        raise InputError(
            f"{path}: contains several data sets ({', '.join(map(str, roots[:3]))}); name one of "
            "them with --data"
        )
    return (official or roots)[0]
