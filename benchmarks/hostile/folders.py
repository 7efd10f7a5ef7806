"""Hostile folders: links, pipes, sockets, folders of other programs, names that are not text."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.hostile import archives, obstacles, right
from benchmarks.hostile.archives import FOLDER, SAME, Way
from benchmarks.hostile.case import Case, Place, Right
from benchmarks.hostile.commands import evaluate_folder, predict
from benchmarks.hostile.drawing import GOOD, GOOD_FILE, HUES, encoded, flat
from benchmarks.hostile.world import ROOT
from tinynet.data.image_folder import imagenet_wnids

KIND = "folders"
_GOOD = ("a.png", "b.png", "c.png")


def designed() -> Iterator[Case]:
    """Yield cases for each idea: an archive, class folders, and files to predict."""
    for name, obstacle in obstacles.UNREADABLE.items():
        yield from _archives(
            name,
            obstacle,
            Way(
                right.refused(obstacles.STRANGE),
                right.any_of(right.refused(obstacles.STRANGE), right.faults),
            ),
        )
        yield _classes(name, obstacle, right.refused(obstacles.STRANGE))
        yield _prediction(
            name,
            obstacle,
            right.names(right.colours(dict.fromkeys(_GOOD, GOOD)), obstacles.STRANGE),
        )
    for name, obstacle in obstacles.UNCLEAR.items():
        yield from _archives(name, obstacle, archives.either(boxes=False))
        yield _classes(
            name, obstacle, right.any_of(right.refused(obstacles.STRANGE), right.gives(_answered()))
        )
        yield _prediction(
            name,
            obstacle,
            right.any_of(
                right.names(right.colours(dict.fromkeys(_GOOD, GOOD)), obstacles.STRANGE),
                _predicted(),
            ),
        )
    for name, obstacle in obstacles.PASSED_OVER.items():
        yield from _archives(name, obstacle, SAME)
        yield _classes(name, obstacle, right.gives(_answered()))
        yield _prediction(name, obstacle, _predicted())
    for name, (obstacle, *more) in obstacles.FOLLOWED.items():
        yield _classes(name, obstacle, right.gives(_answered(len(more))))
        yield _prediction(name, obstacle, _predicted(*more))
    for name, (obstacle, *more) in obstacles.STRANGE_NAMES.items():
        unreadable = Way(right.refused(), right.any_of(right.refused(), right.faults))
        yield from _archives(
            name, obstacle, archives.either(boxes=False) if more else unreadable, *more
        )
        yield _classes(
            name, obstacle, right.any_of(right.refused(), right.gives(_answered(len(more))))
        )
        yield _prediction(
            name,
            obstacle,
            right.any_of(
                right.refused(),
                right.names(right.colours(dict.fromkeys(_GOOD, GOOD)), ""),
                _predicted(*more),
            ),
        )
    for name, (change, way) in _ARCHIVES.items():
        yield from archives.both(KIND, f"archive-{name}", _changed(change), way, FOLDER)
    for name, (change, expected) in _TREES.items():
        yield Case(
            KIND,
            f"{name}-imagefolder",
            "tinynet.folder",
            evaluate_folder("in/tree"),
            _tree(change),
            expected,
        )


def random(number: int) -> Case:
    """A case with several obstacles that must be skipped."""

    def several(folder: Path, image: bytes) -> None:
        draw = Random(number)
        for obstacle in draw.sample(list(obstacles.PASSED_OVER.values()), draw.randint(2, 5)):
            with suppress(FileExistsError):  # some have the same name
                obstacle(folder, image)

    name = f"several-{number:04d}"
    if number % 3 == 0:
        return archives.pack(KIND, f"archive-{name}", _archive_maker(several), SAME, FOLDER)
    if number % 3 == 1:
        return _classes(name, several, right.gives(_answered()))
    return _prediction(name, several, _predicted())


def _archives(name: str, obstacle: obstacles.Obstacle, way: Way, *more: str) -> Iterator[Case]:
    """Put the obstacle among the training images of the first class; `more`: the images that it
    adds.
    """
    yield from archives.both(KIND, f"archive-{name}", _archive_maker(obstacle, *more), way, FOLDER)


def _archive_maker(obstacle: obstacles.Obstacle, *more: str) -> Callable[[Place, Random], Any]:
    def make(place: Place, draw: Random) -> Any:
        root = _extracted(place)
        images = min((root / "train").iterdir()) / "images"
        first, folder = min(images.iterdir()), images.relative_to(root).as_posix()
        truth = json.loads((place.world / "truth.json").read_text())
        for inner in more:
            truth["train"][f"{folder}/{inner}"] = [
                0,
                [-1] * 4,
                truth["train"][f"{folder}/{first.name}"][2],
            ]
        obstacle(images, first.read_bytes())
        return truth

    return make


def _extracted(place: Place) -> Path:
    return Path(shutil.copytree(place.world / "extracted" / ROOT, place.inputs / ROOT))


def _changed(change: Callable[[Path], Any]) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        change(_extracted(place))

    return make


def _classes(name: str, obstacle: obstacles.Obstacle, expected: Right) -> Case:
    """Put the obstacle into the folder of the third class, so that its images come last."""

    def change(root: Path) -> None:
        obstacle(root / imagenet_wnids()[2], encoded(flat(HUES[2])))

    return Case(
        KIND,
        f"{name}-imagefolder",
        "tinynet.folder",
        evaluate_folder("in/tree"),
        _tree(change),
        expected,
    )


def _tree(change: Callable[[Path], Any]) -> Callable[[Place, Random], Any]:
    """Three class folders with an image each, in the colour of the class."""

    def make(place: Place, draw: Random) -> Any:
        for wnid, hue in zip(imagenet_wnids(), HUES, strict=False):
            (place.inputs / "tree" / wnid).mkdir(parents=True)
            (place.inputs / "tree" / wnid / "a.png").write_bytes(encoded(flat(hue)))
        change(place.inputs / "tree")

    return make


def _answered(more: int = 0) -> right.Check:
    """The result has the three images, and `more` images of the last class."""
    return right.answered((0, 1, 2, *[2] * more), (*HUES, *[HUES[2]] * more))


def _prediction(name: str, obstacle: obstacles.Obstacle, expected: Right) -> Case:
    def make(place: Place, draw: Random) -> Any:
        folder = place.inputs / "images/inner"
        folder.mkdir(parents=True)
        (folder.parent / "a.png").write_bytes(GOOD_FILE)
        for file in _GOOD[1:]:
            (folder / file).write_bytes(GOOD_FILE)
        obstacle(folder, GOOD_FILE)

    return Case(KIND, f"{name}-predict", "tinynet.predict", predict("in/images"), make, expected)


def _predicted(*more: str) -> Right:
    return right.gives(right.colours(dict.fromkeys((*_GOOD, *more), GOOD)))


def _replaced(inner: str, put: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Replace a file or folder of the archive."""

    def change(root: Path) -> None:
        path = root / inner
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put(path)

    return change


