"""Compare the distributions of pooled features at different test sizes (Touvron et al. 2019).

Section 3.2 of the paper: at another test size the features have another distribution, with fewer or
more exact zeros and another spread. All values of one layer and pooling are taken together.
"""

import numpy as np

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_COMPARED = 1_000_000  # values that distances are computed from


def describe(values: np.ndarray) -> dict[str, float]:
    """Compute the share of exact zeros, the mean, the maximum and quantiles of all `values`.

    Keys: `zeros`, `mean`, `max`, `q0.5`, `q0.9`, `q0.99`, `q0.999`.
    """
    quantiles = dict(zip(QUANTILES, np.quantile(values.astype(np.float32), QUANTILES), strict=True))
    return {
        "zeros": float((values == 0).mean()),
        "mean": float(values.mean(dtype=np.float64)),
        "max": float(values.max()),
        **{f"q{share:g}": float(value) for share, value in quantiles.items()},
    }


def distances(values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compute the distances of the distribution of `values` from that of `reference`.

    `ks`: Kolmogorov-Smirnov, the greatest difference of the cumulative curves, in [0, 1].
    `wasserstein`: the area between the curves, divided by the mean of `reference`. Both use at most
    a million values.
    """
    from scipy.stats import ks_2samp, wasserstein_distance

    first, second = sample(values, _COMPARED), sample(reference, _COMPARED)
    return {
        "ks": float(ks_2samp(first, second, method="asymp").statistic),
        "wasserstein": float(wasserstein_distance(first, second) / second.mean()),
    }


def curve(values: np.ndarray, points: int) -> np.ndarray:
    """Compute (points,) quantiles from 0 to 1 of all `values`: the inverse cumulative curve."""
    return np.quantile(values.astype(np.float32), np.linspace(0, 1, points))


def sample(values: np.ndarray, most: int) -> np.ndarray:
    """Return all values, or `most` of them at random with a fixed seed.

    A fixed step would always sample the same channels.
    """
    flat = values.reshape(-1)
    return (
        flat if len(flat) <= most else flat[np.random.RandomState(0).randint(len(flat), size=most)]
    )
