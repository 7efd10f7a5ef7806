"""Paired comparison of two classifiers on the same images."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinynet.errors import InputError
from tinynet.records import Gain


@dataclass(frozen=True, kw_only=True)
class PairedGain(Gain):
    """The gain of one classifier over another on the same images.

    `wins`, `losses`: the number of images where only the first, or only the second, is right.
    `gain`: (wins - losses) / N. `low`, `high`: the adjusted Wald interval of Bonett & Price (2012).
    `p`: the two-sided p-value (McNemar 1947), from the binomial distribution of the wins.
    """

    gain: float
    low: float
    high: float
    p: float
    wins: int
    losses: int

    def __str__(self) -> str:
        return f"{self.gain:+.2%} ({self.low:+.2%} .. {self.high:+.2%}, p = {self.p:.2g})"


def mcnemar(right: np.ndarray, other: np.ndarray) -> PairedGain:
    """Return the gain in top-1 of one classifier over another, and McNemar's exact test of it.

    `right`, `other`: (N,) bool, whether each classifier is right on each image. Raises `InputError`
    for arrays of another dtype or of different lengths.

    Examples:
        >>> print(tinynet.mcnemar(predictions == labels, other_predictions == labels))
    """
    from scipy.stats import binomtest, norm

    right, other = _outcomes(right, "right"), _outcomes(other, "other")
    if len(right) != len(other):
        raise InputError(
            f"right has {len(right)} images and other has {len(other)}; compare two classifiers on "
            "the same images"
        )
    wins, losses = int((right & ~other).sum()), int((~right & other).sum())
    count = len(right)
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    up, down = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    half = float(norm.ppf(0.975)) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return PairedGain(
        gain=(wins - losses) / count,
        low=max(up - down - half, -1.0),
        high=min(up - down + half, 1.0),
        p=p,
        wins=wins,
        losses=losses,
    )


def _outcomes(values: Any, name: str) -> np.ndarray:
    """Return (N,) bool; raises `InputError` for anything else, for instance predicted classes."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # lists of unequal lengths, a tensor on a GPU
        array = np.array(None)
    if array.dtype != np.bool_ or array.ndim != 1 or not len(array):
        raise InputError(
            f"{name} is of type {array.dtype} and shape {array.shape}; it must be (N,) bool: "
            "whether each image is classified right, for instance predictions == labels"
        )
    return array
