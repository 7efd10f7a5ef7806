"""Confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70): images whose label may be wrong."""

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6  # the mean of equal probabilities may be above each of them


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label may be wrong, and the class that the network suggests instead.

    `position`: of the image among the rows. `label`, `suggestion`: class indices. `p_label`,
    `p_suggestion`: their probabilities.
    """

    position: int
    label: int
    suggestion: int
    p_label: float
    p_suggestion: float


def label_issues(log_probabilities: np.ndarray, labels: np.ndarray) -> list[LabelIssue]:
    """List the images whose label may be wrong, the surest first (Northcutt et al. 2021).

    `log_probabilities`: (N, C), of images that the network was not trained on. `labels`: (N,). The
    threshold of a class is the mean probability of the class over the images with its label. A
    class reaches its threshold on an image if it is at least that probable. An image is a candidate
    if its label is not the most probable class and another class reaches its threshold; the most
    probable of these is the suggestion. The order is by p_suggestion - p_label. A class without
    images has no threshold and is never suggested.
    """
    images, probabilities = np.arange(len(labels)), np.exp(log_probabilities)
    p_label = probabilities[images, labels]
    reached = probabilities >= _thresholds(p_label, labels, probabilities.shape[1]) - _ROUNDING
    reached[images, labels] = False
    suggestions = np.where(reached, probabilities, -1).argmax(1)
    p_suggestion = probabilities[images, suggestions]
    candidates = np.flatnonzero(reached.any(1) & (probabilities.argmax(1) != labels))
    # In float64: a difference rounded to float32 would change the order.
    margins = p_suggestion[candidates].astype(np.float64) - p_label[candidates]
    return [
        LabelIssue(
            int(position),
            int(labels[position]),
            int(suggestions[position]),
            float(p_label[position]),
            float(p_suggestion[position]),
        )
        for position in candidates[np.argsort(-margins, kind="stable")]
    ]


def _thresholds(p_label: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean probability (C,) of each class over its images; infinity for one without images."""
    sums = np.bincount(labels, weights=p_label, minlength=classes)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts, sums / np.maximum(counts, 1), np.inf)
