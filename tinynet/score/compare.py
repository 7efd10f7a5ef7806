"""Two ways of scoring the same pictures, compared in pairs: what one gets right and the other does
not.
"""

import math
from typing import Any

import numpy as np


def mcnemar(right: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Gain of `right` over `other` in top-1, with its 95 % interval and the exact test of McNemar
    (1947).

    `right`, `other`: (N,) bool, whether each way gets each picture right. `wins`, `losses`:
    pictures that only the first, only the second gets right. `gain`: their difference over N;
    `gain_low`, `gain_high`: the adjusted Wald interval of Bonett & Price (2012); `p`: two-sided,
    from the binomial distribution of the wins.
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
