"""The texts of the archive: boxes and the labels of val, by file name with or without its
ending.
"""

import codecs
from collections.abc import Sequence
from typing import TypeVar

Box = tuple[int, ...]
Entry = TypeVar("Entry")

ANNOTATIONS = "val/val_annotations.txt"
NO_BOX = (-1, -1, -1, -1)
_WIDEST = 2**15  # pixels, which an int16 holds


def as_text(data: bytes) -> str:
    """The text that a file holds, in UTF-8 or UTF-16, without the mark of the byte order that
    Windows puts first.

    Raises `ValueError` where it is not text.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig")
    # file names and class ids are, for the most part
    plain = sum(character < "\x7f" for character in text)
    if "\0" in text or (wide and 2 * plain < len(text)):
        raise ValueError("not text")
    return text


def read_annotations(text: str, wnids: Sequence[str]) -> dict[str, tuple[str, Box]]:
    """The text of `val_annotations.txt` as file -> (wnid, box); a box may be missing.

    Raises `ValueError` with the line that cannot be read, names a class that is not one of `wnids`,
    or says something else of a file than one before.
    """
    known = set(wnids)
    annotations: dict[str, tuple[str, Box]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = line.split("\t")
        try:
            entry = row[1], read_box(row[2:6]) if row[2:] else NO_BOX
        except (IndexError, ValueError):
            raise ValueError(
                f"line {number}: {line[:60]!r} is not 'file TAB wnid TAB x0 TAB y0 TAB x1 TAB y1'"
            ) from None
        if row[1] not in known:
            raise ValueError(
                f"line {number}: {row[1][:60]} is not one of the {len(known)} classes of wnids.txt"
            )
        if (before := annotations.setdefault(row[0], entry)[0]) != row[1]:
            raise ValueError(
                f"line {number}: labels {row[0][:60]} as {row[1][:60]}, but an earlier line says "
                f"{before[:60]}"
            )
    return annotations


def read_box(numbers: Sequence[str]) -> Box:
    """x0, y0, x1, y1 in pixels, inclusive; raises `ValueError` where they are no box."""
    x0, y0, x1, y1 = (int(number) for number in numbers)
    if not (0 <= x0 <= x1 < _WIDEST and 0 <= y0 <= y1 < _WIDEST):
        raise ValueError(f"no box: {x0}, {y0}, {x1}, {y1}")
    return x0, y0, x1, y1


def by_stem(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The same, each file also without its ending: images may have been saved again in another
    format.
    """
    return {file.rsplit(".", 1)[0]: entry for file, entry in entries.items()} | entries


def entry_of(entries: dict[str, Entry], file: str) -> Entry | None:
    """What `by_stem` has of an image: by its name, or by its name without the ending."""
    name = file.rsplit("/", 1)[-1]
    return entries.get(name, entries.get(name.rsplit(".", 1)[0]))
