"""Read files of labels: one label per line, or a table with file names and labels.

The columns of a table are recognised by their content: names of images of the folder, and classes
(wnids or indices). Examples are lines `FILE LABEL`, CSV with a header, Kaggle's
`LOC_val_solution.csv` and Tiny ImageNet's `val_annotations.txt`.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tinynet.console import advice, log, option
from tinynet.data import devkit
from tinynet.data.annotations import as_text
from tinynet.data.file_names import ambiguous_order, base, plain, same, stem, without_extension
from tinynet.data.tables import WAYS, Table
from tinynet.errors import InputError


def labels_name(file: str) -> str:
    """How a message names a file of labels: with the flag, in a command that has it."""
    flag = option("labels")
    return f"{flag} {file}" if not flag.startswith("--") or advice(flag) else file


def words_of(lines: Sequence[str]) -> list[str] | None:
    """Return the labels of lines that are one word each, without file names; None for others."""
    if all(len(line.split()) == 1 and not re.search("[,;]", line) for line in lines):
        return [line.strip().strip('"') for line in lines]
    return None


def column_titles(table: Table) -> list[str]:
    """Return the cells of the first row in lower case, with letters and digits alone."""
    return [re.sub(r"[\W_]", "", cell).lower() for cell in table[0]]


def count_names(table: Table, column: int, names: Collection[str]) -> int:
    """Count the cells of a column that are in `names`, with or without their folders."""
    cells = (plain(row[column]) for row in table)
    return sum(cell in names or base(cell) in names for cell in cells)


LABEL_TITLES = {
    f"{word}{suffix}"
    for word in ("label", "class", "target", "category", "wnid", "synset")
    for suffix in ("", "s", "id", "idx", "index", "name")
} | {"y", "predictionstring"}

_MAX_SIZE = 2**28  # bytes
WNID = re.compile(r"n\d{8}\b")


def titled_columns(titles: Sequence[str], columns: Sequence[int]) -> list[int]:
    """Return the `columns` with the title of a label; if one is called `label`, only that one."""
    exact = [column for column in columns if titles[column] == "label"]
    coordinate = {"y"} if "x" in titles else set()
    likely = LABEL_TITLES - coordinate
    return exact or [column for column in columns if titles[column] in likely]


def has_title(words: Sequence[str]) -> bool:
    """Return whether the first of some labels is a title, such as `label`, and no label."""
    if not words or words.count(words[0]) > 1:
        return False
    return column_titles([[words[0]]])[0] in LABEL_TITLES


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that have file names and labels.

    `matches`: number of rows that name an image of the folder. `header`: number of header rows.
    """

    matches: int
    file: int
    label: int
    header: int


