"""The parquet files of the Hub's mirrors, shown in the layout of the archive (the extra `parquet`).

A mirror has a file or more for `train`, and one for `valid` (or `validation`, `val`), with the
images as bytes and the labels as numbers; the names of the labels stand in the metadata of the
schema.
"""

import json
import re
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinynet.data.annotations import ANNOTATIONS
from tinynet.data.walk import LeftOut
from tinynet.errors import InputError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAME = re.compile(rf"({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-(\d+)\b")
_KINDS = ("Image", "ClassLabel")


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a mirror in `folder`, or in its folder `data`, by split; none where it
    is no mirror.
    """
    for place in (folder, folder / "data"):
        files: dict[str, list[Path]] = {}
        for file in sorted(place.glob("*.parquet")):
            if name := _NAME.match(file.name):
                files.setdefault(_SPLITS[name[1].lower()], []).append(file)
        if "train" in files:
            return files
    return {}


def _refuse_missing(files: dict[str, list[Path]]) -> None:
    """Raise `InputError` where the name of a file says that there are more."""
    for shards in files.values():
        for file in shards:
            count = int(shard[1]) if (shard := _SHARD.search(file.name)) else len(shards)
            if count != len(shards):
                raise InputError(
                    f"{file}: is one of {count} files, and {len(shards)} are there; download all "
                    "of them, or remove what belongs to another set"
                )


class ParquetSource:
    """A mirror's images under the names that the archive would give them, in the order of their
    rows.

    Raises `InputError` where pyarrow is missing, or a file is no mirror's.
    """

    travels = True

    def __init__(self, path: Path):
        self.path, self.left_out = path, LeftOut()
        self._files = parquet_files(path)
        _refuse_missing(self._files)
        self._group: tuple[Path, int] | None = None
        self._images: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "left_out": self.left_out,
            "_files": self._files,
            "_group": None,
            "_images": None,
        }

    def table(self) -> list[tuple[str, int, int]]:
        """Name, size in bytes and modification time in nanoseconds; all images of a file have those
        of the file.
        """
        texts = [(name, len(text), 0) for name, text in self._texts.items()]
        return texts + [(name, *_stamp(file)) for name, (file, _) in self._places.items()]

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        if name in self._texts:
            return self._texts[name]
        file, row = self._places[name]
        starts = self._starts[file]
        group = bisect_right(starts, row) - 1
        if self._group != (file, group):
            column, _ = self._columns
            self._images = (
                self._opened[file]
                .read_row_group(group, columns=[column])
                .column(0)
                .combine_chunks()
            )
            self._group = file, group
        image = self._images[row - starts[group]].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise InputError(f"{file}: row {row} has no image bytes; download the file again")
        return data

    @cached_property
    def _opened(self) -> dict[Path, Any]:
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise InputError(
                f"{self.path}: reading parquet needs pyarrow; run pip install pyarrow"
            ) from None
        opened = {}
        for file in (file for files in self._files.values() for file in files):
            try:
                opened[file] = ParquetFile(file)
            except Exception as error:  # a broken file raises nearly anything
                raise InputError(
                    f"{file}: cannot be read as parquet ({type(error).__name__}); download the "
                    "file again"
                ) from None
        return opened

    @cached_property
    def _starts(self) -> dict[Path, list[int]]:
        """The first row of every row group of a file."""
        counts = {
            file: [
                opened.metadata.row_group(group).num_rows
                for group in range(opened.metadata.num_row_groups)
            ]
            for file, opened in self._opened.items()
        }
        return {file: [0, *accumulate(numbers)] for file, numbers in counts.items()}

    @cached_property
    def _features(self) -> dict[str, Any]:
        """What the metadata say of the columns of images and labels; all files must say the
        same.
        """
        first = self._files["train"][0]
        features = self._features_of(first)
        for file in self._opened:
            if file != first and self._labelled(file) and self._features_of(file) != features:
                raise InputError(
                    f"{file}: its columns or class names differ from those of {first.name}; use "
                    "the files of one mirror"
                )
        return features

    def _labelled(self, file: Path) -> bool:
        """Whether a file has labels; those of test may have none."""
        return file not in self._files.get("test", ()) or b"huggingface" in (
            self._opened[file].schema_arrow.metadata or {}
        )

    def _features_of(self, file: Path) -> dict[str, Any]:
        metadata = self._opened[file].schema_arrow.metadata
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return {
                name: feature
                for name, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") in _KINDS
            }
        except (KeyError, TypeError, ValueError, AttributeError):
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
            has = ", ".join(f"{len(names)} of {kind}" for kind, names in columns.items())
            raise InputError(
                f"{self.path}: needs one Image and one ClassLabel column but has {has}; use the "
                "unmodified files of a mirror of Tiny ImageNet"
            )
        (image,), (label,) = columns.values()
        return image, label

    @cached_property
    def _rows(self) -> dict[str, list[tuple[Path, int, int]]]:
        """The rows of every split: file, row and label, -1 where it has none."""
        _, label = self._columns
        rows: dict[str, list[tuple[Path, int, int]]] = {}
        for split, files in self._files.items():
            rows[split] = []
            for file in files:
                if label in self._opened[file].schema_arrow.names:
                    labels = self._opened[file].read(columns=[label]).column(0).to_pylist()
                else:
                    labels = [-1] * self._opened[file].metadata.num_rows
                rows[split] += [
                    (file, row, -1 if at is None else at) for row, at in enumerate(labels)
                ]
        return rows

    @cached_property
    def _classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        _, label = self._columns
        names = self._features[label].get("names")
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) and name.strip() for name in names)
            or len(set(names)) < len(names)
            or any("/" in name or "\n" in name for name in names)
        ):
            raise InputError(
                f"{self.path}: its class names are empty, repeated or contain '/' or a line break; "
                "use the unmodified files from the Hub"
            )
        for split in ("train", "val"):
            for file, row, at in self._rows.get(split, ()):
                if not 0 <= at < len(names):
                    raise InputError(
                        f"{file}: row {row} has label {at}, and labels go from 0 to "
                        f"{len(names) - 1}; download the file again"
                    )
        return names

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        """The name of every image -> its file and row."""
        places = {}
        for split, rows in self._rows.items():
            for number, (file, row, at) in enumerate(rows):
                name = f"{split}_{number:07d}.JPEG"
                if split == "train":
                    folder = self._classes[at]
                    places[f"train/{folder}/images/{folder}_{number:07d}.JPEG"] = file, row
                else:
                    places[f"{split}/images/{name}"] = file, row
        return places

    @cached_property
    def _texts(self) -> dict[str, bytes]:
        """The texts that the archive would have: classes and the labels of val."""
        lines = [
            f"val_{number:07d}.JPEG\t{self._classes[at]}\n"
            for number, (*_, at) in enumerate(self._rows.get("val", ()))
        ]
        texts = {
            "wnids.txt": "".join(f"{name}\n" for name in self._classes),
            ANNOTATIONS: "".join(lines),
        }
        return {name: text.encode() for name, text in texts.items() if text}


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
