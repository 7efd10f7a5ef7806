"""The command soup: the mean of weights."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import copy_run, score_rows
from support import ON_CPU, argv, call, in_floats, refused, succeed
from torchvision.transforms.v2 import functional as tv

from tinynet import evaluate
from tinynet import soup as soup_command
from tinynet.data.copies import open_packed
from tinynet.models.checkpoint import load_model
from tinynet.runs import StageFolder
from tinynet.training import averages
from tinynet.training.config import RunConfig, split_of

pytestmark = pytest.mark.usefixtures("thin")


def always(name, label, other):
    """A copy of the finished run that always says one class, by its biases; `other` takes back what
    `label` gets.
    """
    copy_run(name, 0)
    stored = torch.load("runs/done/finetune/best.pt", weights_only=True)
    stored["weights"]["head.5.bias"][label] += 1000
    stored["weights"]["head.5.bias"][other] -= 1000
    torch.save(stored, f"runs/{name}/finetune/best.pt")


def test_a_soup_is_the_mean_of_weights_and_written_where_it_is_better(run_folder, monkeypatch):
    heads = []
    monkeypatch.setattr(averages, "update_bn", lambda head, features: heads.append(head))
    always("up", 0, 1)
    always("down", 1, 0)
    ran = call(soup_command, *argv("runs/up runs/down --out runs/both --json"), *ON_CPU)
    found, trained = json.loads(ran.out), score_rows(run_folder.ran)[1]
    # each run as it is, then with recomputed batch norms, which are left out here
    names = ["runs/up", "runs/down", "runs/up", "runs/down", "runs/both"]
    assert [row["run"] for row in found] == names
    assert [row["top1"] for row in found] == [3 / 18] * 4 + [trained["top1"]]
    assert trained["top1"] > 3 / 18
    assert found[4]["loss"] == pytest.approx(trained["loss"], rel=1e-3)
    assert found[4]["gain"] == pytest.approx(trained["top1"] - 3 / 18)
    assert "is better" in ran.err and "may be chance" in ran.err
    again = score_rows(
        call(evaluate, "--run", "runs/both", "--split", "holdout", "--json", "--device", "cpu")
    )
    assert again[0]["top1"] == trained["top1"]
    assert again[0]["worst_class"] == found[4]["worst_class"] != found[0]["worst_class"]
    recipe = json.loads(Path("runs/both/finetune/recipe.json").read_text())
    assert recipe["soup"] == ["runs/up/finetune", "runs/down/finetune"]
    assert len(heads) == 3
    # the mean is what it was: runs/done, up to a bias that changes no class
    ran = call(soup_command, *argv("runs/done runs/both --out runs/same --json --device cpu"))
    assert "not better" in ran.err and not Path("runs/same").exists()
    assert json.loads(ran.out)[4]["gain"] == 0


def test_a_soup_recomputes_its_batch_norms(run_folder, monkeypatch):
    heads, update = [], averages.update_bn

    def update_and_keep(head, features):
        update(head, features)
        heads.append(head)

    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
    folder = StageFolder(Path("runs/done"), "finetune")
    model, size = load_model(folder.best, packed.wnids)
    train_rows = split_of(RunConfig.read(folder.read_recipe()), packed).train
    images = in_floats(packed.train.images[train_rows])
    with torch.inference_mode():
        features = model.features(tv.resize(images, [size, size], antialias=True))
    always("up", 0, 1)
    monkeypatch.setattr(averages, "update_bn", update_and_keep)
    succeed(soup_command, "runs/done", "runs/up", *ON_CPU)
    assert len(heads) == 3  # of each run, and of their mean
    for head in heads:
        mean = head[0].running_mean
        torch.testing.assert_close(mean, features.mean(0), rtol=1e-3, atol=1e-4)
        assert not head.training and (mean - model.head[0].running_mean).abs().max() > 1e-4


def test_runs_that_make_no_soup_are_refused(run_folder):
    assert refused(soup_command, ["runs/done"], "two runs") == 1
    refused(soup_command, ["runs/done", "runs/none"], "runs/none")
    copy_run("other", 0)
    refused(soup_command, ["runs/done", "runs/other", "--out", "runs"], "--out runs")
    recipe = Path("runs/other/finetune/recipe.json")
    recipe.write_text(recipe.read_text().replace('"split_digest": "', '"split_digest": "0'))
    refused(soup_command, ["runs/done", "runs/other"], "runs/other", "different split")
    copy_run("wide", 0)
    stored = torch.load("runs/wide/finetune/best.pt", weights_only=True)
    torch.save({**stored, "size": 48}, "runs/wide/finetune/best.pt")
    refused(soup_command, ["runs/done", "runs/wide"], "runs/wide", "size")