class Labels:
    """Labels of the images of a folder, from a file of labels or as numbers.

    `source`: path of the file. `classes`: wnids or class names; the label is the position in this
    list. `names`: paths of the images relative to the folder. The methods raise `InputError` if a
    label is missing, is not a class, contradicts another label, or could belong to two images.
    """

    def __init__(self, source: str, classes: Sequence[str], names: Sequence[str]):
        self.source, self.classes, self.names = source, classes, names
        self._index = {name: number for number, name in enumerate(classes)}

    @cached_property
    def whole_names(self) -> set[str]:
        """The names of the images, with and without their folders."""
        return set(self.names) | set(map(base, self.names))

    @cached_property
    def _with_stems(self) -> set[str]:
        """The same, and these without extension."""
        whole = self.whole_names
        return whole | set(map(stem, whole)) | set(map(without_extension, whole))

    def read(self) -> tuple[int, ...]:
        """Read the class index of every image."""
        lines = self.lines()
        if (words := words_of(lines)) is not None:
            return self._by_position(words)
        tables = self.tables(lines)
        readings: list[tuple[_Columns, Table]] = []
        errors = []
        for table in tables:
            try:
                columns = self._columns(table)
            except InputError as error:
                errors.append(error)
            else:
                readings += [(columns, table)] if columns else []
        best = max(readings, key=lambda reading: reading[0].matches, default=None)
        # With an error, another way to split the lines may have matched some of the images only.
        if errors and (best[0].matches if best else 0) < len(self.names):
            raise errors[0]
        if best is None:
            raise self._no_table(tables)
        columns, table = best
        self.check_widths(table)
        return self._by_name(table[columns.header :], columns)

    def tables(self, lines: Sequence[str]) -> list[Table]:
        """Return the lines as tables, one for each way to split them that fits.

        Lines of other files without a label are left out: lists may name images to be labelled.
        """
        return [
            [
                row
                for number, row in enumerate(table)
                if number == 0
                or all(row)
                or any({plain(cell), base(plain(cell))} & self._with_stems for cell in row)
            ]
            for way in WAYS
            if (table := way(lines))
        ]

    def check_widths(self, table: Table) -> None:
        """Raise `InputError` for a line with more or fewer cells than the first."""
        for row in table:
            if len(row) != len(table[0]):
                raise self.label_error(
                    f"the line of {row[0]} has {len(row)} cells, but the first has "
                    f"{len(table[0])}; give every line the same number of cells, and put labels "
                    "that contain the separator in quotation marks"
                )

    def numbered(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Assign labels to the images by position.

        Raises `InputError` if the counts differ, or programs sort the files differently.
        """
        if len(self.names) != len(labels):
            raise self.label_error(
                f"has {len(labels):,} labels for {len(self.names):,} images; write one label for "
                "each image; a title line must be label, class or target"
            )
        if pair := ambiguous_order(self.names):
            raise self.label_error(
                "has labels without file names, and programs differ in the order of "
                f"{pair[0]} and {pair[1]}; write lines of FILE LABEL"
            )
        return tuple(labels)

    def label_error(self, text: str) -> InputError:
        """The error of this list: its flag and its name, then `text`."""
        return InputError(f"{labels_name(self.source)}: {text}")

    def lines(self) -> list[str]:
        """Read the lines that are not empty; raises `InputError` if the file is not a text."""
        return [line for line in self._text().splitlines() if line.strip()]

    def _text(self) -> str:
        try:
            if Path(self.source).stat().st_size > _MAX_SIZE:
                raise self.label_error(f"is larger than {_MAX_SIZE:,} bytes; name a file of labels")
            return as_text(Path(self.source).read_bytes())
        except InputError:
            raise
        except OSError as error:
            raise self.label_error(
                f"cannot be read ({error.strerror}); check its permissions"
            ) from None
        except ValueError:
            raise self.label_error(
                "is not a text file in UTF-8 or UTF-16; save it as UTF-8, or name another file"
            ) from None

    def _class(self, cell: str) -> int | None:
        """The class index of a cell: a number, or a class name, after which Kaggle writes a box."""
        text = cell.strip().strip('"')
        if text in self._index:  # also a name of several words
            return self._index[text]
        words = text.split()
        if not words or (words[0] not in self._index and len(words) > 1):
            return None
        if words[0] in self._index:
            return self._index[words[0]]
        digits = words[0].isascii() and words[0].isdecimal() and len(words[0]) < 10
        return int(words[0]) if digits and int(words[0]) < len(self.classes) else None

    # --- labels by position ---

    def _by_position(self, words: Sequence[str]) -> tuple[int, ...]:
        if Path(self.source).name == devkit.TRUTH:
            raise self.label_error(
                "has the devkit's own class numbers, which are not indices of a network; name the "
                "devkit's folder instead (it contains data/meta.mat)"
            )
        if has_title(words) and self._class(words[0]) is None:
            words = words[1:]
        labels = []
        for word in words:
            if (label := self._class(word)) is None:
                raise self._not_a_class(words, word)
            labels.append(label)
        return self.numbered(labels)

    def _not_a_class(self, words: Sequence[str], first: str) -> InputError:
        """The error for labels that are not classes; `first`: the first one of `words`."""
        count = len(self.classes)
        numbers = [int(word) for word in words if re.fullmatch(r"-?[0-9]{1,9}", word)]
        if len(numbers) < len(words):
            return self.label_error(
                f"{first[:60]!r} is not one of the network's {count} classes; use a wnid such as "
                f"{self.classes[0]!r}, or an index from 0 to {count - 1}"
            )
        why = "it may count from 1; " if min(numbers) == 1 and max(numbers) == count else ""
        return self.label_error(
            f"index {first} is out of range: the network has indices 0 to {count - 1}, and the "
            f"file has {min(numbers)} to {max(numbers)}; {why}use wnids, or the network's own "
            "indices"
        )

    # --- labels by file name ---

    def _columns(self, table: Table) -> _Columns | None:
        """Find the columns of file names and of labels; None if there are none.

        Raises `InputError` if several columns could be the one.
        """
        width = min(map(len, table))
        if width < 2:
            return None
        matches, names = self.matches(table, width)
        if width > 2 and not any(matches):
            return None
        titles = column_titles(table)
        for file in self.file_columns(matches, titles):
            first = plain(table[0][file])
            rest = [column for column in range(width) if column != file]
            for header in (0, 1) if not {first, base(first)} & names else (0,):
                titled = titled_columns(titles, rest) if header else []
                label = self._label_column(table[header:], titled or rest, bool(titled))
                if label is not None and (matches[file] or header == 0):
                    return _Columns(matches[file], file, label, header)
        return None

    def matches(self, table: Table, width: int) -> tuple[list[int], set[str]]:
        """Return how many cells of each column name an image, and the accepted names.

        Names without extension are accepted only if no cell has a name with extension: a cell 2 may
        be a label, or stand for 2.jpg.
        """
        for names in (self.whole_names, self._with_stems):
            matches = [count_names(table, column, names) for column in range(width)]
            if any(matches):
                break
        return matches, names

    def file_columns(self, matches: Sequence[int], titles: Sequence[str]) -> list[int]:
        """Return the columns with most names of images, without those with the title of labels."""
        likely = [column for column, count in enumerate(matches) if count == max(matches)]
        untitled = [column for column in likely if titles[column] not in LABEL_TITLES]
        if max(matches) and len(untitled) > 1:
            raise self.label_error(
                f"columns {untitled[0] + 1} and {untitled[1] + 1} could both be file names; write "
                "file names with their extensions"
            )
        return untitled or likely

    def _label_column(self, rows: Table, columns: Sequence[int], titled: bool) -> int | None:
        """The column of labels: the only candidate, or the only one of wnids; None if none fits.

        `titled`: whether the titles of `columns` say that they are labels.
        """
        if not rows:
            return None
        cells = {column: [row[column] for row in rows] for column in columns}
        for words in cells.values():
            if all(map(WNID.match, words)):
                self._check_classes(words)  # wnids, so no other column has the labels
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
        for candidates in (wnids, valid if titled or len(columns) == 1 else ()):
            if len(candidates) == 1:
                return candidates[0]
        if titled and len(columns) == 1:
            self._check_classes(cells[columns[0]])
        if valid:  # a number may also be an age or a fold
            numbers = ", ".join(str(column + 1) for column in columns)
            raise self.label_error(
                f"does not say which of its columns {numbers} is the label; name one 'label' in a "
                "header, or keep two columns, FILE and LABEL"
            )
        return None

    def _check_classes(self, words: Sequence[str]) -> None:
        """Raise `InputError` for the first word that is not a class."""
        for word in words:
            if self._class(word) is None:
                raise self._not_a_class(words, word)

    def _by_name(self, rows: Table, columns: _Columns) -> tuple[int, ...]:
        labels = self._labels_by_name(rows, columns)
        keys = [self._match(key, labels) for key in (same, base, without_extension, stem)]
        best = max(keys, key=lambda indices: sum(index is not None for index in indices))
        complete = [index for index in best if index is not None]
        if len(complete) < len(best):
            missing = [name for name, index in zip(self.names, best, strict=True) if index is None]
            raise self.label_error(
                f"has no label for {len(missing):,} of {len(self.names):,} images (first: "
                f"{missing[0]}); " + _way_out(missing, labels)
            )
        if best not in (keys[0], keys[2]) and any("/" in name for name in labels):
            log(f"note: {labels_name(self.source)}: matched files by name; their folders differ")
        if len(labels) > len(self.names):
            log(
                f"note: {labels_name(self.source)}: ignored "
                f"{len(labels) - len(self.names):,} labels for files that are not in the folder"
            )
        return tuple(complete)

    def _labels_by_name(self, rows: Table, columns: _Columns) -> dict[str, int]:
        """File name -> class index; raises `InputError` if a file has two labels."""
        labels: dict[str, int] = {}
        for row in rows:
            name, index = plain(row[columns.file]), self._class(row[columns.label])
            if index is None:  # a class whose name starts or ends with a quotation mark
                raise self._not_a_class([row[columns.label]], row[columns.label])
            cell = row[columns.label].strip().strip('"')
            words = [cell] if cell in self._index else set(cell.split())
            classes = sorted(word for word in words if word in self._index and not word.isdecimal())
            if len(classes) < 2 and labels.setdefault(name, index) != index:
                classes = [self.classes[labels[name]], self.classes[index]]
            if len(classes) > 1:
                raise self.label_error(
                    f"gives {name} two labels, {' and '.join(classes[:2])}; keep one"
                )
        return labels

    def _match(self, key: Callable[[str], str], labels: dict[str, int]) -> list[int | None]:
        """Match images and labels by a key of their names.

        The label of an image is None if several images, or different labels, have its key.
        """
        indices: dict[str, set[int]] = {}
        for name, index in labels.items():
            indices.setdefault(key(name), set()).add(index)
        counts = Counter(map(key, self.names))
        unique = {
            value: next(iter(numbers))
            for value, numbers in indices.items()
            if len(numbers) == 1 and counts[value] == 1
        }
        return [unique.get(key(name)) for name in self.names]

    def _no_table(self, tables: Sequence[Table]) -> InputError:
        """The error for a file that is not a table of names and classes."""
        for table in tables:
            if min(map(len, table)) > 1:
                cells = [row[-1].split()[0] if row[-1].split() else "" for row in table]
                # The first line may be a header.
                for words in (cells[1:], cells):
                    if wrong := [word for word in words if self._class(word) is None]:
                        return self._not_a_class(words, wrong[0])
        return self.label_error(
            "mixes line formats; every line must be LABEL, or every line FILE LABEL"
        )


def _way_out(missing: Sequence[str], names: Iterable[str]) -> str:
    """What to do for images without a label; `names`: the file names that have labels."""
    stems = set(map(stem, names))
    if any(stem(name) in stems for name in missing):
        return (
            "some file names occur in several folders, so write paths relative to the image folder"
        )
    return "add the missing lines"
