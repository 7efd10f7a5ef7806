"""The stages of a run."""

import dataclasses

import pytest
from small_runs import run_config, small_recipe
from support import CPU, complaint
from torch import nn

from tinynet.data.copies import open_packed
from tinynet.models.checkpoint import load_model
from tinynet.training import stages

pytestmark = pytest.mark.usefixtures("thin")


def test_a_finished_run_does_not_stand_for_another_config(whole_run, archive_path, cache_folder):
    asked = run_config(archive_path, cache_folder)
    assert [row.stage for row in stages.train(whole_run, asked, CPU)] == ["base", "finetune"]
    for changed in (
        dataclasses.replace(asked, seed=1),
        dataclasses.replace(asked, recipe=small_recipe({"lr": 0.1})),
        dataclasses.replace(asked, recipe=asked.recipe.override({"dropout": 0.1})),
    ):
        complaint(
            lambda changed=changed: stages.train(whole_run, changed, CPU),
            whole_run / "base",
            "another folder",
        )


def test_each_stage_drops_its_own_share(archive_path, cache_folder, tmp_path):
    asked = run_config(archive_path, cache_folder, base={"dropout": 0.4}, finetune={"dropout": 0.0})
    stages.train(tmp_path / "run", asked, CPU)
    for stage, share in (("base", 0.4), ("finetune", 0.0)):
        model, _ = load_model(
            tmp_path / "run" / stage / "best.pt", open_packed(archive_path, str(cache_folder)).wnids
        )
        dropped = [module.p for module in model.head if isinstance(module, nn.Dropout)]
        assert dropped == [share] * len(asked.recipe.network.hidden)
