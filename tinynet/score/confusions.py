"""Error analysis: confusions between classes, confidence of errors, and accuracy by object size."""

from typing import Any

import numpy as np

from tinynet.score.metrics import confidence_bins, wilson


def confusion(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confusion matrix (C, C) int64: rows are true classes, columns predictions."""
    classes = log_probabilities.shape[1]
    predictions = log_probabilities.argmax(1)
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(
        classes, classes
    )


def similar_order(counts: np.ndarray) -> np.ndarray:
    """Order the classes (C,) so that classes that are often confused are neighbours.

    The order is the optimal leaf order (Bar-Joseph et al. 2001) of an average-linkage tree. The
    similarity of two classes is the mean share of their images predicted as the other. `counts`:
    (C, C), as from `confusion`.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return np.arange(len(counts))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    return leaves_list(linkage(squareform(distances), "average", optimal_ordering=True))


def confused_pairs(counts: np.ndarray, most: int) -> list[dict[str, Any]]:
    """List up to `most` pairs of classes that are confused, most often first.

    `counts`: (C, C), as from `confusion`. Rows have `first`, `second` (class indices),
    `first_as_second` and `second_as_first` (numbers of images).
    """
    both = np.triu(counts + counts.T, 1)
    best = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(position, both.shape) for position in best if both.flat[position])
    return [
        {
            "first": int(i),
            "second": int(j),
            "first_as_second": int(counts[i, j]),
            "second_as_first": int(counts[j, i]),
        }
        for i, j in pairs
    ]


def most_confident_errors(
    log_probabilities: np.ndarray, labels: np.ndarray, most: int
) -> np.ndarray:
    """Return the positions of up to `most` wrong predictions, the most confident first."""
    errors = np.flatnonzero(log_probabilities.argmax(1) != labels)
    return errors[np.argsort(-log_probabilities[errors].max(1), kind="stable")][:most]


def reliability(log_probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Compute the reliability diagram: one row for each of 15 confidence bins that has images.

    Rows have `confidence` (mean in the bin), `n`, `top1`, and `low`, `high` (Wilson's 95 %
    interval).
    """
    confidence, bins = confidence_bins(log_probabilities)
    right = log_probabilities.argmax(1) == labels
    return [
        {"confidence": float(confidence[bins == number].mean()), **_accuracy(right[bins == number])}
        for number in np.unique(bins)
    ]


def by_object_size(
    right: np.ndarray, boxes: np.ndarray, side: int, groups: int = 5
) -> list[dict[str, Any]]:
    """Compute top-1 by object size, in `groups` of equally many images, smallest objects first.

    `right`: (N,) bool. `boxes`: (N, 4) x0, y0, x1, y1 inclusive, -1 for an image without a box.
    `side`: of the images in pixels. Rows have `least`, `greatest` (the box's share of the image
    area), `n`, `top1`, `low`, `high`. There are no rows if no image has a box.
    """
    boxed = boxes[:, 0] >= 0
    shares = box_areas(boxes[boxed]) / side**2
    order = np.argsort(shares, kind="stable")
    return [
        {
            "least": float(shares[group].min()),
            "greatest": float(shares[group].max()),
            **_accuracy(right[boxed][group]),
        }
        for group in np.array_split(order, groups)
        if len(group)
    ]


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) in pixels of boxes (N, 4) x0, y0, x1, y1, all inclusive."""
    x0, y0, x1, y1 = boxes.astype(np.int64).T
    return (x1 - x0 + 1) * (y1 - y0 + 1)


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    low, high = wilson(int(np.sum(right)), len(right))
    return {"n": len(right), "top1": float(np.mean(right)), "low": low, "high": high}
