"""What a network gets wrong: which classes it takes for which, how sure it is, and of what size the
objects are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinynet.score.metrics import confidence_bins, wilson


def confusion(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C) int64: row i, column j counts the pictures of class i that are called j."""
    classes = log_probabilities.shape[1]
    called = log_probabilities.argmax(1)
    return np.bincount(labels * classes + called, minlength=classes**2).reshape(classes, classes)


def similar_order(counts: np.ndarray) -> np.ndarray:
    """(C,) the classes in an order in which those that are taken for one another stand together.

    The leaves of an average-linkage tree in their best order (Bar-Joseph et al. 2001); two classes
    are the closer the larger the share of their pictures that is called by the other's name.
    `counts`: (C, C), as from `confusion`.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return np.arange(len(counts))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    apart = 1 - (shares + shares.T) / 2
    np.fill_diagonal(apart, 0)
    return leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))


def confused_pairs(counts: np.ndarray, most: int) -> list[dict[str, Any]]:
    """At most `most` pairs of classes, those first of which most pictures are called by the other's
    name.

    Rows with `first`, `second` (class indices), `first_as_second` and `second_as_first` (pictures).
    """
    both = np.triu(counts + counts.T, 1)
    best = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(at, both.shape) for at in best if both.flat[at])
    return [
        {
            "first": int(i),
            "second": int(j),
            "first_as_second": int(counts[i, j]),
            "second_as_first": int(counts[j, i]),
        }
        for i, j in pairs
    ]


def surest_mistakes(log_probabilities: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most `most` pictures that are wrong, the surest first."""
    wrong = np.flatnonzero(log_probabilities.argmax(1) != labels)
    return wrong[np.argsort(-log_probabilities[wrong].max(1), kind="stable")][:most]


def reliability(log_probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """For each of the 15 equal ranges of the most probable class's probability that holds pictures:
    `n`, `confidence` (its mean), `top1`, `low`, `high`.
    """
    confidence, at = confidence_bins(log_probabilities)
    right = log_probabilities.argmax(1) == labels
    return [
        {"confidence": float(confidence[at == number].mean()), **_share(right[at == number])}
        for number in np.unique(at)
    ]


def by_object_size(
    right: np.ndarray, boxes: np.ndarray, side: int, groups: int = 5
) -> list[dict[str, Any]]:
    """Top-1 by the share of the picture that its object's box covers, in `groups` of as many
    pictures each.

    `right`: (N,) bool; `boxes`: (N, 4) x0, y0, x1, y1 inclusive, -1 where none is given. Rows with
    `least`, `greatest` (shares of the area), `n`, `top1`, `low`, `high`; none where no boxes are
    given.
    """
    known = boxes[:, 0] >= 0
    shares = box_areas(boxes[known]) / side**2
    order = np.argsort(shares, kind="stable")
    return [
        {
            "least": float(shares[some].min()),
            "greatest": float(shares[some].max()),
            **_share(right[known][some]),
        }
        for some in np.array_split(order, groups)
        if len(some)
    ]


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(N,) pixels in boxes (N, 4) x0, y0, x1, y1 whose last row and column belong to them."""
    x0, y0, x1, y1 = boxes.astype(np.int64).T
    return (x1 - x0 + 1) * (y1 - y0 + 1)


def _share(right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(int(np.sum(right)), len(right))
    return {"n": len(right), "top1": float(np.mean(right)), "low": low, "high": high}
