"""The layout of the Tiny ImageNet archive: its file names, classes, labels and boxes.

`tiny-imagenet-200/` contains `wnids.txt` (the classes, not sorted), `words.txt` (class names),
`train/<wnid>/images/*.JPEG` with `train/<wnid>/<wnid>_boxes.txt`, `val/images/*.JPEG` with
`val/val_annotations.txt`, and `test/images/*.JPEG`, which have no labels.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tinynet.console import advice, log
from tinynet.data.annotations import (
    ANNOTATIONS,
    NO_BOX,
    Box,
    as_text,
    by_stem,
    entry_of,
    read_annotations,
    read_box,
)
from tinynet.data.class_checks import check_counts, check_names
from tinynet.data.containers import Listing, list_files
from tinynet.data.decode import image_endings
from tinynet.data.parquet import ParquetContainer
from tinynet.data.places import locate
from tinynet.data.source import SPLITS, Source, Subset, draw_val, without_boxes
from tinynet.data.walk import NO_IMAGES
from tinynet.errors import InputError

_TEXTS = ("_boxes.txt", ANNOTATIONS)


class Archive(Source):
    """Tiny ImageNet as published, or a part of it: classes, labels, boxes and image files.

    `one_size` is false for parquet files, which may be of any data set.
    `wnids`: the class ids in *sorted* order. The class index is the rank in this list, not the
    position in `wnids.txt`. `names`: the class names.
    `train`, `val`, `test`: each a `Subset`.

    Raises `InputError` if the source is not Tiny ImageNet or contradicts itself.
    """

    labels_file = None

    def __init__(self, path: str | Path | Listing):
        listing = path if isinstance(path, Listing) else list_files(locate(path))
        self.container, table = listing
        self.path = self.container.path
        self.one_size = not isinstance(self.container, ParquetContainer)
        self.root = _root(self.path, [name for name, _, _ in table])
        cut = len(self.root)
        self._table = [
            (name[cut:], size, mark) for name, size, mark in table if name.startswith(self.root)
        ]
        self._names = {name for name, _, _ in self._table}
        by_top = self._images()
        self.wnids = self._classes(by_top["train"])
        self._rank = {wnid: rank for rank, wnid in enumerate(self.wnids)}
        words = dict(
            line.split("\t", 1)
            for line in self._optional_text("words.txt").splitlines()
            if "\t" in line
        )
        self.names = tuple(words.get(wnid, wnid) for wnid in self.wnids)
        self.train = self._read_train(by_top["train"])
        self.val = self._read_val(by_top["val"])
        if not self.one_size:
            assert self.train.labels is not None
            check_names(self.path, self.wnids)
            check_counts(self.path, self.wnids, self.train.labels, bool(self.val.files))
            if not self.val.files:
                self.train, self.val = draw_val(self.path, self.train)
        self.test = without_boxes(tuple(by_top["test"]), self._test_labels(by_top["test"]))
        self.container.skipped.report(self.path)

    def _images(self) -> dict[str, list[str]]:
        """Top folder -> sorted names of its images; counts the other files as skipped."""
        by_top: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._names):
            top, _, rest = name.partition("/")
            if top not in SPLITS or not rest or name.endswith(_TEXTS):
                continue
            if "\n" in name or "\r" in name:
                raise InputError(
                    f"{self.path}: the file name {name!r} contains a line break; rename the file"
                )
            if Path(name).suffix.lower() in image_endings():
                by_top[top].append(name)
            else:
                self.container.skipped.add(NO_IMAGES, name)
        return by_top

    def _classes(self, train: list[str]) -> tuple[str, ...]:
        """The sorted wnids of `wnids.txt`, or the folders of train if that file is missing."""
        if "wnids.txt" in self._names:
            lines = [line.strip() for line in self._text("wnids.txt").splitlines()]
            wnids = sorted(line for line in lines if line)
            duplicates = [wnid for wnid, count in Counter(wnids).items() if count > 1]
            if not wnids or duplicates:
                problem = f"lists {duplicates[0][:60]} twice" if duplicates else "is empty"
                raise InputError(
                    f"{self.path}: wnids.txt {problem}; it must list each class once, so fetch the "
                    "archive again"
                )
            return tuple(wnids)
        wnids = sorted({name.split("/")[1] for name in train if name.count("/") > 1})
        if not wnids:
            raise InputError(
                f"{self.path}: no wnids.txt and no images under train/; expected "
                "train/<wnid>/images/*.JPEG, so fetch the archive again with `python -m "
                "tinynet.data get`"
            )
        log(
            f"note: {self.path}: wnids.txt is missing; using the {len(wnids):,} folders in train/ "
            "as classes"
        )
        return tuple(wnids)

    def _test_labels(self, files: list[str]) -> np.ndarray | None:
        """The labels of test, which only parquet files may have."""
        classes = getattr(self.container, "test_labels", None)
        if not classes:
            return None
        return np.array([self._rank[classes[file]] for file in files], np.int64)

    def digest(self) -> str:
        """SHA-256 (hex) of the rows of the table and the container's `seal`."""
        prefixes = ("wnids.txt", "words.txt", "train/", "val/", "test/")
        lines = "\n".join(
            f"{name}\t{size}\t{mark}"
            for name, size, mark in sorted(self._table)
            if name.startswith(prefixes)
        )
        text = lines + self.container.seal()
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def _text(self, name: str) -> str:
        data = self.read(name)
        try:
            return as_text(data)
        except ValueError:
            raise InputError(f"{self.path}: {name} is not text; fetch the archive again") from None

    def _optional_text(self, name: str) -> str:
        return self._text(name) if name in self._names else ""

    def _read_train(self, files: list[str]) -> Subset:
        if not files:
            raise InputError(
                f"{self.path}: no images under train/; expected train/<wnid>/images/*.JPEG, so "
                "fetch the archive again with `python -m tinynet.data get`"
            )
        labels, boxes = [], []
        class_boxes: dict[str, dict[str, Box]] = {}
        for file in files:
            wnid = self._class_folder(file, "train")
            if wnid not in class_boxes:
                class_boxes[wnid] = by_stem(self._boxes(f"train/{wnid}/{wnid}_boxes.txt"))
            labels.append(self._rank[wnid])
            boxes.append(entry_of(class_boxes[wnid], file) or NO_BOX)
        if empty := [wnid for wnid in self.wnids if wnid not in class_boxes]:
            raise InputError(
                f"{self.path}: train/ has no images of {len(empty):,} classes of wnids.txt (first: "
                f"{empty[0][:60]}); fetch the archive again, or remove their lines from wnids.txt"
            )
        return Subset(tuple(files), np.array(labels, np.int64), np.array(boxes, np.int16))

    def _boxes(self, name: str) -> dict[str, Box]:
        rows = (line.split("\t") for line in self._optional_text(name).splitlines())
        try:
            return {row[0]: read_box(row[1:]) for row in rows if len(row) == 5}
        except ValueError:
            raise InputError(
                f"{self.path}: {name} must hold lines 'file TAB x0 TAB y0 TAB x1 TAB y1' "
                "of whole numbers; fetch the archive again"
            ) from None

    def _class_folder(self, file: str, part: str) -> str:
        """The wnid in `part/<wnid>/[images/]<image>`; raises `InputError` for other paths."""
        pieces = file.split("/")
        if len(pieces) == 3 or (len(pieces) == 4 and pieces[2] == "images"):
            if pieces[1] in self._rank:
                return pieces[1]
            raise InputError(
                f"{self.path}: {file} is in {part}/{pieces[1]}, which is not one of the "
                f"{len(self.wnids)} classes in wnids.txt; remove it, or add it to wnids.txt"
            )
        raise InputError(
            f"{self.path}: {file} is not in a class folder; move it to {part}/<wnid>/images/"
        )

    def _read_val(self, files: list[str]) -> Subset:
        """Read val, with labels from its annotations or from class folders."""
        if not files:
            return Subset((), np.zeros(0, np.int64), np.zeros((0, 4), np.int16))
        lines = self._annotations()
        annotations = by_stem(lines)
        flat = [f for f in files if f.startswith("val/images/") and f.count("/") == 2]
        if flat and len(flat) < len(files):
            raise InputError(
                f"{self.path}: val/ has {len(flat)} images in val/images and "
                f"{len(files) - len(flat)} in class folders; keep only one layout"
            )
        self._refuse_equal_stems(files)
        labels, boxes = [], []
        for file in files:
            entry = entry_of(annotations, file)
            wnid = self._class_folder(file, "val") if not flat else entry and entry[0]
            if wnid is None:
                raise InputError(
                    f"{self.path}: {ANNOTATIONS} has no line for {file}; it must list all "
                    f"{len(files)} images, so fetch the archive again"
                )
            if entry and entry[0] != wnid:
                raise InputError(
                    f"{self.path}: {file} is in the folder of class {wnid}, but {ANNOTATIONS} says "
                    f"{entry[0]}; fetch the archive again"
                )
            labels.append(self._rank[wnid])
            boxes.append(entry[1] if entry else NO_BOX)
        if flat and len(files) < len(lines):
            log(
                f"note: {self.path}: {ANNOTATIONS} lists {len(lines):,} images, but "
                f"{len(files):,} exist"
            )
        return Subset(tuple(files), np.array(labels, np.int64), np.array(boxes, np.int16))

    def _refuse_equal_stems(self, files: list[str]) -> None:
        """Raise `InputError` if one line of the annotations matches two images of val."""
        stems: dict[str, str] = {}
        for file in files:
            stem = Path(file).stem
            if (first := stems.setdefault(stem, file)) != file:
                raise InputError(
                    f"{self.path}: {first} and {file} match the same line of {ANNOTATIONS}; remove "
                    "one of them"
                )

    def _annotations(self) -> dict[str, tuple[str, Box]]:
        """Read `val/val_annotations.txt` as file -> (wnid, box)."""
        if ANNOTATIONS not in self._names:
            if any(f.startswith("val/images/") and f.count("/") == 2 for f in self._names):
                raise InputError(
                    f"{self.path}: {ANNOTATIONS} is missing, so val/images has no labels; fetch "
                    "the archive again with `python -m tinynet.data get`"
                )
            return {}
        text = self._text(ANNOTATIONS)
        try:
            return read_annotations(text, self.wnids)
        except ValueError as error:
            raise InputError(
                f"{self.path}: {ANNOTATIONS}, {error}; fetch the archive again"
            ) from None


