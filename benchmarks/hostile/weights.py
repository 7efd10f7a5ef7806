"""Hostile weight files: for `--weights` of a pretrained classifier, and of the backbone for
training.
"""

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.hostile import commands, pickles, right, zipping
from benchmarks.hostile.case import Case, Place, Right
from benchmarks.hostile.damage import damaged, zip_spans
from benchmarks.hostile.drawing import GOOD_FILE

KIND = "weights"
State = dict[str, torch.Tensor]
_NAMES = ("system", "popen", "eval", "exec", "open", "mkdir", "hub", "load", "import")
_FORMATS: dict[str, Callable[[Any], bytes]] = {
    "bare": pickles.bare,
    "zipped": pickles.zipped,
    "legacy": pickles.legacy,
}


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for name in _NAMES:
        for form, write in _FORMATS.items():

            def code(place: Place, state: State, name=name, write=write) -> bytes:
                return write({**state, "more": pickles.payloads(place)[name]})

            yield _pretrained(f"code-{name}-{form}", code, right.refused("in/weights.pt"))
        yield _trained(f"code-{name}", code, right.refused("in/weights.pt"))
    for protocol in (0, 4, 5):
        yield _pretrained(
            f"code-protocol-{protocol}",
            lambda place, state, protocol=protocol: pickles.bare(
                pickles.payloads(place)["system"], protocol
            ),
            right.refused("in/weights.pt"),
        )
    for number, (name, data) in enumerate(FILES.items()):
        yield (_pretrained, _trained)[number % 2](
            name, _ignoring_place(data), right.refused("in/weights.pt")
        )
    for number, (name, change) in enumerate(_STATES.items()):
        yield (_trained, _pretrained)[number % 2](
            name, _saved(change), right.refused("in/weights.pt")
        )
    for build in (_pretrained, _trained):
        check = right.red if build is _pretrained else right.trained
        for name, change in _TENSORS.items():
            yield build(
                f"tensor-{name}", _saved(_one(change)), right.refused("in/weights.pt", "weight")
            )
        for name, change in _MORE_KEYS.items():
            yield build(
                name,
                _saved(change),
                right.refused("in/weights.pt")
                if build is _pretrained
                else right.either(check, "in/weights.pt"),
            )
        for name, change in _READ.items():
            yield build(name, _saved(change), right.gives(check))
        for name, change in _DOUBTFUL.items():
            yield build(name, _saved(change), right.either(check, "in/weights.pt"))
    for name, put in _PLACES.items():
        yield Case(
            KIND,
            f"{name}-pretrained",
            "tinynet.predict",
            commands.predict_pretrained("in/weights.pt"),
            lambda place, draw, put=put: put(place.inputs / "weights.pt"),
            right.refused("in/weights.pt"),
        )


