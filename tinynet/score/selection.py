"""Select or weight views on held-out images, so that each view is worth its cost."""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp


def greedy(
    log_probabilities: np.ndarray, labels: np.ndarray, most: int, first: int = 0
) -> list[int]:
    """Select views greedily: each next view minimises the log loss of the mean with those before.

    This is greedy policy search (Molchanov et al. 2020) without repetition. `log_probabilities`:
    (V, N, C); `labels`: (N,); `most`: number of views to select; `first`: index of the first view.
    Later views may increase the loss; the caller decides where to stop. Returns indices of views.
    """
    # the log loss depends only on the probabilities of the labels: (V, N)
    label_scores = log_probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    indices = [first]
    while len(indices) < min(most, len(label_scores)):
        candidates = [view for view in range(len(label_scores)) if view not in indices]
        total = logsumexp(label_scores[indices], axis=0)
        gains = [np.logaddexp(total, label_scores[view]).mean() for view in candidates]
        indices.append(candidates[int(np.argmax(gains))])
    return indices


def learn_weights(
    log_probabilities: np.ndarray, labels: np.ndarray, steps: int = 2000
) -> np.ndarray:
    """Fit weights (V,) of the views, at least 0 and summing to 1, that minimise the log loss.

    This is learned test-time augmentation (Shanmugam et al. 2021) with one weight per view.
    `log_probabilities`: (V, N, C); `labels`: (N,). The weighted mean is a mixture, so the loss is
    convex in the weights, and expectation maximisation (Dempster et al. 1977) finds the minimum.
    """
    label_scores = log_probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    weights = np.full(len(label_scores), 1 / len(label_scores))
    for _ in range(steps):
        with np.errstate(divide="ignore"):
            shares = np.log(weights)[:, None] + label_scores
        before, weights = weights, np.exp(shares - logsumexp(shares, axis=0)).mean(1)
        if np.abs(weights - before).max() < 1e-7:
            break
    return weights


def weighted_mean(
    log_probabilities: np.ndarray, weights: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the log of the weighted mean probability: (V, N, C) -> (N, C).

    `weights`: (V,), summing to 1.
    """
    return logsumexp(log_probabilities, axis=0, b=np.asarray(weights)[:, None, None])