def _moved(inner: str, link: bool = True) -> Callable[[Path], None]:
    """Move a part of the archive, and put a link to it in its place."""

    def change(root: Path) -> None:
        target = root.parent / "moved"
        shutil.move(root / inner, target)
        (root / inner).symlink_to(target)

    return change


_LIST, _LABELS = "wnids.txt", "val/val_annotations.txt"
_PUT: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "broken-link": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "socket": obstacles.socket_at,
}
_ARCHIVES: dict[str, tuple[Callable[[Path], Any], Way]] = {
    **{
        f"val_annotations-is-a-{name}": (_replaced(_LABELS, put), archives.refusal())
        for name, put in _PUT.items()
    },
    **{
        f"wnids-is-a-{name}": (_replaced(_LIST, put), archives.either())
        for name, put in _PUT.items()
    },
    **{
        f"train-is-a-{name}": (_replaced("train", put), archives.refusal())
        for name, put in _PUT.items()
    },
    **{
        f"words-is-a-{name}": (_replaced("words.txt", put), archives.either())
        for name, put in _PUT.items()
    },
    **{
        f"{inner.rsplit('/')[-1].removesuffix('.txt')}-is-a-link": (_moved(inner), SAME)
        for inner in (_LIST, _LABELS, "train", "val", "val/images", "words.txt")
    },
    "is-a-link": (
        lambda root: (shutil.move(root, root.parent / "moved"), root.symlink_to("moved")),
        SAME,
    ),
    "is-a-loop": (
        lambda root: (shutil.rmtree(root), root.symlink_to(root.name)),
        archives.refusal(),
    ),
    "is-a-pipe": (lambda root: (shutil.rmtree(root), os.mkfifo(root)), archives.refusal()),
    "is-a-socket": (
        lambda root: (shutil.rmtree(root), obstacles.socket_at(root)),
        archives.refusal(),
    ),
    "is-empty": (lambda root: (shutil.rmtree(root), root.mkdir()), archives.refusal()),
    "holds-a-zip-that-is-a-pipe": (
        lambda root: (shutil.rmtree(root), root.mkdir(), os.mkfifo(root / f"{ROOT}.zip")),
        archives.refusal(),
    ),
}

_TREES: dict[str, tuple[Callable[[Path], Any], Right]] = {
    "class-is-a-link": (lambda root: _moved(imagenet_wnids()[1])(root), right.gives(_answered())),
    "class-is-a-broken-link": (
        lambda root: (root / imagenet_wnids()[3]).symlink_to("nowhere"),
        right.either(_answered(), imagenet_wnids()[3]),
    ),
    "class-is-a-file": (
        lambda root: (root / imagenet_wnids()[3]).write_text("x"),
        right.gives(_answered()),
    ),
    "class-is-a-pipe": (
        lambda root: os.mkfifo(root / imagenet_wnids()[3]),
        right.gives(_answered()),
    ),
    "class-is-empty": (lambda root: (root / imagenet_wnids()[3]).mkdir(), right.gives(_answered())),
    "class-unknown": (
        lambda root: obstacles.write(root / "n99999999/x.png", GOOD_FILE),
        right.refused("n99999999"),
    ),
    "class-no-text": (
        lambda root: obstacles.write(root / os.fsdecode(b"n\xff") / "x.png", GOOD_FILE),
        right.refused(),
    ),
    "class-of-machines": (
        lambda root: [
            obstacles.write(root / name / "x.png", GOOD_FILE)
            for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "__pycache__")
        ],
        right.gives(_answered()),
    ),
    "image-beside-classes": (
        lambda root: obstacles.write(root / "x.png", GOOD_FILE),
        right.either(_answered(), "x.png"),
    ),
    "tree-is-empty": (lambda root: (shutil.rmtree(root), root.mkdir()), right.refused("in/tree")),
    "tree-is-a-loop": (
        lambda root: (shutil.rmtree(root), root.symlink_to("tree")),
        right.refused("in/tree"),
    ),
    "tree-is-a-pipe": (
        lambda root: (shutil.rmtree(root), os.mkfifo(root)),
        right.refused("in/tree"),
    ),
    "tree-is-a-link": (
        lambda root: (shutil.move(root, root.parent / "moved"), root.symlink_to("moved")),
        right.gives(_answered()),
    ),
}
