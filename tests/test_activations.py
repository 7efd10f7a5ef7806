"""Statistics of activations."""

import json

import numpy as np
import pytest
from scipy.stats import ks_2samp, wasserstein_distance

from tinynet.resolution.activations import Distances, Distribution, FeatureRow, describe, distances


def test_zeros_are_counted_exactly():
    values = np.array([[0, 0, 1.5, 2], [0, 3, 4, 1e-6]], np.float32)
    found = describe(values)
    assert found.zeros == 3 / 8 and found.mean == pytest.approx(values.mean()) and found.max == 4
    assert found.quantiles[0.5] == pytest.approx(np.median(values))


def test_a_row_of_a_feature_has_the_keys_of_the_result_files():
    row = FeatureRow(
        size=48,
        feature="relu4_3:mean",
        count=600,
        distribution=Distribution(0.25, 1.5, 9.0, {0.5: 1.0, 0.999: 8.0}),
        distances=Distances(0.125, 0.0625),
        curve=[0.0, 9.0],
    )
    text = (
        '{"size": 48, "tap": "relu4_3:mean", "numbers": 600, "zeros": 0.25, "mean": 1.5, '
        '"max": 9.0, "q0.5": 1.0, "q0.999": 8.0, "ks": 0.125, "wasserstein": 0.0625, '
        '"curve": [0.0, 9.0]}'
    )
    assert json.dumps(row.to_json()) == text


def test_distances_are_those_of_scipy():
    random = np.random.RandomState(0)
    ours, theirs = random.exponential(2, (100, 7)), random.exponential(1, (50, 7))
    found = distances(ours, theirs)
    assert found.ks == pytest.approx(ks_2samp(ours.ravel(), theirs.ravel()).statistic)
    assert found.wasserstein == pytest.approx(
        wasserstein_distance(ours.ravel(), theirs.ravel()) / theirs.mean()
    )
    assert distances(ours, ours) == Distances(ks=0, wasserstein=0)
