"""Read the Hub's parquet mirrors in the layout of the archive (needs the extra `parquet`).

A mirror has one or more files for `train` and for `valid` (or `validation`, `val`). They contain
the images as bytes and the labels as numbers. The schema's metadata contain the class names.
"""

import json
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinynet.data.annotations import ANNOTATIONS
from tinynet.data.decode import image_endings
from tinynet.data.walk import SkippedFiles, file_mark
from tinynet.errors import InputError
from tinynet.records import Json

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAME = re.compile(rf"({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-(\d+)\b")
_NUMBERS = re.compile(r"-\d+-of-\d+.*$|[-_.]?\d+$")
_KINDS = ("Image", "ClassLabel")
_UNLABELLED = -1  # the Hub's label of images without one


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """List the files of a mirror by split, in `folder` or `folder/data`; empty if not a mirror."""
    for parent in (folder, folder / "data"):
        files: dict[str, list[Path]] = {}
        for file in _with_ending(parent, ".parquet"):
            if name := _NAME.match(file.name):
                files.setdefault(_SPLITS[name[1].lower()], []).append(file)
        if "train" in files:
            return files
    return {}


def _with_ending(folder: Path, ending: str) -> list[Path]:
    """The files of a folder whose names end with `ending`, in upper or lower case.

    There are none if the folder does not exist.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.lower().endswith(ending)]


def _refuse_missing(files: dict[str, list[Path]]) -> None:
    """Raise `InputError` if a file name announces more files than exist, or two data sets mix."""
    for split, shards in files.items():
        sets = {_NUMBERS.sub("", file.stem): file for file in reversed(shards)}
        if len(sets) > 1:
            first, second = sorted(sets.values())[:2]
            raise InputError(
                f"{first}: is {split} of another data set than {second.name}; keep the files of "
                "one data set in the folder"
            )
        for file in shards:
            count = int(shard[1]) if (shard := _SHARD.search(file.name)) else len(shards)
            if count != len(shards):
                raise InputError(
                    f"{file}: is one of {count} files, but the folder has {len(shards)}; download "
                    "all of them, or remove the files of another data set"
                )


class ParquetContainer:
    """The images of a mirror with names as in the archive, in the order of the rows.

    Raises `InputError` if pyarrow is missing, or a file does not belong to a mirror.
    """

    picklable = True

    def __init__(self, path: Path):
        self.path, self.skipped = path, SkippedFiles()
        self._files = parquet_files(path)
        _refuse_missing(self._files)
        self._group: tuple[Path, int] | None = None
        self._images: Any = None

    def __getstate__(self) -> Json:
        return {
            "path": self.path,
            "skipped": self.skipped,
            "_files": self._files,
            "_group": None,
            "_images": None,
        }

    def table(self) -> list[tuple[str, int, int]]:
        """List name, size in bytes and a number that changes with the content of every image.

        Size and number are those of the parquet file.
        """
        texts = [(name, len(text), 0) for name, text in self._texts.items()]
        return texts + [(name, *_stamp(file)) for name, (file, _) in self._locations.items()]

    def folders(self) -> set[str]:
        """No folders: the files have columns instead."""
        return set()

    def seal(self) -> str:
        """Return '': the table has the times of the parquet files."""
        return ""

    def read(self, name: str) -> bytes:
        """Read one image or text."""
        if name in self._texts:
            return self._texts[name]
        file, row = self._locations[name]
        starts = self._starts[file]
        group = bisect_right(starts, row) - 1
        if self._group != (file, group):
            column, _ = self._columns
            self._images = self._column(file, column, group)
            self._group = file, group
        image = self._images[row - starts[group]].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise InputError(f"{file}: row {row} has no image bytes; download the file again")
        return data

    @cached_property
    def _readers(self) -> dict[Path, Any]:
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise InputError(
                f"{self.path}: reading parquet needs pyarrow; run pip install pyarrow"
            ) from None
        readers = {}
        for file in (file for files in self._files.values() for file in files):
            try:
                readers[file] = ParquetFile(file)
            except Exception as error:  # a broken file raises almost any exception
                raise _unreadable(file, error) from None
        return readers

    def _column(self, file: Path, column: str, group: int | None = None) -> Any:
        """A column of a file, or of one of its row groups."""
        reader = self._readers[file]
        try:
            table = (
                reader.read(columns=[column])
                if group is None
                else reader.read_row_group(group, columns=[column])
            )
            return table.column(0).combine_chunks()
        except Exception as error:  # a broken file raises almost any exception
            raise _unreadable(file, error) from None

    @cached_property
    def _starts(self) -> dict[Path, list[int]]:
        """File -> the first row of each of its row groups, and the number of rows."""
        counts = {
            file: [
                reader.metadata.row_group(group).num_rows
                for group in range(reader.metadata.num_row_groups)
            ]
            for file, reader in self._readers.items()
        }
        return {file: [0, *accumulate(numbers)] for file, numbers in counts.items()}

    @cached_property
    def _features(self) -> Json:
        """The metadata of the columns of images and labels, which must be equal in all files."""
        first = self._files["train"][0]
        features = self._features_of(first)
        for file in self._readers:
            if file != first and self._has_labels(file) and self._features_of(file) != features:
                raise InputError(
                    f"{file}: its columns or class names differ from those of {first.name}; use "
                    "the files of one mirror"
                )
        return features

    def _has_labels(self, file: Path) -> bool:
        """Whether a file has labels; only files of test may have none."""
        return file not in self._files.get("test", ()) or b"huggingface" in (
            self._readers[file].schema_arrow.metadata or {}
        )

    def _features_of(self, file: Path) -> Json:
        metadata = self._readers[file].schema_arrow.metadata
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return {
                name: feature
                for name, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") in _KINDS
            }
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise InputError(
                f"{file}: has no class names in its metadata; use the unmodified files from the Hub"
            ) from None

    @cached_property
    def _columns(self) -> tuple[str, str]:
        """The names of the columns of images and of labels."""
        columns = {
            kind: [name for name, feature in self._features.items() if feature["_type"] == kind]
            for kind in _KINDS
        }
        if any(len(names) != 1 for names in columns.values()):
            counts = ", ".join(f"{len(names)} of {kind}" for kind, names in columns.items())
            raise InputError(
                f"{self.path}: needs one Image and one ClassLabel column but has {counts}; use the "
                "unmodified files of a data set of images with one label each"
            )
        (image,), (label,) = columns.values()
        for split, files in self._files.items():
            for file in files:
                present = self._readers[file].schema_arrow.names
                for column in (image,) if split == "test" else (image, label):
                    if column not in present:
                        raise InputError(
                            f"{file}: has no column {column!r}, but its metadata list one; use "
                            "the unmodified files from the Hub"
                        )
        return image, label

    @cached_property
    def _rows(self) -> dict[str, list[tuple[Path, int, int]]]:
        """Split -> file, row and label of each image; label -1 where it is missing."""
        _, label = self._columns
        rows: dict[str, list[tuple[Path, int, int]]] = {}
        for split, files in self._files.items():
            rows[split] = []
            for file in files:
                if label in self._readers[file].schema_arrow.names:
                    labels = self._column(file, label).to_pylist()
                else:
                    labels = [_UNLABELLED] * self._readers[file].metadata.num_rows
                rows[split] += [
                    (file, row, _UNLABELLED if value is None else value)
                    for row, value in enumerate(labels)
                ]
        return rows

    @cached_property
    def _classes(self) -> list[str]:
        """The class names, in the order of the labels."""
        _, label = self._columns
        names = self._features[label].get("names")
        if isinstance(names, list):
            names = [name.strip() if isinstance(name, str) else name for name in names]
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) < len(names)
            or any("/" in name or "\n" in name for name in names)
        ):
            raise InputError(
                f"{self.path}: its class names are empty, repeated or contain '/' or a line break; "
                "use the unmodified files from the Hub"
            )
        for split in ("train", "val"):
            for file, row, value in self._rows.get(split, ()):
                if not _is_index(value, names):
                    label = "no label" if value == _UNLABELLED else f"label {str(value)[:60]}"
                    raise InputError(
                        f"{file}: row {row} has {label}; a label must be an integer from 0 to "
                        f"{len(names) - 1}, so download the file again"
                    )
        if unused := set(range(len(names))) - {value for *_, value in self._rows["train"]}:
            raise InputError(
                f"{self.path}: classes without images in train: {len(unused):,} (first: "
                f"{names[min(unused)]!r}); every class needs images, so choose another data set"
            )
        return names

    @cached_property
    def _locations(self) -> dict[str, tuple[Path, int]]:
        """Name of an image -> its parquet file and row."""
        return {
            f"train/{self._classes[value]}/images/{name}"
            if split == "train"
            else f"{split}/images/{name}": (file, row)
            for split, rows in self._rows.items()
            for name, (file, row, value) in zip(self._names[split], rows, strict=True)
        }

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Split -> the file names of its images: those of the mirror, or numbers without them."""
        names = {}
        for split, rows in self._rows.items():
            own = self._own_names(split)
            folders = [value if split == "train" else 0 for _, _, value in rows]
            # In the archive's layout, a label belongs to a name without its extension.
            stems = [Path(name).stem for name in own or ()]
            if own and len(set(zip(folders, stems, strict=True))) == len(own):
                names[split] = own
                continue
            names[split] = [
                f"{self._classes[value] if split == 'train' else split}_{number:07d}.JPEG"
                for number, (_, _, value) in enumerate(rows)
            ]
        return names

    @property
    def test_labels(self) -> dict[str, str] | None:
        """Name of an image of test -> its class; None unless each of them has one."""
        classes, rows = self._classes, self._rows.get("test", [])
        if not rows or not all(_is_index(value, classes) for *_, value in rows):
            return None
        names = self._names["test"]
        return {
            f"test/images/{name}": classes[value]
            for name, (*_, value) in zip(names, rows, strict=True)
        }

    def _own_names(self, split: str) -> list[str] | None:
        """The names that a mirror stores beside the images; None if one has none."""
        names: list[str] = []
        for file in self._files[split]:
            column = f"{self._columns[0]}.path"
            try:
                paths = self._column(file, column).field("path").to_pylist()
            except Exception:  # the images are bytes without a struct, or the struct has no path
                return None
            names += [str(path or "").replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
        good = all(
            Path(name).suffix.lower() in image_endings() and not {"\t", "\n"} & set(name)
            for name in names
        )
        return names if good else None

    @cached_property
    def _texts(self) -> dict[str, bytes]:
        """The text files that the archive has: the classes, and the labels of val."""
        lines = [
            f"{name}\t{self._classes[value]}\n"
            for name, (*_, value) in zip(
                self._names.get("val", ()), self._rows.get("val", ()), strict=True
            )
        ]
        texts = {
            "wnids.txt": "".join(f"{name}\n" for name in self._classes),
            ANNOTATIONS: "".join(lines),
        }
        return {name: text.encode() for name, text in texts.items() if text}


def _is_index(value: Any, classes: Sequence[str]) -> bool:
    """Whether a label is the index of a class; columns may have floats, texts or lists, too."""
    return type(value) is int and 0 <= value < len(classes)


def _unreadable(file: Path, error: Exception) -> InputError:
    """The error for a file that pyarrow cannot read."""
    return InputError(
        f"{file}: cannot be read as parquet ({type(error).__name__}); download the file again"
    )


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, file_mark(status)
