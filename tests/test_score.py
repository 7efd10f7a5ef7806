"""The score room: views, merges, metrics and stored probabilities against independent
references.
"""

import io
import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax
from sklearn.metrics import log_loss, top_k_accuracy_score
from support import complaint
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet.data.batches import batches
from tinynet.errors import InputError
from tinynet.score import merges, views
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import Tally, by_class, score, top_k_hits, wilson
from tinynet.score.probabilities import (
    Probabilities,
    head_probabilities,
    same_images,
    view_probabilities,
)
from tinynet.score.selection import greedy, learn_weights, weighted_mean
from tinynet.score.tta import TestTimeAugmentation
from tinynet.score.views import resize

quickly = settings(max_examples=25, deadline=None)


def log_probabilities(seed, count=40, classes=7, views=None):
    draw = np.random.RandomState(seed)
    shape = (count, classes) if views is None else (views, count, classes)
    return log_softmax(3 * draw.randn(*shape), axis=-1).astype(np.float32), draw.randint(
        0, classes, count
    )


# --- metrics --------------------------------------------------------------------------------------


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
    assert found["top1"] == pytest.approx(1 / 20) and found["top5"] == pytest.approx(5 / 20)
    assert found["loss"] == pytest.approx(math.log(20))


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
    assert score(found, labels)["loss"] == pytest.approx(
        log_loss(labels, np.exp(exact), labels=range(7)), rel=1e-5
    )


def test_a_score_is_made_of_its_parts():
    found, labels = log_probabilities(3)
    whole = score(found, labels)
    assert list(whole) == ["n", "top1", "top5", "loss", "ece", "low", "high"]
    assert whole["n"] == 40 and whole["top1"] == top_k_hits(found, labels, 1) / 40
    assert whole["top5"] == top_k_hits(found, labels, 5) / 40
    assert (whole["low"], whole["high"]) == wilson(top_k_hits(found, labels, 1), 40)
    assert 0 < whole["low"] < whole["top1"] < whole["high"] < whole["top5"]
    assert all(type(value) in (int, float) for value in whole.values())  # as JSON takes them


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
        assert score(found, labels)["ece"] == pytest.approx(exact, abs=1e-5)
    sure = np.log(np.eye(4)[[0, 1, 2, 3]] + 1e-12)
    assert score(sure, np.arange(4))["ece"] == pytest.approx(0, abs=1e-6)
    assert score(sure, np.array([1, 2, 3, 0]))["ece"] == pytest.approx(1)


@quickly
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
def test_a_tally_does_not_depend_on_the_batches(seed, size):
    found, labels = log_probabilities(seed)
    tally = Tally()
    for first in range(0, 40, size):
        tally.add(found[first : first + size], labels[first : first + size])
    assert tally.result() == pytest.approx(score(found, labels))


def test_a_class_is_scored_on_its_own_images():
    labels = np.repeat([0, 1, 2], 4)
    best = np.array([0, 0, 0, 1, 1, 2, 2, 0, 2, 2, 2, 2])
    rows = by_class(np.log(np.eye(4)[best] * 0.9 + 0.025), labels)
    assert [(r["label"], r["n"], r["top1"], r["taken_for"], r["share"]) for r in rows] == [
        (0, 4, 0.75, 1, 0.25),
        (1, 4, 0.25, 2, 0.5),
        (2, 4, 1.0, None, 0),
    ]
    assert all((r["low"], r["high"]) == wilson(round(4 * r["top1"]), 4) for r in rows)


# --- comparisons, calibration, choice ---


def test_mcnemar_is_the_exact_binomial_of_the_books():
    right, other = np.zeros(314, bool), np.zeros(314, bool)
    right[: 4 + 5] = other[:5] = True  # Lachenbruch's kind of table: 4 against 15
    other[9:24] = True
    found = mcnemar(right, other)
    assert (found["wins"], found["losses"]) == (4, 15) and found["gain"] == pytest.approx(-11 / 314)
    assert found["p"] == pytest.approx(2 * sum(math.comb(19, k) for k in range(5)) / 2**19)
    assert found["gain_low"] < found["gain"] < found["gain_high"] < 0


