"""Paired comparison of two classifiers on the same images."""

import math
from typing import Any

import numpy as np


def mcnemar(right: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compare top-1 of `right` with that of `other`: gain, 95 % interval and McNemar's exact test.

    `right`, `other`: (N,) bool, whether each classifier is right on each image. The result has

    `wins`, `losses`: the number of images where only the first, or only the second, is right;
    `gain`: (wins - losses) / N;
    `gain_low`, `gain_high`: the adjusted Wald interval of Bonett & Price (2012);
    `p`: the two-sided p-value (McNemar 1947), from the binomial distribution of the wins.
    """
    from scipy.stats import binomtest, norm

    wins, losses = int((right & ~other).sum()), int((~right & other).sum())
    count = len(right)
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    up, down = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    half = norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return {
        "wins": wins,
        "losses": losses,
        "gain": (wins - losses) / count,
        "gain_low": max(up - down - half, -1.0),
        "gain_high": min(up - down + half, 1.0),
        "p": p,
    }
