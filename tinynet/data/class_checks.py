"""What the classes of any source must be: at least two, distinct names, enough images of each."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinynet.errors import InputError

_NAMES = 5  # in a message
_NEEDED = {True: 2, False: 3}  # images of a class; with a val of its own: training and hold-out


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `InputError` for one class, for control characters, and for names that look equal."""
    if len(names) == 1:
        raise InputError(
            f"{path}: has only one class, {names[0]!r}; a classifier needs at least 2, so choose "
            "other data"
        )
    same: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if (first := same.setdefault(key, name)) != name:
            raise InputError(
                f"{path}: the classes {first!r} and {name!r} differ only in case, or in how an "
                "accented letter is encoded; join them, or rename one"
            )
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise InputError(f"{path}: the class {name!r} contains a control character; rename it")


def check_counts(path: Path, names: Sequence[str], labels: np.ndarray, has_val: bool) -> None:
    """Raise `InputError` for classes with too few images.

    `labels`: (N,) of train. `has_val`: whether val has images of its own, and is not drawn from
    train.
    """
    counts = np.bincount(labels, minlength=len(names))
    needed = _NEEDED[has_val]
    few = np.flatnonzero(counts < needed)
    if len(few):
        listed = ", ".join(f"{names[label]!r} ({counts[label]})" for label in few[:_NAMES])
        more = f" and {len(few) - _NAMES:,} more" if len(few) > _NAMES else ""
        parts = "training and hold-out" if has_val else "training, hold-out and val"
        raise InputError(
            f"{path}: classes with fewer than {needed} images: {listed}{more}; {parts} need one "
            "each, so add images, or move these classes elsewhere"
        )
