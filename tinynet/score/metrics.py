"""Metrics of log-probabilities and labels: top-k accuracy, log loss, calibration, intervals."""

from typing import Any

import numpy as np

BINS = 15  # confidence bins of the calibration error


def top_k_hits(log_probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """Count the images whose label is among the `k` most probable classes.

    `log_probabilities`: (N, C); `labels`: (N,). Ties go to the lower class index, so a constant
    output scores no better than chance. A NaN output is never a hit.
    """
    label_scores = np.take_along_axis(log_probabilities, labels[:, None], 1)
    better = (~(log_probabilities <= label_scores)).sum(1)  # `>` would be false for NaN
    earlier = np.arange(log_probabilities.shape[1]) < labels[:, None]
    ties_before = ((log_probabilities == label_scores) & earlier).sum(1)
    return int((better + ties_before < k).sum())


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of the proportion hits / count, as fractions."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def by_class(log_probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Compute accuracy and the most frequent confusion of each class that has images.

    `log_probabilities`: (N, C); `labels`: (N,). Rows have `label`, `n`, `top1`, `low`, `high`
    (Wilson's 95 % interval), `taken_for` (the most frequent wrong class index, or None without
    errors) and `share` (of the class's images with that prediction).
    """
    predictions = log_probabilities.argmax(1)
    rows = []
    for label in np.unique(labels):
        of_class = predictions[labels == label]
        low, high = wilson(int((of_class == label).sum()), len(of_class))
        errors = np.bincount(of_class[of_class != label], minlength=1)
        rows.append(
            {
                "label": int(label),
                "n": len(of_class),
                "top1": float((of_class == label).mean()),
                "low": low,
                "high": high,
                "taken_for": int(errors.argmax()) if errors.any() else None,
                "share": float(errors.max() / len(of_class)),
            }
        )
    return rows


class Tally:
    """Accumulator of metrics over batches; the result does not depend on the batch size."""

    def __init__(self) -> None:
        self.count = self.top1_hits = self.top5_hits = 0
        self.loss, self.gaps = 0.0, np.zeros(BINS)

    def add(self, log_probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: `log_probabilities` (N, C) float, normalised; `labels` (N,) int.

        Raises `FloatingPointError` if a log-probability is NaN.
        """
        if np.isnan(log_probabilities).any():
            raise FloatingPointError(
                "some of the network's probabilities are NaN; use --precision float32"
            )
        self.count += len(labels)
        self.top1_hits += top_k_hits(log_probabilities, labels, 1)
        self.top5_hits += top_k_hits(log_probabilities, labels, 5)
        self.loss -= float(
            np.take_along_axis(log_probabilities, labels[:, None], 1).sum(dtype=np.float64)
        )
        confidence, bins = confidence_bins(log_probabilities)
        right = log_probabilities.argmax(1) == labels
        self.gaps += np.bincount(bins, right - confidence, BINS)

    def result(self) -> dict[str, Any]:
        """Return the metrics of all batches.

        `n`: number of images. `top1`, `top5`: fractions. `loss`: mean negative log-likelihood in
        nats. `low`, `high`: Wilson's 95 % interval of top-1. `ece`: expected calibration error (Guo
        et al. 2017) in [0, 1], with 15 bins of equal width of the greatest probability: the mean
        over images of |accuracy - mean confidence| of their bin.
        """
        low, high = wilson(self.top1_hits, self.count)
        return {
            "n": self.count,
            "top1": self.top1_hits / self.count,
            "top5": self.top5_hits / self.count,
            "loss": self.loss / self.count,
            "ece": float(np.abs(self.gaps).sum() / self.count),
            "low": low,
            "high": high,
        }


def confidence_bins(log_probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest probability (N,) of each image, and its bin (N,) from 0 to `BINS` - 1.

    Bins have equal width and include their upper ends.
    """
    confidence = np.exp(log_probabilities.max(1).astype(np.float64))
    return confidence, np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return `Tally.result` of one batch.

    `log_probabilities`: (N, C) float, normalised; `labels`: (N,) int.
    """
    tally = Tally()
    tally.add(log_probabilities, labels)
    return tally.result()
