"""Hostile texts inside an archive: the list of classes, labels of val, boxes, names."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

from benchmarks.hostile import archives, right, zipping
from benchmarks.hostile.archives import SAME, Way
from benchmarks.hostile.case import Case, Ended, Place
from benchmarks.hostile.damage import damaged
from benchmarks.hostile.world import ROOT
from benchmarks.hostile.zipping import entry, zip_bytes

KIND = "texts"
Change = Callable[[bytes], bytes]
_LIST, _LABELS, _WORDS, _BOXES = "wnids.txt", "val/val_annotations.txt", "words.txt", "boxes"


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for inner, tables in _TABLES.items():
        for way, changes in tables:
            for name, change in changes.items():
                yield from archives.both(
                    KIND,
                    f"{inner.rsplit('/')[-1].removesuffix('.txt')}-{name}",
                    _makes(inner, change),
                    way,
                )
    for inner, way in ((_LIST, SAME), (_LABELS, archives.refusal(_LABELS)), (_BOXES, NO_BOXES)):
        yield from archives.both(
            KIND, f"{inner.rsplit('/')[-1].removesuffix('.txt')}-missing", _removes(inner), way
        )
    for name, change in _NAMES.items():
        yield archives.pack(
            KIND,
            f"words-{name}",
            _makes(_WORDS, change),
            Way(right.either(_named), right.refused()),
        )


def random(number: int) -> Case:
    """A case with random damage in one of the texts."""
    inner = (_LABELS, _LIST, _BOXES, _WORDS)[number % 4]

    def make(place: Place, draw: Random) -> None:
        _write(place, inner, lambda text: damaged(text, [(0, len(text))], draw))

    command = (archives.pack, archives.verify)[number // 4 % 2]
    way = Way(right.either(_consistent), archives.EITHER.verify)
    return command(
        KIND, f"damaged-{inner.rsplit('/')[-1].removesuffix('.txt')}-{number:04d}", make, way
    )


def _makes(inner: str, change: Change) -> Callable[[Place, Random], Any]:
    def make(place: Place, draw: Random) -> Any:
        _write(place, inner, change)
        return None

    return make


def _removes(inner: str) -> Callable[[Place, Random], Any]:
    def make(place: Place, draw: Random) -> Any:
        members = zipping.members(place.world / "drawn.zip")
        entries = [
            entry(name, content) for name, content in members.items() if not _is(name, inner)
        ]
        (place.inputs / "archive.zip").write_bytes(zip_bytes(entries))

    return make


def _is(name: str, inner: str) -> bool:
    return name.endswith("_boxes.txt") if inner == _BOXES else name == f"{ROOT}/{inner}"


def _write(place: Place, inner: str, change: Change) -> None:
    members = zipping.members(place.world / "drawn.zip")
    entries = [
        entry(name, change(content) if _is(name, inner) else content, zipping.DEFLATED)
        for name, content in members.items()
    ]
    (place.inputs / "archive.zip").write_bytes(zip_bytes(entries))


def _consistent(ended: Ended) -> None:
    """Check `data pack` after damage: labels, names and boxes may differ, classes and pixels may
    not.
    """
    clean = json.loads((ended.place.world / "truth.json").read_text())
    (manifest,) = (ended.place.out / "cache").glob("*.packed/manifest.json")
    counts = json.loads(manifest.read_text())["counts"]
    right.need(
        counts == {part: len(files) for part, files in clean.items()}, f"counts are {counts}"
    )


def _named(ended: Ended) -> None:
    """Check `data pack`: only the names may differ from the archive's."""
    right.packed(ended)
    (manifest,) = (ended.place.out / "cache").glob("*.packed/manifest.json")
    right.need(len(json.loads(manifest.read_text())["names"]) == 4, "other than four names")


def _same_names(ended: Ended) -> None:
    right.packed(ended)
    (clean,) = (ended.place.world / "cache").glob("*.packed/manifest.json")
    (manifest,) = (ended.place.out / "cache").glob("*.packed/manifest.json")
    result, names = (json.loads(path.read_text())["names"] for path in (manifest, clean))
    right.need(result == names, f"names are {result[:2]}, not {names[:2]}")


def _in(encoding: str) -> Change:
    return lambda text: text.decode().encode(encoding)


def _line(number: int, change: Callable[[list[str]], list[str]]) -> Change:
    """Change the fields of one line."""

    def changed(text: bytes) -> bytes:
        lines = text.decode().split("\n")
        lines[number] = "\t".join(change(lines[number].split("\t")))
        return "\n".join(lines).encode()

    return changed


