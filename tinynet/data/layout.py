"""The layout of class folders, from the names of the files alone: subsets and classes."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinynet.console import advice
from tinynet.errors import InputError

_SUBSETS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "val_set", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
}


def subset_of(folder: str) -> str:
    """Return the subset that a folder name means in any case, such as `Training`; '' for others."""
    return _SUBSETS.get(folder.casefold().replace("-", "_").replace(" ", "_"), "")


@dataclass(frozen=True)
class Layout:
    """The files of each subset, as names without `root`.

    `folders`: the folder of each subset, where the images are divided into such folders. `unused`:
    other folders -> the number of their images.
    """

    root: str
    subsets: dict[str, list[str]]
    folders: dict[str, str] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)


def find_layout(place: Path, names: Collection[str], flat: bool) -> Layout:
    """Return the layout of images with these names in `place`.

    `flat`: whether train may contain images without a class folder. Raises `InputError` for several
    data sets, for two folders of one subset, and for val or test without train.
    """
    tops = _tops_of_train(names, flat)
    if not tops:
        root = _common_folder(names)
        inside = sorted(name[len(root) :] for name in names)
        # All class folders may be in a folder of one subset, such as val.
        tops_inside = {name.split("/")[0] for name in inside if "/" in name}
        odd = sorted(name for name in {*root.split("/"), *tops_inside} if subset_of(name))
        if odd and subset_of(odd[0]) != "train":
            raise InputError(
                f"{place}: has a folder {odd[0]}/ but no train/; add train/, or rename {odd[0]}/ "
                "if it is a class"
            )
        return Layout(root, {"train": inside, "val": [], "test": []})
    depth = min(map(len, tops))
    roots = sorted("".join(f"{piece}/" for piece in top) for top in tops if len(top) == depth)
    if len(roots) > 1:
        raise InputError(
            f"{place}: contains several data sets ({', '.join(roots[:3])}); name one of them"
            + advice(" with --data")
        )
    return _divided(place, roots[0], sorted(names))


def _tops_of_train(names: Iterable[str], flat: bool) -> set[tuple[str, ...]]:
    """The folders that contain a folder of training images, as pieces of their paths.

    A folder `train` that only contains images, without val or test beside it, is a class.
    """
    with_classes: set[tuple[str, ...]] = set()
    without_classes: set[tuple[str, ...]] = set()
    divided: set[tuple[str, ...]] = set()
    for name in names:
        pieces = name.split("/")
        for depth, piece in enumerate(pieces[:-1]):
            subset, top = subset_of(piece), tuple(pieces[:depth])
            if subset == "train":
                (with_classes if flat or depth + 2 < len(pieces) else without_classes).add(top)
                break
            if subset:
                divided.add(top)
                break
    return with_classes | (without_classes & divided)


def _divided(place: Path, root: str, names: Sequence[str]) -> Layout:
    subsets: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    folders: dict[str, str] = {}
    unused: dict[str, int] = defaultdict(int)
    for name in names:
        inside = name[len(root) :] if name.startswith(root) else ""
        top = inside.split("/")[0] if "/" in inside else ""
        subset = subset_of(top)
        if not subset:
            unused[f"{root}{top}" if inside else name.split("/")[0]] += 1
            continue
        if folders.setdefault(subset, top) != top:
            raise InputError(
                f"{place}: has {folders[subset]}/ and {top}/, which both mean {subset}; keep one"
            )
        subsets[subset].append(inside)
    return Layout(root, subsets, folders, dict(unused))


def _common_folder(names: Iterable[str]) -> str:
    """What the paths of all class folders have in common, '' or 'name/'."""
    parents = [tuple(name.split("/")[:-2]) for name in names]
    return "".join(f"{piece}/" for piece in os.path.commonprefix(parents))


def class_names(files: Sequence[str], folder: str = "", optional: bool = False) -> list[str]:
    """Return the class of each image: the topmost folder on its path that directly has images.

    '' for an image without a folder. `folder`: of the subset, which does not count; neither does
    the folder `images` that Tiny ImageNet has inside each class. `optional`: without any folders
    there are no classes, and the list is empty.
    """
    pieces = [name.split("/")[bool(folder) : -1] for name in files]
    least = 0 if optional else 1  # a test without classes may have the folder `images`, too
    pieces = [each[:-1] if len(each) > least and each[-1] == "images" else each for each in pieces]
    if optional and not any(pieces):
        return []
    folders = {tuple(each) for each in pieces}
    topmost = {}
    for path in folders:
        ancestors = (path[:depth] for depth in range(1, len(path) + 1))
        topmost[path] = next((each for each in ancestors if each in folders), ())
    return ["/".join(topmost[tuple(each)]) for each in pieces]


def empty_folders(
    layout: Layout, folders: Iterable[str], images: Iterable[str], classes: bool
) -> list[str]:
    """Return the folders without images: of subsets and, with `classes`, beside class folders.

    `folders`: all folders. `images`: with the root, as `folders`.
    """
    direct = {name.rpartition("/")[0] for name in images}
    used = {folder for path in direct for folder in _up_from(path)}
    beside = set()
    if classes:
        subsets = {layout.root + folder for folder in layout.folders.values()}
        topmost = {
            path
            for path in direct - subsets
            if direct.isdisjoint(set(_up_from(path)) - {path, layout.root.rstrip("/")} - subsets)
        }
        beside = {path.rpartition("/")[0] for path in topmost} | subsets
    return [
        folder
        for folder in sorted(set(folders) - used)
        if folder.rpartition("/")[0] in beside
        or (folder.startswith(layout.root) and subset_of(folder[len(layout.root) :]))
    ]


def _up_from(path: str) -> list[str]:
    """A folder, its parent folder, and so on."""
    pieces = path.split("/")
    return ["/".join(pieces[:depth]) for depth in range(len(pieces), 0, -1)]
