"""Metrics of log-probabilities and labels: top-k accuracy, log loss, calibration, intervals."""

import numpy as np

from tinynet.console import option
from tinynet.records import Score

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
                f"some of the network's probabilities are NaN; use {option('precision')} float32"
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

    def merge(self, other: "Tally") -> None:
        """Add what another tally has counted."""
        self.count += other.count
        self.top1_hits += other.top1_hits
        self.top5_hits += other.top5_hits
        self.loss += other.loss
        self.gaps = self.gaps + other.gaps

    def result(self) -> Score:
        """Return the metrics of all batches.

        `ece` has 15 bins of equal width of the greatest probability: it is the mean over images of
        |accuracy - mean confidence| of their bin.
        """
        low, high = wilson(self.top1_hits, self.count)
        return Score(
            n=self.count,
            top1=self.top1_hits / self.count,
            top5=self.top5_hits / self.count,
            loss=self.loss / self.count,
            ece=float(np.abs(self.gaps).sum() / self.count),
            low=low,
            high=high,
        )


def confidence_bins(log_probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest probability (N,) of each image, and its bin (N,) from 0 to `BINS` - 1.

    Bins have equal width and include their upper ends.
    """
    confidence = np.exp(log_probabilities.max(1).astype(np.float64))
    return confidence, np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> Score:
    """Return accuracies, log loss and calibration error of one batch, as `Tally.result` does.

    `log_probabilities`: (N, C) float, normalised; `labels`: (N,) int.
    """
    tally = Tally()
    tally.add(log_probabilities, labels)
    return tally.result()