@quickly
@given(seed=st.integers(0, 10_000))
def test_a_comparison_turned_round_changes_its_sign(seed):
    draw = np.random.RandomState(seed)
    right, other = draw.rand(60) < 0.6, draw.rand(60) < 0.5
    found, turned = mcnemar(right, other), mcnemar(other, right)
    assert found["gain"] == pytest.approx(right.mean() - other.mean()) == -turned["gain"]
    assert found["p"] == turned["p"] and 0 < found["p"] <= 1
    assert found["gain_low"] == pytest.approx(-turned["gain_high"])
    assert mcnemar(right, right)["p"] == 1 and mcnemar(right, right)["gain"] == 0


def test_the_interval_of_a_gain_holds_it_as_often_as_it_says():
    draw, held = np.random.RandomState(0), 0
    # outcomes of a pair: both 0.5, first alone 0.2, second alone 0.1: a gain of 0.1
    for _ in range(600):
        drawn = draw.rand(150)
        found = mcnemar(drawn < 0.7, (drawn < 0.5) | (drawn > 0.9))
        held += found["gain_low"] <= 0.1 <= found["gain_high"]
    assert 0.92 < held / 600 < 0.98


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_labels_is_found(temperature):
    draw = np.random.RandomState(0)
    true = log_softmax(2 * draw.randn(20_000, 5), axis=1)
    labels = (np.exp(true).cumsum(1) > draw.rand(20_000, 1)).argmax(1)
    found = log_softmax(true * temperature, axis=1).astype(np.float32)
    assert fit_temperature(found, labels) == pytest.approx(temperature, rel=0.05)
    mended = at_temperature(found, fit_temperature(found, labels))
    assert np.array_equal(mended.argmax(1), found.argmax(1))
    assert score(mended, labels)["loss"] <= score(found, labels)["loss"] + 1e-9


def informed(seed=0, count=3000, strengths=(2.0, 0.5, 1.5, 0.0)):
    """Views (V, N, C) whose errors are their own, some more telling than others."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, 6, count)
    logits = np.stack([s * np.eye(6)[labels] + draw.randn(count, 6) for s in strengths])
    return log_softmax(logits, axis=2).astype(np.float32), labels


def test_greedy_takes_what_helps_most_next():
    found, labels = informed()
    order = greedy(found, labels, most=4)
    assert order == [0, 2, 1, 3]
    own = np.exp(found[:, np.arange(3000), labels].astype(np.float64))
    losses = {view: -np.log(own[[0, view]].mean(0)).mean() for view in (1, 2, 3)}
    assert min(losses, key=losses.get) == order[1]
    assert (
        greedy(found, labels, most=2, first=3) == [3, 0] and greedy(found, labels, most=9) == order
    )


def test_learned_weights_are_the_best_mixture():
    found, labels = informed()
    weights = learn_weights(found, labels)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all() and weights.argmax() == 0

    def loss(some):
        return score(weighted_mean(found, some), labels)["loss"]

    draw = np.random.RandomState(0)
    assert all(loss(weights) <= loss(other) + 1e-6 for other in draw.dirichlet(np.ones(4), 300))
    np.testing.assert_allclose(np.exp(weighted_mean(found, weights)).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        weighted_mean(found, np.full(4, 0.25)), merged("mean", found), atol=1e-5
    )


# --- merges ---------------------------------------------------------------------------------------


def merged(name, found):
    return merges.get(name)(torch.from_numpy(found.copy())).numpy()


HAND = np.log([[[0.5, 0.3, 0.2]], [[0.1, 0.6, 0.3]]])  # two views of one picture


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


# --- views ----------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Logits are the red pixels of the first row: which picture it is and which way round are plain
    to see.
    """

    def forward(self, images):
        return 20 * images[:, 0, 0, :]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("side", "size"), [(64, 64), (73, 64), (50, 33), (40, 47)])
