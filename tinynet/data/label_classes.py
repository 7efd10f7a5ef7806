"""The classes that a file of labels has, where no network or list says what they are."""

import re
from collections.abc import Sequence

from tinynet.data.file_names import base, plain
from tinynet.data.labels import (
    WNID,
    Labels,
    column_titles,
    count_names,
    has_title,
    titled_columns,
    words_of,
)
from tinynet.data.layout import subset_of
from tinynet.data.tables import Table


def classes_of(source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in the file of labels `source`, sorted: by value if all are numbers.

    `names`: paths of the images, by which the column of file names is recognised. Raises
    `InputError` if the file names none of the images, or does not say which column is the label.
    """
    reader = Labels(source, (), names)
    lines = reader.lines()
    if not lines:
        raise reader.label_error("is empty; write one line FILE LABEL for each image")
    if words := words_of(lines):
        return _sorted(words[1:] if has_title(words) else words)
    tables = [table for table in reader.tables(lines) if min(map(len, table)) > 1]
    # Whole names count more than names without extension: a label 2 may also stand for 2.jpg.
    ranks = [
        max(
            (count_names(table, column, reader.whole_names), matches[column])
            for column in range(len(matches))
        )
        for table in tables
        for matches, _ in [reader.matches(table, min(map(len, table)))]
    ]
    if not ranks or max(ranks) == (0, 0):
        example = f", such as {names[0]}" if names else ""
        raise reader.label_error(
            f"names none of the {len(names):,} images{example}; write lines of FILE LABEL"
        )
    table = tables[ranks.index(max(ranks))]
    reader.check_widths(table)
    return _sorted(_labels(reader, table))


def _labels(reader: Labels, table: Table) -> list[str]:
    """The labels in a table: its column called label or the like, of wnids, or the only other."""
    width = min(map(len, table))
    titles = column_titles(table)
    matches, names = reader.matches(table, width)
    file = reader.file_columns(matches, titles)[0]
    first = plain(table[0][file])
    rows = table[int(not {first, base(first)} & names) :]
    rest = [column for column in range(width) if column != file]
    titled = titled_columns(titles, rest) if len(rows) < len(table) else []
    wnids = [column for column in rest if all(WNID.match(row[column].strip()) for row in rows)]
    _refuse_splits(reader, titles, rows)
    columns = next((each for each in (titled, wnids) if len(each) == 1), rest)
    if len(columns) > 1:
        numbers = ", ".join(str(column + 1) for column in columns)
        raise reader.label_error(
            f"does not say which of its columns {numbers} is the label; name one 'label' in a "
            "header, or keep two columns, FILE and LABEL"
        )
    words = [row[columns[0]].strip().strip('"') for row in rows]
    if "" in words:
        raise reader.label_error(
            f"has no label for {rows[words.index('')][file].strip()}; every image needs one, so "
            "add the label, or remove the image"
        )
    # Kaggle writes a box after each wnid.
    return [word.split()[0] for word in words] if columns == wnids else words


def _refuse_splits(reader: Labels, titles: Sequence[str], rows: Table) -> None:
    """Raise `InputError` for a column that says which images are for val: it would be ignored."""
    for column, title in enumerate(titles):
        if title in ("split", "subset", "set", "partition") and all(
            subset_of(row[column].strip()) for row in rows
        ):
            raise reader.label_error(
                f"has a column {title!r}, which is not used; move the images into folders train/ "
                "and val/, and remove the column"
            )


def _sorted(words: Sequence[str]) -> tuple[str, ...]:
    classes = set(words)
    numeric = all(re.fullmatch(r"\d{1,9}", word) for word in classes)
    return tuple(sorted(classes, key=int) if numeric else sorted(classes))
