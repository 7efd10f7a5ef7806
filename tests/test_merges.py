"""Merges, against independent references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from score_support import log_probabilities, merged, quickly
from support import complaint

from tinynet.score import merges

HAND = np.log([[[0.5, 0.3, 0.2]], [[0.1, 0.6, 0.3]]])  # two views of one image


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [0.3, 0.45, 0.25]),
        ("sum", [0.3, 0.45, 0.25]),
        (
            "gmean",
            [v / (0.05**0.5 + 0.18**0.5 + 0.06**0.5) for v in (0.05**0.5, 0.18**0.5, 0.06**0.5)],
        ),
        ("max", [0.5 / 1.4, 0.6 / 1.4, 0.3 / 1.4]),
        ("vote", [1.3 / 3, 1.45 / 3, 0.25 / 3]),
        (
            "sharpen",
            [
                (0.25 / 0.38 + 0.01 / 0.46) / 2,
                (0.09 / 0.38 + 0.36 / 0.46) / 2,
                (0.04 / 0.38 + 0.09 / 0.46) / 2,
            ],
        ),
    ],
)
def test_merges_are_what_is_computed_by_hand(name, expected):
    np.testing.assert_allclose(np.exp(merged(name, HAND)[0]), expected, rtol=1e-9)


@pytest.mark.parametrize(("name", "theirs"), [("mean", "mean"), ("gmean", "gmean"), ("max", "max")])
def test_merges_are_ttachs_where_those_are_right(name, theirs):
    from ttach.base import Merger

    found, _ = log_probabilities(0, views=3)
    merger = Merger(theirs, n=3)
    for view in found:
        merger.append(torch.from_numpy(np.exp(view)))
    other = merger.result.numpy()
    np.testing.assert_allclose(
        np.exp(merged(name, found)), other / other.sum(1, keepdims=True), rtol=1e-4
    )


@pytest.mark.parametrize("name", merges.MERGES)
@quickly
@given(
    logits=arrays(
        np.float32, (3, 4, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_every_merge_of_finite_logits_is_a_distribution(name, logits):
    found = merges.get(name)(torch.log_softmax(torch.from_numpy(logits), 2))
    assert found.shape == (4, 5) and not found.isnan().any()
    torch.testing.assert_close(
        found.double().exp().sum(1), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", merges.MERGES)
@quickly
@given(seed=st.integers(0, 10_000), views=st.integers(1, 4))
def test_a_merge_knows_no_order_and_leaves_equal_views_alone(name, seed, views):
    found, _ = log_probabilities(seed, views=views)
    np.testing.assert_allclose(merged(name, found[::-1]), merged(name, found), rtol=1e-4, atol=1e-5)
    alike = merged(name, np.stack([found[0]] * views))
    assert np.array_equal(alike.argmax(1), found[0].argmax(1))
    if name in ("mean", "sum", "gmean", "max"):
        np.testing.assert_allclose(alike, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "gmean"])
@pytest.mark.parametrize("tiny", [1e-30, 1e-60, 1e-300])
def test_nothing_underflows(name, tiny):
    # ten views: their product is no float
    found = np.log(np.array([[[tiny, 1.0]], [[4 * tiny, 1.0]]] * 5))
    expected = {"mean": 2.5 * tiny, "gmean": 2 * tiny}[name]
    for dtype, digits in ((np.float32, 1e-5), (np.float64, 1e-13)):
        assert merged(name, found.astype(dtype))[0, 0] == pytest.approx(
            math.log(expected), rel=digits
        )


def test_a_class_ruled_out_by_one_view():
    found = np.log(np.array([[[0.5, 0.5]], [[1e-45, 1.0]]]))
    found[1, 0, 0] = -np.inf
    np.testing.assert_allclose(np.exp(merged("mean", found)), [[0.25, 0.75]])
    np.testing.assert_allclose(np.exp(merged("gmean", found)), [[0, 1]])
    both = np.where([[[True, False]], [[False, True]]], 0.0, -np.inf)
    # each rules out the other's class
    np.testing.assert_allclose(np.exp(merged("gmean", both)), [[0.5, 0.5]])


def test_votes_that_are_equal_are_decided_by_the_mean():
    found = np.log([[[0.5, 0.4, 0.1]], [[0.1, 0.6, 0.3]]])
    assert merged("vote", found)[0].argmax() == 1


def test_what_cannot_be_logarithms_of_probabilities_is_refused():
    for wrong in (
        torch.tensor([[[0.2, 0.8]]]),
        torch.tensor([[[3.0, -1.0]]]),
        torch.zeros(2, 2),
        torch.zeros(0, 2, 2),
    ):
        for name in merges.MERGES:
            complaint(
                lambda name=name, wrong=wrong: merges.get(name)(wrong),
                "log-probabilities",
                tuple(wrong.shape),
            )
    complaint(lambda: merges.get("median"), "median", "gmean", "sharpen")
