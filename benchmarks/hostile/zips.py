"""Hostile zips in the official layout."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from benchmarks.hostile import archives, zipping
from benchmarks.hostile.archives import EITHER, IMAGE, NAME, SAME, UNREADABLE, Way
from benchmarks.hostile.case import Case, Place
from benchmarks.hostile.damage import damaged, zip_spans
from benchmarks.hostile.world import ROOT
from benchmarks.hostile.zipping import DEFLATED, Entry, bomb, entry, zip_bytes

KIND = "zips"
GIGABYTES = 2 << 30  # more than a command may use
Entries = list[Entry]
Change = Callable[[Entries], Entries]


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for name, change in _PASSED_OVER.items():
        yield from _cases(name, change, SAME)
    for name, change in (_REWRITTEN | _WITHOUT_LIST).items():
        yield from _cases(name, change, SAME)
    for name, change in _ONE_IMAGE.items():
        yield from _cases(name, _on(IMAGE, change), UNREADABLE)
    for name, change in _TEXTS.items():
        yield from _cases(name, change, archives.refusal())
    for name, change in _DOUBTFUL.items():
        yield from _cases(name, change, EITHER)
    for name, data in _WHOLE.items():
        yield from archives.both(KIND, name, _writes(data), archives.refusal("archive.zip"))
    for name, write in _ENDS.items():
        yield from archives.both(KIND, name, _ended(write), EITHER)
    yield from archives.both(KIND, "twice-and-different", _twice, archives.either(NAME))
    for name, label in _RENAMED.items():
        yield from archives.both(
            KIND, f"image-named-{name}", _renamed(label), archives.either(boxes=False)
        )


def random(number: int) -> Case:
    """A case with random damage in one of the structures of a zip."""
    structure = ("central directory", "local header", "data", "end record", "central directory")[
        number % 5
    ]
    method = (zipping.STORED, DEFLATED)[number // 5 % 2]
    command = (archives.pack, archives.pack, archives.verify)[number % 3]

    def make(place: Place, draw: Random) -> None:
        good = zip_bytes(entry(one.name, content, method) for one, content in _good(place))
        (place.inputs / "archive.zip").write_bytes(damaged(good, zip_spans(good)[structure], draw))

    return command(KIND, f"damaged-{structure.replace(' ', '-')}-{number:04d}", make, EITHER)


def _good(place: Place) -> list[tuple[Entry, bytes]]:
    members = zipping.members(place.world / "drawn.zip")
    return [(entry(name, content), content) for name, content in members.items()]


def _cases(name: str, change: Change, way: Way) -> Iterator[Case]:
    def make(place: Place, draw: Random) -> None:
        entries = change([one for one, _ in _good(place)])
        (place.inputs / "archive.zip").write_bytes(zip_bytes(entries))

    yield from archives.both(KIND, name, make, way)


def _writes(data: bytes) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        (place.inputs / "archive.zip").write_bytes(data)

    return make


def _ended(write: Callable[[Entries], bytes]) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        (place.inputs / "archive.zip").write_bytes(write([one for one, _ in _good(place)]))

    return make


def _renamed(ending: str) -> Callable[[Place, Random], Any]:
    """Give the first training image a strange name, which has no box."""

    def make(place: Place, draw: Random) -> Any:
        truth = _truth(place)
        name = next(iter(truth["train"]))
        other = name.removesuffix(".JPEG") + ending
        truth["train"] = {
            other if key == name else key: value for key, value in truth["train"].items()
        }
        change = _on(
            f"{ROOT}/{name}", lambda one: replace(one, name=f"{ROOT}/{other}".encode(), flags=0x800)
        )
        (place.inputs / "archive.zip").write_bytes(
            zip_bytes(change([one for one, _ in _good(place)]))
        )
        return truth

    return make


def _twice(place: Place, draw: Random) -> Any:
    """One image with two contents: the command must refuse, or take the last, like unpacking."""
    truth, other = _truth(place), IMAGE.replace("3", "4")
    entries = [one for one, _ in _good(place)]
    again = replace(_image_of(entries, other), name=IMAGE.encode())
    (place.inputs / "archive.zip").write_bytes(zip_bytes([*entries, again]))
    inner = IMAGE.removeprefix(f"{ROOT}/")
    truth["val"][inner][2] = truth["val"][other.removeprefix(f"{ROOT}/")][2]
    return truth


def _truth(place: Place) -> dict[str, dict[str, list]]:
    return json.loads((place.world / "truth.json").read_text())


def _on(name: str, change: Callable[[Entry], Entry]) -> Change:
    """Apply `change` to the member called `name`."""
    return lambda entries: [change(one) if one.name == name.encode() else one for one in entries]


def _more(*others: Entry) -> Change:
    return lambda entries: [*entries, *others]


def _all(change: Callable[[Entry], Entry]) -> Change:
    return lambda entries: [change(one) for one in entries]


def _renames(change: Callable[[str], str]) -> Change:
    return _all(lambda one: replace(one, name=change(one.name.decode()).encode()))


def _again(method: int) -> Change:
    """Compress every member."""
    return _all(lambda one: entry(one.name, one.data, method))


def _image_of(entries: Entries, name: str = IMAGE) -> Entry:
    return next(one for one in entries if one.name == name.encode())


def _of_train(inner: str) -> Change:
    """Put a copy of an image at `inner` below the images of the first class."""

    def change(entries: Entries) -> Entries:
        first = next(
            one for one in entries if b"/train/" in one.name and one.name.endswith(b".JPEG")
        )
        folder = first.name.decode().rsplit("/", 1)[0]
        return [*entries, replace(first, name=f"{folder}/{inner}".encode())]

    return change


# Additional members that no command reads, or that other programs write.
_PASSED_OVER: dict[str, Change] = {
    "above": _more(entry("../../above.txt", b"x"), entry(f"{ROOT}/../../../above.JPEG", b"x")),
    "absolute": _more(
        entry("/etc/tinynet-was-here", b"x"),
        entry("//server/share", b"x"),
        entry("C:\\x.txt", b"x"),
    ),
    "backslashes": _more(
        entry("..\\..\\above.txt", b"x"), entry(f"{ROOT}\\other\\val_99.JPEG", b"x")
    ),
    "newline": _more(entry("a\nb.txt", b"x"), entry("a\r\nb.JPEG", b"x")),
    "escapes": _more(entry("\x1b[31mred\x07.txt", b"x"), entry("\x00.txt", b"x")),
    "long-name": _more(entry("x" * 65000, b"x"), entry("y/" * 32000 + "y", b"x")),
    "no-name": _more(entry("", b"x")),
    "apple-twins": _more(
        entry(f"__MACOSX/{ROOT}/val/images/._val_3.JPEG", b"Mac OS X"),
        entry(f"{ROOT}/val/images/._val_3.JPEG", b"Mac OS X"),
        entry(f"{ROOT}/.DS_Store", b"x"),
    ),
    "apple-list": _more(entry("__MACOSX/wnids.txt", b"n00000001\n")),
    "apple-folder-inside": _of_train("__MACOSX/copy.JPEG"),
    "checkpoints-inside": _of_train(".ipynb_checkpoints/copy-checkpoint.JPEG"),
    "thumbnails-inside": _of_train("@eaDir/copy.JPEG"),
    "hidden-folder-inside": _of_train(".cache/copy.JPEG"),
    "link-elsewhere": _more(replace(entry("passwd", b"/etc/passwd"), attributes=zipping.LINK)),
    "encrypted-beside": _more(replace(entry("secret.txt", b"x" * 20), flags=1)),
    "bomb-beside": lambda entries: [*entries, bomb("zeros.bin", GIGABYTES)],
    "wrong-crc-beside": _more(replace(entry("x.txt", b"x"), crc=1)),
    "huge-beside": _more(replace(entry("x.bin", b"x"), size=0xFFFFFFFE, packed=0xFFFFFFFE)),
    "zip-beside": _more(entry("inner.zip", zip_bytes([entry("wnids.txt", b"n1\n")]))),
    "many-beside": lambda entries: [
        *entries,
        *(entry(f"extra/{number}", b"") for number in range(70_000)),
    ],
    "folders": _more(
        entry(f"{ROOT}/", b""),
        entry(f"{ROOT}/train/", b""),
        entry(f"{ROOT}/val/images/x.JPEG/", b""),
    ),
    "file-called-train": _more(entry(f"{ROOT}/train", b"x"), entry(f"{ROOT}/val/images", b"x")),
    "other-case": _more(
        entry(f"{ROOT}/TRAIN/n1/images/x.JPEG", b"x"), entry(f"{ROOT}/WNIDS.TXT", b"x")
    ),
}

# The members of the archive, written in another valid way.
_REWRITTEN: dict[str, Change] = {
    "deflated": _again(DEFLATED),
    "bzip2": _again(zipping.BZIP2),
    "lzma": _again(zipping.LZMA),
    "zip64": _all(zipping.zip64),
    "described": _all(lambda one: replace(one, described=True)),
    "reversed": lambda entries: entries[::-1],
    "no-root": _renames(lambda name: name.removeprefix(f"{ROOT}/")),
    "deep-root": _renames(lambda name: f"a/b c/\u00e9/{name}"),
    "twice-the-same": lambda entries: [*entries, _image_of(entries)],
    "attributes": _all(lambda one: replace(one, attributes=0xFFFF0000)),
}

# Changes that make one image unreadable.
_ONE_IMAGE: dict[str, Callable[[Entry], Entry]] = {
    **{
        f"method-{number}": (lambda one, number=number: replace(one, method=number))
        for number in (1, 6, 9, 10, 93, 95, 98, 99, 65535)
    },
    "stored-called-deflated": lambda one: replace(one, method=8),
    "stored-called-bzip2": lambda one: replace(one, method=12),
    "stored-called-lzma": lambda one: replace(one, method=14),
    "encrypted": lambda one: replace(one, flags=1),
    "strongly-encrypted": lambda one: replace(one, flags=0x41),
    "patch": lambda one: replace(one, flags=0x20),
    "wrong-crc": lambda one: replace(one, crc=one.crc ^ 1),
    "declared-larger": lambda one: replace(one, size=one.size + 10, packed=len(one.data) + 10),
    "declared-4-gb": lambda one: replace(one, size=0xFFFFFFFE, packed=0xFFFFFFFE),
    "declared-smaller": lambda one: replace(one, size=10, packed=10),
    "zip64-huge": lambda one: zipping.zip64(replace(one, size=1 << 62, packed=1 << 62)),
    "bomb": lambda one: bomb(IMAGE, GIGABYTES),
    "bomb-bzip2": lambda one: bomb(IMAGE, GIGABYTES, zipping.BZIP2),
    "bomb-that-lies": lambda one: replace(bomb(IMAGE, GIGABYTES), size=1000),
    "link": lambda one: replace(entry(one.name, b"/etc/passwd"), attributes=zipping.LINK),
    "empty": lambda one: entry(one.name, b""),
    "other-local-name": lambda one: replace(one, local_name=b"x" * len(one.name)),
    "at-the-start": lambda one: replace(one, at=0),
    "at-nowhere": lambda one: replace(one, at=0xFFFFFFF0),
    "no-signature": lambda one: replace(one, signature=b"PK\5\5"),
    "zip-inside": lambda one: entry(one.name, zip_bytes([entry("x.JPEG", one.data)])),
}


def _text(inner: str, change: Callable[[Entry], Entry]) -> Change:
    return _on(f"{ROOT}/{inner}", change)


_LIST, _LABELS = "wnids.txt", "val/val_annotations.txt"
_TEXTS: dict[str, Change] = {
    **{
        f"{name}-of-{inner.rsplit('/')[-1]}": _text(inner, change)
        for inner in (_LIST, _LABELS)
        for name, change in {
            "encryption": _ONE_IMAGE["encrypted"],
            "wrong-crc": _ONE_IMAGE["wrong-crc"],
            "method-99": _ONE_IMAGE["method-99"],
            "link": lambda one: replace(entry(one.name, b"/etc/passwd"), attributes=zipping.LINK),
        }.items()
    },
    "bomb-for-wnids": _text(_LIST, lambda one: bomb(f"{ROOT}/{_LIST}", GIGABYTES)),
    "bomb-for-annotations": _text(_LABELS, lambda one: bomb(f"{ROOT}/{_LABELS}", GIGABYTES)),
    "bomb-for-words": _text("words.txt", lambda one: bomb(f"{ROOT}/words.txt", GIGABYTES)),
    "no-train": lambda entries: [one for one in entries if b"/train/" not in one.name],
    "no-annotations": lambda entries: [
        one for one in entries if not one.name.endswith(_LABELS.encode())
    ],
}

# Without a list of classes, the folder names are the classes.
_WITHOUT_LIST: dict[str, Change] = {
    "no-wnids": lambda entries: [one for one in entries if not one.name.endswith(b"/wnids.txt")],
    "upper-case-wnids": _text(_LIST, lambda one: replace(one, name=f"{ROOT}/WNIDS.TXT".encode())),
}

_DOUBTFUL: dict[str, Change] = {
    "two-lists": _more(entry(f"{ROOT}/wnids.txt", b"n00000001\n")),
    "all-backslashes": _renames(lambda name: name.replace("/", "\\")),
    "all-absolute": _renames(lambda name: f"/{name}"),
    "all-above": _renames(lambda name: f"../../{name}"),
    "image-above": _more(entry(f"{ROOT}/train/../../../x.JPEG", b"x")),
    "image-above-a-class": _more(entry(f"{ROOT}/train/../images/x.JPEG", b"x")),
    "bad-utf-8": _more(replace(entry(b"\xff\xfe.txt", b"x"), flags=0x800)),
    "surrogate": _more(replace(entry(b"\xed\xa0\x80.txt", b"x"), flags=0x800)),
    "not-flagged-utf-8": _more(replace(entry("\u00e9.txt", b"x"), flags=0)),
    "inflates-to-4-gb-it-says": _on(
        IMAGE, lambda one: replace(entry(one.name, one.data, DEFLATED), size=0xFFFFFFFE)
    ),
    "newer-version": _on(IMAGE, lambda one: replace(one, version=99)),
    "broken-zip64": _on(
        IMAGE, lambda one: replace(zipping.zip64(one), extra=struct.pack("<2HB", 1, 16, 0))
    ),
    "broken-extra": _on(IMAGE, lambda one: replace(one, extra=b"\x01\x00\xff\xff")),
    "overlapping": lambda entries: [
        *entries,
        *(replace(_image_of(entries), name=IMAGE.encode() + b"x", at=0) for _ in range(3)),
    ],
    "quoted": _on(IMAGE, lambda one: replace(one, data=one.data + b"PK\1\2" * 20)),
}

_WHOLE = {
    "no-bytes": b"",
    "text": b"wnids.txt\n",
    "no-members": zip_bytes([]),
    "zip-in-a-zip": zip_bytes(
        [entry(f"{ROOT}.zip", zip_bytes([entry(f"{ROOT}/wnids.txt", b"n1\n")]))]
    ),
    "only-a-list": zip_bytes([entry(f"{ROOT}/wnids.txt", b"n1\n")]),
    "signature-alone": b"PK\3\4",
    "end-alone-cut": zip_bytes([])[:20],
    "gzip": bytes.fromhex("1f8b0800000000000003") + b"x" * 50,
    "zeros": bytes(100_000),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "many-ends": zip_bytes([]) * 3000,
}

# The end record, and the bytes before and after it.
_ENDS: dict[str, Callable[[Entries], bytes]] = {
    "comment": lambda entries: zip_bytes(entries, comment=b"c" * 65535),
    "comment-too-long": lambda entries: zip_bytes(entries, comment=b"c" * 65535) + b"more",
    "garbage-behind": lambda entries: zip_bytes(entries) + b"garbage" * 100,
    "garbage-before": lambda entries: b"#!/bin/sh\nexit 1\n" * 100 + zip_bytes(entries),
    "prefix": lambda entries: zip_bytes(entries, prefix=b"MZ" + bytes(5000)),
    "no-members-it-says": lambda entries: zip_bytes(entries, end={8: b"\0\0\0\0"}),
    "many-members-it-says": lambda entries: zip_bytes(entries, end={8: b"\xff\xff\xff\xff"}),
    "directory-at-0": lambda entries: zip_bytes(entries, end={16: b"\0\0\0\0"}),
    "directory-at-the-end": lambda entries: zip_bytes(entries, end={16: b"\xf0\xff\xff\x7f"}),
    "directory-is-empty": lambda entries: zip_bytes(entries, end={12: b"\0\0\0\0"}),
    "directory-is-huge": lambda entries: zip_bytes(entries, end={12: b"\xff\xff\xff\x7f"}),
    "second-disk": lambda entries: zip_bytes(entries, end={4: b"\1\0\1\0"}),
    "locator-to-nowhere": lambda entries: zip_bytes(
        entries, before_end=b"PK\6\7" + struct.pack("<LQL", 0, 1 << 60, 1)
    ),
    "locator-of-two-disks": lambda entries: zip_bytes(
        entries, before_end=b"PK\6\7" + struct.pack("<LQL", 1, 0, 2)
    ),
    "zip64-end-huge": lambda entries: zip_bytes(
        entries,
        before_end=b"PK\6\6"
        + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 1 << 62, 1 << 62, 1 << 62, 1 << 62)
        + b"PK\6\7"
        + struct.pack("<LQL", 0, 0, 1),
    ),
    "cut-in-half": lambda entries: zip_bytes(entries)[:20_000],
    "two-zips": lambda entries: zip_bytes(entries) + zip_bytes(entries),
}

_RENAMED = {
    "newline": "\n.JPEG",
    "return": "\r.JPEG",
    "escape": "\x1b[31m.JPEG",
    "line-separator": "\u2028.JPEG",
    "next-line": "\x85.JPEG",
    "long": "x" * 5000 + ".JPEG",
    "emoji": "\U0001f600.JPEG",
    "spaces": "  a b .JPEG",
    "right-to-left": "\u202egpj.JPEG",
    "tab": "\t.JPEG",
    "colon": ":stream.JPEG",
    "device": "CON.JPEG",
}
