"""Apparent object size of crops and test sizes."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import complaint

from tinynet.resolution.crops import Policy, draw_shares, mean_side, mean_side_with_ratio
from tinynet.training.recipes import RECIPES, TUNED

SIZED = dict(train=224, resize=256, test=224)


def test_the_figures_of_the_paper_for_square_crops():
    policy = Policy(area=(0.08, 1), **SIZED)
    assert policy.mean_side == pytest.approx(0.70824, abs=5e-6)
    assert policy.object_ratio == pytest.approx(0.80942, abs=5e-6)
    assert policy.cure == pytest.approx(1.2354, abs=1e-4)
    assert policy.test_share == pytest.approx(49 / 64)


def test_tested_at_its_cure_objects_are_as_large_as_in_training():
    policy = Policy(area=(0.3, 0.9), train=128, resize=128, test=128)
    cured = Policy(area=(0.3, 0.9), train=128, resize=round(128 * policy.cure), test=128)
    assert cured.object_ratio == pytest.approx(1, abs=0.5 / 128)


@pytest.mark.parametrize("low, high", [(0.08, 1), (56 / 64, 56 / 64), (0.5, 0.6), (1, 1)])
def test_square_crops_are_as_large_as_the_code_draws_them(low, high):
    policy = Policy(area=(low, high), **SIZED)
    sides = np.sqrt(draw_shares(policy, 1_000_000, side=1024))
    assert sides.mean() == pytest.approx(policy.mean_side, rel=0.005)


def test_sides_in_pixels_are_as_large_as_the_code_draws_them():
    policy = Policy.of(TUNED.finetune, 64)
    assert policy.mean_side == pytest.approx(55 / 64)
    assert np.sqrt(draw_shares(policy, 1_000_000, side=64)).mean() == pytest.approx(
        55 / 64, rel=0.005
    )


@pytest.mark.parametrize(
    "area, ratio",
    [
        ((0.08, 1), (3 / 4, 4 / 3)),
        ((0.9, 1), (0.5, 2)),  # most draws do not fit
        ((0.5, 1), (2, 3)),  # large ones never do
        ((0.95, 1), (2, 3)),  # none does: the centre
        ((0.95, 1), (0.2, 0.5)),
        ((0.3, 0.3), (0.2, 0.5)),
    ],
)
def test_crops_of_any_ratio_are_as_large_as_torchvision_draws_them(area, ratio):
    count = 20_000 if area == (0.08, 1) else 1_000  # the others hardly spread
    sides = np.sqrt(draw_shares(Policy(area=area, ratio=ratio, **SIZED), count, side=1000))
    assert mean_side_with_ratio(area, ratio) == pytest.approx(sides.mean(), rel=0.005)


def test_crops_that_do_not_fit_make_the_mean_smaller_than_a_published_shortcut_says():
    assert mean_side_with_ratio((0.08, 1), (3 / 4, 4 / 3)) == pytest.approx(0.667, abs=5e-4)
    assert mean_side_with_ratio((0.08, 1), (1, 1)) == pytest.approx(mean_side(0.08, 1))


@given(low=st.floats(0.01, 1), high=st.floats(0.01, 1))
@example(low=1 - 2**-53, high=1.0)
def test_a_mean_side_lies_between_the_least_and_the_greatest(low, high):
    low, high = sorted((low, high))
    assert math.sqrt(low) - 1e-9 <= mean_side(low, high) <= math.sqrt(high) + 1e-9


def test_the_policy_of_every_recipe_is_read_from_its_stage():
    found = {
        (name, stage): Policy.of(recipe.stage(stage), 64).mean_side
        for name, recipe in RECIPES.items()
        for stage in ("base", "finetune")
    }
    assert found == {
        ("tuned", "base"): 1,
        ("tuned", "finetune"): pytest.approx(55 / 64),
        ("general", "base"): 1,
        ("general", "finetune"): pytest.approx(55 / 64),
        ("first", "base"): 1,
        ("first", "finetune"): pytest.approx(55 / 64),
        ("reference", "base"): pytest.approx(math.sqrt(56 / 64)),
        ("reference", "finetune"): pytest.approx(math.sqrt(56 / 64)),
    }


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(area=(1, 0.08)), ("area", "1 to 0.08")),
        (dict(area=(0, 1)), ("area", "above 0")),
        (dict(area=(0.1, 1.2)), ("area", "at most 1")),
        (dict(ratio=(2, 1)), ("ratio", "2 to 1")),
        (dict(sides=(0.9, 0.5)), ("sides",)),
        (dict(resize=200), ("224", "200")),
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong, words):
    complaint(lambda: Policy(**{**SIZED, **wrong}), *words)
