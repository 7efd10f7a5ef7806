"""Compare the distributions of pooled features at different test sizes (Touvron et al. 2019).

Section 3.2 of the paper: at another test size the features have another distribution, with fewer or
more exact zeros and another spread. All values of one layer and pooling are taken together.
"""

from dataclasses import dataclass

import numpy as np

from tinynet.records import Json

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_COMPARED = 1_000_000  # values that distances are computed from


@dataclass(frozen=True)
class Distribution:
    """The distribution of values.

    `zeros`: the share of exact zeros. `quantiles`: by their share, for instance 0.99.
    """

    zeros: float
    mean: float
    max: float
    quantiles: dict[float, float]


@dataclass(frozen=True)
class Distances:
    """The distances of a distribution from a reference.

    `ks`: Kolmogorov-Smirnov, the greatest difference of the cumulative curves, in [0, 1].
    `wasserstein`: the area between the curves, divided by the mean absolute value of the
    reference (by 1 if that is 0).
    """

    ks: float
    wasserstein: float


@dataclass(frozen=True)
class FeatureRow:
    """The distribution of a feature at a test size.

    `size`: in pixels. `feature`: its name, such as `relu4_3:mean`. `count`: the number of values.
    `distances`: from the feature at the training size. `curve`: quantiles from 0 to 1.
    """

    size: int
    feature: str
    count: int
    distribution: Distribution
    distances: Distances
    curve: list[float]

    def to_json(self) -> Json:
        """Return the row as a JSON object."""
        values, distances = self.distribution, self.distances
        return {
            "size": self.size,
            "tap": self.feature,
            "numbers": self.count,
            "zeros": values.zeros,
            "mean": values.mean,
            "max": values.max,
            **{f"q{share:g}": value for share, value in values.quantiles.items()},
            "ks": distances.ks,
            "wasserstein": distances.wasserstein,
            "curve": self.curve,
        }


def describe(values: np.ndarray) -> Distribution:
    """Compute the distribution of all `values`, with the quantiles `QUANTILES`."""
    quantiles = np.quantile(values.astype(np.float32), QUANTILES).tolist()
    return Distribution(
        zeros=float((values == 0).mean()),
        mean=float(values.mean(dtype=np.float64)),
        max=float(values.max()),
        quantiles=dict(zip(QUANTILES, quantiles, strict=True)),
    )


def distances(values: np.ndarray, reference: np.ndarray) -> Distances:
    """Compute the distances of `values` from `reference`; both use at most a million values."""
    from scipy.stats import ks_2samp, wasserstein_distance

    first, second = sample(values, _COMPARED), sample(reference, _COMPARED)
    return Distances(
        ks=float(ks_2samp(first, second, method="asymp").statistic),
        wasserstein=float(wasserstein_distance(first, second) / (np.abs(second).mean() or 1.0)),
    )


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
