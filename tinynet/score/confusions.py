"""Error analysis: accuracy of classes, confusions, confidence of errors, and objects in boxes."""

from dataclasses import dataclass

import numpy as np

from tinynet.score.metrics import confidence_bins, wilson


@dataclass(frozen=True)
class Accuracy:
    """The fraction `top1` of `n` images that are classified right, with Wilson's 95 % interval."""

    n: int
    top1: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassAccuracy(Accuracy):
    """The accuracy of a class, and its most frequent confusion.

    `label`: the class index. `taken_for`: the most frequent wrong class index, None without errors.
    `share`: the fraction of the images of the class that are predicted as `taken_for`.
    """

    label: int
    taken_for: int | None
    share: float


@dataclass(frozen=True)
class ConfusedPair:
    """Two class indices, and the numbers of images that are predicted as the other class."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int


@dataclass(frozen=True)
class ReliabilityBin(Accuracy):
    """The accuracy of the images in a confidence bin; `confidence`: their mean confidence."""

    confidence: float


@dataclass(frozen=True)
class ObjectSizeBin(Accuracy):
    """The accuracy of images with objects of similar size.

    `least`, `greatest`: the smallest and the largest share of the image inside the object's box.
    """

    least: float
    greatest: float


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


def by_class(log_probabilities: np.ndarray, labels: np.ndarray) -> list[ClassAccuracy]:
    """Compute accuracy and the most frequent confusion of each class that has images.

    `log_probabilities`: (N, C); `labels`: (N,).
    """
    predictions = log_probabilities.argmax(1)
    rows = []
    for label in np.unique(labels):
        of_class = predictions[labels == label]
        errors = np.bincount(of_class[of_class != label], minlength=1)
        rows.append(
            ClassAccuracy(
                *_accuracy(of_class == label),
                label=int(label),
                taken_for=int(errors.argmax()) if errors.any() else None,
                share=float(errors.max() / len(of_class)),
            )
        )
    return rows


def confused_pairs(counts: np.ndarray, most: int) -> list[ConfusedPair]:
    """List up to `most` pairs of classes that are confused, most often first.

    `counts`: (C, C), as from `confusion`.
    """
    both = np.triu(counts + counts.T, 1)
    best = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(position, both.shape) for position in best if both.flat[position])
    return [ConfusedPair(int(i), int(j), int(counts[i, j]), int(counts[j, i])) for i, j in pairs]


def most_confident_errors(
    log_probabilities: np.ndarray, labels: np.ndarray, most: int
) -> np.ndarray:
    """Return the positions of up to `most` wrong predictions, the most confident first."""
    errors = np.flatnonzero(log_probabilities.argmax(1) != labels)
    return errors[np.argsort(-log_probabilities[errors].max(1), kind="stable")][:most]


def reliability(log_probabilities: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """Compute the reliability diagram: those of 15 confidence bins that have images.

    `log_probabilities`: (N, C); `labels`: (N,).
    """
    confidence, bins = confidence_bins(log_probabilities)
    right = log_probabilities.argmax(1) == labels
    return [
        ReliabilityBin(
            *_accuracy(right[bins == number]), confidence=float(confidence[bins == number].mean())
        )
        for number in np.unique(bins)
    ]


def by_object_size(
    right: np.ndarray, boxes: np.ndarray, side: int, groups: int = 5
) -> list[ObjectSizeBin]:
    """Compute top-1 by object size, in `groups` of equally many images, smallest objects first.

    `right`: (N,) bool. `boxes`: (N, 4) x0, y0, x1, y1 inclusive, -1 for an image without a box.
    `side`: of the images in pixels. The list is empty if no image has a box.
    """
    boxed = boxes[:, 0] >= 0
    shares = box_areas(boxes[boxed]) / side**2
    order = np.argsort(shares, kind="stable")
    return [
        ObjectSizeBin(
            *_accuracy(right[boxed][group]),
            least=float(shares[group].min()),
            greatest=float(shares[group].max()),
        )
        for group in np.array_split(order, groups)
        if len(group)
    ]


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) in pixels of boxes (N, 4) x0, y0, x1, y1, all inclusive."""
    x0, y0, x1, y1 = boxes.astype(np.int64).T
    return (x1 - x0 + 1) * (y1 - y0 + 1)


def share_inside(heats: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the share (N,) of each heat map (N, H, W) inside its box.

    `boxes`: (N, 4) x0, y0, x1, y1 inclusive, -1 for an image without a box. The share is NaN for an
    image without a box and for a heat map that is all zero.
    """
    return np.array(
        [
            heat[y0 : y1 + 1, x0 : x1 + 1].sum() / heat.sum()
            if x0 >= 0 and heat.sum() > 0
            else np.nan
            for heat, (x0, y0, x1, y1) in zip(heats, boxes, strict=True)
        ]
    )


def _accuracy(right: np.ndarray) -> tuple[int, float, float, float]:
    """The fields of `Accuracy`; `right`: (N,) bool."""
    return len(right), float(np.mean(right)), *wilson(int(np.sum(right)), len(right))