def _box(*numbers: str) -> Change:
    """Replace numbers of the box in the second line."""
    return _line(1, lambda fields: [*fields[:-4], *numbers])


def _second_class(text: bytes) -> bytes:
    """Repeat the first image of val with the label of another class."""
    lines = text.decode().splitlines()
    first = lines[0].split("\t")
    other = next(line.split("\t")[1] for line in lines if line.split("\t")[1] != first[1])
    return text + "\t".join([first[0], other, *first[2:]]).encode() + b"\n"


SAME_NAMES = Way(right.gives(_same_names), SAME.verify)
NO_BOXES = Way(right.gives(right.without_boxes), SAME.verify)
REFUSAL = archives.refusal(f"{_LIST}")
BAD_LABELS = archives.refusal("val_annotations.txt")
DOUBT = archives.either()
NO_BOX = archives.either(boxes=False)
MORE, MANY = (
    Way(
        right.either(partial(right.packed, classes=count)),
        right.any_of(right.refused(), right.gives(right.rows), right.faults),
    )
    for count in (1, 1_000_000)
)

_ENCODINGS: dict[str, Change] = {
    "bom": _in("utf-8-sig"),
    "utf-16": _in("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + _in("utf-16-be")(text),
    "crlf": lambda text: text.replace(b"\n", b"\r\n"),
    "returns": lambda text: text.replace(b"\n", b"\r"),
    "no-last-newline": lambda text: text.rstrip(b"\n"),
}
_LISTS: list[tuple[Way, dict[str, Change]]] = [
    (
        SAME,
        {
            **_ENCODINGS,
            "spaces": lambda text: text.replace(b"\n", b"  \n"),
            "blank-lines": lambda text: b"\n\n" + text.replace(b"\n", b"\n\n"),
        },
    ),
    (
        REFUSAL,
        {
            "empty": lambda text: b"",
            "blank": lambda text: b" \n\t\n" * 10,
            "twice-the-same": lambda text: text + text[:10],
            "twice-all": lambda text: text * 2,
            "nul": lambda text: text.replace(b"n", b"\0", 1),
            "nuls": lambda text: bytes(1000),
            "binary": lambda text: bytes(range(256)) * 4,
            "latin-1": lambda text: b"\xe9\n" + text,
            "one-line-of-10-mb": lambda text: b"n" * 10_000_000,
            "one-class-less": lambda text: text[10:],
            "image": lambda text: b"\xff\xd8\xff\xe0" + text,
            "upper-case": lambda text: text.upper(),
            "above": lambda text: b"../" + text,
            "names-beside": lambda text: text.replace(b"\n", b"\tgoldfish\n"),
        },
    ),
    (
        MORE,
        {
            "one-class-more": lambda text: text + b"n99999999\n",
            "escape": lambda text: text + b"~\x1b[31m\n",
            "comment": lambda text: b"~ classes\n" + text,
        },
    ),
    (
        MANY,
        {
            "a-million-lines": lambda text: (
                text + b"".join(b"z%08d\n" % at for at in range(1_000_000))
            )
        },
    ),
    (
        DOUBT,
        {
            "utf-32": _in("utf-32"),
            "utf-16-no-bom": _in("utf-16-le"),
            "names-differ": lambda text: b"".join(
                line + b"\tname%d\n" % at for at, line in enumerate(text.splitlines())
            ),
        },
    ),
]
_HUGE = "9" * 5000
_BOXES_OF_VAL: list[tuple[Way, dict[str, Change]]] = [
    (
        BAD_LABELS,
        {
            "box-nan": _box("nan", "1", "2", "3"),
            "box-words": _box("a", "b", "c", "d"),
            "box-floats": _box("1.5", "1.5", "9.5", "9.5"),
            "box-5000-digits": _box("1", "1", "9", _HUGE),
        },
    ),
    (
        NO_BOX,
        {
            "box-negative": _box("-5", "-5", "9", "9"),
            "box-beyond": _box("0", "0", "99", "99"),
            "box-huge": _box("0", "0", "99999", "99999"),
            "box-beyond-64-bits": _box("0", "0", "9", "9" * 25),
            "box-turned": _box("20", "20", "3", "3"),
            "box-of-three": _box("1", "2", "3"),
            "box-none": _box(),
            "box-of-five": _box("1", "2", "3", "4", "5"),
            "box-empty-fields": _box("", "", "", ""),
            "box-other-digits": _box("\u0663", "1", "9", "9"),
            "box-underscores": _box("1_0", "1", "9", "9"),
        },
    ),
]
_LABELS_OF_VAL: list[tuple[Way, dict[str, Change]]] = [
    (
        SAME,
        {
            **_ENCODINGS,
            "twice-the-same": lambda text: text * 2,
            "100,000-lines": lambda text: text + text.splitlines(True)[0] * 100_000,
        },
    ),
    (
        BAD_LABELS,
        {
            "empty": lambda text: b"",
            "second-label": _second_class,
            "second-label-first": lambda text: _second_class(text).splitlines(True)[-1] + text,
            "other-class": _line(2, lambda fields: [fields[0], "n99999999", *fields[2:]]),
            "file-alone": _line(2, lambda fields: fields[:1]),
            "no-file": _line(2, lambda fields: ["", *fields[1:]]),
            "spaces": lambda text: text.replace(b"\t", b" "),
            "commas": lambda text: text.replace(b"\t", b","),
            "two-tabs": lambda text: text.replace(b"\t", b"\t\t"),
            "nuls": lambda text: bytes(1000),
            "nul": lambda text: text.replace(b"\t", b"\0", 1),
            "half": lambda text: text[: len(text) // 2],
            "binary": lambda text: bytes(range(256)) * 10,
            "one-line-of-10-mb": lambda text: b"v" * 10_000_000,
            "index": _line(2, lambda fields: [fields[0], "1", *fields[2:]]),
            "latin-1": lambda text: text + b"\xe9\n",
            "header": lambda text: b"file\twnid\tx0\ty0\tx1\ty1\n" + text,
            "escape": _line(2, lambda fields: ["\x1b[2J\x07", *fields[1:2], "x"]),
        },
    ),
    (
        DOUBT,
        {
            "blank-line": lambda text: text.replace(b"\n", b"\n\n", 1),
            "blank-end": lambda text: text + b"\n\n",
            "other-file": lambda text: (
                text + text.splitlines()[0].replace(b"val_0", b"val_99") + b"\n"
            ),
            "path": _line(2, lambda fields: [f"images/{fields[0]}", *fields[1:]]),
            "trailing-tab": lambda text: text.replace(b"\n", b"\t\n"),
            "utf-32": _in("utf-32"),
            "form-feed": lambda text: b"\x0c" + text,
        },
    ),
    (
        NO_BOX,
        {"twice-another-box": lambda text: text + text.splitlines(True)[0].replace(b"\n", b"1\n")},
    ),
]
_BOXES_OF_TRAIN: list[tuple[Way, dict[str, Change]]] = [
    (SAME, {**_ENCODINGS, "other-file": lambda text: text + b"other.JPEG\t1\t2\t3\t4\n"}),
    (
        NO_BOX,
        {
            "empty": lambda text: b"",
            "binary": lambda text: bytes(range(256)) * 10,
            "nuls": lambda text: bytes(999),
            "latin-1": lambda text: text + b"\xe9\n",
            "one-line-of-10-mb": lambda text: b"b" * 10_000_000,
            "file-alone": _line(1, lambda fields: fields[:1]),
            "spaces": lambda text: text.replace(b"\t", b" "),
            "twice-another": lambda text: text + text.splitlines(True)[0].replace(b"\n", b"1\n"),
            "box-nan": _box("nan", "1", "2", "3"),
            "box-floats": _box("1.5", "1.5", "9.5", "9.5"),
            **_BOXES_OF_VAL[1][1],
            "box-5000-digits": _box("1", "1", "9", _HUGE),
        },
    ),
]
_NAMES: dict[str, Change] = {
    "empty": lambda text: b"",
    "latin-1": lambda text: text.replace(b"\t", b"\t\xe9", 1),
    "utf-32": _in("utf-32"),
    "nul": lambda text: text.replace(b"\t", b"\t\0", 1),
    "no-tabs": lambda text: text.replace(b"\t", b" "),
    "many-tabs": lambda text: text.replace(b"\t", b"\t\t\t"),
    "twice-another": lambda text: text + text.replace(b"\t", b"\tother "),
    "escape": lambda text: text.replace(b"\t", b"\t\x1b[31m"),
    "one-line-of-10-mb": lambda text: text + b"\nn1\t" + b"w" * 10_000_000,
    "binary": lambda text: bytes(range(256)) * 9,
    "script": lambda text: text.replace(b"\t", b"\t<script>alert(1)</script>"),
    "surrogate": lambda text: text.replace(b"\t", b"\t\xed\xa0\x80", 1),
}
_TABLES = {
    _LIST: _LISTS,
    _LABELS: [*_BOXES_OF_VAL, *_LABELS_OF_VAL],
    _BOXES: _BOXES_OF_TRAIN,
    _WORDS: [
        (SAME_NAMES, {name: change for name, change in _ENCODINGS.items() if name != "returns"})
    ],
}
