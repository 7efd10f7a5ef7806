"""Any folder of images as a source: a folder for each class, or a file of labels.

    rose/a.jpg  tulip/b.jpg                      val is a part of each class, drawn with a seed
    train/rose/a.jpg  val/tulip/b.jpg  test/c.jpg    val may be called valid or validation, too
    a.jpg  b.jpg  and --labels labels.csv        also with train/, val/ and test/

The class of an image is the path of the topmost folder on its way that directly contains images.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tinynet.console import advice, log, printable
from tinynet.data.containers import FolderContainer, Listing
from tinynet.data.decode import image_endings
from tinynet.data.label_classes import classes_of
from tinynet.data.labels import Labels, labels_name
from tinynet.data.source import Subset, draw_val, without_boxes
from tinynet.data.walk import NO_IMAGES, skip_reason
from tinynet.errors import InputError

_SUBSETS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAMES = 5  # in a message
_NEEDED = {True: 2, False: 3}  # images of a class; with a val of its own: training and hold-out


class ClassFolders:
    """Images in class folders, or images with a file of labels; it is a `Source`.

    `labels`: the file of labels; None: the folders are the classes. Raises `InputError` if the
    images do not make a data set: one class, a class with too few images or in one subset alone,
    two class names that differ only in case.
    """

    one_size = False

    def __init__(self, listing: Listing, labels: str | None = None):
        self.container, table = listing
        self.path, self.labels_file = self.container.path, labels
        images = self._images(name for name, _, _ in table)
        self.root = _root(images)
        cut = len(self.root)
        self._table = sorted(
            (name[cut:], size, mark) for name, size, mark in table if name in images
        )
        by_subset = self._by_subset([name for name, _, _ in self._table])
        if labels is None:
            classes = {name: _class_names(files, name) for name, files in by_subset.items()}
            order = sorted(set(classes["train"]))
        else:
            order, classes = self._labelled(by_subset)
        self.wnids = self._check(order, classes)
        self.names = self.wnids
        index = {name: number for number, name in enumerate(self.wnids)}
        subsets = {
            name: without_boxes(
                tuple(by_subset[name]),
                np.array([index[each] for each in classes[name]], np.int64)
                if classes[name] or name != "test"
                else None,
            )
            for name in by_subset
        }
        self.train, self.val, self.test = subsets["train"], subsets["val"], subsets["test"]
        self._check_counts(bool(self.val.files))
        if not self.val.files:
            self.train, self.val = draw_val(self.path, self.train)
        self.container.skipped.report(self.path)

    def part(self, name: str) -> Subset:
        """Return the subset `name`: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def read(self, file: str) -> bytes:
        """Read one file, named as in `Subset.files`."""
        return self.container.read(self.root + file)

    def digest(self) -> str:
        """SHA-256 (hex) of name, size and CRC-32 (in a folder, time) of the images, and labels."""
        sha256 = hashlib.sha256()
        for name, size, mark in self._table:
            sha256.update(f"{name}\t{size}\t{mark}\n".encode("utf-8", "surrogateescape"))
        if self.labels_file is not None:
            sha256.update(Path(self.labels_file).read_bytes())
        return sha256.hexdigest()

    def _images(self, names: Iterable[str]) -> set[str]:
        """The names of images; counts the other files as skipped."""
        images, endings = set(), image_endings()
        for name in names:
            if "\n" in name or "\r" in name:
                raise InputError(
                    f"{self.path}: the file name {name!r} contains a line break; rename the file"
                )
            if os.path.splitext(name)[1].lower() in endings:
                images.add(name)
            else:
                self.container.skipped.add(NO_IMAGES, name)
        if not images:
            raise InputError(
                f"{self.path}: contains no images; name another folder" + advice(" with --data")
            )
        return images

    def _by_subset(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Subset -> its files; all are of train where there is no folder called train."""
        subsets: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        if not any(name.startswith("train/") for name in names):
            if odd := sorted({name.split("/")[0] for name in names if "/" in name} & {*_SUBSETS}):
                raise InputError(
                    f"{self.path}: has a folder {odd[0]}/ but no train/; add train/, or rename "
                    f"{odd[0]}/ if it is a class"
                )
            return {**subsets, "train": list(names)}
        others: dict[str, list[str]] = defaultdict(list)
        tops: dict[str, set[str]] = defaultdict(set)
        for name in names:
            top = name.split("/")[0] if "/" in name else ""
            tops[_SUBSETS.get(top, "")].add(top)
            (subsets[_SUBSETS[top]] if top in _SUBSETS else others[top]).append(name)
        for subset, folders in tops.items():
            if subset and len(folders) > 1:
                raise InputError(
                    f"{self.path}: has {' and '.join(f'{each}/' for each in sorted(folders))}, "
                    f"which both mean {subset}; keep one"
                )
        for top, files in others.items():
            self.container.skipped.add("outside train, val and test", files[0], len(files))
            log(
                f"note: {self.path}: {printable(top or 'its own level')} is outside train/, val/ "
                f"and test/; {len(files):,} images are not used"
            )
        return subsets

    def _labelled(self, by_subset: dict[str, list[str]]) -> tuple[list[str], dict[str, list[str]]]:
        """The classes of train, and subset -> the classes of its images, by the file of labels."""
        assert self.labels_file is not None
        if not Path(self.labels_file).is_file():
            raise InputError(
                f"{labels_name(self.labels_file)}: no such file; restore it, or name one "
                "with lines of FILE LABEL"
            )
        names = by_subset["train"] + by_subset["val"]
        classes = classes_of(self.labels_file, names)
        labels = [classes[index] for index in Labels(self.labels_file, classes, names).read()]
        count = len(by_subset["train"])
        of_train = set(labels[:count])
        order = [name for name in classes if name in of_train]
        return order, {"train": labels[:count], "val": labels[count:], "test": []}

    def _check(self, names: list[str], classes: dict[str, list[str]]) -> tuple[str, ...]:
        """The `names` of the classes of train; raises `InputError` if val or test has others."""
        if "" in names or len(names) < 2:
            self._refuse_one_class(classes["train"])
        same: dict[str, str] = {}
        for name in names:
            key = unicodedata.normalize("NFC", name).casefold()
            if (first := same.setdefault(key, name)) != name:
                raise InputError(
                    f"{self.path}: the classes {first!r} and {name!r} differ only in case or in "
                    "the form of a letter; join them, or rename one"
                )
            if any(unicodedata.category(letter) == "Cc" for letter in name):
                raise InputError(
                    f"{self.path}: the class {name!r} contains a control character; rename it"
                )
        for subset in ("val", "test"):
            own = set(classes[subset])
            if unknown := sorted(own - set(names)):
                raise InputError(
                    f"{self.path}: {subset} has the class {unknown[0] or 'of no folder'!r}, which "
                    f"train does not have ({len(unknown):,} such classes); the classes of all "
                    "subsets must be the same"
                )
            if own and subset == "val" and (missing := sorted(set(names) - own)):
                raise InputError(
                    f"{self.path}: val has no images of {len(missing):,} classes of train (first: "
                    f"{missing[0]!r}); add some, or remove val to draw it from train"
                )
        return tuple(names)

    def _refuse_one_class(self, classes: Sequence[str]) -> None:
        """Raise `InputError` for images without a class, or of one class alone."""
        if loose := sum(not name for name in classes):
            where = "" if loose == len(classes) else f" ({loose:,} of {len(classes):,} images)"
            raise InputError(
                f"{self.path}: has images outside of class folders{where}; move each into the "
                "folder of its class" + advice(", or name a file of labels with --labels")
            )
        raise InputError(
            f"{self.path}: has one class, {classes[0]!r}; a classifier needs at least 2, so name "
            "the folder that contains the class folders" + advice(" with --data")
        )

    def _check_counts(self, has_val: bool) -> None:
        """Raise `InputError` for an empty class folder, or a class with too few images."""
        if isinstance(self.container, FolderContainer) and self.labels_file is None:
            for folder in _empty_folders(self.path / self.root, self._table):
                raise InputError(
                    f"{self.path}: the folder {printable(folder)} contains no images; add some, or "
                    "remove it"
                )
        assert self.train.labels is not None
        counts = np.bincount(self.train.labels, minlength=len(self.wnids))
        needed = _NEEDED[has_val]
        few = np.flatnonzero(counts < needed)
        if len(few):
            names = ", ".join(f"{self.wnids[label]!r} ({counts[label]})" for label in few[:_NAMES])
            more = f" and {len(few) - _NAMES:,} more" if len(few) > _NAMES else ""
            parts = "training and hold-out" if has_val else "training, hold-out and val"
            raise InputError(
                f"{self.path}: classes with fewer than {needed} images: {names}{more}; {parts} "
                "need at least one each, so add images, or remove these classes"
            )

    def __repr__(self) -> str:
        counts = ", ".join(f"{s} {len(self.part(s).files):,}" for s in ("train", "val", "test"))
        return f"ClassFolders({str(self.path)!r}: {len(self.wnids)} classes, {counts})"


def _root(names: Iterable[str]) -> str:
    """The folder with train/, '' or 'name/'; without train/, what all images have in common."""
    tops = {f"/{name}".partition("/train/")[0][1:] for name in names if "/train/" in f"/{name}"}
    if tops:
        top = min(tops, key=lambda each: (each.count("/") + bool(each), each))
        return f"{top}/" if top else ""
    folders = [name.rsplit("/", 1)[0].split("/") if "/" in name else [] for name in names]
    shortest = [pieces[:-1] for pieces in folders]  # the class folder itself stays
    common = os.path.commonprefix([tuple(pieces) for pieces in shortest])
    return "".join(f"{piece}/" for piece in common)


def _class_names(files: Sequence[str], subset: str) -> list[str]:
    """The class of each image, '' without a folder; test may have no classes at all.

    The folder `images` that Tiny ImageNet has inside each class does not count.
    """
    has_prefix = all(name.split("/")[0] in _SUBSETS for name in files)
    pieces = [name.split("/")[int(has_prefix) : -1] for name in files]
    least = 0 if subset == "test" else 1  # a test without classes may have that folder, too
    pieces = [each[:-1] if len(each) > least and each[-1] == "images" else each for each in pieces]
    if subset == "test" and not any(pieces):
        return []
    folders = {tuple(each) for each in pieces}
    topmost = {}
    for folder in folders:
        ancestors = (folder[:depth] for depth in range(1, len(folder) + 1))
        topmost[folder] = next((each for each in ancestors if each in folders), ())
    return ["/".join(topmost[tuple(each)]) for each in pieces]


def _empty_folders(root: Path, table: Sequence[tuple[str, int, int]]) -> list[str]:
    """The folders beside class folders that contain no images."""
    names = [name for name, _, _ in table]
    inside = {
        name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)
    }
    parents = {name.split("/")[0] for name in names if name.split("/")[0] in _SUBSETS} or {""}
    folders = []
    for parent in sorted(parents):
        for entry in sorted(os.scandir(root / parent), key=lambda entry: entry.name):
            path = f"{parent}/{entry.name}" if parent else entry.name
            if entry.is_dir() and not skip_reason(entry.name) and path not in inside:
                folders.append(path)
    return folders
