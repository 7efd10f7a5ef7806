"""A file of labels for images of one folder: a label a line by position, or lines, CSV or tables that name files.

Columns are told apart by what they hold: names of images of the folder, and classes (a wnid, or an index). Known by it
are `FILE LABEL`, CSV with a header, Kaggle's `LOC_val_solution.csv`, Tiny ImageNet's `val_annotations.txt`.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tinynet.cli import say
from tinynet.data import devkit
from tinynet.data.annotations import as_text
from tinynet.errors import InputError

_LABEL_NAMES = {"label", "labels", "class", "class_id", "classid", "wnid", "synset", "target", "category",
                "predictionstring"}

_LARGEST = 2**28  # bytes
_WNID = re.compile(r"n\d{8}\b")

Table = list[list[str]]


class Labels:
    """What `--labels` says of the images `names`, paths below their folder, in the terms of `classes`.

    Raises `InputError` where a label is missing, is none of the classes, contradicts another, or could belong to
    another image.
    """

    def __init__(self, source: str, classes: Sequence[str], names: Sequence[str]):
        self.source, self.classes, self.names = source, classes, names
        self._index = {name: number for number, name in enumerate(classes)}

    def read(self) -> tuple[int, ...]:
        """The index of every image's class."""
        lines = [line for line in self._text().splitlines() if line.strip()]
        words = [line.split() for line in lines]
        if all(len(line) == 1 for line in words) and not any(re.search("[,;]", line) for line in lines):
            return self._by_position([line[0] for line in words])
        tables = [table for split in _SPLITS if (table := split(lines))]
        read = [(*columns, table) for table in tables if (columns := self._columns(table)) is not None]
        if not read:
            raise self._unread(tables)
        _, file, label, header, table = max(read, key=lambda columns: columns[0])
        return self._by_name(table[header:], file, label)

    def numbered(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Labels by position; raises `InputError` unless positions mean the same to everybody."""
        if len(self.names) != len(labels):
            raise self._error(f"{len(labels):,} labels for {len(self.names):,} pictures")
        if differing := _two_orders(self.names):
            raise self._error(f"gives labels by position, and some programs list {differing[0]} before {differing[1]}, "
                              "others after it; write lines of FILE LABEL")
        return tuple(labels)

    def _error(self, text: str) -> InputError:
        return InputError(f"--labels {self.source}: {text}")

    def _text(self) -> str:
        try:
            if Path(self.source).stat().st_size > _LARGEST:
                raise self._error(f"has more than {_LARGEST:,} bytes, which no list of labels has")
            return as_text(Path(self.source).read_bytes())
        except InputError:
            raise
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        except ValueError:
            raise self._error("is not text; name one with a wnid or class index a line") from None

    def _class(self, cell: str) -> int | None:
        """The class that a cell begins with; Kaggle writes a box behind it."""
        first = cell.split()[0] if cell.strip() else ""
        if first in self._index:
            return self._index[first]
        return int(first) if first.isdecimal() and len(first) < 10 and int(first) < len(self.classes) else None

    # --- by position -------------------------------------------------------------------------------

    def _by_position(self, words: Sequence[str]) -> tuple[int, ...]:
        if Path(self.source).name == devkit.TRUTH:
            raise self._error("holds the devkit's own numbers, which are not indices of a network; name the folder of "
                              "the devkit, which holds data/meta.mat beside it")
        if len(words) == len(self.names) + 1 and self._class(words[0]) is None:
            words = words[1:]  # a header
        labels = [self._class(word) for word in words]
        if None in labels:
            raise self._foreign(words, words[labels.index(None)])
        return self.numbered(labels)

    def _foreign(self, words: Sequence[str], first: str) -> InputError:
        """The refusal of labels that are none of the classes, for what they are."""
        count = len(self.classes)
        numbers = [int(word) for word in words if word.lstrip("-").isdecimal() and len(word) < 10]
        if len(numbers) < len(words):
            return self._error(f"{first[:60]!r} is none of the network's {count} classes: neither a wnid like "
                               f"{self.classes[0]!r} nor an index from 0 to {count - 1}")
        why = "so it may count from 1; " if min(numbers) == 1 and max(numbers) == count else ""
        return self._error(f"{first!r} is no index of this network: its {count} classes have the indices 0 to "
                           f"{count - 1}, and the numbers go from {min(numbers)} to {max(numbers)}; {why}write wnids, "
                           "or the network's own indices")

    # --- by name -----------------------------------------------------------------------------------

    def _columns(self, table: Table) -> tuple[int, int, int, int] | None:
        """How many lines name an image, the columns of names and of labels, and the number of header lines.

        None where there are no such columns.
        """
        width = min(map(len, table))
        if width < 2:
            return None
        listed = set(self.names) | set(map(_base, self.names))
        listed |= set(map(_stem, listed))
        matches = [sum(_plain(row[column]) in listed or _base(_plain(row[column])) in listed for row in table)
                   for column in range(width)]
        file = matches.index(max(matches))
        others = [column for column in range(width) if column != file]
        first = _plain(table[0][file])
        for header in (0, 1) if not {first, _base(first)} & listed else (0,):
            rows = table[header:]
            for column in others if rows else ():
                ids = [row[column] for row in rows]
                if all(map(_WNID.match, ids)) and (foreign := [one for one in ids if self._class(one) is None]):
                    raise self._foreign(ids, foreign[0])  # class ids, so no other column is of labels
            valid = [column for column in others if rows and all(self._class(row[column]) is not None for row in rows)]
            if valid and (matches[file] or header == 0):
                return matches[file], file, self._label_column(valid, table), header
        return None

    def _label_column(self, valid: Sequence[int], table: Table) -> int:
        """The one column of labels: the one with wnids, or with a label's name, or the only one."""
        by_wnid = [column for column in valid if all(row[column].split()[:1] and row[column].split()[0] in self._index
                                                     for row in table[1:] or table)]
        by_title = [column for column in valid if table[0][column].strip().lower() in _LABEL_NAMES]
        for columns in (by_wnid, by_title, valid):
            if len(columns) == 1:
                return columns[0]
        raise self._error(f"columns {' and '.join(str(column + 1) for column in valid[:2])} could both be labels; keep "
                          "one beside the names of the files")

    def _by_name(self, table: Table, file: int, label: int) -> tuple[int, ...]:
        known: dict[str, int] = {}
        for row in table:
            name, index = _plain(row[file]), self._class(row[label])
            several = {word for word in row[label].split() if word in self._index and not word.isdecimal()}
            if len(several) > 1 or known.setdefault(name, index) != index:
                other = " and ".join(sorted(several)[:2]) if len(several) > 1 else \
                    f"{self.classes[known[name]]} and {self.classes[index]}"
                raise self._error(f"{name} is {other}; each image has one label, so keep one line of it")
        keys = [self._keyed(key, known) for key in (_same, _base, _without_ending, _stem)]
        best = max(keys, key=lambda found: sum(name is not None for name in found))
        if None in best:
            missing = [name for name, index in zip(self.names, best, strict=True) if index is None]
            raise self._error(f"has no label for {len(missing):,} of {len(self.names):,} pictures (first: {missing[0]})"
                              f"{_why_missing(missing, known)}")
        if len(known) > len(self.names):
            say(f"note: --labels {self.source}: {len(known) - len(self.names):,} of its names are not in the folder")
        return tuple(best)

    def _keyed(self, key: Callable[[str], str], known: dict[str, int]) -> list[int | None]:
        """The label of every image by a part of its name, None where that part has two images or two labels."""
        labels: dict[str, set[int]] = {}
        for name, index in known.items():
            labels.setdefault(key(name), set()).add(index)
        counts = Counter(map(key, self.names))
        certain = {part: next(iter(found)) for part, found in labels.items() if len(found) == 1 and counts[part] == 1}
        return [certain.get(key(name)) for name in self.names]

    def _unread(self, tables: Sequence[Table]) -> InputError:
        """The refusal of what is no table of names and classes."""
        for table in tables:
            if min(map(len, table)) > 1:
                cells = [row[-1].split()[0] if row[-1].split() else "" for row in table]
                wrong = [[cell for cell in some if self._class(cell) is None] for some in (cells[1:], cells)]
                if any(wrong):  # the first line may be a header
                    return self._foreign(cells[1:] if wrong[0] else cells, (wrong[0] or wrong[1])[0])
        return self._error("a line is LABEL, or FILE LABEL, and not all lines are one of them")


# --- lines into cells ------------------------------------------------------------------------------


def _by_comma(lines: Sequence[str], delimiter: str = ",") -> Table:
    if not all(delimiter in line for line in lines):
        return []
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, strict=True) if row]
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


_SPLITS: tuple[Callable[[Sequence[str]], Table], ...] = (_by_tab, _label_last, _by_comma, _by_semicolon, _label_first)


# --- names -----------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("./")


def _same(name: str) -> str:
    return name


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _without_ending(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.rpartition(".")
    return f"{folder}{slash}{stem if dot and ending.isalnum() and len(ending) < 6 else base}"


def _stem(name: str) -> str:
    return _without_ending(_base(name))


def _why_missing(missing: Sequence[str], known: Iterable[str]) -> str:
    """What is to be done where the names of images are listed, and which of several images is meant is not."""
    listed = set(map(_stem, known))
    if not any(_stem(name) in listed for name in missing):
        return ""
    return "; file names alone are not unique, so write paths as they are below the folder"


def _two_orders(names: Sequence[str]) -> tuple[str, str] | None:
    """Two neighbours that change places between the orders in which programs list files, or None.

    By letters, folder by folder or in one piece; by numbers within names; without regard to capitals.
    """
    for key in (str, _numbers, str.lower):
        for ours, theirs in zip(names, sorted(names, key=key), strict=True):
            if ours != theirs:
                return ours, theirs
    return None


def _numbers(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts 2 before 10."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", name) if piece]
