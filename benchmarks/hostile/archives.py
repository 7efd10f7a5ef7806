"""Cases of the official layout, as a zip or a folder, with the right outcome of each command."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.hostile import right
from benchmarks.hostile.case import Case, Maker, Right
from benchmarks.hostile.world import ROOT

ZIP, FOLDER = "in/archive.zip", f"in/{ROOT}"
MODULE = "tinynet.data.__main__"
# The image that cases damage.
IMAGE = f"{ROOT}/val/images/val_3.JPEG"
NAME = "val_3.JPEG"


@dataclass(frozen=True)
class Way:
    """The right outcomes of `data pack` and `data verify`."""

    pack: Right
    verify: Right


SAME = Way(right.gives(right.packed), right.gives(right.verified))
EITHER = Way(
    right.either(right.part_packed),
    right.any_of(right.refused(), right.faults, right.gives(right.rows)),
)
# The command may skip this image or name it.
PASSED_OR_NAMED = Way(
    right.either(right.without_boxes, NAME),
    right.any_of(right.refused(NAME), right.faults, right.gives(right.rows)),
)
UNREADABLE = Way(right.refused(NAME), right.any_of(right.refused(NAME), right.faults))


def refusal(*words: str) -> Way:
    """Both commands must refuse the input."""
    return Way(right.refused(*words), right.refused(*words))


def either(*words: str, boxes: bool = True) -> Way:
    """The command must refuse the input, or give all images that the maker returned."""
    check = right.packed if boxes else right.without_boxes
    return Way(
        right.either(check, *words),
        right.any_of(right.refused(*words), right.faults, right.gives(right.rows)),
    )


def pack(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """A case of `data pack`."""
    flags = ("pack", "--data", source, "--cache", "out/cache", "--quiet")
    return Case(kind, f"{name}-pack", MODULE, flags, make, way.pack)


def verify(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """A case of `data verify`."""
    return Case(
        kind,
        f"{name}-verify",
        MODULE,
        ("verify", "--data", source, "--json", "--quiet"),
        make,
        way.verify,
    )


def info(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """A case of `data info`, which reads one image."""
    expected = (
        right.gives(right.counted)
        if way is SAME
        else right.any_of(right.refused(), right.gives(right.rows))
    )
    return Case(
        kind,
        f"{name}-info",
        MODULE,
        ("info", "--data", source, "--json", "--quiet"),
        make,
        expected,
    )


def both(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Iterator[Case]:
    """A case of `data pack`, which reads everything; for some inputs also one of `data verify` or
    `data info`.
    """
    yield pack(kind, name, make, way, source)
    turn = zlib.crc32(name.encode()) % 6
    if turn < 3:
        yield (verify, verify, info)[turn](kind, name, make, way, source)
