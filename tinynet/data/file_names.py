"""Names of image files: what identifies an image, and how programs sort them."""

import re
from collections.abc import Callable, Sequence
from typing import Any


def plain(name: str) -> str:
    """Return a file name with slashes, without spaces around it and without `./`."""
    return name.strip().replace("\\", "/").removeprefix("./")


def same(name: str) -> str:
    """Return the name itself."""
    return name


def base(name: str) -> str:
    """Return a name without its folders."""
    return name.rsplit("/", 1)[-1]


def without_extension(name: str) -> str:
    """Return a name without its extension of at most five letters and digits."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    is_extension = dot and extension.isalnum() and len(extension) < 6
    return f"{folder}{slash}{stem if is_extension else base}"


def stem(name: str) -> str:
    """Return a name without its folders and its extension."""
    return without_extension(base(name))


def ambiguous_order(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that programs sort differently, or None.

    Programs compare names by letters, with or without regard to folders and to case, or by the
    numbers in them.
    """
    keys: tuple[Callable[[str], Any], ...] = (str, _numbers, str.lower)
    for key in keys:
        for name, other in zip(names, sorted(names, key=key), strict=True):
            if name != other:
                return name, other
    return None


def _numbers(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts 2 before 10."""
    return [
        (0, int(piece)) if piece.isdecimal() else (1, piece)
        for piece in re.split(r"(\d+)", name)
        if piece
    ]