def random(number: int) -> Case:
    """A case with random damage: in the pickle, the directory, or the numbers."""
    structure = ("central directory", "local header", "data", "end record")[number % 4]

    def data(place: Place, state: State, draw: Random) -> bytes:
        good = pickles.zipped(state)
        spans = zip_spans(good)[structure]
        # The first member is the pickle; it gets half of the damage.
        return damaged(good, [spans[0]] if draw.random() < 0.5 else spans, draw)

    build = (_pretrained, _trained)[number // 4 % 2]
    check = right.red if build is _pretrained else right.trained
    # of damaged numbers
    expected = right.any_of(right.either(check, "in/weights.pt"), right.refused("features"))
    name = f"damaged-{structure.replace(' ', '-')}-{number:04d}"
    return build(name, data, expected, chance=True)


def _pretrained(
    name: str, data: Callable[..., bytes], expected: Right, chance: bool = False
) -> Case:
    return Case(
        KIND,
        f"{name}-pretrained",
        "tinynet.predict",
        commands.predict_pretrained("in/weights.pt"),
        _maker("squeeze.pt", data, chance),
        expected,
    )


def _trained(name: str, data: Callable[..., bytes], expected: Right, chance: bool = False) -> Case:
    return Case(
        KIND,
        f"{name}-backbone",
        "tinynet.train",
        commands.train("in/weights.pt"),
        _maker("thin.pt", data, chance),
        expected,
    )


def _maker(good: str, data: Callable[..., bytes], chance: bool) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        state = torch.load(place.world / good, weights_only=True)
        (place.inputs / "weights.pt").write_bytes(data(place, state, *([draw] if chance else [])))

    return make


def _ignoring_place(data: Callable[[State], bytes]) -> Callable[[Place, State], bytes]:
    return lambda place, state: data(state)


def _saved(change: Callable[[State], Any]) -> Callable[[Place, State], bytes]:
    return lambda place, state: pickles.zipped(change(state))


def _first(state: State) -> str:
    """The name of the first trainable tensor."""
    return next(name for name in state if name.endswith("weight"))


def _one(change: Callable[[torch.Tensor], Any]) -> Callable[[State], State]:
    """Change one tensor."""
    return lambda state: {**state, _first(state): change(state[_first(state)])}


def _with(value: float, whole: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy with one number replaced, or an exact copy."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[slice(None) if whole else slice(5, 6)] = value
        return tensor

    return change


def _huge(tensor: torch.Tensor) -> torch.Tensor:
    """A million times a million numbers that share one number in memory."""
    return torch.zeros(1).expand(10**6, 10**6)


def _array(state: State) -> bytes:
    target = io.BytesIO()
    np.savez(target, **{name: value.numpy() for name, value in state.items()})
    return target.getvalue()


def _deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def _pickled(data: Callable[[bytes], zipping.Entry | None]) -> Callable[[State], bytes]:
    """The file with another pickle."""

    def write(state: State) -> bytes:
        return pickles.rewritten(
            pickles.zipped(state),
            lambda name, content: (
                data(content) if name.endswith("data.pkl") else zipping.entry(name, content)
            ),
        )

    return write


def _storages(change: Callable[[str, bytes], zipping.Entry | None]) -> Callable[[State], bytes]:
    """The file with other numbers."""

    def write(state: State) -> bytes:
        return pickles.rewritten(
            pickles.zipped(state),
            lambda name, content: (
                change(name, content) if "/data/" in name else zipping.entry(name, content)
            ),
        )

    return write


_PICKLE = "archive/data.pkl"
FILES: dict[str, Callable[[State], bytes]] = {
    "empty": lambda state: b"",
    "text": lambda state: b"no weights\n",
    "image": lambda state: GOOD_FILE,
    "zeros": lambda state: bytes(10_000),
    "half": lambda state: pickles.zipped(state)[:50_000],
    "half-legacy": lambda state: pickles.legacy(state)[:50_000],
    "empty-zip": lambda state: zipping.zip_bytes([]),
    "script": lambda state: pickles.script(),
    "zip-of-text": lambda state: zipping.zip_bytes([zipping.entry("a.txt", b"x")]),
    "arrays": _array,
    "module": lambda state: pickles.zipped(nn.Linear(2, 2)),
    "module-legacy": lambda state: pickles.legacy(nn.ReLU()),
    "no-pickle": _pickled(lambda content: None),
    "empty-pickle": _pickled(lambda content: zipping.entry(_PICKLE, b"")),
    "half-pickle": _pickled(lambda content: zipping.entry(_PICKLE, content[:100])),
    "pickle-of-marks": _pickled(
        lambda content: zipping.entry(_PICKLE, b"\x80\2" + b"(" * 1_000_000 + b".")
    ),
    "pickle-of-memory": _pickled(
        lambda content: zipping.entry(_PICKLE, b"\x80\2r\xff\xff\xff\x7f" + content[2:])
    ),
    "pickle-of-long": _pickled(
        lambda content: zipping.entry(_PICKLE, b"\x80\2\x8b\xff\xff\xff\x7f1.")
    ),
    "pickle-bomb": _pickled(lambda content: zipping.bomb(_PICKLE, 2 << 30)),
    "no-numbers": _storages(lambda name, content: None),
    "half-of-the-numbers": _storages(
        lambda name, content: zipping.entry(name, content[: len(content) // 2])
    ),
    "numbers-above": _storages(
        lambda name, content: zipping.entry(f"archive/../../{name}", content)
    ),
    "numbers-bomb": _storages(lambda name, content: zipping.bomb(name, 2 << 30)),
}

_STATES: dict[str, Callable[[State], Any]] = {
    "list": lambda state: list(state.values()),
    "number": lambda state: 3,
    "none": lambda state: None,
    "string": lambda state: "state",
    "tensor": lambda state: torch.zeros(3),
    "tuple": lambda state: (state,),
    "set": lambda state: {"features.0.weight"},
    "no-keys": lambda state: {},
    "deep": lambda state: _deep(100),
    "keys-are-numbers": lambda state: dict(enumerate(state.values())),
    "one-less": lambda state: {
        name: value for name, value in state.items() if name != _first(state)
    },
    "values-are-text": lambda state: dict.fromkeys(state, "x"),
    "values-are-none": lambda state: dict.fromkeys(state),
    "values-are-lists": lambda state: {
        name: value.flatten()[:3].tolist() for name, value in state.items()
    },
    "of-another-network": lambda state: nn.Linear(3, 3).state_dict(),
}

# A classifier refuses these; a backbone ignores tensors of other layers.
_MORE_KEYS: dict[str, Callable[[State], Any]] = {
    "a-key-is-none": lambda state: {**state, None: torch.zeros(1)},
    "a-key-is-a-number": lambda state: {**state, 3: torch.zeros(1)},
    "a-key-is-long": lambda state: {"k" * 1_000_000: torch.zeros(1), **state},
    "a-key-is-an-escape": lambda state: {"\x1b[31m\n\n": torch.zeros(1), **state},
    "a-key-is-a-surrogate": lambda state: {"\ud800": torch.zeros(1), **state},
}

_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "nan": _with(float("nan")),
    "inf": _with(float("inf")),
    "minus-inf": _with(float("-inf")),
    "all-nan": _with(float("nan"), whole=True),
    "nan-in-float64": lambda tensor: _with(float("nan"))(tensor).double(),
    "nan-in-float16": lambda tensor: _with(float("nan"))(tensor).half(),
    "shape": lambda tensor: tensor[:1],
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous(),
    "flat": lambda tensor: tensor.flatten(),
    "one-number": lambda tensor: torch.tensor(1.0),
    "no-numbers": lambda tensor: torch.zeros(0),
    "huge": _huge,
    "text": lambda tensor: "x",
    "none": lambda tensor: None,
    "list": lambda tensor: tensor.tolist(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bool": lambda tensor: tensor.bool(),
    "int64": lambda tensor: tensor.long(),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "meta": lambda tensor: tensor.to("meta"),
    "beyond-float32": lambda tensor: _with(1e300)(tensor.double()),
}

_READ: dict[str, Callable[[State], Any]] = {
    "deep-inside": lambda state: {**state, "more": _deep(200)},
    "prefixed": lambda state: {f"module.{name}": value for name, value in state.items()},
    "keys-100,000": lambda state: {**state, **{f"more.{at}": 0 for at in range(100_000)}},
    "ordered": OrderedDict,
    "reversed": lambda state: dict(reversed(state.items())),
    "parameters": lambda state: {name: nn.Parameter(value) for name, value in state.items()},
    "strided": _one(lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1)),
    "channels-last": _one(lambda tensor: tensor.to(memory_format=torch.channels_last)),
    "float64": lambda state: {name: value.double() for name, value in state.items()},
    "part-of-more": _one(lambda tensor: torch.cat([tensor, tensor])[: len(tensor)]),
}

_DOUBTFUL: dict[str, Callable[[State], Any]] = {
    "nested": lambda state: {"state_dict": state},
    "nested-model": lambda state: {"model": state, "epoch": 3},
    "float16": lambda state: {name: value.half() for name, value in state.items()},
    "bfloat16": lambda state: {
        name: value.bfloat16() if name != _first(state) else value for name, value in state.items()
    },
    "one-more": lambda state: {**state, "more": torch.zeros(1)},
    "a-value-more-is-nan": lambda state: {**state, "more": torch.tensor(float("nan"))},
}

_PLACES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "zeros-without-end": lambda path: path.symlink_to("/dev/zero"),
}
