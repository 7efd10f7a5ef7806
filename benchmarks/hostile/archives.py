"""Cases of the official layout, as a zip or a folder: what each command must make of them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.hostile import right
from benchmarks.hostile.case import Case, Maker, Right
from benchmarks.hostile.world import ROOT

ZIP, FOLDER = "in/archive.zip", f"in/{ROOT}"
MODULE = "tinynet.data.__main__"
# An image whose name is known, for the cases that damage one.
IMAGE = f"{ROOT}/val/images/val_3.JPEG"
NAME = "val_3.JPEG"


@dataclass(frozen=True)
class Way:
    """What is right for `data pack` and for `data verify`."""

    pack: Right
    verify: Right


SAME = Way(right.gives(right.packed), right.gives(right.verified))
EITHER = Way(
    right.either(right.part_packed),
    right.any_of(right.refused(), right.faults, right.gives(right.rows)),
)
# An image that can be passed over as well as named.
PASSED_OR_NAMED = Way(
    right.either(right.without_boxes, NAME),
    right.any_of(right.refused(NAME), right.faults, right.gives(right.rows)),
)
UNREADABLE = Way(right.refused(NAME), right.any_of(right.refused(NAME), right.faults))


def refusal(*words: str) -> Way:
    """Both commands refuse it."""
    return Way(right.refused(*words), right.refused(*words))


def either(*words: str, boxes: bool = True) -> Way:
    """Refused, or the images that the maker returned, all of them."""
    check = right.packed if boxes else right.without_boxes
    return Way(
        right.either(check, *words),
        right.any_of(right.refused(*words), right.faults, right.gives(right.rows)),
    )


def pack(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """`data pack` of the source."""
    flags = ("pack", "--data", source, "--cache", "out/cache", "--quiet")
    return Case(kind, f"{name}-pack", MODULE, flags, make, way.pack)


def verify(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """`data verify` of the source."""
    return Case(
        kind,
        f"{name}-verify",
        MODULE,
        ("verify", "--data", source, "--json", "--quiet"),
        make,
        way.verify,
    )


def info(kind: str, name: str, make: Maker, way: Way, source: str = ZIP) -> Case:
    """`data info` of the source, which reads one image."""
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
    """`data pack`, which reads everything, and for some of the cases `data verify` or `data info`
    too.
    """
    yield pack(kind, name, make, way, source)
    turn = zlib.crc32(name.encode()) % 6
    if turn < 3:
        yield (verify, verify, info)[turn](kind, name, make, way, source)
