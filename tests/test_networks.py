"""Every command on runs of other networks than VGG16, in small and with random weights."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ON_CPU, argv, call, complaint, in_floats, succeed
from test_zoo import SIZES, networks

from tinynet import evaluate, fixres, runs, select_views, soup, train
from tinynet.compute import choose_compute
from tinynet.data.copies import open_packed
from tinynet.errors import InputError
from tinynet.evaluation import soup as soups
from tinynet.evaluation.predictor import Predictor
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import is_norm
from tinynet.report import __main__ as report
from tinynet.report.curves import Curves
from tinynet.resolution.study import Study
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import PLAIN, resize
from tinynet.training.plan import Settings, plan_new
from tinynet.training.recipes import GENERAL, TUNED

SMALL = (*argv("--weights none --hidden 8 --holdout 0.25 --batch 16 --epochs 1"), *ON_CPU)


# A training step of vit_b_16 takes minutes and 5 GB; tests/test_zoo.py has it.
PARAMETERS = [each for each in networks({"resnet18"}) if each.id != "vit_b_16"]


@pytest.fixture(scope="module", params=PARAMETERS)
def trained(request, archive_path, tmp_path_factory):
    """A run of base and finetune in a folder of its own; (arch, size, flags)."""
    arch, folder = request.param, tmp_path_factory.mktemp("network")
    size = SIZES[arch]
    where = ["--data", archive_path, "--cache", folder / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curves, "finish", lambda self, folder, title: folder.curves.touch())
        patch.setenv("TINYNET_PROGRESS", "0")
        patch.chdir(folder)
        flags = (*SMALL, "--arch", arch, "--size", size, *where)
        succeed(train, *argv("--stage base --out run"), *flags)
        succeed(train, *argv("--stage base --out second --seed 1"), *flags)
        later = argv(f"--stage finetune --run run --size {size} --epochs 1 --batch 16 --out run")
        succeed(train, *later, *ON_CPU)
        yield arch, size, where


def rows_of(command, *flags):
    return json.loads(succeed(command, *flags, "--json").out)


def test_runs_name_their_network_and_are_evaluated(trained):
    arch, size, where = trained
    recipe = json.loads((runs.StageFolder("run", "finetune").recipe).read_text())["recipe"]
    assert recipe["network"]["arch"] == arch and recipe["name"] == "general"
    # The maps of some shrink by other factors than two, so not all can be slid over.
    views = argv("none flip five shift rotate zoom")
    if arch != "vit_b_16":
        views += argv(f"scales:{size},{size + 32} resize:{size + 32}")
    for stage in ("base", "finetune"):
        rows = rows_of(
            evaluate,
            *argv(f"--run run --stage {stage} --split val --tta"),
            *views,
            *argv("--merge mean max"),
            *ON_CPU,
            *where,
        )
        assert {row["views"] for row in rows} == set(views)
        assert all(row["n"] == 24 and row["size"] == size for row in rows)
        assert all(row["precision"] == "float32" for row in rows)


def test_cached_features_give_the_scores_of_the_whole_network(trained):
    """A base is scored on cached features; its probabilities are those of its network."""
    arch, size, where = trained
    folder = runs.StageFolder("run", "base")
    succeed(evaluate, *argv("--run run --stage base --split val --tta none"), *ON_CPU, *where)
    (file,) = [
        file
        for file in folder.probabilities.glob("val-*.npz")
        if Probabilities.load(file).views == (PLAIN,)
    ]
    probabilities = Probabilities.load(file)
    model, trained_size = load_model(folder.best, probabilities.wnids)
    assert model.backbone.arch == arch and trained_size == size
    images = open_packed(where[1], where[3]).val.images
    with torch.inference_mode():
        outputs = model(resize(in_floats(images), size)).log_softmax(1).numpy()
    np.testing.assert_allclose(probabilities.log_probabilities[0], outputs, atol=2e-2)


def test_other_commands(trained):
    arch, size, where = trained
    on = (*ON_CPU, *where)
    succeed(select_views, *argv("--run run --stage base --tta flip shift --most 2"), *on)
    rows = rows_of(soup, *argv("run second --stage base"), *on)
    assert [row["correction"] for row in rows[-2:]] == ["batch norm"] * 2
    if arch != "vit_b_16":
        sizes = rows_of(
            fixres,
            *argv(f"--run run --stage base --sizes {size + 32} --fit {size + 32} --keep kept"),
            *on,
        )
        assert {row["size"] for row in sizes} == {size, size + 32}
        assert {"as is", "quantile", "batch norm", "frechet"} <= {
            row["correction"] for row in sizes
        }
    page = succeed(report, "run", *where).out.strip()
    assert arch in Path(page).read_text()
    table = succeed(
        train, *argv(f"--stage base --arch {arch} --summary --weights none"), "--size", size, *where
    ).out
    assert "Classifier" in table


def test_trained_batch_norms_are_recomputed_at_a_test_size(trained):
    _, size, where = trained
    packed = open_packed(where[1], where[3])
    predictor = Predictor(
        runs.StageFolder("run", "finetune"), packed, choose_compute("cpu", "float32")
    )
    study, side = Study(predictor), size + 32
    try:
        predictor.model.backbone.check_size(side)
    except InputError:
        pytest.skip("takes one size only")
    model, before = study.with_bn_of(side), predictor.model
    ours, theirs = (
        [layer for layer in each.backbone.modules() if is_norm(layer)] for each in (model, before)
    )
    for name, weight in before.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
    if not ours:
        assert model.backbone.digest() == before.backbone.digest()
        return
    # What reaches the first batch norm does not depend on statistics.
    means = []
    first = copy.deepcopy(before).eval()
    norm = next(layer for layer in first.backbone.modules() if is_norm(layer))
    norm.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3))))
    rows = np.random.RandomState(0).permutation(study.sample)
    images = resize(in_floats(packed.train.images[rows]), side)
    assert all(
        not torch.equal(mine.running_mean, old.running_mean)
        for mine, old in zip(model.head, before.head, strict=True)
        if is_norm(mine)
    )
    with torch.inference_mode():
        for batch in images.split(16):
            first(batch)
        val = model(resize(in_floats(packed.val.images), side)).log_softmax(1).numpy()
    torch.testing.assert_close(ours[0].running_mean, torch.stack(means).mean(0))
    assert all(
        not torch.equal(mine.running_var, old.running_var)
        for mine, old in zip(ours, theirs, strict=True)
    )
    np.testing.assert_allclose(study.predict("val", side, "batch norm"), val, atol=1e-3)


def test_a_wrong_size_or_group_is_refused(trained, archive_path):
    arch, size, where = trained
    base = (*argv(f"--stage base --out other --arch {arch}"), *SMALL, *where)
    ran = call(train, *base, "--size", "8")
    assert ran.status == 2 and "--size 8" in ran.err and arch in ran.err
    ran = call(train, *base, "--size", size, "--trainable", "conv9", "--cached-epochs", "0")
    assert ran.status == 2 and "conv9" in ran.err and "head" in ran.err
    ran = call(train, *base, "--size", size, "--features", "relu9:mean")
    assert ran.status == 2 and "relu9" in ran.err


def test_the_recipe_follows_the_network():
    assert plan_new(Settings(), ("base",)).recipe == TUNED
    lite = plan_new(Settings(fields={"arch": "timm/tf_efficientnet_lite0"}), ("base",))
    assert lite.recipe == GENERAL and lite.weights == "DEFAULT"
    assert plan_new(Settings("general"), ("base",)).recipe == GENERAL
    named = plan_new(Settings("tuned", {"arch": "resnet18"}), ("base",)).recipe
    assert (named.name, named.network.arch) == ("tuned", "resnet18")
    stage = GENERAL.finetune
    assert stage.rate_factors(["a", "b", "head"])["head"] == 1
    complaint(lambda: TUNED.finetune.rate_factors(["a", "head"]), "lr_factors", "2 numbers")


def test_a_soup_recomputes_the_norms_of_a_head_that_its_stage_did_not_train(
    archive_path, tmp_path, monkeypatch
):
    """The backbone's batch norms have new statistics, so the head's inputs change."""
    monkeypatch.chdir(tmp_path)
    where = ["--data", archive_path, "--cache", tmp_path / "cache"]
    flags = (*SMALL, "--arch", "resnet18", "--size", 32, *where)
    succeed(train, *argv("--stage base --out run"), *flags)
    stage = argv("--stage finetune --run run --trainable layer4 --size 32 --epochs 1 --batch 16")
    for seed in (0, 1):
        succeed(train, *stage, *argv(f"--out part{seed} --seed {seed}"), *ON_CPU)
    models, save = [], soups.save_model

    def save_and_keep(path, model, *rest):
        models.append(model)
        save(path, model, *rest)

    monkeypatch.setattr(soups, "save_model", save_and_keep)
    succeed(soup, "part0", "part1", *ON_CPU)
    wnids = open_packed(where[1], str(where[3])).wnids
    before, _ = load_model(runs.StageFolder("part0", "finetune").best, wnids)
    (norm, earlier), *_ = [
        (new, old)
        for new, old in zip(models[0].head.modules(), before.head.modules(), strict=True)
        if is_norm(new)
    ]
    assert (norm.running_mean - earlier.running_mean).abs().max() > 1e-3
