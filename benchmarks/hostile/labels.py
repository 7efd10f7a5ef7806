"""Hostile files of labels for a flat folder, and ImageNet's devkit."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile import right
from benchmarks.hostile.case import Case, Place, Right
from benchmarks.hostile.commands import evaluate_folder
from benchmarks.hostile.damage import damaged
from benchmarks.hostile.drawing import HUES, encoded, flat
from tinynet.data.image_folder import imagenet_wnids

KIND = "labels"
_TABLE, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_LABELS = (0, 2, 1, 0, 1, 2)
_FILES = tuple(f"{letter}.png" for letter in "abcdef")
# sorted as text: 1, 10, 11, 2, 20, 3
_NUMBERS = tuple(f"{number}.png" for number in (1, 2, 3, 10, 11, 20))
Content = str | bytes | Callable[[Path], Any]


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    wnids = [imagenet_wnids()[label] for label in _LABELS]
    by_name = "".join(f"{file} {wnid}\n" for file, wnid in zip(_FILES, wnids, strict=True))
    by_place = "".join(f"{wnid}\n" for wnid in wnids)
    for name, content in _read(by_place, by_name).items():
        yield _case(name, content, right.gives(_answered()))
    for name, content in _refused(by_place, by_name).items():
        yield _case(name, content, right.refused("in/labels"))
    for name, content in _doubtful(by_place, by_name).items():
        yield _case(name, content, right.either(_answered(), "in/labels"))
    # Sorting by text and by number gives different orders, so the first label is ambiguous.
    yield _case("numbers-by-place", by_place, right.refused("in/labels"), _NUMBERS)
    yield _case(
        "numbers-by-place-indices",
        "".join(f"{label}\n" for label in _LABELS),
        right.refused("in/labels"),
        _NUMBERS,
    )
    yield _case(
        "numbers-by-name",
        "".join(f"{file} {wnid}\n" for file, wnid in zip(_NUMBERS, wnids, strict=True)),
        right.gives(_answered(_NUMBERS)),
        _NUMBERS,
    )
    yield _case(
        "numbers-padded",
        by_place,
        right.gives(_answered()),
        tuple(f"{at:08d}.png" for at in range(6)),
    )
    for name, change in _DEVKITS.items():
        yield _devkit(name, change, right.refused("in/devkit"))
    yield _devkit("whole", lambda folder: None, right.gives(_answered()))


def random(number: int) -> Case:
    """A case with random damage: in the table of the devkit, or in a list."""
    if number % 2:
        return _devkit(f"damaged-{number:04d}", None, right.either(_counted, "in/devkit"))
    wnids = [imagenet_wnids()[label] for label in _LABELS]
    text = "".join(f"{file} {wnid}\n" for file, wnid in zip(_FILES, wnids, strict=True)).encode()

    def make(place: Place, draw: Random) -> None:
        _images(place, _FILES)
        (place.inputs / "labels.txt").write_bytes(damaged(text, [(0, len(text))], draw))

    return Case(
        KIND,
        f"damaged-list-{number:04d}",
        "tinynet.folder",
        _flags("in/labels.txt"),
        make,
        right.either(_counted, "in/labels"),
    )


def _flags(labels: str) -> tuple[str, ...]:
    return evaluate_folder("in/images", "--labels", labels)


def _images(place: Place, files: Sequence[str]) -> None:
    (place.inputs / "images").mkdir()
    for file, label in zip(files, _LABELS, strict=True):
        (place.inputs / "images" / file).write_bytes(encoded(flat(HUES[label])))


def _case(name: str, content: Content, expected: Right, files: Sequence[str] = _FILES) -> Case:
    def make(place: Place, draw: Random) -> None:
        _images(place, files)
        path = place.inputs / "labels.txt"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return Case(KIND, name, "tinynet.folder", _flags("in/labels.txt"), make, expected)


def _answered(files: Sequence[str] = _FILES) -> right.Check:
    """All labels are those of the images' colours, in the order of the sorted names."""
    labels = [label for _, label in sorted(zip(files, _LABELS, strict=True))]
    return right.answered(labels, [HUES[label] for label in labels])


def _counted(ended: right.Ended) -> None:
    """Damage may change labels, but not the number of images."""
    (row,) = right.rows(ended)
    right.need(row["n"] == len(_LABELS), f"{row['n']} images, not {len(_LABELS)}")


