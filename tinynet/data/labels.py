"""Read files of labels: one label per line, or lines, CSV or tables with file names.

Columns are told apart by what they hold: names of images of the folder, and classes (a wnid, or an
index). Known by it are `FILE LABEL`, CSV with a header, Kaggle's `LOC_val_solution.csv`, Tiny
ImageNet's `val_annotations.txt`.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tinynet.console import log
from tinynet.data import devkit
from tinynet.data.annotations import as_text
from tinynet.errors import InputError

_LABEL_TITLES = {
    f"{word}{part}"
    for word in ("label", "class", "target", "category", "wnid", "synset")
    for part in ("", "s", "id", "idx", "index", "name")
} | {"y", "predictionstring"}

_LARGEST = 2**28  # bytes
_WNID = re.compile(r"n\d{8}\b")

Table = list[list[str]]


class Labels:
    """A file of labels for images: `names` are their paths below a folder, `classes` the names of
    the classes.

    Raises `InputError` where a label is missing, is none of the classes, contradicts another, or
    could belong to another image.
    """

    def __init__(self, source: str, classes: Sequence[str], names: Sequence[str]):
        self.source, self.classes, self.names = source, classes, names
        self._index = {name: number for number, name in enumerate(classes)}

    def read(self) -> tuple[int, ...]:
        """The index of every image's class."""
        lines = [line for line in self._text().splitlines() if line.strip()]
        words = [line.split() for line in lines]
        if all(len(line) == 1 for line in words) and not any(
            re.search("[,;]", line) for line in lines
        ):
            return self._by_position([line[0] for line in words])
        tables = [table for split in _SPLITS if (table := split(lines))]
        read, errors = [], []
        for table in tables:
            try:
                columns = self._columns(table)
            except InputError as error:
                errors.append(error)
            else:
                read += [(*columns, table)] if columns else []
        matches, file, label, header, table = max(
            read, key=lambda columns: columns[0], default=(0, 0, 0, 0, [])
        )
        # what another way of splitting lines found may be a part
        if errors and matches < len(self.names):
            raise errors[0]
        if not table:
            raise self._unread(tables)
        return self._by_name(table[header:], file, label)

    def numbered(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Labels by position; raises `InputError` where programs differ in the order of the
        files.
        """
        if len(self.names) != len(labels):
            raise self._error(
                f"has {len(labels):,} labels for {len(self.names):,} images; it must have one for "
                "each"
            )
        if differing := _two_orders(self.names):
            raise self._error(
                "has labels without file names, and programs differ in the order of "
                f"{differing[0]} and {differing[1]}; write lines of FILE LABEL"
            )
        return tuple(labels)

    def _error(self, text: str) -> InputError:
        return InputError(f"--labels {self.source}: {text}")

    def _text(self) -> str:
        try:
            if Path(self.source).stat().st_size > _LARGEST:
                raise self._error(f"is larger than {_LARGEST:,} bytes; name a file of labels")
            return as_text(Path(self.source).read_bytes())
        except InputError:
            raise
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror}); check its permissions") from None
        except ValueError:
            raise self._error(
                "is not a text file; name one with a wnid or a class index per line"
            ) from None

    def _class(self, cell: str) -> int | None:
        """The class that a cell names: a number, or a class id, behind which Kaggle writes a
        box.
        """
        words = cell.strip().strip('"').split()
        if not words or (words[0] not in self._index and len(words) > 1):
            return None
        if words[0] in self._index:
            return self._index[words[0]]
        digits = words[0].isascii() and words[0].isdecimal() and len(words[0]) < 10
        return int(words[0]) if digits and int(words[0]) < len(self.classes) else None

    # --- by position
    # -------------------------------------------------------------------------------

    def _by_position(self, words: Sequence[str]) -> tuple[int, ...]:
        if Path(self.source).name == devkit.TRUTH:
            raise self._error(
                "has the devkit's own class numbers, which are not indices of a network; name the "
                "devkit's folder instead (it contains data/meta.mat)"
            )
        if len(words) == len(self.names) + 1 and self._class(words[0]) is None:
            words = words[1:]  # a header
        labels = [self._class(word) for word in words]
        if None in labels:
            raise self._foreign(words, words[labels.index(None)])
        return self.numbered(labels)

    def _foreign(self, words: Sequence[str], first: str) -> InputError:
        """The refusal of labels that are none of the classes, for what they are."""
        count = len(self.classes)
        numbers = [int(word) for word in words if re.fullmatch(r"-?[0-9]{1,9}", word)]
        if len(numbers) < len(words):
            return self._error(
                f"{first[:60]!r} is not one of the network's {count} classes; use a wnid such as "
                f"{self.classes[0]!r}, or an index from 0 to {count - 1}"
            )
        why = "it may count from 1; " if min(numbers) == 1 and max(numbers) == count else ""
        return self._error(
            f"index {first} is out of range: the network has indices 0 to {count - 1}, and the "
            f"file has {min(numbers)} to {max(numbers)}; {why}use wnids, or the network's own "
            "indices"
        )

    # --- by name
    # -----------------------------------------------------------------------------------

    def _columns(self, table: Table) -> tuple[int, int, int, int] | None:
        """How many lines name an image, the columns of names and of labels, and the number of
        header lines.

        None where there are no such columns. Raises `InputError` where several could be of labels,
        or of names.
        """
        width = min(map(len, table))
        if width < 2:
            return None
        matches, listed = self._matches(table, width)
        if width > 2 and not any(matches):
            return None
        titles = [re.sub(r"[\W_]", "", cell).lower() for cell in table[0]]
        for file in self._file_columns(matches, titles):
            first = _plain(table[0][file])
            others = [column for column in range(width) if column != file]
            for header in (0, 1) if not {first, _base(first)} & listed else (0,):
                titled = [column for column in others if header and titles[column] in _LABEL_TITLES]
                label = self._label_column(table[header:], titled or others, bool(titled))
                if label is not None and (matches[file] or header == 0):
                    return matches[file], file, label, header
        return None

    def _matches(self, table: Table, width: int) -> tuple[list[int], set[str]]:
        """How many cells of every column name an image, and the names that count.

        Names with their endings, or, where there are none of these, without: 2 may be a label or
        stand for 2.jpg.
        """
        whole = set(self.names) | set(map(_base, self.names))
        for listed in (whole, whole | set(map(_stem, whole)) | set(map(_without_ending, whole))):
            matches = [
                sum(
                    _plain(row[column]) in listed or _base(_plain(row[column])) in listed
                    for row in table
                )
                for column in range(width)
            ]
            if any(matches):
                break
        return matches, listed

    def _file_columns(self, matches: Sequence[int], titles: Sequence[str]) -> list[int]:
        """The columns that may be of names: those that name most images, without one whose title is
        that of labels.
        """
        likely = [column for column, count in enumerate(matches) if count == max(matches)]
        untitled = [column for column in likely if titles[column] not in _LABEL_TITLES]
        if max(matches) and len(untitled) > 1:
            raise self._error(
                f"columns {untitled[0] + 1} and {untitled[1] + 1} could both be file names; write "
                "file names with their extensions"
            )
        return untitled or likely

    def _label_column(self, rows: Table, columns: Sequence[int], titled: bool) -> int | None:
        """The one of these columns that holds labels: the only one, or the only one of wnids; None
        where none does.

        `titled`: whether their titles say that they hold labels.
        """
        if not rows:
            return None
        cells = {column: [row[column] for row in rows] for column in columns}
        for ids in cells.values():
            if all(map(_WNID.match, ids)) and (
                foreign := [one for one in ids if self._class(one) is None]
            ):
                raise self._foreign(ids, foreign[0])  # class ids, so no other column is of labels
        wnids = [
            column
            for column in columns
            if all(cell.split()[:1] and cell.split()[0] in self._index for cell in cells[column])
        ]
        valid = [
            column
            for column in columns
            if all(self._class(cell) is not None for cell in cells[column])
        ]
        for certain in (wnids, valid if titled or len(columns) == 1 else ()):
            if len(certain) == 1:
                return certain[0]
        if titled and len(columns) == 1:  # what is called a label must be one
            words = cells[columns[0]]
            raise self._foreign(words, next(word for word in words if self._class(word) is None))
        if valid:  # a number may be an age or a fold too
            numbers = ", ".join(str(column + 1) for column in columns)
            raise self._error(
                f"does not say which of its columns {numbers} is the label; name one 'label' in a "
                "header, or keep two columns, FILE and LABEL"
            )
        return None

    def _by_name(self, table: Table, file: int, label: int) -> tuple[int, ...]:
        known: dict[str, int] = {}
        for row in table:
            name, index = _plain(row[file]), self._class(row[label])
            several = {
                word for word in row[label].split() if word in self._index and not word.isdecimal()
            }
            if len(several) > 1 or known.setdefault(name, index) != index:
                other = (
                    " and ".join(sorted(several)[:2])
                    if len(several) > 1
                    else f"{self.classes[known[name]]} and {self.classes[index]}"
                )
                raise self._error(f"gives {name} two labels, {other}; keep one")
        keys = [self._keyed(key, known) for key in (_same, _base, _without_ending, _stem)]
        best = max(keys, key=lambda indices: sum(index is not None for index in indices))
        if None in best:
            missing = [name for name, index in zip(self.names, best, strict=True) if index is None]
            raise self._error(
                f"has no label for {len(missing):,} of {len(self.names):,} images (first: "
                f"{missing[0]}); " + _way_out(missing, known)
            )
        if best not in (keys[0], keys[2]) and any("/" in name for name in known):
            log(f"note: --labels {self.source}: matched files by name; their folders differ")
        if len(known) > len(self.names):
            log(
                f"note: --labels {self.source}: ignored {len(known) - len(self.names):,} labels "
                "for files that are not in the folder"
            )
        return tuple(best)

    def _keyed(self, key: Callable[[str], str], known: dict[str, int]) -> list[int | None]:
        """The label of every image by a part of its name, None where that part has two images or
        two labels.
        """
        labels: dict[str, set[int]] = {}
        for name, index in known.items():
            labels.setdefault(key(name), set()).add(index)
        counts = Counter(map(key, self.names))
        certain = {
            part: next(iter(indices))
            for part, indices in labels.items()
            if len(indices) == 1 and counts[part] == 1
        }
        return [certain.get(key(name)) for name in self.names]

    def _unread(self, tables: Sequence[Table]) -> InputError:
        """The refusal of what is no table of names and classes."""
        for table in tables:
            if min(map(len, table)) > 1:
                cells = [row[-1].split()[0] if row[-1].split() else "" for row in table]
                wrong = [
                    [cell for cell in some if self._class(cell) is None]
                    for some in (cells[1:], cells)
                ]
                if any(wrong):  # the first line may be a header
                    return self._foreign(
                        cells[1:] if wrong[0] else cells, (wrong[0] or wrong[1])[0]
                    )
        return self._error("mixes line formats; every line must be LABEL, or every line FILE LABEL")


# --- lines into cells ---


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


_SPLITS: tuple[Callable[[Sequence[str]], Table], ...] = (
    _by_tab,
    _label_last,
    _by_comma,
    _by_semicolon,
    _label_first,
    _by_space,
)


# --- names ---


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


def _way_out(missing: Sequence[str], known: Iterable[str]) -> str:
    """What to do where images have no label: their names may be listed, and stand for several
    images.
    """
    listed = set(map(_stem, known))
    if any(_stem(name) in listed for name in missing):
        return (
            "some file names occur in several folders, so write paths relative to the image folder"
        )
    return "add the missing lines"


def _two_orders(names: Sequence[str]) -> tuple[str, str] | None:
    """Two neighbours that change places between the orders in which programs list files, or None.

    By letters, folder by folder or in one piece; by numbers within names; without regard to
    capitals.
    """
    for key in (str, _numbers, str.lower):
        for ours, theirs in zip(names, sorted(names, key=key), strict=True):
            if ours != theirs:
                return ours, theirs
    return None


def _numbers(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts 2 before 10."""
    return [
        (0, int(piece)) if piece.isdecimal() else (1, piece)
        for piece in re.split(r"(\d+)", name)
        if piece
    ]
