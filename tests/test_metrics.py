"""Metrics, against independent references."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from score_support import log_probabilities, quickly
from sklearn.metrics import (
    balanced_accuracy_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from support import argv

from tinynet.score.confusions import ClassAccuracy, by_class
from tinynet.score.metrics import Tally, score, top_k_hits, wilson


@quickly
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_top_k_is_that_of_scikit_learn_and_torchmetrics(seed, k):
    found, labels = log_probabilities(seed)
    share = top_k_hits(found, labels, k) / 40
    assert share == pytest.approx(top_k_accuracy_score(labels, found, k=k, labels=range(7)))
    metric = torchmetrics.classification.MulticlassAccuracy(7, top_k=k, average="micro")
    assert share == pytest.approx(metric(torch.from_numpy(found), torch.from_numpy(labels)).item())


@quickly
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8))
def test_among_equals_the_lower_class_comes_first(seed, k):
    draw = np.random.RandomState(seed)
    found, labels = draw.randint(-3, 0, (30, 7)).astype(np.float32), draw.randint(0, 7, 30)
    ranked = np.argsort(-found, axis=1, kind="stable")[:, :k]
    assert top_k_hits(found, labels, k) == (ranked == labels[:, None]).any(1).sum()


def test_a_constant_output_scores_at_chance():
    labels = np.repeat(np.arange(20), 3)
    constant = np.full((60, 20), -math.log(20), np.float32)
    found = score(constant, labels)
    assert found.top1 == pytest.approx(1 / 20) and found.top5 == pytest.approx(5 / 20)
    assert found.loss == pytest.approx(math.log(20))


def test_an_output_that_is_no_number_scores_nothing():
    found, labels = log_probabilities(0)
    found[:10] = np.nan
    kept = top_k_hits(found[10:], labels[10:], 2)
    assert 0 < kept == top_k_hits(found, labels, 2)
    assert top_k_hits(np.full((40, 7), np.nan), labels, 5) == 0


def test_certainty_scores_everything_or_nothing():
    labels = np.arange(6)
    sure = np.log(np.eye(6) + 1e-30)
    assert top_k_hits(sure, labels, 1) == 6 and top_k_hits(sure, (labels + 1) % 6, 1) == 0
    never = np.where(np.eye(6) > 0, -np.inf, -math.log(5))
    assert top_k_hits(never, labels, 5) == 0 and top_k_hits(never, labels, 6) == 6


@quickly
@given(seed=st.integers(0, 10_000))
def test_the_loss_is_that_of_scikit_learn(seed):
    found, labels = log_probabilities(seed)
    exact = log_softmax(found.astype(np.float64), axis=1)
    assert score(found, labels).loss == pytest.approx(
        log_loss(labels, np.exp(exact), labels=range(7)), rel=1e-5
    )


def test_a_score_is_made_of_its_parts():
    found, labels = log_probabilities(3)
    whole = score(found, labels)
    assert list(whole.to_json()) == argv("n top1 top5 loss ece low high balanced worst worst_label")
    assert whole.n == 40 and whole.top1 == top_k_hits(found, labels, 1) / 40
    assert whole.top5 == top_k_hits(found, labels, 5) / 40
    assert (whole.low, whole.high) == wilson(top_k_hits(found, labels, 1), 40)
    assert 0 < whole.low < whole.top1 < whole.high < whole.top5
    # as JSON takes them
    assert all(type(value) in (int, float) for value in whole.to_json().values())


@given(
    count=st.integers(1, 20_000),
    share=st.floats(0, 1),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
@settings(deadline=None)
def test_wilson_solves_the_equation_of_1927(count, share, confidence):
    hits = round(share * count)
    low, high = wilson(hits, count, confidence)
    z = -math.sqrt(2) * _inverse_erfc(1 + confidence)
    p, n = hits / count, count
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert low == pytest.approx(middle - half, abs=1e-9) and high == pytest.approx(
        middle + half, abs=1e-9
    )
    # where a hypothetical proportion is z standard errors from the one observed
    for bound in (low, high):
        assert abs(p - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def _inverse_erfc(value):
    from scipy.special import erfcinv

    return erfcinv(value)


def test_wilson_gives_the_figures_of_the_books():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-5)  # Brown, Cai and DasGupta 2001
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I


def test_the_calibration_error_is_that_of_torchmetrics():
    for seed in range(5):
        found, labels = log_probabilities(seed, count=500)
        metric = torchmetrics.classification.MulticlassCalibrationError(7, n_bins=15, norm="l1")
        exact = metric(torch.from_numpy(np.exp(found)), torch.from_numpy(labels)).item()
        assert score(found, labels).ece == pytest.approx(exact, abs=1e-5)
    sure = np.log(np.eye(4)[[0, 1, 2, 3]] + 1e-12)
    assert score(sure, np.arange(4)).ece == pytest.approx(0, abs=1e-6)
    assert score(sure, np.array([1, 2, 3, 0])).ece == pytest.approx(1)


@quickly
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
def test_a_tally_does_not_depend_on_the_batches(seed, size):
    found, labels = log_probabilities(seed)
    tally = Tally()
    for first in range(0, 40, size):
        tally.add(found[first : first + size], labels[first : first + size])
    assert tally.result().to_json() == pytest.approx(score(found, labels).to_json())


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@quickly
@given(seed=st.integers(0, 10_000), size=st.integers(1, 50), ties=st.booleans())
def test_the_accuracies_of_classes_are_those_of_scikit_learn(seed, size, ties):
    """Over batches of any size in two tallies; some classes have many images, some have none."""
    draw = np.random.RandomState(seed)
    log_probs = log_softmax(draw.randint(-2, 1, (50, 7)) if ties else draw.randn(50, 7), axis=1)
    labels = draw.choice(draw.permutation(7)[:5], 50, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    predictions = np.argsort(-log_probs, axis=1, kind="stable")[:, 0]
    tally, *others = Tally(), Tally(), Tally()
    for first in range(0, 50, size):
        batch = slice(first, first + size)
        others[first // size % 2].add(log_probs[batch], labels[batch])
    for other in others:
        tally.merge(other)
    tally.merge(Tally())  # of a process without images
    result = tally.result()
    assert result.balanced == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)
    classes, images = np.unique(labels, return_counts=True)
    recalls = recall_score(labels, predictions, labels=classes, average=None)
    worst, _, label = min(zip(recalls, -images, classes, strict=True))
    assert (result.worst, result.worst_label) == (worst, label)
    whole = score(log_probs, labels)
    assert (whole.balanced, whole.worst, whole.worst_label) == (result.balanced, worst, label)


def test_of_equally_bad_classes_the_largest_is_the_worst():
    def worst(labels, best):
        result = score(np.log(np.eye(5)[best] * 0.9 + 0.02), np.array(labels))
        return result.worst, result.worst_label, result.balanced

    # class 3 has twice as many images as class 1
    assert worst([1, 1, 3, 3, 3, 3, 4], [1, 0, 3, 3, 0, 0, 4]) == (0.5, 3, pytest.approx(2 / 3))
    # as many: the lower index
    assert worst([3, 3, 1, 1, 4], [3, 0, 1, 0, 4]) == (0.5, 1, pytest.approx(2 / 3))


def test_with_as_many_images_in_each_class_the_balanced_accuracy_is_top_1():
    log_probs, _ = log_probabilities(5, count=42)
    result = score(log_probs, np.tile(np.arange(7), 6))
    assert result.worst < result.top1 == pytest.approx(result.balanced, abs=1e-12)


def test_a_tally_refuses_what_is_no_number_before_it_counts():
    log_probs, labels = log_probabilities(0)
    tally = Tally()
    tally.add(log_probs, labels)
    whole = tally.result()
    with pytest.raises(FloatingPointError, match="NaN"):
        tally.add(np.where(np.arange(40)[:, None] == 3, np.nan, log_probs), labels)
    assert tally.result() == whole


def test_a_class_is_scored_on_its_own_images():
    labels = np.repeat([0, 1, 2], 4)
    best = np.array([0, 0, 0, 1, 1, 2, 2, 0, 2, 2, 2, 2])
    rows = by_class(np.log(np.eye(4)[best] * 0.9 + 0.025), labels)
    assert rows == [
        ClassAccuracy(4, 0.75, *wilson(3, 4), label=0, taken_for=1, share=0.25),
        ClassAccuracy(4, 0.25, *wilson(1, 4), label=1, taken_for=2, share=0.5),
        ClassAccuracy(4, 1.0, *wilson(4, 4), label=2, taken_for=None, share=0),
    ]
