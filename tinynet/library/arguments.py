"""Checks of the arguments of the library."""

from typing import Any

from tinynet.errors import InputError
from tinynet.values import plain


def as_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return one or several words as a tuple; raises `InputError` for anything else."""
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{name} is {value!r}; it must be a string or a list of strings")
    return tuple(words)


def as_sizes(value: Any, name: str = "size") -> tuple[int, ...]:
    """Return one or several sizes in pixels as a tuple; raises `InputError` for anything else."""
    sizes = plain(value if isinstance(value, (list, tuple)) else (value,))
    if not sizes or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes
    ):
        raise InputError(f"{name} is {value!r}; it must be a number of pixels or a list of them")
    return sizes


def as_count(value: Any, name: str) -> int:
    """Return `value` as an int; raises `InputError` unless it is an integer greater than 0."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InputError(f"{name} is {value!r}; it must be an integer greater than 0")
    return number
