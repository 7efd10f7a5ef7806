"""Which views are worth their cost: chosen greedily, or weighted, on pictures held out for it."""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp


def greedy(
    log_probabilities: np.ndarray, labels: np.ndarray, most: int, first: int = 0
) -> list[int]:
    """Views in the order in which they help: each next one gives the mean of those so far the least
    log loss.

    Greedy policy search (Molchanov et al. 2020), without repetition. `log_probabilities`: (V, N,
    C); `labels`: (N,); `most`: views to take, `first`: the one to begin with. A later view may do
    harm: the length to stop at is the caller's choice.
    """
    # all that the log loss looks at
    own = log_probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    chosen = [first]
    while len(chosen) < min(most, len(own)):
        left = [view for view in range(len(own)) if view not in chosen]
        together = logsumexp(own[chosen], axis=0)
        gains = [np.logaddexp(together, own[view]).mean() for view in left]
        chosen.append(left[int(np.argmax(gains))])
    return chosen


def learn_weights(
    log_probabilities: np.ndarray, labels: np.ndarray, steps: int = 2000
) -> np.ndarray:
    """(V,) weights of the views, at least 0 and adding up to 1, that give the least log loss.

    Learned test-time augmentation (Shanmugam et al. 2021), one weight a view. The weighted mean is
    a mixture, so its loss is convex in the weights and expectation maximisation (Dempster et al.
    1977) finds the least.
    """
    own = log_probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    weights = np.full(len(own), 1 / len(own))
    for _ in range(steps):
        with np.errstate(divide="ignore"):
            shares = np.log(weights)[:, None] + own
        before, weights = weights, np.exp(shares - logsumexp(shares, axis=0)).mean(1)
        if np.abs(weights - before).max() < 1e-7:
            break
    return weights


def weighted_mean(log_probabilities: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """(V, N, C) log-probabilities and (V,) weights that add up to 1 -> (N, C): the log of the
    weighted mean.
    """
    return logsumexp(log_probabilities, axis=0, b=np.asarray(weights)[:, None, None])
