"""Score a network on its splits, at any sizes, over any views and merges, with paired gains."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tinynet.console import option
from tinynet.data.packed import Packed, PackedPart
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import check_writable
from tinynet.records import NOT_COMPARED, Gain, ScoreRow
from tinynet.score import merges as merging
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.confusions import by_class
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import ViewSet, view_set


class Scorable(Protocol):
    """A network with data to score it on: a `Predictor` of a run, or a `ZeroShot` network.

    `source`: a row with the `run` and the `stage` alone. `packed`: its data.
    """

    source: ScoreRow
    packed: Packed

    @property
    def size(self) -> int:
        """The default test size in pixels."""

    def images(self, split: str) -> tuple[PackedPart, np.ndarray]:
        """Return the part of the data and the rows of it that a split has."""

    def sets(self, texts: Iterable[str], size: int) -> list[ViewSet]:
        """Parse sets of views; raises `InputError` for one that the network cannot process."""

    def predict(self, split: str, views: ViewSet) -> Probabilities:
        """Compute the log-probabilities of every view of a split."""

    def save_row(self, row: ScoreRow) -> None:
        """Save a row of scores, if there is a run to save it in."""


@dataclass(frozen=True)
class ScoreRequest:
    """What to score: splits, test sizes in pixels (None: the training size), views and merges.

    `calibrate`: a second row of every split but the hold-out, at the temperature that fits the
    hold-out best. `per_class`: a row for each class instead of one for all. `save`: a file for the
    probabilities of every view. Raises `InputError` for unknown views or merges, for `save` with
    more than one set of views, and for `calibrate` with the hold-out alone.
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
                f"{option('per_class')}: a row for each class cannot be combined with "
                f"{option('calibrate')}; use only one of the two"
            )
        if self.calibrate and set(self.splits) == {"holdout"}:
            raise InputError(
                f"{option('calibrate')}: the temperature is fitted on the hold-out, so it must be "
                f"scored on another split; use {option('split')} val or both"
            )
        if self.save:
            check_writable(self.save)
        if self.save and several:
            raise InputError(
                f"{option('save_probabilities')} {self.save}: one file holds one set of views of "
                f"one split at one size, not {', '.join(several)}; name one with "
                f"{option('split')}, {option('size')} and {option('tta')}"
            )


def evaluate(predictor: Scorable, request: ScoreRequest) -> Iterator[ScoreRow]:
    """Yield a row of scores for every split, size, set of views and merge, the plain view first.

    A run saves its rows, and the probabilities of every view, if the data is its own. Raises
    `InputError` for a size, view or split that does not exist.
    """
    for split in (*request.splits, *(["holdout"] if request.calibrate else [])):
        part, _ = predictor.images(split)  # raises before anything is computed
        _ = part.required_labels
    texts = list(dict.fromkeys(("none", *request.tta)))
    sizes = request.sizes or [predictor.size]
    sets = {size: predictor.sets(texts, size) for size in sizes}
    for split, size in itertools.product(request.splits, sets):
        plain = None
        for views in sets[size]:
            probabilities = predictor.predict(split, views)
            plain = plain or probabilities
            holdout = None
            if request.calibrate and split != "holdout":
                holdout = predictor.predict("holdout", views)
            scored = _Scored(probabilities, plain, holdout)
            for merge in request.merges if len(views) > 1 else ("mean",):
                row = replace(
                    predictor.source, split=split, views=views.name, merge=merge, size=size
                )
                yield from _rows(predictor, scored, row, request.per_class)
        if request.save and get_world().main:
            probabilities.save(Path(request.save))


@dataclass(frozen=True)
class _Scored:
    """Probabilities of a set of views, of the plain view, and of the set on the hold-out."""

    views: Probabilities
    plain: Probabilities
    holdout: Probabilities | None


def _rows(
    predictor: Scorable, scored: _Scored, row: ScoreRow, per_class: bool
) -> Iterator[ScoreRow]:
    """Yield the rows of one set of views and one merge, and save them."""
    merge, labels = merging.get(row.merge), scored.views.required_labels
    classes = predictor.packed.titles
    merged = scored.views.merged(merge)
    gain = NOT_COMPARED
    if scored.views is not scored.plain:
        plain = scored.plain.log_probabilities[0]
        gain = mcnemar(merged.argmax(1) == labels, plain.argmax(1) == labels)
    row = score_row(row, scored.views, merged, gain, classes)
    predictor.save_row(row)
    yield from _class_rows(row, merged, labels, classes) if per_class else (row,)
    if scored.holdout is not None:
        temperature = fit_temperature(scored.holdout.merged(merge), scored.holdout.required_labels)
        calibrated = replace(row, temperature=temperature).with_score(
            score(at_temperature(merged, temperature), labels), classes
        )
        predictor.save_row(calibrated)
        yield calibrated


def score_row(
    row: ScoreRow,
    probabilities: Probabilities,
    merged: np.ndarray,
    gain: Gain = NOT_COMPARED,
    classes: Sequence[str] = (),
) -> ScoreRow:
    """Add the score of merged log-probabilities (N, C), their gain and the views' cost to `row`.

    `classes`: as from `class_names`; default: the ids alone, which probabilities have.
    """
    seconds = probabilities.seconds
    rate = len(probabilities.rows) / seconds.sum() if np.isfinite(seconds).all() else None
    return replace(
        row,
        precision=probabilities.about.get("precision"),
        forwards=len(probabilities.views),
        images_per_second=rate,
        gain=gain,
    ).with_score(score(merged, probabilities.required_labels), classes or probabilities.wnids)


class GainsOverFirst:
    """Paired gains of several results on the same images over the first of them."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None

    def gain(self, right: np.ndarray) -> Gain:
        """The gain of `right`, (N,) bool; the first result has none."""
        if self._first is None:
            self._first = right
            return NOT_COMPARED
        return mcnemar(right, self._first)


def _class_rows(
    row: ScoreRow, merged: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> Iterator[ScoreRow]:
    """Yield a row for each class, the worst first; `classes`: as from `class_names`."""
    source = ScoreRow(
        run=row.run,
        stage=row.stage,
        split=row.split,
        views=row.views,
        merge=row.merge,
        size=row.size,
    )
    for accuracy in sorted(by_class(merged, labels), key=lambda accuracy: accuracy.top1):
        confused = accuracy.taken_for
        yield replace(
            source,
            name=classes[accuracy.label],
            n=accuracy.n,
            top1=accuracy.top1,
            low=accuracy.low,
            high=accuracy.high,
            other={
                "share": accuracy.share,
                "taken_for": None if confused is None else classes[confused],
            },
        )
