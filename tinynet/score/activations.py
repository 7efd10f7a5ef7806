"""What pooled features are like at another test size than in training, and mappings that bring them
back.

Touvron et al. 2019, sections 3.2 and 4.2: at another size the features that the classifier sees
have another distribution (fewer or more exact zeros, another spread); a mapping of each number by
itself, fitted without labels, gives them the one of whole pictures at the training size. Everything
here takes the numbers of one tap together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinynet.errors import InputError

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

    ours, theirs = _spread(values, _COMPARED), _spread(reference, _COMPARED)
    return {
        "ks": float(ks_2samp(ours, theirs, method="asymp").statistic),
        "wasserstein": float(wasserstein_distance(ours, theirs) / theirs.mean()),
    }


def curve(values: np.ndarray, points: int) -> np.ndarray:
    """(points,) the quantiles from 0 to 1 of all `values` together: the cumulative curve,
    sideways.
    """
    return np.quantile(values.astype(np.float32), np.linspace(0, 1, points))


@dataclass(frozen=True)
class Frechet:
    """P(X <= x) = exp(-(1 + shape (x - location) / scale)^(-1 / shape)), shape > 0: what the paper
    fits to activations.

    The generalised extreme value distribution of type II.
    """

    shape: float
    location: float
    scale: float

    @classmethod
    def fit(cls, values: np.ndarray, shape: float | None = None) -> "Frechet":
        """The one under which `values` are most likely, zeros standing for everything at or below
        zero.

        What ReLU has cut off at zero is a censored observation, not a value. `shape`: to keep as it
        is; the paper keeps 0.3 at all sizes. Raises `InputError` where there is nothing to fit.
        """
        from scipy.stats import CensoredData, genextreme

        some = _spread(values, _FITTED).astype(np.float64)
        positive = some[some > 0]
        if len(np.unique(positive)) < 10:
            raise InputError(
                f"activations: {len(np.unique(positive))} different values above zero; a "
                "distribution cannot be fitted"
            )
        unit = positive.mean()  # the search for the best parameters begins near 1
        data = CensoredData(positive / unit, left=np.zeros(len(some) - len(positive)))
        start = dict(loc=float(np.median(some) / unit), scale=float(positive.std() / unit / 2))
        fixed = {} if shape is None else {"fc": -shape}
        found, location, scale = genextreme.fit(
            data, *([-0.3] if shape is None else []), **start, **fixed
        )
        return cls(max(-float(found), 1e-3), float(location * unit), float(scale * unit))


def frechet_mapping(values: np.ndarray, reference: np.ndarray) -> Mapping:
    """The mapping that gives features distributed like `values` the distribution of `reference`,
    both as Frechet.

    With one shape for both, fitted to `reference`, it is a straight line (the paper's activation
    after pooling); below zero, where no feature of a ReLU lies, it ends. An exact zero stays one:
    where it would have been below zero is not known, and the line would lift all of them at once
    where `reference` has fewer.
    """
    shape = Frechet.fit(reference).shape
    theirs, ours = Frechet.fit(reference, shape), Frechet.fit(values, shape)
    slope = theirs.scale / ours.scale

    def mapping(features: Tensor) -> Tensor:
        moved = (theirs.location + slope * (features - ours.location)).clamp(min=0)
        return torch.where(features == 0, 0, moved)

    return mapping


def quantile_mapping(values: np.ndarray, reference: np.ndarray) -> Mapping:
    """The mapping that gives features distributed like `values` the distribution of `reference`,
    without a formula.

    The q-quantile becomes the q-quantile, on straight lines between a thousand of them and beyond
    the last; where many features have one value (zero) it becomes the median of what they
    correspond to.
    """
    ours, theirs = curve(values, _POINTS), curve(reference, _POINTS)
    places, first, count = np.unique(ours, return_index=True, return_counts=True)
    targets = theirs[first + (count - 1) // 2]
    if len(places) < 2:
        raise InputError("activations: all have one value; quantiles cannot be mapped")
    slope = (targets[-1] - targets[-2]) / (places[-1] - places[-2])

    def mapping(features: Tensor) -> Tensor:
        found = features.detach().cpu().numpy()
        within = np.interp(found, places, targets)
        beyond = targets[-1] + slope * (found - places[-1])
        return torch.from_numpy(np.where(found > places[-1], beyond, within).astype(np.float32)).to(
            features.device
        )

    return mapping


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, drawn from all over with a seed: a fixed step would meet the
    same channels.
    """
    flat = values.reshape(-1)
    return (
        flat if len(flat) <= most else flat[np.random.RandomState(0).randint(len(flat), size=most)]
    )
