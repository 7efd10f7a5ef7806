"""Recipes: fields, overrides, values that are refused."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PLENTY, any_value, complaint

from tinynet.errors import InputError
from tinynet.training.recipes import TUNED, Network, SplitConfig, Stage

# --- recipes ---


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError):
        Stage(epoch=3)
    complaint(lambda: TUNED.override({"epoch": 3, "hidden": (8,)}), "epoch")
    complaint(lambda: TUNED.override({"label_smooting": 0.1}, ("base",)), "label_smooting")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TUNED.base.epochs = 3


def test_overriding_changes_what_was_named_and_nothing_else():
    changed = TUNED.override({"lr": 0.5, "hidden": (7,), "holdout": 0.3}, ("finetune",))
    assert changed.base == TUNED.base and changed.finetune == dataclasses.replace(
        TUNED.finetune, lr=0.5
    )
    assert changed.network == dataclasses.replace(TUNED.network, hidden=(7,))
    assert changed.data == dataclasses.replace(TUNED.data, holdout=0.3)
    both = TUNED.override({"lr": 0.5})
    assert both.base.lr == both.finetune.lr == 0.5
    assert TUNED.override({}) == TUNED


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=0),
        dict(epochs=-1),
        dict(batch=1),
        dict(batch=0),
        dict(size=0),
        dict(lr=0.0),
        dict(lr=float("nan")),
        dict(cycles=0.0),
        dict(cached_epochs=-1),
        dict(cached_epochs=1, trainable=("conv5", "head")),
        dict(crop_side=(40,)),
        dict(crop_side=(50, 40)),
        dict(crop_side=(0, 40)),
        dict(crop_area=(0.5, 1.5)),
        dict(crop_area=(0.0, 1.0)),
        dict(crop_side=(40, 64), crop_area=(0.5, 1.0)),
        dict(saturation=(1.0, 0.5)),
        dict(saturation=(1.0, 1.0, 1.0)),
        dict(hue=0.6),
        dict(hue=-0.1),
        dict(lr_decay=0.0),
        dict(lr_decay=1.5),
        dict(lr_factors=(1, 1, 1, 1, 1, 0)),
        dict(lr_factors=(1, 1, -1, 1, 1, 1)),
        dict(pct_start=0.0),
        dict(pct_start=1.0),
        dict(ema=1.0),
        dict(ema=-0.1),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(trainable=()),
        dict(min_lr=-1e-4),
        dict(min_lr=1.0, lr=0.5),
        dict(weight_decay=-0.1),
        dict(label_smoothing=1.5),
        dict(label_smoothing=-0.1),
        dict(max_grad_norm=0.0),
        dict(max_grad_norm=-1.0),
        dict(step_size_up=0),
        dict(patience=0),
        dict(patience=-1),
    ],
    ids=str,
)
def test_a_stage_with_a_value_out_of_range_is_refused(change):
    complaint(lambda: Stage(**change), next(iter(change)))
    complaint(lambda: TUNED.override(change), next(iter(change)))


@pytest.mark.parametrize("change", [dict(hidden=(16, 0)), dict(hidden=(-1,))], ids=str)
def test_a_network_with_a_value_out_of_range_is_refused(change):
    complaint(lambda: Network(**change), next(iter(change)))


# --- values ---


@PLENTY
@given(st.data(), st.sampled_from([SplitConfig, Network, Stage]))
def test_any_value_of_a_field_is_taken_or_refused_in_a_line(data, kind):
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    value = data.draw(any_value)
    try:
        made = kind(**{name: tuple(value) if isinstance(value, list) else value})
    except InputError as error:
        assert (
            name in str(error)
            or "trainable" in str(error)
            or "crop" in str(error)
            or "lr" in str(error)
        )
    else:
        for field in dataclasses.fields(made):
            content = getattr(made, field.name)
            for number in content if isinstance(content, tuple) else (content,):
                assert not isinstance(number, float) or math.isfinite(number)


@pytest.mark.parametrize(
    "kind, name, value",
    [
        (Stage, "weight_decay", float("nan")),
        (Stage, "lr", float("inf")),
        (Stage, "epochs", "2"),
        (Stage, "batch", True),
        (Stage, "flip", "sometimes"),
        (Stage, "trainable", ("head", 3)),
        (Network, "hidden", (1.5,)),
        (SplitConfig, "split_seed", -1),
        (SplitConfig, "split_kind", ["stratified"]),
    ],
)
def test_values_that_pass_every_comparison_are_refused(kind, name, value):
    with pytest.raises(InputError, match=name):
        kind(**{name: value})
    assert TUNED.finetune.weight_decay > 0


# --- fixres ---


def test_a_recipe_names_the_stage_that_fits_a_run_to_a_size():
    assert TUNED.stage("fixres") == TUNED.fixres and isinstance(TUNED.fixres, Stage)
    assert (
        TUNED.fixres.trainable == ("head",)
        and not TUNED.fixres.crop_side
        and not TUNED.fixres.crop_area
    )
