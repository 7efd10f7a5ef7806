"""Any folder of images as a source: a folder for each class, or a file of labels.

    rose/a.jpg  tulip/b.jpg                      val is a part of each class, drawn with a seed
    train/rose/a.jpg  val/tulip/b.jpg  test/c.jpg    or Training, valid, Validation, ...
    a.jpg  b.jpg  and --labels labels.csv        also with train/, val/ and test/

The class of an image is the path of the topmost folder on its way that directly contains images.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from tinynet.console import advice, log, printable
from tinynet.data.class_checks import check_counts, check_names
from tinynet.data.containers import Listing
from tinynet.data.label_classes import classes_of
from tinynet.data.labels import Labels, labels_name
from tinynet.data.layout import Layout, class_names, empty_folders, find_layout, subset_of
from tinynet.data.own_folders import NAMES, is_below, own_folders
from tinynet.data.source import Source, draw_val, without_boxes
from tinynet.data.walk import images_of
from tinynet.errors import InputError


class ClassFolders(Source):
    """Images in class folders, or images with a file of labels.

    `labels`: the file of labels; None: the folders are the classes. Raises `InputError` if the
    images do not make a data set: one class, a class with too few images or in one subset alone,
    two class names that differ only in case.
    """

    one_size = False

    def __init__(self, listing: Listing, labels: str | None = None):
        self.container, table = listing
        self.path, self.labels_file = self.container.path, labels
        images = self._images([name for name, _, _ in table])
        layout = find_layout(self.path, images, flat=labels is not None)
        self.root, by_subset = layout.root, layout.subsets
        files = {self.root + name for names in by_subset.values() for name in names}
        self._refuse_empty_folders(layout, files, [name for name, _, _ in table])
        cut = len(self.root)
        self._table = sorted(
            (name[cut:], size, mark) for name, size, mark in table if name in files
        )
        if labels is None:
            classes = {
                name: class_names(names, layout.folders.get(name, ""), optional=name == "test")
                for name, names in by_subset.items()
            }
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
        assert self.train.labels is not None
        check_counts(self.path, self.wnids, self.train.labels, bool(self.val.files))
        if not self.val.files:
            self.train, self.val = draw_val(self.path, self.train)
        for folder, count in layout.unused.items():
            log(
                f"note: {self.path}: {count:,} images in {printable(folder) or 'the folder'} are "
                "not used; only those in the folders of train, val and test are"
            )
        self.container.skipped.report(self.path)

    def digest(self) -> str:
        """SHA-256 (hex) of the rows of the table, the file of labels and the container's `seal`."""
        sha256 = hashlib.sha256()
        for name, size, mark in self._table:
            sha256.update(f"{name}\t{size}\t{mark}\n".encode("utf-8", "surrogateescape"))
        if self.labels_file is not None:
            sha256.update(Path(self.labels_file).read_bytes())
        sha256.update(self.container.seal().encode())
        return sha256.hexdigest()

    def _images(self, names: Sequence[str]) -> set[str]:
        """The names of images; counts the other files as skipped."""
        for name in names:
            if "\n" in name or "\r" in name:
                raise InputError(
                    f"{self.path}: the file name {name!r} contains a line break; rename the file"
                )
        images = set(images_of(names, self.container.skipped))
        if not images:
            raise InputError(
                f"{self.path}: contains no images that can be read "
                f"({_kinds(names) or 'no files'}); export them to JPEG, or name another folder"
                + advice(" with --data")
            )
        return images

    def _labelled(self, by_subset: dict[str, list[str]]) -> tuple[list[str], dict[str, list[str]]]:
        """The classes of train, and subset -> the classes of its images, by the file of labels."""
        assert self.labels_file is not None
        if not Path(self.labels_file).is_file():
            what = "is not a regular file" if Path(self.labels_file).exists() else "no such file"
            raise InputError(f"{labels_name(self.labels_file)}: {what}; check the path")
        names = by_subset["train"] + by_subset["val"]
        try:  # the file may name the images of test, too
            classes, labels = self._read_labels(names + by_subset["test"])
        except InputError:
            classes, labels = self._read_labels(names)
        count = len(by_subset["train"])
        of_train = set(labels[:count])
        order = [name for name in classes if name in of_train]
        rest = {"val": labels[count : len(names)], "test": labels[len(names) :]}
        return order, {"train": labels[:count], **rest}

    def _read_labels(self, names: list[str]) -> tuple[tuple[str, ...], list[str]]:
        """The classes in the file of labels, and the class of each image."""
        assert self.labels_file is not None
        classes = classes_of(self.labels_file, names)
        return classes, [
            classes[index] for index in Labels(self.labels_file, classes, names).read()
        ]

    def _check(self, names: list[str], classes: dict[str, list[str]]) -> tuple[str, ...]:
        """The `names` of the classes of train; raises `InputError` if val or test has others."""
        if "" in names or len(names) < 2:
            self._refuse_one_class(classes["train"])
        check_names(self.path, names)
        for subset in ("val", "test"):
            own = set(classes[subset])
            if unknown := sorted(own - set(names)):
                if not unknown[0]:
                    raise InputError(
                        f"{self.path}: {subset} has images outside of class folders; move each "
                        "into the folder of its class"
                    )
                raise InputError(
                    f"{self.path}: {subset} has the class {unknown[0]!r}, but train does not "
                    f"({len(unknown):,} such classes); add images of it to train, or remove it"
                )
            if own and subset == "val" and (missing := sorted(set(names) - own)):
                raise InputError(
                    f"{self.path}: val has no images of {len(missing):,} classes of train (first: "
                    f"{missing[0]!r}); add some, or move the images of val into train, and tinynet "
                    "draws val from them"
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
        if self.labels_file is not None:
            raise InputError(
                f"{labels_name(self.labels_file)}: has one class, {classes[0]!r}; a classifier "
                "needs at least 2, so name another file"
            )
        raise InputError(
            f"{self.path}: has one class, {classes[0]!r}; a classifier needs at least 2, so name "
            "the folder that contains the class folders" + advice(" with --data")
        )

    def _refuse_empty_folders(
        self, layout: Layout, images: Collection[str], names: Sequence[str]
    ) -> None:
        """Raise `InputError` for the folder of a class or a subset without images.

        `names`: of all files, among them those that are not images.
        """
        empty = empty_folders(
            layout, self.container.folders(), images, classes=self.labels_file is None
        )
        if not empty:
            return
        own = own_folders(names)
        inside: dict[str, list[str]] = {folder: [] for folder in empty}
        for name in names:
            pieces = name.split("/")
            for depth in range(1, len(pieces)):
                if (folder := "/".join(pieces[:depth])) in inside:
                    inside[folder].append(name)
        for folder, files in inside.items():
            top = folder.removeprefix(self.root)
            if top in NAMES or (files and all(is_below(name, own) for name in files)):
                continue
            if not files and subset_of(top) == "test":
                continue  # val would be drawn from train instead, but nothing replaces test
            kinds = _kinds(files)
            raise InputError(
                f"{self.path}: the folder {printable(folder)} contains no images"
                f"{f' that can be read ({kinds})' if kinds else ''}; add some, or remove it"
            )


def _kinds(names: Sequence[str]) -> str:
    """The most common extensions of files, for instance `3 .heic`."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in names)
    return ", ".join(f"{count:,} {end}" for end, count in counts.most_common(3) if end)
