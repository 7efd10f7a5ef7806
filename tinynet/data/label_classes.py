"""The classes that a file of labels has, where no network or list says what they are."""

import re
from collections.abc import Sequence

from tinynet.data.file_names import base, plain, stem, without_extension
from tinynet.data.labels import LABEL_TITLES, Labels
from tinynet.data.tables import SPLITS, Table


def classes_of(source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in the file of labels `source`, sorted: by value if all are numbers.

    `names`: paths of the images, by which the column of file names is recognised. Raises
    `InputError` if the file names none of the images, or does not say which column is the label.
    """
    reader = Labels(source, (), names)
    lines = [line for line in reader.text().splitlines() if line.strip()]
    if lines and all(len(line.split()) == 1 and not re.search("[,;]", line) for line in lines):
        words = [line.strip() for line in lines]
        return _sorted(words[1:] if len(words) == len(names) + 1 else words)
    tables = [table for split in SPLITS if (table := split(lines)) and min(map(len, table)) > 1]
    known = set(names) | set(map(base, names))
    known |= set(map(stem, known)) | set(map(without_extension, known))
    best = max(tables, key=lambda table: max(_matches(table, known)), default=None)
    if best is None or not max(_matches(best, known)):
        example = f", such as {names[0]}" if names else ""
        raise reader.label_error(
            f"names none of the {len(names):,} images{example}; write lines of FILE LABEL"
        )
    matches = _matches(best, known)
    file = matches.index(max(matches))
    header = int(plain(best[0][file]) not in known and base(plain(best[0][file])) not in known)
    column = _label_column(reader, best, file, header)
    return _sorted([row[column].strip().strip('"') for row in best[header:]])


def _matches(table: Table, names: set[str]) -> list[int]:
    """How many cells of each column name an image."""
    return [
        sum(plain(row[column]) in names or base(plain(row[column])) in names for row in table)
        for column in range(min(map(len, table)))
    ]


def _label_column(reader: Labels, table: Table, file: int, header: int) -> int:
    """The column of labels: the one called label or the like, or the only one beside the files."""
    rest = [column for column in range(min(map(len, table))) if column != file]
    titles = [re.sub(r"[\W_]", "", cell).lower() for cell in table[0]]
    titled = [column for column in rest if header and titles[column] in LABEL_TITLES]
    if len(columns := titled or rest) == 1:
        return columns[0]
    numbers = ", ".join(str(column + 1) for column in columns)
    raise reader.label_error(
        f"does not say which of its columns {numbers} is the label; name one 'label' in a header, "
        "or keep two columns, FILE and LABEL"
    )


def _sorted(words: Sequence[str]) -> tuple[str, ...]:
    classes = set(words)
    numeric = all(re.fullmatch(r"\d{1,9}", word) for word in classes)
    return tuple(sorted(classes, key=int) if numeric else sorted(classes))
