"""Compare the files of a trial with undisturbed ones: bits, rows and pages, without times."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.killing.processes import Room

# A packed copy's mark of its zip has the inode, which is another one in each copy of the zip.
_TIMES = {"seconds", "pictures_per_second", "images_per_second", "mark"}
_MOST = 3  # differing values that are listed per file


def differences(expected: Room, room: Room) -> list[str]:
    """A line for every missing, different or left-over file, temporary files included."""
    theirs, ours = names(expected.work), names(room.work)
    lines = [f"missing: {name}" for name in _topmost(theirs - ours)]
    lines += [f"left behind: {name}" for name in _topmost(ours - theirs)]
    # Not counted: Python's folder of a killed worker process, and the file with which torch tests
    # whether more files can be opened.
    lines += [
        f"left behind: {name} in the temporary folder"
        for name in _topmost(names(room.tmp))
        if not re.fullmatch(r"pymp-\w+|tmp\w{8}", name)
    ]
    for name in sorted(theirs & ours):
        if (expected.work / name).is_file():
            lines += file_differences(name, name, expected, room)
    return lines


def names(folder: Path) -> set[str]:
    """Files and folders below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _topmost(paths: set[str]) -> list[str]:
    """The paths that are in none of the others."""
    return sorted(
        path for path in paths if not any(str(folder) in paths for folder in Path(path).parents)
    )


def file_differences(theirs: str, ours: str, expected: Room, room: Room) -> list[str]:
    """A line if the file `ours` of a room differs from the file `theirs` of the expected one."""
    paths = expected.work / theirs, room.work / ours
    if not paths[1].is_file():
        return [f"{ours}: is no file"]
    if paths[0].read_bytes() == paths[1].read_bytes():
        return []
    read = _READERS.get(Path(ours).suffix, _bytes)
    try:
        values = [
            dict(_leaves(read(path, one.inside)))
            for path, one in zip(paths, (expected, room), strict=True)
        ]
    except Exception as error:  # an incomplete file raises nearly any exception
        return [f"{ours}: cannot be read ({type(error).__name__})"]
    differing = [
        place for place in values[0] | values[1] if values[0].get(place) != values[1].get(place)
    ]
    more = [f"and {len(differing) - _MOST} more"] if len(differing) > _MOST else []
    places = ", ".join([place or "its content" for place in differing[:_MOST]] + more)
    return [f"{ours}: differs in {places}"] if differing else []


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value and array inside a value, with its place; arrays as their bytes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _TIMES:
                yield from _leaves(inner, f"{place}.{key}".lstrip("."))
        yield f"{place}.keys".lstrip("."), [key for key in value if key not in _TIMES]
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{number}]")
        yield f"{place}.length", len(value)
    elif isinstance(value, torch.Tensor):
        bits = value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else value
        yield place, (str(value.dtype), tuple(value.shape), bits.numpy().tobytes())
    elif isinstance(value, np.ndarray):
        yield place, (str(value.dtype), value.shape, value.tobytes())
    else:
        yield place, value if isinstance(value, bytes) else repr(value)


def _text(path: Path, room: Path) -> str:
    return path.read_text(encoding="utf-8").replace(str(room), "ROOM")


def _bytes(path: Path, _: Path) -> bytes:
    return path.read_bytes()


def _json(path: Path, room: Path) -> Any:
    return json.loads(_text(path, room))


def _rows(path: Path, room: Path) -> list[Any]:
    return [json.loads(line) for line in _text(path, room).splitlines()]


def _checkpoint(path: Path, _: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _arrays(path: Path, _: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "about" in arrays:
        arrays["about"] = json.loads(arrays["about"].item())
    return arrays


def _drawing(path: Path, _: Path) -> bool:
    """Whether an SVG is complete; its content differs, because matplotlib's names are random."""
    return path.read_text(encoding="utf-8").rstrip().endswith("</svg>")


_READERS: dict[str, Callable[[Path, Path], Any]] = {
    ".json": _json,
    ".jsonl": _rows,
    ".pt": _checkpoint,
    ".npz": _arrays,
    ".svg": _drawing,
    ".html": _text,
}
