"""Select the test-time views that are worth their cost.

Views are selected on one half of the hold-out and evaluated on the other half, and on val once. A
selection must beat ten-crop at the same cost and with the same number of views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tinynet.console import option
from tinynet.data.batches import seeded_generator
from tinynet.errors import InputError
from tinynet.evaluation.predictor import Predictor
from tinynet.records import ScoreRow
from tinynet.score.compare import mcnemar
from tinynet.score.merges import mean
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities
from tinynet.score.selection import greedy, learn_weights, weighted_mean
from tinynet.score.views import PLAIN, View, ViewSet, view_set
from tinynet.training.features import effect

WORTH = 0.01  # a view with a smaller learned weight is not worth a forward pass


@dataclass(frozen=True)
class _Selection:
    """Names of views and their weights (V,); None: equal weights."""

    views: list[str]
    weights: np.ndarray | None = None

    @property
    def merge(self) -> str:
        return "mean" if self.weights is None else "weighted mean"

    @property
    def normalised(self) -> np.ndarray | None:
        return None if self.weights is None else self.weights / self.weights.sum()

    def merged(self, probabilities: Probabilities) -> np.ndarray:
        """(N, C) log-probabilities."""
        views = probabilities.choose(self.views)
        if self.normalised is None:
            return views.merged(mean)
        return weighted_mean(views.log_probabilities, self.normalised)


def select_views(
    predictor: Predictor, tta: Sequence[str], size: int, most: int
) -> Iterator[ScoreRow]:
    """Yield scores of views selected from all sets in `tta` and ten-crop, greedily or by weights.

    The first rows are of the half of the hold-out that was not selected on: ten-crop, the learned
    weights, and each number of greedy views up to `most`. The last rows are of val: ten-crop, the
    learned weights, and greedy selections of two views, four, as many as ten-crop costs, as many as
    ten-crop has, and the least loss.

    `views` of a row is how its views were selected and `taken` their names. `cost` is the pixels of
    all views, in images of the training size. `gain` compares with the plain image, `over` with
    ten-crop.
    """
    pool, ten = _pool(predictor, tta, size), list(view_set("ten", size).views)
    holdout = predictor.predict("holdout", pool)
    fitting = halves(len(holdout.rows))
    fitted, rest = _subset(holdout, fitting), _subset(holdout, ~fitting)
    order = greedy(fitted.log_probabilities, fitted.required_labels, most)
    weights = learn_weights(fitted.log_probabilities, fitted.required_labels)
    worth = np.flatnonzero(weights >= WORTH)
    names = [holdout.views[view] for view in order]
    greedy_selections = {f"greedy {k}": _Selection(names[:k]) for k in range(1, len(order) + 1)}
    selections = {
        "ten": _Selection(ten),
        "learned weights": _Selection([holdout.views[view] for view in worth], weights[worth]),
        **greedy_selections,
    }
    source, pixels = replace(predictor.source, size=size), _pixels(predictor, pool)
    classes = predictor.packed.titles
    other_half = replace(source, split="holdout, other half")
    yield from _rows(other_half, rest, selections, pixels, classes)
    costs = np.cumsum([pixels[name] for name in names])
    affordable = int((costs <= sum(pixels[view] for view in ten)).sum())
    counts = (2, 4, affordable, min(len(ten), len(order)))
    least_loss = min(greedy_selections, key=lambda name: _loss(fitted, selections[name]))
    reported = {
        name: selections[name]
        for name in ("ten", "learned weights", *(f"greedy {k}" for k in counts), least_loss)
        if name in selections
    }
    views = dict.fromkeys([PLAIN, *(view for one in reported.values() for view in one.views)])
    val = predictor.predict("val", ViewSet("chosen views", {v: pool.views[v] for v in views}))
    yield from _rows(replace(source, split="val"), val, reported, pixels, classes)


def halves(count: int) -> np.ndarray:
    """Return (count,) bool, True for the half of the hold-out to select on.

    The half is random, so it does not depend on the order of classes, and always the same.
    """
    order = torch.randperm(count, generator=seeded_generator("cpu", "half of the hold-out")).numpy()
    return order < count // 2


def _pool(predictor: Predictor, tta: Sequence[str], size: int) -> ViewSet:
    """The plain view first, then the views of every set; views with the same effect count once."""
    pool: dict[str, tuple[str, View]] = {}  # by effect
    for views in predictor.sets(("none", "ten", *tta), size):
        if views.dense:
            raise InputError(
                f"{option('tta')} {views.name}: dense is not a view, so it cannot be averaged with "
                "other views; leave it out"
            )
        names = {name for name, _ in pool.values()}
        # Crops of two resizes have one name and are different views.
        for name, view in views.views.items():
            unique = f"{name} of {views.name}" if name in names else name
            pool.setdefault(effect(view, predictor.packed.side), (unique, view))
    return ViewSet("all views", dict(pool.values()))


def _pixels(predictor: Predictor, pool: ViewSet) -> dict[str, float]:
    """The cost of each view: its pixels, in images of the training size."""
    probe = torch.zeros(1, 3, predictor.packed.side, predictor.packed.side)
    return {
        name: image.shape[-1] * image.shape[-2] / predictor.size**2
        for name, image in pool(probe).items()
    }


def _subset(probabilities: Probabilities, mask: np.ndarray) -> Probabilities:
    return replace(
        probabilities,
        log_probabilities=probabilities.log_probabilities[:, mask],
        rows=probabilities.rows[mask],
        labels=probabilities.required_labels[mask],
    )


def _loss(probabilities: Probabilities, selection: _Selection) -> float:
    return score(selection.merged(probabilities), probabilities.required_labels).loss


def _rows(
    source: ScoreRow,
    probabilities: Probabilities,
    selections: dict[str, _Selection],
    pixels: dict[str, float],
    classes: Sequence[str],
) -> Iterator[ScoreRow]:
    """Yield a row for each selection, compared with the plain view and with ten-crop."""
    labels = probabilities.required_labels
    plain, ten = (
        selection.merged(probabilities).argmax(1) == labels
        for selection in (_Selection([PLAIN]), selections["ten"])
    )
    for name, selection in selections.items():
        merged, weights = selection.merged(probabilities), selection.normalised
        right = merged.argmax(1) == labels
        yield replace(
            source,
            views=name,
            merge=selection.merge,
            forwards=len(selection.views),
            cost=sum(pixels[view] for view in selection.views),
            gain=mcnemar(right, plain),
            over={"ten": mcnemar(right, ten)},
            taken=selection.views,
            weights=None if weights is None else weights.tolist(),
        ).with_score(score(merged, labels), classes)
