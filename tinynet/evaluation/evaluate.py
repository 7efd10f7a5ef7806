"""What can be scored becomes rows: its splits at any sizes, over any views and merges, with gains
in pairs.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinynet.data.packed import Packed, PackedPart
from tinynet.errors import InputError
from tinynet.files import can_hold
from tinynet.score import merges as merging
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import by_class, score
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import ViewSet, view_set


class Scorable(Protocol):
    """What can be scored: `Scorer`, or `zero_shot.ZeroShot`. `named`: what rows call it; `size`:
    what it sees.
    """

    named: dict[str, Any]
    packed: Packed

    @property
    def size(self) -> int:
        """The default test size in pixels."""

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """The part of the data and the rows of it that a split has."""

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """Parse sets of views; raises `InputError` for one that the network cannot see."""

    def predict(self, split: str, chosen: ViewSet) -> Probabilities:
        """Log-probabilities of every view of a split."""

    def keep(self, row: dict[str, Any]) -> None:
        """Save a row of scores, if there is a run to save it in."""


@dataclass(frozen=True)
class Wanted:
    """What is to be scored: splits, test sizes (None: the training size), sets of views, merges.

    `calibrate`: a second row for what is not the hold-out, at the temperature that fits the
    hold-out best. `per_class`: a row for each class in place of one for all. `save`: a file for the
    probabilities of every view. Raises `InputError` for a set or merge that there is not, where
    `save` would have to hold several sets, and for `calibrate` without anything beside the
    hold-out.
    """

    splits: Sequence[str] = ("holdout", "val")
    sizes: Sequence[int] | None = None
    tta: Sequence[str] = ()
    merges: Sequence[str] = ("mean",)
    calibrate: bool = False
    per_class: bool = False
    save: str | None = None

    def __post_init__(self) -> None:
        for name in self.merges:
            merging.get(name)
        for text in self.tta:
            view_set(text, 64)
        counts = {
            "splits": len(self.splits),
            "sizes": len(self.sizes or [0]),
            "sets of views": len(self.tta or [0]),
        }
        several = [f"{count} {what}" for what, count in counts.items() if count > 1]
        if self.calibrate and self.per_class:
            raise InputError(
                "--per-class gives a row for each class and --calibrate one for all; name one of "
                "them"
            )
        if self.calibrate and set(self.splits) == {"holdout"}:
            raise InputError(
                "--calibrate fits the hold-out and shows what that does to val; name --split val "
                "or both"
            )
        if self.save:
            can_hold(self.save)
        if self.save and several:
            raise InputError(
                f"--save-probabilities {self.save}: one file holds one set of views of one split "
                f"at one size, not {', '.join(several)}; name one with --split, --size and --tta"
            )


def evaluate(predictor: Scorable, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Rows of scores for every split, size, set of views and merge, plain first.

    A run keeps them, and the probabilities of every view, where the data is its own.
    Raises `InputError` for a size, view or split that there is not.
    """
    for split in (*wanted.splits, *(["holdout"] if wanted.calibrate else [])):
        predictor.images(split)  # all that can be refused is refused before anything is computed
    sets = {
        size: predictor.sets(dict.fromkeys(("none", *wanted.tta)), size)
        for size in wanted.sizes or [predictor.size]
    }
    for split, size in itertools.product(wanted.splits, sets):
        plain = None
        for chosen in sets[size]:
            found = predictor.predict(split, chosen)
            held = (
                predictor.predict("holdout", chosen)
                if wanted.calibrate and split != "holdout"
                else None
            )
            plain = plain or found
            for merge in wanted.merges if len(chosen) > 1 else ("mean",):
                named = {
                    **predictor.named,
                    "split": split,
                    "views": chosen.name,
                    "merge": merge,
                    "size": size,
                }
                yield from _rows(predictor, found, plain, held, named, wanted.per_class)
        if wanted.save:
            found.save(Path(wanted.save))


def _rows(
    predictor: Scorable,
    found: Probabilities,
    plain: Probabilities,
    held: Probabilities | None,
    named: dict[str, Any],
    per_class: bool,
) -> Iterator[dict[str, Any]]:
    """The rows of one set of views and one merge; `plain`: the picture alone, of the same split and
    size; `held`: the same views of the hold-out, where a temperature is to be fitted.
    """
    merge, labels = merging.get(named["merge"]), found.labels
    merged = found.merged(merge)
    beside = (
        NOT_PAIRED
        if found is plain
        else paired(merged.argmax(1) == labels, plain.log_probabilities[0].argmax(1) == labels)
    )
    row = {**named, **score_row(found, merged), **beside}
    predictor.keep(row)
    yield from _class_rows(named, merged, labels, predictor.packed) if per_class else (row,)
    if held is not None:
        temperature = fit_temperature(held.merged(merge), held.labels)
        mended = {
            **row,
            "temperature": temperature,
            **score(at_temperature(merged, temperature), labels),
        }
        predictor.keep(mended)
        yield mended


NOT_PAIRED = dict.fromkeys(("gain", "gain_low", "gain_high", "p"))


def score_row(found: Probabilities, merged: np.ndarray) -> dict[str, Any]:
    """The scores of merged log-probabilities (N, C), and what their views cost."""
    rate = len(found.rows) / found.seconds.sum() if np.isfinite(found.seconds).all() else None
    return {
        **score(merged, found.labels),
        "precision": found.about.get("precision"),
        "forwards": len(found.views),
        "pictures_per_second": rate,
    }


def paired(right: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """`gain` over `other`, its 95 % interval and `p`, for a row."""
    found = mcnemar(right, other)
    return {key: found[key] for key in NOT_PAIRED}


def _class_rows(
    named: dict[str, Any], merged: np.ndarray, labels: np.ndarray, packed: Packed
) -> Iterator[dict]:
    names = [f"{wnid} {name}" for wnid, name in zip(packed.wnids, packed.names, strict=True)]
    for row in sorted(by_class(merged, labels), key=lambda row: row["top1"]):
        taken = row.pop("taken_for")
        yield {
            **named,
            "name": names[row.pop("label")],
            **row,
            "taken_for": None if taken is None else names[taken],
        }
