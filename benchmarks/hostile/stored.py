"""Hostile files of stored probabilities: alone, with a good one, and among those of a run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.hostile import commands, right
from benchmarks.hostile import stored_changes as changes
from benchmarks.hostile.case import WORLD, Case, Ended, Place, Right
from benchmarks.hostile.damage import damaged, zip_spans

KIND = "probabilities"
_FILE = "in/stored.npz"


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for name, change in changes.REFUSED.items():
        yield _alone(name, _changed(change), right.refused("stored.npz"))
    for name, change in changes.DOUBTFUL.items():
        yield _alone(name, _changed(change), right.either(_scored, "stored.npz"))
    for name, write in changes.FILES.items():
        yield _alone(name, write, right.refused("stored.npz"))
    for name in (
        "nan",
        "not-normalised",
        "labels-beyond",
        "one-image-less",
        "objects",
        "shape",
        "about-list",
    ):
        yield _beside(name, _changed(changes.REFUSED[name]), right.refused("stored.npz"))
    for name, change in changes.OTHERS.items():
        yield _beside(name, _changed(change), right.refused("stored.npz"))
    yield _beside("whole", _changed(lambda arrays: arrays), right.gives(_both_scored))
    yield _alone("whole", _changed(lambda arrays: arrays), right.gives(_scored))
    # A stored file that cannot be read, or is wrong, is computed again.
    for number, (name, change) in enumerate(changes.REFUSED.items()):
        yield (_in_run, _reported)[number % 4 == 3](name, _changed(change))
    for name, write in changes.FILES.items():
        yield _in_run(name, write)


def random(number: int) -> Case:
    """A case with random damage."""
    structure = ("central directory", "local header", "data", "end record")[number % 4]

    def write(place: Place, path: Path, draw: Random) -> None:
        good = changes.bytes_of(changes.arrays_of(path))
        path.write_bytes(damaged(good, zip_spans(good)[structure], draw))

    name = f"damaged-{structure.replace(' ', '-')}-{number:04d}"
    if number // 4 % 3 == 2:
        return _in_run(name, write)
    return _alone(name, write, right.either(_scored, "stored.npz"))


def _alone(name: str, write: changes.Write, expected: Right) -> Case:
    return Case(
        KIND,
        f"{name}-alone",
        "tinynet.compare",
        (_FILE, "--json", "--quiet"),
        _maker(write),
        expected,
    )


def _beside(name: str, write: changes.Write, expected: Right) -> Case:
    flags = (f"{WORLD}/stored.npz", _FILE, "--json", "--quiet")
    return Case(KIND, f"{name}-beside", "tinynet.compare", flags, _maker(write), expected)


def _maker(write: changes.Write) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        path = place.inputs / "stored.npz"
        shutil.copy(place.world / "stored.npz", path)
        write(place, path, draw)

    return make


def _in_run(name: str, write: changes.Write) -> Case:
    """A case in which this is the only stored file of the plain views of a run."""

    def make(place: Place, draw: Random) -> None:
        shutil.copytree(place.world / "run", place.out / "run")
        for path in list((place.out / "run/base/probabilities").glob("val-*.npz")):
            write(place, path, draw)

    return Case(
        KIND,
        f"{name}-kept",
        "tinynet.evaluate",
        commands.evaluate_run("out/run", "--split", "val"),
        make,
        right.either(right.scored(("val",))),
    )


def _reported(name: str, write: changes.Write) -> Case:
    """A case of a report on a run with this stored file."""
    inner = _in_run(name, write)
    return Case(
        KIND,
        f"{name}-report",
        "tinynet.report.__main__",
        commands.report("out/run"),
        inner.make,
        right.either(right.page),
    )


def _changed(change: changes.Change) -> changes.Write:
    return lambda place, path, draw: (
        path.write_bytes(changes.bytes_of(change(changes.arrays_of(path)))) and None
    )


def _scored(ended: Ended) -> None:
    """The scores are those of the undamaged run."""
    (row,) = right.rows(ended)
    _like_the_run(ended, row)


def _both_scored(ended: Ended) -> None:
    """Check the comparison of a file with itself: three equal rows."""
    table = right.rows(ended)
    right.need(len(table) == 3, f"{len(table)} rows, not 3")
    for row in table:
        _like_the_run(ended, row)


def _like_the_run(ended: Ended, row: dict[str, Any]) -> None:
    clean = next(
        row
        for row in json.loads((ended.place.world / "scores.json").read_text())
        if (row["split"], row["views"]) == ("val", "none")
    )
    for key in ("n", "top1", "top5", "loss"):
        right.need(abs(row[key] - clean[key]) < 1e-3, f"{key} is {row[key]}, not {clean[key]}")
