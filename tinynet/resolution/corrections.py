"""Mappings that give features of one test size the distribution of another (Touvron et al. 2019).

Section 4.2: a mapping of each feature by itself, fitted without labels, restores the distribution
that the classifier was trained on. All values of one layer and pooling are taken together.
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
    """The Fréchet distribution (generalised extreme values, type II), as the paper fits it.

    P(X <= x) = exp(-(1 + shape (x - location) / scale)^(-1 / shape)), with shape > 0.
    """

    shape: float
    location: float
    scale: float

    @classmethod
    def fit(cls, values: np.ndarray, shape: float | None = None) -> "Frechet":
        """Fit the distribution to `values` by maximum likelihood.

        A zero is a censored observation: ReLU has cut off a value at or below zero. `shape`: a
        fixed shape; the paper uses 0.3 at all sizes. Raises `InputError` for values below
        zero, and for fewer than ten different values above zero.
        """
        from scipy.stats import CensoredData, genextreme

        if values.min() < 0:
            raise InputError(
                f"activations: reach down to {values.min():.3g}, but the distribution is of what a "
                "ReLU leaves; use the quantile mapping"
            )
        subset = sample(values, _FITTED).astype(np.float64)
        positive = subset[subset > 0]
        if len(np.unique(positive)) < 10:
            raise InputError(
                f"activations: {len(np.unique(positive))} different values above zero; a fit needs "
                "10 or more"
            )
        unit = positive.mean()  # the optimiser begins near 1
        data = CensoredData(positive / unit, left=np.zeros(len(subset) - len(positive)))
        start = dict(loc=float(np.median(subset) / unit), scale=float(positive.std() / unit / 2))
        fixed = {} if shape is None else {"fc": -shape}
        negative_shape, location, scale = genextreme.fit(
            data, *([-0.3] if shape is None else []), **start, **fixed
        )
        return cls(max(-float(negative_shape), 1e-3), float(location * unit), float(scale * unit))


def frechet_mapping(values: np.ndarray, reference: np.ndarray) -> Mapping:
    """Map features with the distribution of `values` to the distribution of `reference`.

    Both are fitted as Fréchet distributions with one shape, that of `reference`, so the mapping is
    linear (the paper's activation after pooling). The result is clamped at zero. Exact zeros stay
    zero: ReLU has cut them off, and the line would lift all of them at once.
    """
    shape = Frechet.fit(reference).shape
    target, source = Frechet.fit(reference, shape), Frechet.fit(values, shape)
    slope = target.scale / source.scale

    def mapping(features: Tensor) -> Tensor:
        moved = (target.location + slope * (features - source.location)).clamp(min=0)
        return torch.where(features == 0, 0, moved)

    return mapping


def quantile_mapping(values: np.ndarray, reference: np.ndarray) -> Mapping:
    """Map each quantile of `values` to the same quantile of `reference`, without a formula.

    The mapping is linear between a thousand quantiles and beyond the last one. A value that many
    features have (zero) becomes the median of the values it corresponds to. Raises `InputError` if
    all `values` are equal.
    """
    source, target = curve(values, _POINTS), curve(reference, _POINTS)
    knots, first, count = np.unique(source, return_index=True, return_counts=True)
    targets = target[first + (count - 1) // 2]
    if len(knots) < 2:
        raise InputError(
            f"activations: all have one value, {source[0]:g}; a quantile mapping needs two or more"
        )
    slope = (targets[-1] - targets[-2]) / (knots[-1] - knots[-2])

    def mapping(features: Tensor) -> Tensor:
        inputs = features.detach().cpu().numpy()
        within = np.interp(inputs, knots, targets)
        beyond = targets[-1] + slope * (inputs - knots[-1])
        outputs = np.where(inputs > knots[-1], beyond, within)
        return torch.from_numpy(outputs.astype(np.float32)).to(features.device)

    return mapping
