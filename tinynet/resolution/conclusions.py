"""What a study of test sizes concludes, in sentences."""

from collections.abc import Callable, Sequence

from tinynet.records import Gain, ScoreRow
from tinynet.resolution.activations import FeatureRow
from tinynet.resolution.costs import Cost
from tinynet.resolution.crops import Policy
from tinynet.resolution.study import AS_IS, CONTROL


def best_size(rows: Sequence[ScoreRow]) -> int:
    """The test size at which the uncorrected run has the highest hold-out accuracy."""
    holdout = [row for row in rows if (row.split, row.correction) == ("holdout", AS_IS)]
    return max(holdout, key=lambda row: row.top1).size


def conclude(
    rows: Sequence[ScoreRow],
    activations: Sequence[FeatureRow],
    policy: Policy,
    best: int,
    cost: Cost,
) -> list[str]:
    """Three sentences: the best test size, the best correction, and how features differ."""
    own, run = policy.train, rows[0].run
    by_key = {(row.split, row.size, row.correction): row for row in rows}
    corrected = [
        row
        for row in rows
        if row.split == "holdout" and row.correction not in (AS_IS, CONTROL) and row.size != own
    ]
    correction = max(corrected, key=lambda row: row.top1) if corrected else None
    sizes = ", ".join(str(size) for size in dict.fromkeys(row.size for row in rows))
    first = f"The best hold-out accuracy of {sizes} px is at {best} px: "
    first += f"val top-1 {_interval(by_key['val', best, AS_IS])}"
    if best != own:
        gain = _gain(by_key["val", best, AS_IS].over["own"])
        ratio = cost[run, best] / cost[run, own]
        first += f", {gain} over the training size of {own} px, at {ratio:.1f} times the cost"
    features = dict.fromkeys((own, best, *([correction.size] if correction else [])))
    return [
        f"{first}.",
        f"{_correction_sentence(correction, by_key)}.",
        f"{_feature_sentence(activations, policy, list(features))}.",
    ]


def _correction_sentence(
    correction: ScoreRow | None, by_key: dict[tuple[str | None, int, str], ScoreRow]
) -> str:
    if correction is None:
        return "No correction was tried"
    val = by_key["val", correction.size, correction.correction]
    sentence = (
        f"The best correction on the hold-out is {val.correction!r} at {val.size} px: val top-1 "
        f"{_interval(val)}, {_gain(val.gain)} over the uncorrected run at that size, "
        f"{_gain(val.over['own'])} over the run at its training size"
    )
    if val.over["control"].gain is not None:
        sentence += f", {_gain(val.over['control'])} over equal training at the training size"
    return sentence


def _feature_sentence(
    activations: Sequence[FeatureRow], policy: Policy, sizes: Sequence[int]
) -> str:
    """The share of zeros and the distance of features at each size, the training size first."""
    apparent = policy.resize * policy.cure
    sentence = f"Objects in training are as large as in whole images of {apparent:.0f} px"
    for size in sizes:
        rows = [row for row in activations if row.size == size]
        zeros = _mean_over_features(rows, lambda row: row.distribution.zeros)
        sentence += f"; at {size} px {zeros:.1%} of the features are exactly zero"
        if size != policy.train:
            distance = _mean_over_features(rows, lambda row: row.distances.ks)
            sentence += f" (Kolmogorov-Smirnov distance to the training size {distance:.3f})"
    return sentence


def _interval(row: ScoreRow) -> str:
    return f"{row.top1:.2%} ({row.low:.2%} .. {row.high:.2%})"


def _gain(gain: Gain) -> str:
    return f"{gain.gain:+.2%} ({f'p = {gain.p:.2g}' if gain.p else 'p < 1e-300'})"


def _mean_over_features(
    rows: Sequence[FeatureRow], statistic: Callable[[FeatureRow], float]
) -> float:
    """The mean of a statistic, each feature weighted by its count of values."""
    return sum(statistic(row) * row.count for row in rows) / sum(row.count for row in rows)