def test_ten_crops_are_torchvisions_pixel_by_pixel(side, size):
    images = noise(3, 3, side, side)
    found = list(views.get("ten", size)(images).values())
    between = tv.resize(images, [round(size * 8 / 7)] * 2, antialias=True)
    expected = tv.ten_crop(between, [size, size])
    assert len(found) == 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_five_crops_of_images_that_are_not_square_are_torchvisions():
    images = noise(2, 3, 90, 75)
    expected = tv.five_crop(tv.resize(images, [80], antialias=True), [64, 64])
    for ours, theirs in zip(
        views.get("resize:80+five", 64)(images).values(), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_undoing_the_mirror_gives_the_plain_view():
    images = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    seen = views.get("flip")(images)
    assert list(seen) == ["plain", "mirror"] and torch.equal(seen["plain"], images)
    assert not torch.equal(seen["mirror"], images)
    assert torch.equal(seen["mirror"], tv.horizontal_flip(images))
    assert torch.equal(views.get("flip")(seen["mirror"])["mirror"], images)
    assert list(views.get("none")(images)) == ["plain"]


def test_moving_repeats_the_border():
    images = noise(2, 3, 8, 8)
    seen = views.get("shift:2")(images)
    assert list(seen) == ["plain", "left 2", "right 2", "up 2", "down 2"]
    wide = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    for name, (top, left) in {
        "left 2": (2, 4),
        "right 2": (2, 0),
        "up 2": (4, 2),
        "down 2": (0, 2),
    }.items():
        assert torch.equal(seen[name], wide[..., top : top + 8, left : left + 8])


@pytest.mark.parametrize("degrees", [5, -30])
@pytest.mark.parametrize("shape", [(64, 64), (40, 64)])
def test_turning_is_torchvisions_inside(degrees, shape):
    images = noise(2, 3, *shape)
    expected = tv.rotate(images, degrees, tv.InterpolationMode.BILINEAR)
    inside = tv.rotate(torch.ones_like(images), degrees, tv.InterpolationMode.BILINEAR) > 0.999
    found = views.turn(images, degrees)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=2e-4)
    # beyond the border there is picture, not black
    assert found.amin() >= 0 and found[~inside].min() > 0


def test_zoom_shows_the_middle_larger():
    images = noise(1, 3, 60, 60)
    seen = views.get("zoom:1.5")(images)["zoom 1.5"]
    torch.testing.assert_close(
        seen, tv.resize(images[..., 10:50, 10:50], [60, 60], antialias=True), rtol=0, atol=2e-6
    )


def test_steps_are_multiplied_the_left_one_first():
    images = noise(2, 3, 64, 64)
    seen = views.get("flip+scales:48,80")(images)
    assert list(seen) == ["48 px", "80 px", "mirror 48 px", "mirror 80 px"]
    for name, found in seen.items():
        expected = tv.resize(
            images.flip(-1) if "mirror" in name else images,
            [int(name.split()[-2])] * 2,
            antialias=True,
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    crops = views.get("resize:73+five+flip", 64)(images)
    assert list(crops)[:3] == ["top-left", "top-left mirror", "top-right"] and len(crops) == 10
    assert torch.equal(crops["centre mirror"], crops["centre"].flip(-1))
    assert list(views.get("scales", 64)(images)) == ["64 px", "80 px", "96 px"]
    assert list(views.get("none+flip")(images)) == ["plain", "mirror"]


SETS = [
    "none",
    "flip",
    "five",
    "ten",
    "shift",
    "shift:3",
    "rotate",
    "rotate:7.5",
    "zoom",
    "scales:48,64,100",
    "flip+shift+rotate",
    "resize:73+five+flip",
    "zoom+ten",
    "dense:96",
]


@pytest.mark.parametrize("text", SETS)
def test_each_view_is_of_its_own_image_and_differs_from_the_others(text):
    """The middle of each picture holds its number: under every view the middle still does."""
    images = noise(7, 3, 64, 64) * 0.02
    for number in range(7):
        images[number, :, 16:48, 16:48] += (number + 1) / 8
    kept = images.clone()
    seen = views.view_set(text, 64)(images)
    assert torch.equal(images, kept) and len(seen) == len(views.view_set(text, 64))
    for name, found in seen.items():
        middle = found.shape[-1] // 2
        read = found[:, :, middle - 4 : middle + 4, middle - 4 : middle + 4].mean((1, 2, 3))
        assert ((read - 0.01) * 8 - 1).round().tolist() == list(range(7)), name
        alone = views.view_set(text, 64)(images[4:5])[name]
        torch.testing.assert_close(alone[0], found[4])
    small = [tv.resize(found, [32, 32], antialias=True) for found in seen.values()]
    if not {"scales", "dense"} & {part.split(":")[0] for part in text.split("+")}:
        assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(small, 2))


