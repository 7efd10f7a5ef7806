"""Run configurations: recipe.json, read back or refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import copy_run, run_config
from support import PLENTY, any_value, refused

from tinynet import evaluate, runs, train
from tinynet.errors import InputError
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig
from tinynet.training.recipes import RECIPES, TUNED

pytestmark = pytest.mark.usefixtures("thin")


# --- commands refuse broken recipes ---


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"recipe": {"name": "tuned"}}'])
def test_a_recipe_that_is_none_is_refused(run_folder, content):
    copy_run("broken", -100)
    for path in Path("runs/broken").rglob("recipe.json"):
        path.write_text(content)
    refused(train, ["--resume", "runs/broken"], "recipe.json")
    refused(evaluate, ["--run", "runs/broken"], "recipe.json")


# --- recipe.json ---


@pytest.mark.parametrize(
    "recipe",
    [
        *RECIPES.values(),
        TUNED.override(
            dict(
                features=("relu1_1:max",),
                hidden=(),
                per_class=3,
                cached_epochs=0,
                trainable=("conv5", "head"),
                crop_area=(0.25, 1.0),
                crop_side=(),
                saturation=(0.5, 2.0),
                hue=0.1,
                max_grad_norm=None,
                patience=4,
                step_size_up=9,
                lr_factors=(1, 2, 3, 4, 5, 6.5),
            )
        ),
    ],
    ids=[*RECIPES, "another"],
)
def test_a_config_is_read_back_exactly(recipe, tmp_path):
    first = RunConfig(recipe, "data.zip", ("finetune",), "none", 3, "cache", "runs/before")
    stored = json.loads(json.dumps({"stage": "base", **dataclasses.asdict(first), "more": 1}))
    again = RunConfig.read(stored)
    assert again == first
    assert [type(v) for v in dataclasses.astuple(again.recipe.base)] == [
        type(v) for v in dataclasses.astuple(first.recipe.base)
    ]
    assert RunConfig.read(
        json.loads(json.dumps(dataclasses.asdict(RunConfig(recipe, "d"))))
    ) == RunConfig(recipe, "d")


def test_recipe_json_holds_the_config_of_the_run(whole_run, archive_path, cache_folder):
    for stage in runs.WHOLE:
        stored = StageFolder(whole_run, stage).read_recipe()
        assert RunConfig.read(stored) == run_config(archive_path, cache_folder)
        assert stored["stage"] == stage and stored["pictures"] == {"train": 60, "holdout": 12}


# --- changed recipe.json ---


@PLENTY
@given(st.data(), st.sampled_from(sorted(RECIPES)))
def test_a_stored_config_is_read_back_or_refused_whatever_was_changed(data, recipe):
    config = RunConfig(RECIPES[recipe], "data.zip", seed=3)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert RunConfig.read(stored) == config
    place = stored
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict):
            break
        parent, place = place, place[name]
    if isinstance(place.get(name), dict) or name not in place:
        place, name = parent, name
    change = data.draw(st.just("gone") | any_value)
    if change == "gone":
        place.pop(name)
    else:
        place[name] = change
    try:
        again = RunConfig.read(json.loads(json.dumps(stored)))
    except InputError as error:
        assert "Traceback" not in str(error)
    else:
        assert isinstance(again, RunConfig) and again.recipe.base.epochs > 0