def _read(by_place: str, by_name: str) -> dict[str, Content]:
    """Files that must be read as intended."""
    return {
        "by-place": by_place,
        "by-name": by_name,
        "indices": "".join(f"{label}\n" for label in _LABELS),
        **{
            f"{way}-{name}": change
            for way, text in (("by-place", by_place), ("by-name", by_name))
            for name, change in {
                "bom": text.encode("utf-8-sig"),
                "utf-16": text.encode("utf-16"),
                "utf-16-be": b"\xfe\xff" + text.encode("utf-16-be"),
                "crlf": text.replace("\n", "\r\n"),
                "returns": text.replace("\n", "\r"),
                "no-last-newline": text.rstrip("\n"),
                "blank-lines": "\n\n" + text.replace("\n", "\n \n"),
                "spaces": text.replace("\n", "  \n"),
            }.items()
        },
        "by-name-tabs": by_name.replace(" ", "\t"),
        "by-name-shuffled": "".join(sorted(by_name.splitlines(True))[::-1]),
        "by-name-twice-the-same": by_name * 2,
        "by-name-other-files": by_name + "z.png n01440764\n",
        "by-path": by_name.replace("a.png", "elsewhere/a.png"),
        "by-name-other-path": by_name + "x/a.png n01484850\n",
        "link": lambda path: (
            path.with_name("other.txt").write_text(by_name),
            path.symlink_to("other.txt"),
        ),
    }


def _refused(by_place: str, by_name: str) -> dict[str, Content]:
    """Ambiguous files, which must be refused."""
    last = by_place.splitlines()[-1]
    return {
        "empty": "",
        "blank": "\n \n\t\n",
        "nuls": bytes(1000),
        "binary": bytes(range(256)) * 4,
        "one-line-of-10-mb": lambda path: path.write_text("n" * 10_000_000),
        "million-lines": lambda path: path.write_text(by_place * 170_000),
        "one-less": by_place[:-10],
        "one-more": by_place + f"{last}\n",
        "header-alone": "label\n",
        "unknown": by_place.replace(last, "n99999999"),
        "index-1000": by_place.replace(last, "1000"),
        "index-negative": by_place.replace(last, "-1"),
        "index-float": by_place.replace(last, "1.0"),
        "index-hexadecimal": by_place.replace(last, "0x1"),
        "index-5000-digits": by_place.replace(last, "9" * 5000),
        "index-superscript": by_place.replace(last, "\u00b2"),
        "name-of-class": by_place.replace(last, "goldfish"),
        "mixed": by_place + by_name,
        "contradiction": by_name + "a.png n01484850\n",
        "contradiction-first": "a.png n01484850\n" + by_name,
        "contradiction-by-path": by_name.replace("a.png", "x/a.png") + "y/a.png n01484850\n",
        "one-missing": "".join(by_name.splitlines(True)[1:]),
        "latin-1": by_name.encode() + b"\xe9.png n01440764\n",
        "by-name-index-1000": by_name.replace(last, "1000"),
        "escape": by_place.replace(last, "\x1b[31m"),
        "by-name-negative": by_name.replace(last, "-1"),
        "wrong-case": by_name.upper(),
        "pipe": os.mkfifo,
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "broken-link": lambda path: path.symlink_to("nowhere"),
        "loop": lambda path: path.symlink_to(path.name),
    }


def _doubtful(by_place: str, by_name: str) -> dict[str, Content]:
    """Files that may be read as intended, or refused."""
    comma = by_name.replace(" ", ",")
    return {
        "csv": comma,
        "csv-header": "file,label\n" + comma,
        "header": "file label\n" + by_name,
        "csv-spaces": by_name.replace(" ", ", "),
        "semicolons": by_name.replace(" ", ";"),
        "quotes": "".join(f'"{line}"\n' for line in by_place.splitlines()),
        "quotes-by-name": "".join(
            '"{}" "{}"\n'.format(*line.split()) for line in by_name.splitlines()
        ),
        "csv-quotes": "".join('"{}","{}"\n'.format(*line.split()) for line in by_name.splitlines()),
        "other-digits": by_place.replace(by_place.splitlines()[-1], "\u0662"),
        "utf-32": by_name.encode("utf-32"),
        "utf-16-no-bom": by_name.encode("utf-16-le"),
        "comment": "# labels\n" + by_place,
        "dots": "".join(f"./{line}\n" for line in by_name.splitlines()),
        "backslashes": "".join(f"images\\{line}\n" for line in by_name.splitlines()),
        "label-first": "".join("{1} {0}\n".format(*line.split()) for line in by_name.splitlines()),
        "three-columns": by_name.replace("\n", " x\n"),
        "json": str(by_name.split()).replace("'", '"'),
        "form-feed": by_place.replace("\n", "\x0c\n"),
        "line-separators": by_place.replace("\n", "\u2028"),
        "zeros-before": "".join(f"000{label}\n" for label in _LABELS),
        "by-name-twice-as-index": by_name + "a.png 0\n",
    }