@pytest.mark.parametrize("text", SETS)
def test_a_network_that_looks_at_nothing_scores_the_same_under_every_view(text, packed):
    class Blind(nn.Module):
        def forward(self, images):
            return torch.arange(5.0).expand(len(images), 5)

    found = [
        view_probabilities(Blind(), batches(packed.val, batch_size=9), view)
        for view in views.view_set(text, 64).views.values()
    ]
    assert all(np.array_equal(one, found[0]) for one in found)
    for name in merges.MERGES:
        together = merged(name, np.stack(found))
        assert (together.argmax(1) == 4).all() and np.abs(together - together[0]).max() < 1e-5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tencrop", ["tencrop", "ten", "scales"]),
        ("flip+", ["flip+", "no views called ''"]),
        ("", ["no views called ''"]),
        ("flip:3", ["wrong numbers for flip; use no numbers"]),
        ("resize", ["wrong numbers for resize; use 1 whole number from"]),
        ("scales:a", ["wrong numbers for scales"]),
        ("scales:64,4", ["from 8 to 4096"]),
        ("shift:1,2", ["wrong numbers for shift; use at most 1 whole number"]),
        ("zoom:nan", ["wrong numbers for zoom"]),
        ("flip+flip", ["flip", "once"]),
        ("zoom:0.5", ["from 1 to 8"]),
        ("scales:64,64.5", ["whole numbers"]),
        ("shift:1.5", ["at most 1 whole number"]),
        ("dense", ["not a view", "scales"]),
    ],
)
def test_views_that_there_are_not_are_refused(text, words):
    complaint(lambda: views.get(text), *words)


def test_a_crop_larger_than_the_image_is_refused():
    complaint(lambda: views.get("resize:40+five", 64)(noise(1, 3, 64, 64)), "64", "40x40", "resize")


def test_each_view_is_of_the_image_whose_row_it_stands_in(packed):
    rows = np.random.RandomState(0).permutation(len(packed.train))[:23]
    plain, hflip = (
        view_probabilities(Corner(), batches(packed.train, rows, batch_size=5), view)
        for view in views.view_set("flip", 64).views.values()
    )
    assert plain.shape == (23, 64) and plain.dtype == np.float32
    for place, row in enumerate(rows):
        logits = packed.train.images[row, 0, :, 0] / 255 * 20
        expected = log_softmax(np.stack([logits, logits[::-1]]), axis=1)
        np.testing.assert_allclose(
            np.stack([plain[place], hflip[place]]), expected, rtol=1e-4, atol=1e-4
        )
    assert np.abs(plain - hflip).max(1).min() > 0.1
    np.testing.assert_allclose(hflip[:, ::-1], plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["ten", "flip+rotate", "scales:48,80"])
