"""Learning-rate schedules."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinynet.training import schedules
from tinynet.training.recipes import REFERENCE, Stage


def optimizer(factors=(1.0,), lr=1.0):
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "factor": factor, "lr": lr * factor}
        for factor in factors
    ]
    return torch.optim.Adam(groups, lr=lr)


def rates(stage, steps, factors=(1.0,)):
    """The rates of every group before each move and after the last: (moves + 1, groups)."""
    made = optimizer(factors, stage.lr)
    schedule = schedules.make_schedule(made, stage, steps)
    found = [[group["lr"] for group in made.param_groups]]
    for _ in range(schedules.moves(stage, steps)):
        made.step()
        schedule.step()
        found.append([group["lr"] for group in made.param_groups])
        assert all(group["betas"] == (0.9, 0.999) for group in made.param_groups)
    return np.array(found)


def triangular2(move, low, high, up, down):
    """Smith 2015, section 3.1: a triangle whose height halves from cycle to cycle."""
    cycle, place = divmod(move, up + down)
    height = place / up if place <= up else (up + down - place) / down
    return low + (high - low) * height / 2**cycle


@pytest.mark.parametrize(
    ("cycles", "pct_start"), [(1, 0.5), (3, 0.5), (2.5, 0.2), (1, 0.08), (0.4, 0.5), (4, 0.9)]
)
def test_cyclic_is_triangular2(cycles, pct_start):
    stage = Stage(epochs=4, lr=3e-3, min_lr=1e-4, cycles=cycles, pct_start=pct_start)
    factors = (0.1, 1.0, 2.0)
    up, down = schedules.half_cycles(stage, 15)
    assert up + down == round(60 / cycles) and up == round(pct_start * round(60 / cycles))
    expected = [
        [triangular2(move, factor * 1e-4, factor * 3e-3, up, down) for factor in factors]
        for move in range(61)
    ]
    np.testing.assert_allclose(rates(stage, 15, factors), expected, rtol=1e-9)


@given(epochs=st.integers(1, 5), steps=st.integers(2, 30), pct_start=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_unless_told_otherwise_the_rate_goes_through_one_whole_cycle(epochs, steps, pct_start):
    stage = Stage(epochs=epochs, lr=1e-2, min_lr=1e-5, pct_start=pct_start)
    found = rates(stage, steps)[:, 0]
    assert found[0] == pytest.approx(1e-5) and found[-1] == pytest.approx(1e-5)
    assert found.max() == pytest.approx(1e-2)
    peak = found.argmax()
    assert (np.diff(found[: peak + 1]) > 0).all() and (np.diff(found[peak:]) < 0).all()
    assert schedules.warning(stage, steps) is None


def test_less_than_one_cycle_is_warned_of():
    half = Stage(epochs=2, cycles=0.5)
    assert "50.0% of one cycle" in schedules.warning(half, 10)
    assert schedules.warning(Stage(epochs=2, cycles=3), 10) is None
    for other in ("onecycle", "cosine", "constant"):
        assert schedules.warning(dataclasses.replace(half, schedule=other), 10) is None
    said = schedules.warning(REFERENCE.base, 1485)
    assert "10 times (once per epoch)" in said and "2,808" in said and "0.4%" in said


def test_the_rates_of_the_reference_never_leave_their_floor():
    for stage, steps in ((REFERENCE.base, 1485), (REFERENCE.finetune, 1485)):
        found = rates(stage, steps)[:, 0]
        assert len(found) == stage.epochs + 1
        assert found[0] == pytest.approx(stage.min_lr) and (np.diff(found) > 0).all()
        assert found.max() < 1.04 * stage.min_lr < stage.lr / 5


@given(
    schedule=st.sampled_from(["cyclic", "onecycle", "cosine", "constant"]),
    every=st.sampled_from(["step", "epoch"]),
    epochs=st.integers(1, 20),
    steps=st.integers(1, 20),
    cycles=st.floats(0.1, 5),
    pct_start=st.one_of(st.floats(0.01, 0.99), st.sampled_from([0.1, 0.2, 0.25, 0.5])),
)
@settings(max_examples=60, deadline=None)
def test_every_schedule_comes_to_its_end(schedule, every, epochs, steps, cycles, pct_start):
    stage = Stage(
        schedule=schedule,
        schedule_every=every,
        epochs=epochs,
        lr=1e-2,
        min_lr=1e-4,
        cycles=cycles,
        pct_start=pct_start,
    )
    found = rates(stage, steps, (1.0, 0.5))
    assert np.isfinite(found).all() and (found > 0).all()
    assert found[:, 0].max() <= 1e-2 * (1 + 1e-9)
    np.testing.assert_allclose(found[:, 1], found[:, 0] / 2)


@pytest.mark.parametrize(
    ("epochs", "pct_start"), [(10, 0.1), (2, 0.5), (4, 0.25), (1, 0.5), (20, 0.05)]
)
def test_onecycle_can_rise_in_any_share(epochs, pct_start):
    stage = Stage(
        schedule="onecycle", schedule_every="epoch", epochs=epochs, lr=1e-2, pct_start=pct_start
    )
    found = rates(stage, 7)[:-1]
    assert len(found) == epochs and found.max() <= 1e-2 * (1 + 1e-9)


def test_onecycle_rises_to_its_peak_and_falls_to_nothing():
    found = rates(Stage(schedule="onecycle", epochs=2, lr=1e-2, pct_start=0.3), 10)[:-1, 0]
    assert (
        found.argmax() == 5
        and found[[0, 5]] == pytest.approx([1e-2 / 25, 1e-2])
        and found[-1] < 1e-6
    )


def test_cosine_falls_from_lr_to_the_floor_and_constant_stays():
    stage = Stage(schedule="cosine", epochs=3, lr=1e-2, min_lr=1e-3)
    expected = [
        1e-3 + (1e-2 - 1e-3) * (1 + math.cos(math.pi * move / 30)) / 2 for move in range(31)
    ]
    np.testing.assert_allclose(rates(stage, 10)[:, 0], expected)
    assert set(rates(dataclasses.replace(stage, schedule="constant"), 10)[:, 0]) == {1e-2}
