"""Damage bytes and JSON values at random."""

import copy
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

Span = tuple[int, int]
_EXTREMES = ("00000000", "ffffffff", "ffffff7f", "00000080", "01000000", "0000ffff", "feffffff")
VALUES: tuple[Any, ...] = (
    None,
    "x",
    "",
    -1,
    0,
    3,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"a": 1},
    10**400,
    "\0",
    "../../x",
    True,
    0.5,
    "9" * 5000,
    ["x"],
    -(2**63),
    2**64,
)


def damaged(data: bytes, spans: Sequence[Span], draw: Random) -> bytes:
    """Change `data` once within one of `spans`: a bit, a byte, four bytes, a cut, fewer or more
    bytes.
    """
    start, end = draw.choice(spans)
    place = draw.randrange(start, max(end, start + 1))
    way = draw.choice(
        ("bit", "bit", "byte", "number", "number", "cut", "less", "more", "again", "zeros")
    )
    count = draw.choice((1, 2, 4, 16, 100))
    if way == "bit":
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    if way == "byte":
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    if way == "number":
        return data[:place] + bytes.fromhex(draw.choice(_EXTREMES)) + data[place + 4 :]
    if way == "cut":
        return data[:place]
    if way == "less":
        return data[:place] + data[place + count :]
    if way == "more":
        return data[:place] + draw.randbytes(count) + data[place:]
    if way == "again":
        return data[:place] + data[start:place] + data[place:]
    return data[:place] + bytes(count) + data[place + count :]


def zip_spans(data: bytes) -> dict[str, list[Span]]:
    """The positions of the structures of a zip without a comment."""
    _, _, _, _, count, size, start, _ = struct.unpack("<4s4H2LH", data[-22:])
    spans: dict[str, list[Span]] = {
        "central directory": [],
        "local header": [],
        "data": [],
        "end record": [(len(data) - 22, len(data))],
    }
    place = start
    for _ in range(count):
        lengths = struct.unpack("<3H", data[place + 28 : place + 34])
        (local,) = struct.unpack("<L", data[place + 42 : place + 46])
        name, extra = struct.unpack("<2H", data[local + 26 : local + 30])
        body = local + 30 + name + extra
        spans["central directory"].append((place, place + 46 + sum(lengths)))
        spans["local header"].append((local, body))
        spans["data"].append((body, body + struct.unpack("<L", data[place + 20 : place + 24])[0]))
        place += 46 + sum(lengths)
    return spans


def altered(value: Any, draw: Random) -> Any:
    """A JSON value with one part replaced or removed."""
    whole = copy.deepcopy(value)
    places = [
        (holder, key)
        for holder in _holders(whole)
        for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(VALUES)
    return whole


def _holders(value: Any) -> list[Any]:
    if not isinstance(value, (dict, list)):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(holder for one in inner for holder in _holders(one))]