def _devkit(name: str, change: Callable[[Path], Any] | None, expected: Right) -> Case:
    """A case with `change` of a good devkit; None: random damage in its table."""

    def make(place: Place, draw: Random) -> None:
        _images(place, _FILES)
        folder = place.inputs / "devkit"
        (folder / "data").mkdir(parents=True)
        (folder / _TABLE).write_bytes(_meta())
        (folder / _TRUTH).write_text("".join(f"{1000 - label}\n" for label in _LABELS))
        if change:
            change(folder)
        else:
            good = (folder / _TABLE).read_bytes()
            (folder / _TABLE).write_bytes(damaged(good, [(0, 300), (0, len(good))], draw))

    return Case(KIND, f"devkit-{name}", "tinynet.folder", _flags("in/devkit"), make, expected)


def _meta(names: Sequence[str] | None = None, packed: bool = True, **fields: Any) -> bytes:
    """The table of the devkit; its numbers are not in the order of the classes."""
    from scipy.io import savemat

    table = np.zeros(1000, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")])
    table["ILSVRC2012_ID"] = np.arange(1000, 0, -1)
    table["WNID"] = list(imagenet_wnids()) if names is None else names
    table["words"] = "word"
    target = io.BytesIO()
    savemat(target, {"synsets": table, **fields}, do_compression=packed)
    return target.getvalue()


def _truth(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / _TRUTH).write_text(text)


def _table(data: Callable[[], bytes]) -> Callable[[Path], Any]:
    return lambda folder: (folder / _TABLE).write_bytes(data())


def _inflating() -> bytes:
    """A table with an element that inflates to two gigabytes of zeros."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    body = packer.compress(struct.pack("<2L", 14, 2**31 - 8)) + b"".join(
        packer.compress(block) for _ in range(2048)
    )
    body += packer.flush()
    return _meta(packed=False)[:128] + struct.pack("<2L", 15, len(body)) + body


def _replaced(inner: str, put: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: ((folder / inner).unlink(), put(folder / inner))


_DEVKITS: dict[str, Callable[[Path], Any]] = {
    "number-0": _truth("0\n" * 6),
    "number-1001": _truth("1001\n" * 6),
    "negative": _truth("-1\n" * 6),
    "floats": _truth("1.5\n" * 6),
    "words": _truth("fish\n" * 6),
    "too-few": _truth("1\n"),
    "too-many": _truth("1\n" * 7),
    "no-numbers": _truth(""),
    "5000-digits": _truth(("9" * 5000 + "\n") * 6),
    "10-mb": lambda folder: (folder / _TRUTH).write_text("1" * 10_000_000),
    "truth-missing": lambda folder: (folder / _TRUTH).unlink(),
    "table-missing": lambda folder: (folder / _TABLE).unlink(),
    "table-empty": _table(lambda: b""),
    "table-text": _table(lambda: b"no table\n"),
    "table-zeros": _table(lambda: bytes(999)),
    "table-half": _table(lambda: _meta()[:5000]),
    "table-half-unpacked": _table(lambda: _meta(packed=False)[:9000]),
    "table-header-alone": _table(lambda: _meta()[:128]),
    "table-hdf5": _table(lambda: b"\x89HDF\r\n\x1a\n" + bytes(999)),
    "table-7.3": _table(lambda: b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(999)),
    "table-old": _table(lambda: bytes(4) + b"\1\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0x\0" + bytes(8)),
    "table-other-names": _table(lambda: _meta(["n99999999"] * 1000)),
    "table-one-name": _table(lambda: _meta([imagenet_wnids()[999]] * 1000)),
    "table-numbers-for-names": _table(lambda: _meta(list(range(1000)))),
    "table-inflating": _table(_inflating),
    "table-byte-order": _table(lambda: _meta()[:126] + b"XX" + _meta()[128:]),
    "truth-pipe": _replaced(_TRUTH, os.mkfifo),
    "table-pipe": _replaced(_TABLE, os.mkfifo),
    "truth-zeros": _replaced(_TRUTH, lambda path: path.symlink_to("/dev/zero")),
    "table-zeros-without-end": _replaced(_TABLE, lambda path: path.symlink_to("/dev/zero")),
    "truth-folder": _replaced(_TRUTH, Path.mkdir),
    "table-loop": _replaced(_TABLE, lambda path: path.symlink_to(path.name)),
}
