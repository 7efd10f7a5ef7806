"""Probabilities of several views become one distribution a picture; nothing but probabilities comes in."""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

Merge = Callable[[np.ndarray], np.ndarray]


def mean(log_probabilities: np.ndarray) -> np.ndarray:
    """(V, N, C) log-probabilities -> (N, C): the logarithm of the mean probability, without underflow."""
    return logsumexp(log_probabilities, axis=0) - np.log(len(log_probabilities))


MERGES: dict[str, Merge] = {"mean": mean}
