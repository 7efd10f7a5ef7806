"""Ways to split the lines of a text file into the cells of a table."""

import csv
from collections.abc import Callable, Sequence

Table = list[list[str]]


def _by_comma(lines: Sequence[str], delimiter: str = ",") -> Table:
    if not all(delimiter in line for line in lines):
        return []
    try:
        return [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter=delimiter, strict=True)
            if row
        ]
    except csv.Error:
        return []


def _by_semicolon(lines: Sequence[str]) -> Table:
    return _by_comma(lines, ";")


def _by_tab(lines: Sequence[str]) -> Table:
    return [line.split("\t") for line in lines] if all("\t" in line for line in lines) else []


def _label_last(lines: Sequence[str]) -> Table:
    return [line.rsplit(None, 1) for line in lines]


def _label_first(lines: Sequence[str]) -> Table:
    return [line.split(None, 1) for line in lines]


def _by_space(lines: Sequence[str]) -> Table:
    rows = [line.split() for line in lines]
    return rows if len(set(map(len, rows))) == 1 else []


# The first way that fits is not always right: the reader compares the tables of all.
WAYS: tuple[Callable[[Sequence[str]], Table], ...] = (
    _by_tab,
    _label_last,
    _by_comma,
    _by_semicolon,
    _label_first,
    _by_space,
)
