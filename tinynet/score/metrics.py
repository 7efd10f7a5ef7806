"""Probabilities and labels become numbers and intervals: counts are summed and divided once."""

from typing import Any

import numpy as np


def top_k_hits(log_probabilities: np.ndarray, labels: np.ndarray, k: int) -> int:
    """How many pictures have their label among the `k` most probable classes.

    `log_probabilities`: (N, C); `labels`: (N,). Among equals the lower class index comes first, so a
    constant output scores no better than chance; an output that is no number is never a hit.
    """
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    ahead = (~(log_probabilities <= own)).sum(1)  # not `>`, which is false of NaN too
    ties_before = ((log_probabilities == own) & (np.arange(log_probabilities.shape[1]) < labels[:, None])).sum(1)
    return int((ahead + ties_before < k).sum())


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion, as fractions."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(log_probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence is from accuracy, in [0, 1].

    Pictures are put into `bins` equal ranges of the most probable class's probability; the mean over pictures
    of |accuracy - mean confidence| of their bin. `log_probabilities`: (N, C); `labels`: (N,).
    """
    confidence = np.exp(log_probabilities.max(1).astype(np.float64))
    right = log_probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # a bin holds its upper end
    gaps = np.bincount(bin_of, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def by_class(log_probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """A row a class that has pictures: `label`, `n`, `top1`, `low`, `high`, and what it is taken for most often:
    `taken_for` (a class index, or None where nothing is wrong) and in what share of its pictures, `share`."""
    best = log_probabilities.argmax(1)
    rows = []
    for label in np.unique(labels):
        mine = best[labels == label]
        low, high = wilson(int((mine == label).sum()), len(mine))
        wrong = np.bincount(mine[mine != label], minlength=1)
        rows.append({"label": int(label), "n": len(mine), "top1": float((mine == label).mean()), "low": low,
                     "high": high, "taken_for": int(wrong.argmax()) if wrong.any() else None,
                     "share": float(wrong.max() / len(mine))})
    return rows


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`n`, `top1`, `top5` (fractions), `loss` (mean negative log-likelihood, nats), `ece` (expected calibration
    error), and `low`, `high`: the 95 % Wilson interval of top-1.

    `log_probabilities`: (N, C) float, normalised; `labels`: (N,) int.
    """
    if np.isnan(log_probabilities).any():
        raise FloatingPointError("some of the network's probabilities are not numbers; use --precision float32")
    count = len(labels)
    hits = top_k_hits(log_probabilities, labels, 1)
    low, high = wilson(hits, count)
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    return {"n": count, "top1": hits / count, "top5": top_k_hits(log_probabilities, labels, 5) / count,
            "loss": float(-own.mean(dtype=np.float64)), "ece": calibration_error(log_probabilities, labels),
            "low": low, "high": high}
