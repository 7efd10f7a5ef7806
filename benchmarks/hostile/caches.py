"""Hostile caches: wrong arrays of images and features, and folders that tinynet did not write."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile import commands, right
from benchmarks.hostile.archives import MODULE
from benchmarks.hostile.case import WORLD, Case, Ended, Place, Right
from benchmarks.hostile.damage import altered, damaged

KIND = "caches"
Change = Callable[[Path], Any]
_SOURCE = ("--data", f"{WORLD}/drawn.zip", "--cache", "out/cache")
# Each command and its right outcome: an unusable folder is written again, or refused.
_COMMANDS: dict[str, tuple[str, tuple[str, ...], Right]] = {
    "evaluate": (
        "tinynet.evaluate",
        commands.evaluate_run("out/run", "--split", "val"),
        right.either(right.scored(("val",))),
    ),
    "train": ("tinynet.train", commands.train(f"{WORLD}/thin.pt"), right.either(right.trained)),
    "pack": (MODULE, ("pack", *_SOURCE, "--quiet"), right.either(right.packed)),
    "list": (MODULE, ("cache", *_SOURCE, "--json", "--quiet"), right.either(right.rows)),
    "clear": (
        MODULE,
        ("cache", *_SOURCE, "--clear", "--json", "--quiet"),
        right.either(right.rows),
    ),
}
_PACKED, _FEATURES = "*.packed", "features-*"


def designed() -> Iterator[Case]:
    """Yield a case for each idea; the commands that read the file take turns."""
    for part in ("val", "train"):
        for kind in ("pictures", "labels"):
            readers = ("evaluate",) if part == "val" else ("train",)
            yield from _in_turn(f"{_PACKED}/{part}.{kind}.npy", _ARRAYS, readers)
    yield from _in_turn(f"{_PACKED}/val.boxes.npy", _ARRAYS, ("pack",))
    yield from _in_turn(f"{_PACKED}/val.files.txt", _TEXTS, ("evaluate", "pack"))
    yield from _in_turn(
        f"{_PACKED}/manifest.json", {**_JSONS, **_MANIFESTS}, ("evaluate", "pack", "train")
    )
    yield from _in_turn(f"{_FEATURES}/*.npy", _ARRAYS, ("evaluate", "train"))
    yield from _in_turn(f"{_FEATURES}/manifest.json", _JSONS, ("evaluate", "list", "train"))
    yield from _in_turn(
        f"{_PACKED}/manifest.json",
        {f"{name}-in-list": change for name, change in _JSONS.items()},
        ("list", "clear"),
    )
    for name, change in _FOLDERS.items():
        for command in ("list", "clear"):
            yield _case("", name, change, command)
    for name, change in _ROOTS.items():
        for command in ("list", "pack", "evaluate"):
            yield _case("", name, change, command)
    for command in _COMMANDS:
        yield _case("", "whole", lambda path: None, command)


def random(number: int) -> Case:
    """A case with random damage: in the header of an array, or anywhere in a text."""
    patterns = (
        *(
            f"{_PACKED}/{file}"
            for file in ("*.pictures.npy", "*.labels.npy", "manifest.json", "*.files.txt")
        ),
        f"{_FEATURES}/*.npy",
        f"{_FEATURES}/manifest.json",
    )
    command = ("evaluate", "train")[number // len(patterns) % 2]

    def make(place: Place, draw: Random) -> None:
        _copied(place)
        for path in sorted((place.out / "cache").glob(patterns[number % len(patterns)])):
            content = path.read_bytes()
            if path.suffix == ".json" and draw.random() < 0.5:
                path.write_text(json.dumps(altered(json.loads(content), draw)))
            else:  # damaged pixels and features would still be valid ones
                path.write_bytes(damaged(content, [(0, min(128, len(content)))], draw))

    module, flags, expected = _COMMANDS[command]
    # A damaged manifest may have other classes or images, which give another result.
    loose = (
        right.either(right.rows)
        if command == "evaluate" and patterns[number % len(patterns)].startswith(_PACKED)
        else expected
    )
    return Case(KIND, f"damaged-{number:04d}-{command}", module, flags, make, loose)


def _in_turn(pattern: str, changes: dict[str, Change], readers: Sequence[str]) -> Iterator[Case]:
    for number, (name, change) in enumerate(changes.items()):
        yield _case(pattern, name, change, readers[number % len(readers)])


def _copied(place: Place) -> None:
    """Copy the run without its stored probabilities, so that commands read the cache."""
    shutil.copytree(
        place.world / "run", place.out / "run", ignore=shutil.ignore_patterns("probabilities")
    )
    shutil.copytree(place.world / "cache", place.out / "cache")


def _case(pattern: str, name: str, change: Change, command: str) -> Case:
    def make(place: Place, draw: Random) -> None:
        _copied(place)
        if command == "train":
            shutil.rmtree(place.out / "run")
        for path in (
            sorted((place.out / "cache").glob(pattern)) if pattern else [place.out / "cache"]
        ):
            change(path)

    kind = {_PACKED: "packed", _FEATURES: "features"}.get(pattern.split("/")[0], "folder")
    file = pattern.split("/")[-1].rsplit(".", 1)[0].replace(".", "-").replace("*", "array")
    title = "-".join(part for part in (kind, file, name, command) if part)
    module, flags, expected = _COMMANDS[command]
    if command == "clear" and pattern == "":
        expected = _only_ours_is_gone(expected)
    return Case(KIND, title, module, flags, make, expected)


def _only_ours_is_gone(expected: Right) -> Right:
    """`data cache --clear` must remove only the folders that tinynet wrote."""

    def check(ended: Ended) -> str:
        outcome = expected(ended)
        others = ended.place.inputs / "precious"
        right.need(
            not others.exists() or (others / "manifest.json").exists(),
            "the target of a link was deleted",
        )
        return outcome

    return check


def _array(change: Callable[[np.ndarray], Any]) -> Change:
    def changed(path: Path) -> None:
        array = np.load(path)
        np.save(path, change(array), allow_pickle=True)

    return changed


def _objects(array: np.ndarray) -> np.ndarray:
    return np.array([print, array], object)


def _cut(count: Callable[[int], int]) -> Change:
    return lambda path: os.truncate(path, count(path.stat().st_size))


def _instead(put: Change) -> Change:
    return lambda path: (path.unlink(), put(path))


def _puts(content: bytes) -> Change:
    return lambda path: path.write_bytes(content)


_ANY: dict[str, Change] = {
    "empty": _cut(lambda size: 0),
    "half": _cut(lambda size: size // 2),
    "one-byte-less": _cut(lambda size: size - 1),
    "binary": _puts(bytes(range(256)) * 9),
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "missing": lambda path: path.unlink(),
    "zeros-without-end": _instead(lambda path: path.symlink_to("/dev/zero")),
}
_ARRAYS: dict[str, Change] = {
    **_ANY,
    "head-alone": _cut(lambda size: 128),
    "fewer": _array(lambda array: array[:-1]),
    "more": _array(lambda array: np.concatenate([array, array])),
    "none": _array(lambda array: array[:0]),
    "flat": _array(np.ravel),
    "turned": _array(lambda array: array[None]),
    "a-number": _array(lambda array: array.max()),
    "floats": _array(lambda array: array.astype(float) + 0.5),
    "words": _array(lambda array: array.astype(str)),
    "objects": _array(_objects),
    "negative": _array(lambda array: -1 - array.astype(np.int64)),
    "large": _array(lambda array: array.astype(np.int64) + 10**9),
    "fortran": _array(np.asfortranarray),
    "big-endian": _array(lambda array: array.astype(array.dtype.newbyteorder(">"))),
    "smaller": _array(lambda array: array[..., :1]),
    "sparse": lambda path: os.truncate(path, 5 << 30),
}
_TEXTS: dict[str, Change] = {
    **_ANY,
    "fewer": lambda path: path.write_text("".join(path.read_text().splitlines(True)[1:])),
    "more": lambda path: path.write_text(path.read_text() * 2),
    "latin-1": _puts(b"\xe9\n" * 8),
}
_JSONS: dict[str, Change] = {
    **_ANY,
    "list": _puts(b"[1]"),
    "null": _puts(b"null"),
    "number": _puts(b"3"),
    "deep": _puts(b"[" * 100_000),
    "5000-digits": _puts(b'{"format": ' + b"9" * 5000 + b"}"),
    "latin-1": _puts(b'{"a": "\xe9"}'),
    "no-keys": _puts(b"{}"),
    "format-alone": _puts(b'{"format": 3}'),
    "kind-list": _puts(b'{"format": 3, "kind": [1]}'),
    "kind-escape": _puts(b'{"format": 3, "kind": "\\u001b[31m"}'),
    "kind-null": _puts(b'{"format": 3, "kind": null}'),
}


def _set(name: str, value: Any) -> Change:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


def _without(name: str) -> Change:
    def change(path: Path) -> None:
        path.write_text(
            json.dumps(
                {key: value for key, value in json.loads(path.read_text()).items() if key != name}
            )
        )

    return change


_MANIFESTS: dict[str, Change] = {
    **{
        f"without-{name}": _without(name)
        for name in ("format", "wnids", "names", "side", "contents", "counts", "source")
    },
    **{
        f"{name}-{title}": _set(name, value)
        for name in ("wnids", "names", "side", "counts", "contents", "stamp", "source")
        for title, value in {"null": None, "text": "x", "number": 3, "list": [1]}.items()
        if (name, title) not in (("contents", "text"), ("source", "text"))
    },
    "counts-0": _set("counts", {"train": 0, "val": 0, "test": 0}),
    "counts-other": _set("counts", {"train": 99, "val": 99, "test": 99}),
    "counts-words": _set("counts", dict.fromkeys(("train", "val", "test"), "x")),
    "wnids-others": _set("wnids", ["a", "b", "c", "d"]),
    "wnids-numbers": _set("wnids", [1, 2, 3, 4]),
    "side-64": _set("side", 64),
    "side-huge": _set("side", 10**9),
    "side-negative": _set("side", -32),
    "format-text": _set("format", "3"),
    "format-9": _set("format", 9),
}


def _link_to_others(path: Path) -> None:
    """Add a link to a folder that looks like one of tinynet's."""
    others = path.parents[1] / "in/precious"
    others.mkdir()
    (others / "manifest.json").write_text('{"format": 3, "kind": "packed"}')
    (path / "linked").symlink_to(others)


