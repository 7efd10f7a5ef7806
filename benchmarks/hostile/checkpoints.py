"""Hostile checkpoints: best.pt, for predictions and scores, and last.pt, for resuming."""

import shutil
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch

from benchmarks.hostile import checkpoint_changes as changes
from benchmarks.hostile import commands, pickles, right, weights
from benchmarks.hostile.case import Case, Place, Right
from benchmarks.hostile.damage import damaged, zip_spans

KIND = "checkpoints"
_PAYLOADS = ("system", "eval", "popen")


def designed() -> Iterator[Case]:
    """Yield a case for each idea."""
    for name in _PAYLOADS:
        for form in ("bare", "zipped", "legacy"):
            yield _best(f"code-{name}-{form}", _code(name, form), right.refused("best.pt"))
        yield _last(f"code-{name}", _code(name, "zipped"), right.refused("last.pt"))
        yield _scored(f"code-{name}", _code(name, "zipped"), right.refused("best.pt"))
    for name, data in weights.FILES.items():
        yield _best(name, _ignoring_place(data), right.refused("best.pt"))
    for name in (
        "empty",
        "text",
        "half",
        "module",
        "script",
        "no-numbers",
        "pickle-bomb",
        "numbers-bomb",
    ):
        yield _last(name, _ignoring_place(weights.FILES[name]), right.refused("last.pt"))
    for name, change in changes.BEST.items():
        yield _best(name, _changed(change), right.refused("best.pt"))
    yield _scored("wnids-others", _changed(changes.OTHERS), right.refused("best.pt"))
    for name in ("size-text", "network-none", "classes-more", "weights-none", "tensor-nan"):
        yield _scored(name, _changed(changes.BEST[name]), right.refused("best.pt"))
    for name, change in changes.BEST_DOUBTFUL.items():
        yield _best(name, _changed(change), right.either(right.named, "best.pt"))
    for name, change in changes.LAST.items():
        yield _last(name, _changed(change), right.refused("last.pt"))
    for name, change in changes.LAST_DOUBTFUL.items():
        yield _last(name, _changed(change), right.either(right.trained, "last.pt"))
    yield _last("whole", _changed(lambda content: content), right.gives(right.trained))
    yield _best("whole", _changed(lambda content: content), right.gives(right.named))


def random(number: int) -> Case:
    """A case with random damage, half of it in the pickle."""
    structure = ("central directory", "local header", "data", "end record")[number % 4]

    def data(place: Place, content: dict[str, Any], draw: Random) -> bytes:
        good = pickles.zipped(content)
        spans = zip_spans(good)[structure]
        return damaged(good, [spans[0]] if draw.random() < 0.5 else spans, draw)

    name = f"damaged-{structure.replace(' ', '-')}-{number:04d}"
    if number // 4 % 3 == 0:
        return _last(name, data, right.either(right.trained, "last.pt"))
    return _best(name, data, right.either(right.named, "best.pt"))


def _best(name: str, data: Callable[..., bytes], expected: Right) -> Case:
    return Case(
        KIND,
        f"best-{name}-predict",
        "tinynet.predict",
        commands.predict_run("out/run"),
        _maker("run", "best.pt", data),
        expected,
    )


def _scored(name: str, data: Callable[..., bytes], expected: Right) -> Case:
    return Case(
        KIND,
        f"best-{name}-evaluate",
        "tinynet.evaluate",
        commands.evaluate_run("out/run", "--split", "val"),
        _maker("run", "best.pt", data),
        expected,
    )


def _last(name: str, data: Callable[..., bytes], expected: Right) -> Case:
    return Case(
        KIND,
        f"last-{name}-resume",
        "tinynet.train",
        commands.resume("out/run"),
        _maker("stopped", "last.pt", data),
        expected,
    )


def _maker(run: str, file: str, data: Callable[..., bytes]) -> Callable[[Place, Random], None]:
    def make(place: Place, draw: Random) -> None:
        shutil.copytree(place.world / run, place.out / "run")
        path = place.out / "run/base" / file
        path.write_bytes(data(place, torch.load(path, weights_only=True), draw))

    return make


def _code(name: str, form: str) -> Callable[..., bytes]:
    write = {"bare": pickles.bare, "zipped": pickles.zipped, "legacy": pickles.legacy}[form]
    return lambda place, content, draw: write({**content, "more": pickles.payloads(place)[name]})


def _ignoring_place(data: Callable[[Any], bytes]) -> Callable[..., bytes]:
    return lambda place, content, draw: data(
        content["weights"] if "weights" in content else content["state"]["module"]
    )


def _changed(change: changes.Change) -> Callable[..., bytes]:
    return lambda place, content, draw: pickles.zipped(change(content))
