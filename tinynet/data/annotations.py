"""Parse the text files of the archive: bounding boxes, and the labels of val."""

import codecs
from collections.abc import Sequence
from typing import TypeVar

Box = tuple[int, ...]
Entry = TypeVar("Entry")

ANNOTATIONS = "val/val_annotations.txt"
NO_BOX = (-1, -1, -1, -1)
_MAX_PIXELS = 2**15  # boxes are int16


def as_text(data: bytes) -> str:
    """Decode UTF-8 or UTF-16, without the byte order mark that Windows writes first.

    Raises `ValueError` if the bytes are not text.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    # File names and class ids are mostly ASCII; binary data that starts like UTF-16 is not.
    ascii_count = sum(character < "\x7f" for character in text)
    if "\0" in text or (utf16 and 2 * ascii_count < len(text)):
        raise ValueError("not text")
    return text


def read_annotations(text: str, wnids: Sequence[str]) -> dict[str, tuple[str, Box]]:
    """Parse `val_annotations.txt` into file -> (wnid, box); `NO_BOX` where the line has no box.

    Raises `ValueError` with the number of the line if a line cannot be parsed, names a class that
    is not in `wnids`, or contradicts an earlier line.
    """
    classes = set(wnids)
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
        if row[1] not in classes:
            raise ValueError(
                f"line {number}: {row[1][:60]} is not one of the {len(classes)} classes of "
                "wnids.txt"
            )
        if (before := annotations.setdefault(row[0], entry)[0]) != row[1]:
            raise ValueError(
                f"line {number}: labels {row[0][:60]} as {row[1][:60]}, but an earlier line says "
                f"{before[:60]}"
            )
    return annotations


def read_box(numbers: Sequence[str]) -> Box:
    """Parse x0, y0, x1, y1 in pixels, inclusive; raises `ValueError` if they are not a box."""
    x0, y0, x1, y1 = (int(number) for number in numbers)
    if not (0 <= x0 <= x1 < _MAX_PIXELS and 0 <= y0 <= y1 < _MAX_PIXELS):
        raise ValueError(f"no box: {x0}, {y0}, {x1}, {y1}")
    return x0, y0, x1, y1


def by_stem(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Add a key without extension for every file: copies may have images in another format."""
    return {file.rsplit(".", 1)[0]: entry for file, entry in entries.items()} | entries


def entry_of(entries: dict[str, Entry], file: str) -> Entry | None:
    """Look up an image in the result of `by_stem`, by its name with or without extension."""
    name = file.rsplit("/", 1)[-1]
    return entries.get(name, entries.get(name.rsplit(".", 1)[0]))
