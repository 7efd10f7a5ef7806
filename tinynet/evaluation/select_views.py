"""Which views are worth their cost on this data: chosen on one half of the hold-out, judged on the
other.

Val is looked at once, for the report. What a choice must beat is ten-crop at the same cost and with
the same number of views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tinynet.data.batches import seeded
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import paired
from tinynet.evaluation.predictor import Predictor
from tinynet.score.merges import mean
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities
from tinynet.score.selection import greedy, learn_weights, weighted_mean
from tinynet.score.views import PLAIN, ViewSet, view_set
from tinynet.training.features import effect

WORTH = 0.01  # weight below which a learned view is not worth a forward pass


def choose(
    predictor: Predictor, tta: Sequence[str], size: int, most: int
) -> Iterator[dict[str, Any]]:
    """Rows of what the views of all sets in `tta`, and of ten-crop, give: chosen greedily,
    weighted, and ten-crop.

    First, on the half of the hold-out that nothing was chosen on, a row for each number of views up
    to `most`; then on val a row for two views, four, as many as ten-crop costs, as many as it has,
    and the least loss. `views` is how they were chosen, `taken` their names, `cost` the pixels of
    all in pictures of the training size; `gain` and `p` compare with the picture alone,
    `gain_over_ten` and `p_over_ten` with ten-crop, in pairs.
    """
    pool, ten = _pool(predictor, tta, size), list(view_set("ten", size).views)
    held = predictor.predict("holdout", pool)
    fitting = halves(len(held.rows))
    fitted, labels = held.log_probabilities[:, fitting], held.labels[fitting]
    order = greedy(fitted, labels, most)
    weights = learn_weights(fitted, labels)
    worth = np.flatnonzero(weights >= WORTH)
    named = {**predictor.named, "size": size}

    judged = {
        "ten": (ten, None),
        "learned weights": ([held.views[v] for v in worth], weights[worth]),
        **{
            f"greedy {k}": ([held.views[v] for v in order[:k]], None)
            for k in range(1, len(order) + 1)
        },
    }
    other = _part(held, ~fitting)
    pixels = _pixels(predictor, pool)
    yield from (
        {**named, "split": "holdout, other half", **row} for row in _rows(other, judged, pixels)
    )
    spent = np.cumsum([pixels[held.views[v]] for v in order])
    as_dear = int((spent <= sum(pixels[view] for view in ten)).sum())
    least = min(
        (k for k in judged if k.startswith("greedy")),
        key=lambda k: _loss(_part(held, fitting), judged[k][0]),
    )
    reported = {
        name: judged[name]
        for name in dict.fromkeys(
            (
                "ten",
                "learned weights",
                "greedy 2",
                "greedy 4",
                f"greedy {as_dear}",
                f"greedy {min(len(ten), len(order))}",
                least,
            )
        )
        if name in judged
    }
    needed = dict.fromkeys([PLAIN, *(view for views, _ in reported.values() for view in views)])
    val = predictor.predict(
        "val", ViewSet("chosen views", {name: pool.views[name] for name in needed})
    )
    yield from ({**named, "split": "val", **row} for row in _rows(val, reported, pixels))


def halves(count: int) -> np.ndarray:
    """(count,) bool, true for the half that is chosen on: drawn once for all, whatever the order of
    classes.
    """
    drawn = torch.randperm(count, generator=seeded("cpu", "half of the hold-out")).numpy()
    return drawn < count // 2


def _pool(predictor: Predictor, tta: Sequence[str], size: int) -> ViewSet:
    """The picture alone first, then the views of every set, the same ones once."""
    found: dict[str, Any] = {}
    for chosen in predictor.sets(("none", "ten", *tta), size):
        if chosen.dense:
            raise InputError(
                f"--choose --tta {chosen.name}: dense is another way of scoring, not a view that "
                "can be averaged with others; leave it out"
            )
        taken = {name for name, _ in found.values()}
        # crops of two resizes have one name and are not the same
        for name, view in chosen.views.items():
            unique = f"{name} of {chosen.name}" if name in taken else name
            found.setdefault(effect(view, predictor.packed.side), (unique, view))
    return ViewSet("all views", dict(found.values()))


def _pixels(predictor: Predictor, pool: ViewSet) -> dict[str, float]:
    """The pixels of each view, in pictures of the size that the network was trained on: what a
    forward pass costs.
    """
    probe = torch.zeros(1, 3, predictor.packed.side, predictor.packed.side)
    return {
        name: seen.shape[-1] * seen.shape[-2] / predictor.size**2
        for name, seen in pool(probe).items()
    }


def _part(found: Probabilities, chosen: np.ndarray) -> Probabilities:
    return replace(
        found,
        log_probabilities=found.log_probabilities[:, chosen],
        rows=found.rows[chosen],
        labels=found.labels[chosen],
    )


def _together(found: Probabilities, views: Sequence[str], weights: np.ndarray | None) -> np.ndarray:
    some = found.choose(views)
    return (
        some.merged(mean)
        if weights is None
        else weighted_mean(some.log_probabilities, weights / weights.sum())
    )


def _loss(found: Probabilities, views: Sequence[str]) -> float:
    return score(_together(found, views, None), found.labels)["loss"]


def _rows(
    found: Probabilities,
    choices: dict[str, tuple[list[str], np.ndarray | None]],
    pixels: dict[str, float],
) -> Iterator[dict[str, Any]]:
    plain, ten = (
        _together(found, views, None).argmax(1) == found.labels
        for views in ([PLAIN], choices["ten"][0])
    )
    for name, (views, weights) in choices.items():
        merged = _together(found, views, weights)
        right = merged.argmax(1) == found.labels
        over = {f"{key}_over_ten": value for key, value in paired(right, ten).items()}
        yield {
            "views": name,
            "merge": "mean" if weights is None else "weighted mean",
            **score(merged, found.labels),
            "forwards": len(views),
            "cost": sum(pixels[view] for view in views),
            **paired(right, plain),
            **over,
            "taken": views,
            "weights": None if weights is None else [float(w) for w in weights / weights.sum()],
        }
