"""Mappings that give features of one test size the distribution of another (Touvron et al. 2019).

Section 4.2: a mapping of each feature by itself, fitted without labels, restores the distribution
that the classifier was trained on. The features of one layer and pooling are taken together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinynet.errors import InputError
from tinynet.resolution.activations import curve, sample

Mapping = Callable[[Tensor], Tensor]

_POINTS = 1001  # of a quantile mapping
# Values that a distribution is fitted to: more change its parameters by less than a hundredth.
_FITTED = 20_000


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

        some = sample(values, _FITTED).astype(np.float64)
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