def _root(path: Path, names: Sequence[str]) -> str:
    """The root folder in the source, '' or 'name/': the shallowest with wnids.txt or train/.

    Raises `InputError` if there is none, or several.
    """
    tops = {name[: -len("wnids.txt")] for name in names if name.split("/")[-1] == "wnids.txt"}
    train_parents = {
        f"/{name}".partition("/train/")[0][1:] for name in names if "/train/" in f"/{name}"
    }
    roots = tops or {f"{top}/" if top else "" for top in train_parents}
    if not roots:
        example = f" (first: {names[0]})" if names else ""
        raise InputError(
            f"{path}: not Tiny ImageNet: no wnids.txt and no train/ folder in its {len(names):,} "
            f"files{example}; fetch the official archive with `python -m tinynet.data get`"
        )
    depth = min(root.count("/") for root in roots)
    shallowest = sorted(root for root in roots if root.count("/") == depth)
    if len(shallowest) > 1:
        raise InputError(
            f"{path}: contains several data sets ({', '.join(shallowest[:3])}); extract one and "
            "name it" + advice(" with --data")
        )
    return shallowest[0]


def find_classes(text: str, wnids: Sequence[str], names: Sequence[str]) -> list[int]:
    """Find the class indices for a wnid, or for part of a class name in any case.

    "coral" finds brain coral and coral reef. Raises `InputError` with similar names if no class
    matches.
    """
    query = text.strip().lower()
    indices = [
        index
        for index, (wnid, name) in enumerate(zip(wnids, names, strict=True))
        if query == wnid or (query and query in name.lower())
    ]
    if not indices:
        words = {part.strip().lower(): part.strip() for name in names for part in name.split(",")}
        similar = [words[word] for word in get_close_matches(query, words, 3, 0.5)]
        hint = (
            f"similar names are {', '.join(similar)}"
            if similar
            else "`python -m tinynet.data show` shows random images with their class names"
        )
        raise InputError(f"no class called {text!r}; {hint}")
    return indices
