"""Probabilities and labels become numbers and intervals: counts are summed and divided once."""

from typing import Any

import numpy as np

BINS = 15  # of confidence


def top_k_hits(log_probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many pictures have their label among the `k` most probable classes.

    `log_probabilities`: (N, C); `labels`: (N,). Among equals the lower class index comes first, so
    a constant output scores no better than chance; an output that is no number is never a hit.
    """
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    ahead = (~(log_probabilities <= own)).sum(1)  # not `>`, which is false of NaN too
    ties_before = (
        (log_probabilities == own) & (np.arange(log_probabilities.shape[1]) < labels[:, None])
    ).sum(1)
    return int((ahead + ties_before < k).sum())


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion, as fractions."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def by_class(log_probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """A row a class that has pictures: `label`, `n`, `top1`, `low`, `high`, and what it is taken
    for most often: `taken_for` (a class index, or None where nothing is wrong) and in what share of
    its pictures, `share`.
    """
    best = log_probabilities.argmax(1)
    rows = []
    for label in np.unique(labels):
        mine = best[labels == label]
        low, high = wilson(int((mine == label).sum()), len(mine))
        wrong = np.bincount(mine[mine != label], minlength=1)
        rows.append(
            {
                "label": int(label),
                "n": len(mine),
                "top1": float((mine == label).mean()),
                "low": low,
                "high": high,
                "taken_for": int(wrong.argmax()) if wrong.any() else None,
                "share": float(wrong.max() / len(mine)),
            }
        )
    return rows


class Tally:
    """Counts and sums of scores, batch after batch; the result does not depend on how pictures are
    batched.
    """

    def __init__(self):
        self.count = self.hits = self.hits_of_five = 0
        self.loss, self.gaps = 0.0, np.zeros(BINS)

    def add(self, log_probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Count pictures: `log_probabilities` (N, C) float, normalised; `labels` (N,) int.

        Raises `FloatingPointError` where a probability is no number.
        """
        if np.isnan(log_probabilities).any():
            raise FloatingPointError(
                "some of the network's probabilities are not numbers; use --precision float32"
            )
        self.count += len(labels)
        self.hits += top_k_hits(log_probabilities, labels, 1)
        self.hits_of_five += top_k_hits(log_probabilities, labels, 5)
        self.loss -= float(
            np.take_along_axis(log_probabilities, labels[:, None], 1).sum(dtype=np.float64)
        )
        confidence, bins = confidence_bins(log_probabilities)
        right = log_probabilities.argmax(1) == labels
        self.gaps += np.bincount(bins, right - confidence, BINS)

    def result(self) -> dict[str, Any]:
        """`n`, `top1`, `top5` (fractions), `loss` (mean negative log-likelihood, nats), `ece`, and
        `low`, `high`: the 95 % Wilson interval of top-1.

        `ece`: expected calibration error (Guo et al. 2017), in [0, 1]: pictures are put into 15
        equal ranges of the most probable class's probability; the mean over pictures of |accuracy -
        mean confidence| of their bin.
        """
        low, high = wilson(self.hits, self.count)
        return {
            "n": self.count,
            "top1": self.hits / self.count,
            "top5": self.hits_of_five / self.count,
            "loss": self.loss / self.count,
            "ece": float(np.abs(self.gaps).sum() / self.count),
            "low": low,
            "high": high,
        }


def confidence_bins(log_probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the most probable class's probability, and (N,) its place among `BINS` equal ranges,
    upper ends included.
    """
    confidence = np.exp(log_probabilities.max(1).astype(np.float64))
    return confidence, np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`Tally.result` of one batch: `log_probabilities` (N, C) float, normalised; `labels` (N,)
    int.
    """
    tally = Tally()
    tally.add(log_probabilities, labels)
    return tally.result()
