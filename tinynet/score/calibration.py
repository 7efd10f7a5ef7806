"""Temperature scaling (Guo et al. 2017): correct overconfidence with one number."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tinynet.console import log

_MAX_TEMPERATURE = 20.0


def at_temperature(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the log of p^(1/temperature), renormalised: (N, C) -> (N, C).

    The order of the classes does not change.
    """
    return log_softmax(log_probabilities / temperature, axis=-1)


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least log loss; above 1 if the network is overconfident.

    `log_probabilities`: (N, C); `labels`: (N,). The images must not be used for training or for the
    final result. The loss is convex in 1 / temperature. The search covers temperatures from 1/20 to
    20, and a message warns if the result is at an end of this range.
    """
    rows = np.arange(len(labels))

    def loss(inverse: float) -> float:
        return -float(
            at_temperature(log_probabilities, 1 / inverse)[rows, labels].mean(dtype=np.float64)
        )

    bounds = (1 / _MAX_TEMPERATURE, _MAX_TEMPERATURE)
    minimum = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    temperature = 1 / minimum.x
    if not 1.01 / _MAX_TEMPERATURE < temperature < 0.99 * _MAX_TEMPERATURE:
        log(
            f"note: the temperature {temperature:.3g} is at the end of the search range; check "
            "that the labels belong to these probabilities"
        )
    return temperature