def test_probabilities_do_not_depend_on_the_batches(packed, text):
    for view in views.view_set(text, 64).views.values():
        whole = view_probabilities(Corner(), batches(packed.val, batch_size=500), view)
        for size in (1, 7):
            few = view_probabilities(Corner(), batches(packed.val, batch_size=size), view)
            np.testing.assert_allclose(few, whole, rtol=1e-4, atol=1e-4)
        turned = np.arange(len(packed.val))[::-1]
        np.testing.assert_allclose(
            view_probabilities(Corner(), batches(packed.val, turned), view)[::-1],
            whole,
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("size", [7, 31, 48, 64, 65, 100])
def test_resize_is_that_of_torchvision(size):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = resize(images.contiguous(memory_format=torch.channels_last), size)
    torch.testing.assert_close(
        found, tv.resize(images, [size, size], antialias=True), rtol=0, atol=2e-6
    )
    if size < 64:
        assert (found - tv.resize(images, [size, size], antialias=False)).abs().max() > 0.01


def test_a_image_of_the_right_size_is_not_touched():
    images = torch.rand(2, 3, 48, 48)
    assert resize(images, 48) is images


# --- probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_are_normalised_whatever_the_precision_of_the_network(dtype):
    logits = (30 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = head_probabilities(nn.Identity(), logits.split(16))
    assert found.shape == (50, 200) and found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(
        found, log_softmax(logits.double().numpy(), axis=1), rtol=1e-5, atol=1e-4
    )


@pytest.fixture
def probabilities():
    found, labels = log_probabilities(1, views=2)
    return Probabilities(
        ("plain", "mirror"),
        found,
        np.arange(40)[::-1].copy(),
        labels,
        tuple("abcdefg"),
        np.array([1.5, np.nan]),
        {"split": "val", "data": "0" * 16},
    )


def test_probabilities_are_read_as_they_were_written(probabilities, tmp_path):
    for labels in (probabilities.labels, None):
        path = tmp_path / "new" / f"{labels is None}.npz"
        first = replace(probabilities, labels=labels)
        first.save(path)
        again = Probabilities.load(path)
        assert (
            again.views == first.views and again.wnids == first.wnids and again.about == first.about
        )
        np.testing.assert_array_equal(again.seconds, first.seconds)
        assert again.log_probabilities.dtype == np.float32
        assert np.array_equal(again.log_probabilities, first.log_probabilities)
        assert np.array_equal(again.rows, first.rows)
        assert again.labels is None if labels is None else np.array_equal(again.labels, labels)
    np.testing.assert_allclose(
        np.exp(again.log_probabilities.astype(np.float64)).sum(-1), 1, atol=1e-5
    )


class Colours(nn.Module):
    """Logits are the means of the channels of the left half and of the right half."""

    def forward(self, images):
        left, right = images.chunk(2, -1)
        return 30 * torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1)


@pytest.mark.parametrize("merge", ["mean", "gmean", "vote"])
def test_an_augmented_network_says_what_its_views_say_together(merge):
    images = noise(6, 3, 48, 48)
    found = TestTimeAugmentation(Colours(), "flip+scales:48,64", merge)(images)
    each = [
        torch.log_softmax(Colours()(tv.resize(seen, [side, side], antialias=True)), 1)
        for seen in (images, images.flip(-1))
        for side in (48, 64)
    ]
    np.testing.assert_allclose(found, merged(merge, np.stack(each)), rtol=1e-4, atol=1e-5)
    assert (found.exp().sum(1) - 1).abs().max() < 1e-5
    buffer = io.BytesIO()
    torch.save(TestTimeAugmentation(nn.Flatten(), "flip+rotate"), buffer)  # can be pickled


def test_views_that_are_larger_than_any_image_are_refused():
    for size in (0, -3, 5000):
        complaint(lambda size=size: views.view_set("flip", size), f"--size {size}", "4096")


def test_probabilities_of_other_images_are_refused(probabilities):
    names = ("a.npz", "b.npz")
    same_images(probabilities, probabilities, names)
    for change, words in (
        (dict(about={"split": "holdout", "data": "0" * 16}), ["holdout", "val"]),
        (dict(about={"split": "val", "data": "1" * 16}), ["other data"]),
        (dict(wnids=tuple("gfedcba")), ["other classes"]),
        (dict(rows=probabilities.rows[::-1]), ["another order"]),
        (dict(rows=probabilities.rows + 1), ["other images"]),
    ):
        complaint(
            lambda change=change: same_images(
                probabilities, replace(probabilities, **change), names
            ),
            *names,
            *words,
        )


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


def test_a_foreign_file_is_refused(probabilities, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probabilities.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no probabilities at all")
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.npz").write_bytes(whole[:200] + bytes(50) + whole[250:])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", views=np.array(["plain"]))
    np.savez(tmp_path / "harmful.npz", views=np.array([Harmful()], object))
    for name in (
        "empty.npz",
        "text.npz",
        "short.npz",
        "broken.npz",
        "array.npy",
        "other.npz",
        "harmful.npz",
        "missing.npz",
    ):
        with pytest.raises(InputError, match=f"{name}.*tinynet.evaluate") as caught:
            Probabilities.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "made by a pickle").exists()


def test_probabilities_appear_whole_or_not_at_all(probabilities, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        probabilities.save(tmp_path / "found.npz")
    assert not list(tmp_path.iterdir())
