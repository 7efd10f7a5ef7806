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


def score(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`n`, `top1`, `top5` (fractions), `loss` (mean negative log-likelihood, nats), and `low`, `high`:
    the 95 % Wilson interval of top-1.

    `log_probabilities`: (N, C) float, normalised; `labels`: (N,) int.
    """
    if np.isnan(log_probabilities).any():
        raise FloatingPointError("some of the network's probabilities are not numbers; use --precision float32")
    count = len(labels)
    hits = top_k_hits(log_probabilities, labels, 1)
    low, high = wilson(hits, count)
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    return {"n": count, "top1": hits / count, "top5": top_k_hits(log_probabilities, labels, 5) / count,
            "loss": float(-own.mean(dtype=np.float64)), "low": low, "high": high}
