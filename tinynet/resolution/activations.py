"""What pooled features are like at another test size than in training, and mappings that bring them
back.

Touvron et al. 2019, sections 3.2 and 4.2: at another size the features that the classifier sees
have another distribution (fewer or more exact zeros, another spread); a mapping of each number by
itself, fitted without labels, gives them the one of whole pictures at the training size. Everything
here takes the numbers of one tap together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

Mapping = Callable[[Tensor], Tensor]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_POINTS = 1001  # of a quantile mapping
# numbers that a distribution is fitted to: more change its parameters by less than a hundredth
_FITTED = 20_000
_COMPARED = 1_000_000  # numbers that distances are computed from


def describe(values: np.ndarray) -> dict[str, Any]:
    """Share of exact zeros, mean, greatest, and quantiles 0.5, 0.9, 0.99 and 0.999 of all `values`
    together.
    """
    quantiles = dict(zip(QUANTILES, np.quantile(values.astype(np.float32), QUANTILES), strict=True))
    return {
        "zeros": float((values == 0).mean()),
        "mean": float(values.mean(dtype=np.float64)),
        "max": float(values.max()),
        **{f"q{share:g}": float(value) for share, value in quantiles.items()},
    }


def distances(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far the distribution of `values` is from that of `reference`.

    `ks`: Kolmogorov-Smirnov, the greatest difference of the cumulative curves, in [0, 1].
    `wasserstein`: the area between them, over the mean of `reference`. Both from at most a million
    of the numbers.
    """
    from scipy.stats import ks_2samp, wasserstein_distance

    ours, theirs = sample(values, _COMPARED), sample(reference, _COMPARED)
    return {
        "ks": float(ks_2samp(ours, theirs, method="asymp").statistic),
        "wasserstein": float(wasserstein_distance(ours, theirs) / theirs.mean()),
    }


def curve(values: np.ndarray, points: int) -> np.ndarray:
    """(points,) the quantiles from 0 to 1 of all `values` together: the cumulative curve,
    sideways.
    """
    return np.quantile(values.astype(np.float32), np.linspace(0, 1, points))


def sample(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, drawn from all over with a seed: a fixed step would meet the
    same channels.
    """
    flat = values.reshape(-1)
    return (
        flat if len(flat) <= most else flat[np.random.RandomState(0).randint(len(flat), size=most)]
    )
