"""Changes of a file of probabilities: tables of cases, and the functions for the changes."""

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile import pickles, zipping
from benchmarks.hostile.case import Place

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], Arrays]
Write = Callable[[Place, Path, Random], Any]  # replaces the good file at the path


def arrays_of(path: Path) -> Arrays:
    """The arrays of the good file at this path."""
    with np.load(path) as file:
        return dict(file)


def bytes_of(arrays: Arrays) -> bytes:
    target = io.BytesIO()
    np.savez_compressed(target, **arrays, allow_pickle=True)
    return target.getvalue()


def _set(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    return lambda arrays: {**arrays, name: np.asarray(change(arrays[name].copy()))}


def _put(name: str, place: Any, value: Any) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return _set(name, change)


def _without(name: str) -> Change:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def _objects(array: np.ndarray) -> np.ndarray:
    """The same numbers as objects, which numpy saves as a pickle."""
    return array.astype(object)


def _about(**fields: Any) -> Change:
    return _set("about", lambda about: np.array(json.dumps({**json.loads(str(about)), **fields})))


_LOGS = "log_probabilities"
REFUSED: dict[str, Change] = {
    "nan": _put(_LOGS, (0, 0, 0), np.nan),
    "all-nan": _set(_LOGS, lambda logs: logs * np.nan),
    "infinite": _put(_LOGS, (0, 0, 0), np.inf),
    "not-normalised": _set(_LOGS, lambda logs: logs + 1),
    "probabilities": _set(_LOGS, np.exp),
    "zeros": _set(_LOGS, np.zeros_like),
    "huge": _set(_LOGS, lambda logs: logs * 1e30),
    "one-row-not-normalised": _put(_LOGS, (0, 3), 0),
    "objects": _set(_LOGS, _objects),
    "shape": _set(_LOGS, lambda logs: logs[0]),
    "shape-more": _set(_LOGS, lambda logs: logs[None]),
    "shape-turned": _set(_LOGS, lambda logs: logs.transpose(0, 2, 1)),
    "no-classes": _set(_LOGS, lambda logs: logs[..., :0]),
    "one-class-less": _set(_LOGS, lambda logs: logs[..., :3]),
    "one-image-less": _set(_LOGS, lambda logs: logs[:, 1:]),
    "no-images": lambda arrays: {
        **arrays,
        _LOGS: arrays[_LOGS][:, :0],
        "rows": arrays["rows"][:0],
        "labels": arrays["labels"][:0],
    },
    "no-views": lambda arrays: {
        **arrays,
        _LOGS: arrays[_LOGS][:0],
        "views": arrays["views"][:0],
        "seconds": arrays["seconds"][:0],
    },
    "words": _set(_LOGS, lambda logs: logs.astype(str)),
    "complex": _set(_LOGS, lambda logs: logs.astype(complex)),
    "dates": _set(_LOGS, lambda logs: logs.astype("int64").astype("M8[s]")),
    "a-number": _set(_LOGS, lambda logs: logs.max()),
    "integers": _set(_LOGS, lambda logs: logs.astype(int)),
    "bools": _set(_LOGS, lambda logs: logs < -1),
    "labels-beyond": _put("labels", 0, 4),
    "labels-far-beyond": _put("labels", 0, 10**9),
    "labels-negative": _put("labels", 0, -1),
    "labels-floats": _set("labels", lambda labels: labels + 0.5),
    "labels-words": _set("labels", lambda labels: labels.astype(str)),
    "labels-fewer": _set("labels", lambda labels: labels[1:]),
    "labels-square": _set("labels", lambda labels: labels[:, None]),
    "labels-objects": _set("labels", _objects),
    "labels-nan": _set("labels", lambda labels: labels * np.nan),
    "rows-fewer": _set("rows", lambda rows: rows[1:]),
    "rows-words": _set("rows", lambda rows: rows.astype(str)),
    "rows-objects": _set("rows", _objects),
    "wnids-fewer": _set("wnids", lambda wnids: wnids[1:]),
    "wnids-twice": _set("wnids", lambda wnids: np.repeat(wnids[:1], 4)),
    "wnids-square": _set("wnids", lambda wnids: wnids[:, None]),
    "views-more": _set("views", lambda views: np.repeat(views, 2)),
    "views-objects": _set("views", _objects),
    "seconds-more": _set("seconds", lambda seconds: np.repeat(seconds, 2)),
    "seconds-words": _set("seconds", lambda seconds: seconds.astype(str)),
    "about-text": _set("about", lambda about: "no json"),
    "about-list": _set("about", lambda about: "[1, 2]"),
    "about-null": _set("about", lambda about: "null"),
    "about-deep": _set("about", lambda about: "[" * 100_000),
    "about-many": _set("about", lambda about: np.repeat(about, 2)),
    "about-number": _set("about", lambda about: 3),
    **{
        f"without-{name}": _without(name)
        for name in (_LOGS, "rows", "wnids", "views", "seconds", "about", "labels")
    },
}
DOUBTFUL: dict[str, Change] = {
    "wnids-numbers": _set("wnids", lambda wnids: np.arange(4)),
    "views-numbers": _set("views", lambda views: np.arange(1)),
    "about-bytes": _set("about", lambda about: np.array(b"{}")),
    "float64": _set(_LOGS, lambda logs: logs.astype(float)),
    "float16": _set(_LOGS, lambda logs: logs.astype(np.float16)),
    "big-endian": _set(_LOGS, lambda logs: logs.astype(">f4")),
    "fortran": _set(_LOGS, np.asfortranarray),
    "one-more": lambda arrays: {**arrays, "more": np.zeros(3)},
    "an-object-more": lambda arrays: {**arrays, "more": np.array([print], object)},
    "labels-int8": _set("labels", lambda labels: labels.astype("i1")),
    "labels-big-endian": _set("labels", lambda labels: labels.astype(">i8")),
    "rows-negative": _set("rows", lambda rows: -1 - rows),
    "rows-twice": _set("rows", np.zeros_like),
    "seconds-nan": _set("seconds", lambda seconds: seconds * np.nan),
    "seconds-zero": _set("seconds", lambda seconds: seconds * 0),
    "seconds-negative": _set("seconds", lambda seconds: seconds - 1e9),
    "about-empty": _set("about", lambda about: "{}"),
    "about-run-number": _about(run=3),
    "about-run-list": _about(run=[1]),
    "about-run-escape": _about(run="\x1b[31m"),
    "about-split-list": _about(split=[1]),
    "about-huge": lambda arrays: _about(more="x" * 10_000_000)(arrays),
    "about-tta-dict": _about(tta={"a": 1}),
    "about-precision-list": _about(precision=[1]),
}
OTHERS: dict[str, Change] = {
    "other-order": lambda arrays: {
        **arrays,
        _LOGS: arrays[_LOGS][:, ::-1],
        "rows": arrays["rows"][::-1],
        "labels": arrays["labels"][::-1],
    },
    "other-labels": _set("labels", lambda labels: (labels + 1) % 4),
    "other-classes": _set("wnids", lambda wnids: wnids[::-1]),
    "other-data": _about(data="x"),
    "other-split": _about(split="holdout"),
    "other-rows": _set("rows", lambda rows: rows + 100),
}


def _npy(shape: str, kind: str = "<f4") -> bytes:
    """An array that declares a larger size than it has."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head = head.ljust((len(head) + 10 + 64) // 64 * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100)


def _member(data: bytes) -> Callable[[Place, Path, Random], None]:
    """Replace the member of the probabilities."""

    def write(place: Place, path: Path, draw: Random) -> None:
        path.write_bytes(
            pickles.rewritten(
                bytes_of(arrays_of(path)),
                lambda name, content: zipping.entry(
                    name, data if name.startswith(_LOGS) else content
                ),
            )
        )

    return write


def _bomb(place: Place, path: Path, draw: Random) -> None:
    """Probabilities that inflate to gigabytes."""
    path.write_bytes(
        pickles.rewritten(
            bytes_of(arrays_of(path)),
            lambda name, content: (
                zipping.bomb(name, 2 << 30)
                if name.startswith(_LOGS)
                else zipping.entry(name, content)
            ),
        )
    )


def _honest_bomb(place: Place, path: Path, draw: Random) -> None:
    """Two gigabytes of zeros, with a correct header."""
    head = _npy("(1, 8, 67108864)")[:-100]
    bomb = zipping.bomb(f"{_LOGS}.npy", 2 << 30)
    header = zipping.entry(f"{_LOGS}.npy", head, zipping.DEFLATED)
    whole = zipping.joined(header, bomb, head)
    path.write_bytes(
        pickles.rewritten(
            bytes_of(arrays_of(path)),
            lambda name, content: whole if name.startswith(_LOGS) else zipping.entry(name, content),
        )
    )


def _instead(put: Callable[[Path], Any]) -> Callable[[Place, Path, Random], None]:
    def write(place: Place, path: Path, draw: Random) -> None:
        path.unlink()
        put(path)

    return write


def _whole(data: bytes) -> Callable[[Place, Path, Random], None]:
    return lambda place, path, draw: path.write_bytes(data) and None


FILES: dict[str, Callable[[Place, Path, Random], Any]] = {
    "empty": _whole(b""),
    "text": _whole(b"no arrays\n"),
    "no-members": _whole(zipping.zip_bytes([])),
    "an-array": _whole(_npy("(25,)")),
    "an-array-of-objects": _whole(_npy("(2,)", "|O")),
    "zeros-file": _whole(bytes(9999)),
    "code": lambda place, path, draw: path.write_bytes(
        pickles.bare(pickles.payloads(place)["system"])
    ),
    "code-inside": lambda place, path, draw: _member(
        _npy("()", "|O")[:-100] + pickles.bare(pickles.payloads(place)["system"])
    )(place, path, draw),
    "half": lambda place, path, draw: path.write_bytes(bytes_of(arrays_of(path))[:900]),
    "larger-it-says": _member(_npy("(1, 8, 1000000000000)")),
    "larger-than-64-bits": _member(_npy("(1, 8, 9" + "9" * 30 + ")")),
    "negative-shape": _member(_npy("(1, -8, 4)")),
    "shape-of-words": _member(_npy("('x',)")),
    "head-of-code": _member(_npy("__import__('os').system('true')")),
    "head-deep": _member(_npy("(" * 3000 + ")" * 3000)),
    "head-alone": _member(b"\x93NUMPY"),
    "no-head": _member(b"x" * 200),
    "other-version": _member(b"\x93NUMPY\x09\x00" + _npy("(1, 8, 4)")[8:]),
    "type-unknown": _member(_npy("(1, 8, 4)", "xx")),
    "bomb": _bomb,
    "honest-bomb": _honest_bomb,
    "pipe": _instead(os.mkfifo),
    "folder": _instead(Path.mkdir),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "zeros-without-end": _instead(lambda path: path.symlink_to("/dev/zero")),
}
