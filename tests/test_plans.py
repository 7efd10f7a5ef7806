"""Plans for a number of minutes: which kind of run, how many epochs, how long."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import complaint

from tinynet.models import classifier
from tinynet.training.plans import (
    GENERAL_KINDS,
    TUNED_KINDS,
    Counts,
    Rates,
    candidate_sizes,
    choose,
    larger_size,
    parts_of,
    sizes_of,
)
from tinynet.training.recipes import GENERAL, TUNED
from tinynet.values import counted

COUNTS = Counts(95_000, 5_000)


def rates(speed=1.0):
    """Those of two cores of an EPYC, times `speed`."""
    frozen = {64: 280, 96: 140, 112: 105, 128: 80, 152: 57, 160: 60, 184: 50, 216: 40, 224: 35}
    rates_by_size = {size: rate * speed for size, rate in frozen.items()}
    return Rates(
        rates_by_size,
        rates_by_size,
        {96: 50 * speed, 112: 36 * speed, 160: 60 * speed},
        7_000 * speed,
    )


def seconds(plan):
    return sum(part.seconds for part in plan.parts)


@pytest.mark.parametrize(
    ("minutes", "name"),
    [
        (10, "base at 64 px"),
        (20, "base at 96 px"),
        (35, "base at 128 px"),
        (60, "conv4 and conv5 at 96 px"),
        (150, "conv4 and conv5 at 96 px, then fixres"),
        (300, "conv4 and conv5 at 96 px, average of two trainings, then fixres"),
    ],
)
def test_more_minutes_give_a_longer_kind_of_run(minutes, name):
    plan = choose(TUNED, TUNED_KINDS, rates(), COUNTS, minutes)
    assert plan.kind.name == name


@settings(max_examples=60, deadline=None)
@given(st.floats(12, 2_000), st.floats(0.3, 300))
def test_a_plan_fits_and_uses_its_minutes(minutes, speed):
    plan = choose(TUNED, TUNED_KINDS, rates(speed), COUNTS, minutes / speed)
    assert plan.kind.epochs[0] <= plan.epochs <= plan.kind.epochs[1]
    assert seconds(plan) <= 60 * plan.minutes * 0.97
    if plan.kind is TUNED_KINDS[-1] and plan.epochs < plan.kind.epochs[1] - 0.1:
        # no more than an evaluation and a hundredth of an epoch of each training are left
        rest = 60 * plan.minutes * 0.96 - seconds(plan)
        assert rest <= 2 * (COUNTS.train * 0.011 / 50 + 11_400 / 100) / speed


LATE = next(kind for kind in TUNED_KINDS if kind.name == "conv4 and conv5 at 96 px, then fixres")


def test_the_time_of_a_part_is_its_images_over_the_rate():
    parts = parts_of(LATE, TUNED, 2.5, rates(), COUNTS)
    assert [part.stage for part in parts] == ["base", "base", "finetune", "fixres", "views"]
    evaluation = (5_000 + 6_400) / (2 * 50)
    choice = 5_000 * (1 / 140 + 1 / 105 + 1 / 80)
    assert [part.seconds for part in parts] == pytest.approx(
        [
            100_000 / 140,
            12 * (95_000 + 5_000) / 7_000,
            2.5 * 95_000 / 50 + 3 * evaluation,
            choice + 100_000 / 80 + 4 * 95_000 / 7_000,
            # two passes at 128 px, and two at 160 px
            (2 + 2 * (160 / 128) ** 2) * 5_000 / 80,
        ]
    )
    assert classifier.BN_IMAGES == 6_400
    words = " ".join(part.what for part in parts)
    assert "2.5 epochs at 96 px" in words and "(96, 112, 128 px)" in words


def test_an_average_takes_the_time_of_its_trainings():
    both = TUNED_KINDS[-1]
    parts, one = (parts_of(kind, TUNED, 3, rates(), COUNTS) for kind in (both, LATE))
    stages = ["base"] * 2 + ["finetune"] * 2 + ["average", "fixres", "views"]
    assert [part.stage for part in parts] == stages
    assert {part.seconds for part in parts[2:4]} == {one[2].seconds}
    assert parts[4].seconds == (5_000 + 6_400) / (2 * 50)
    assert "another seed" in parts[3].what and "seed" not in parts[2].what


@pytest.mark.parametrize(
    ("size", "larger"), [(32, 48), (64, 80), (96, 128), (112, 144), (128, 160)]
)
def test_larger_images_of_views_have_whole_strides(size, larger):
    assert larger_size(size) == larger
    assert all(
        larger_size(side) % 16 == 0 and larger_size(side) > side for side in range(8, 256, 8)
    )


def test_only_the_longest_kind_is_called_the_longest():
    words = "This is the longest plan there is."
    early = choose(TUNED, TUNED_KINDS, rates(), COUNTS, 20)  # ends before the next kind fits
    assert early.epochs == early.kind.epochs[1] and seconds(early) < 0.9 * 60 * 20
    assert words not in early.lines()
    assert words in choose(TUNED, TUNED_KINDS, rates(), COUNTS, 2_000).lines()
    assert words not in choose(TUNED, TUNED_KINDS, rates(), COUNTS, 300).lines()


def test_what_was_spent_is_not_there_any_more():
    early = choose(TUNED, TUNED_KINDS, rates(), COUNTS, 150)
    late = choose(TUNED, TUNED_KINDS, rates(), COUNTS, 150, 1_900)  # one epoch
    assert 0.9 < early.epochs - late.epochs < 1.1
    assert late.seconds == pytest.approx(1_900 + seconds(late))
    assert "reading and packing" in late.lines()[1] and "in total" in late.lines()[-1]


def test_too_few_minutes_are_refused_with_those_of_the_shortest_plan():
    shortest = choose(TUNED, TUNED_KINDS[:1], rates(0.01), COUNTS, 10_000)
    parts = parts_of(shortest.kind, TUNED, 4, rates(0.01), COUNTS)
    needed = math.ceil(sum(part.seconds for part in parts) / 0.96 / 60)
    complaint(
        lambda: choose(TUNED, TUNED_KINDS, rates(0.01), COUNTS, 30),
        "minutes 30: too short",
        "base at 64 px",
        f"{needed} minutes; use more",
        "per_class",
    )
    assert choose(TUNED, TUNED_KINDS, rates(0.01), COUNTS, needed).kind is TUNED_KINDS[0]


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 minute"), ("1", "1 minute"), (0.5, "0.5 minutes"), (0, "0 minutes")]
)
def test_a_number_has_its_noun(number, text):
    assert counted(number, "minute") == text


def test_rates_are_measured_for_every_size_that_a_plan_may_use():
    assert sizes_of(TUNED_KINDS, TUNED) == ([64, 96, 128], [96, 112, 128])
    assert sizes_of(GENERAL_KINDS, GENERAL) == ([128, 160, 224], [160, 184, 216])
    assert candidate_sizes(64) == [64, 72, 88] and candidate_sizes(96) == [96, 112, 128]


def test_a_kind_changes_only_its_own_stages():
    recipe = LATE.recipe(TUNED, 2.5)
    assert recipe.finetune.epochs == 2.5 and recipe.base.epochs == TUNED.base.epochs
    assert recipe.finetune.trainable == ("conv4", "conv5", "head")
    assert recipe.fixres == TUNED.fixres and recipe.network == TUNED.network
