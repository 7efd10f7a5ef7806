"""Temperature scaling (Guo et al. 2017): one number, fitted on the hold-out, that mends
over-confidence.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tinynet.console import log

_WIDEST = 20.0


def at_temperature(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(N, C) log-probabilities of p^(1/temperature), renormalised: the order of the classes
    stays.
    """
    return log_softmax(log_probabilities / temperature, axis=-1)


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least log loss; more than 1 where the network is too sure of itself.

    `log_probabilities`: (N, C), of pictures that neither learning nor the report sees; `labels`:
    (N,). The loss is convex in 1 / temperature, which is looked for from 1/20 to 20; the ends are
    remarked upon.
    """
    places = np.arange(len(labels))

    def loss(inverse: float) -> float:
        return -float(
            at_temperature(log_probabilities, 1 / inverse)[places, labels].mean(dtype=np.float64)
        )

    found = (
        1
        / minimize_scalar(
            loss, bounds=(1 / _WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-4}
        ).x
    )
    if not 1.01 / _WIDEST < found < 0.99 * _WIDEST:
        log(
            f"note: the temperature, {found:.3g}, is at the end of the range that is searched; "
            "these labels and probabilities have little to do with one another"
        )
    return found