def _others_beside(path: Path) -> None:
    (path / "theirs").mkdir()
    (path / "theirs/manifest.json").write_text('{"name": "an app"}')
    (path / "theirs/work.txt").write_text("precious")


def _named(name: str) -> Change:
    """Add a folder of tinynet with a strange name."""

    def change(path: Path) -> None:
        (path / name).mkdir()
        (path / name / "manifest.json").write_text('{"format": 3}')

    return change


_FOLDERS: dict[str, Change] = {
    "link-to-others": _link_to_others,
    "others-beside": _others_beside,
    "name-escape": _named("\x1b[31m"),
    "name-no-text": _named(os.fsdecode(b"\xff")),
    "name-newline": _named("a\nb"),
    "name-long": _named("x" * 250),
    "loop": lambda path: (path / "loop").symlink_to("loop"),
    "pipe": lambda path: os.mkfifo(path / "pipe"),
    "broken-link-inside": lambda path: (next(path.glob(_PACKED)) / "link").symlink_to("nowhere"),
    "loop-inside": lambda path: (next(path.glob(_PACKED)) / "loop").symlink_to("."),
    "pipe-inside": lambda path: os.mkfifo(next(path.glob(_PACKED)) / "pipe"),
}
_ROOTS: dict[str, Change] = {
    "is-a-file": lambda path: (shutil.rmtree(path), path.write_text("x")),
    "is-a-pipe": lambda path: (shutil.rmtree(path), os.mkfifo(path)),
    "is-a-loop": lambda path: (shutil.rmtree(path), path.symlink_to(path.name)),
    "is-a-broken-link": lambda path: (shutil.rmtree(path), path.symlink_to("nowhere")),
    "lock-is-a-folder": lambda path: (
        [(path / f".{folder.name}.tinynet.lock").mkdir() for folder in list(path.glob(_PACKED))]
        + [shutil.rmtree(folder) for folder in list(path.glob(_PACKED))]
    ),
    "lock-is-a-pipe": lambda path: (
        [os.mkfifo(path / f".{folder.name}.tinynet.lock") for folder in list(path.glob(_PACKED))]
        + [shutil.rmtree(folder) for folder in list(path.glob(_PACKED))]
    ),
    "partial-is-a-file": lambda path: (
        [(path / f".{folder.name}.partial").write_text("x") for folder in list(path.glob(_PACKED))]
        + [shutil.rmtree(folder) for folder in list(path.glob(_PACKED))]
    ),
}
