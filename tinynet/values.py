"""Checks of values that users pass in Python, and values in messages. Imports no numpy."""

import math
import os
from pathlib import Path
from typing import Any

from tinynet.errors import InputError

_LONGEST = 80  # characters of a value in a message


def plain(value: Any) -> Any:
    """Return a number of numpy or torch as Python's, and a list as a tuple of such numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return value.item() if getattr(value, "shape", None) == () else value


def as_integer(value: Any, name: str) -> int:
    """Return an integer of Python, numpy or torch as an int; raises `InputError` for others."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{name} is {brief(value)}; it must be an integer")
    return number


def is_positive(value: Any) -> bool:
    """Return whether a value is a finite number greater than 0."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return usable and value > 0 and math.isfinite(value)


def as_minutes(value: Any, name: str) -> float:
    """Return a number above 0 as a float; raises `InputError` for others."""
    number = plain(value)
    if not is_positive(number):
        raise InputError(
            f"{name} is {brief(value)}; it must be a number greater than 0, for instance 60"
        )
    return float(number)


def as_path(value: Any, name: str) -> Path:
    """Return a path; raises `InputError` for an empty one, which would be the current folder."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise InputError(f"{name} is {brief(value)}; it must be a path, a string that is not empty")
    return Path(value)


def counted(number: Any, noun: str) -> str:
    """Return a number, or its text, with its noun: `1 minute`, `0.7 minutes`, `3 minutes`."""
    return f"{number} {noun}{'' if str(number) == '1' else 's'}"


def brief(value: Any) -> str:
    """Return `repr(value)` on one line, shortened, for a message."""
    line = " ".join(repr(value).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
