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
    return int((_ranks(log_probabilities, labels) < k).sum())


def _ranks(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank (N,) int of each label among the classes (N, C), from 0; ties as in `top_k_hits`."""
    label_scores = np.take_along_axis(log_probabilities, labels[:, None], 1)
    better = (~(log_probabilities <= label_scores)).sum(1)  # `>` would be false for NaN
    earlier = np.arange(log_probabilities.shape[1]) < labels[:, None]
    ties_before = ((log_probabilities == label_scores) & earlier).sum(1)
    return better + ties_before


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
        # Images and top-1 hits by class: (2, C) after the first batch, which tells C.
        self.by_class: np.ndarray = np.zeros((2, 1), np.int64)

    def add(self, log_probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: `log_probabilities` (N, C) float, normalised; `labels` (N,) int.

        Raises `FloatingPointError` if a log-probability is NaN.
        """
        if np.isnan(log_probabilities).any():
            raise FloatingPointError(
                f"some of the network's probabilities are NaN; use {option('precision')} float32"
            )
        self.count += len(labels)
        ranks, classes = _ranks(log_probabilities, labels), log_probabilities.shape[1]
        hits = ranks < 1
        self.top1_hits += int(hits.sum())
        self.top5_hits += int((ranks < 5).sum())
        self.by_class = self.by_class + [
            np.bincount(of_class, minlength=classes) for of_class in (labels, labels[hits])
        ]
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
        self.by_class = self.by_class + other.by_class

    def result(self) -> Score:
        """Return the metrics of all batches.

        `ece` has 15 bins of equal width of the greatest probability: it is the mean over images of
        |accuracy - mean confidence| of their bin. `balanced` and `worst` are of the classes that
        have images.
        """
        low, high = wilson(self.top1_hits, self.count)
        labels = np.flatnonzero(self.by_class[0])
        images, hits = self.by_class[:, labels]
        shares = hits / images
        # Among equal shares the class with the most images comes first, then the lowest index.
        worst = np.lexsort((-images, shares))[0]
        return Score(
            n=self.count,
            top1=self.top1_hits / self.count,
            top5=self.top5_hits / self.count,
            loss=self.loss / self.count,
            ece=float(np.abs(self.gaps).sum() / self.count),
            low=low,
            high=high,
            balanced=float(shares.mean()),
            worst=float(shares[worst]),
            worst_label=int(labels[worst]),
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
