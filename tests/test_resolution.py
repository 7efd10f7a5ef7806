"""Test sizes: apparent object size, features and what corrects them, the stage fixres and its
command.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import genextreme, ks_2samp, wasserstein_distance
from support import SMALL, call, complaint, refused, thin_network
from torch import nn

from benchmarks import record
from tinynet import evaluate, fixres, train
from tinynet.compute import choose_compute
from tinynet.data.packed import open_packed
from tinynet.evaluation.predictor import Predictor
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import update_bn
from tinynet.records import NOT_COMPARED, Gain, ScoreRow
from tinynet.resolution import fixres as jobs_fixres
from tinynet.resolution.activations import describe, distances
from tinynet.resolution.corrections import Frechet, frechet_mapping, quantile_mapping
from tinynet.resolution.crops import Policy, draw_shares, mean_side, mean_side_with_ratio
from tinynet.resolution.resize import METHODS, resize_square
from tinynet.resolution.study import AS_IS, CONTROL, FITTED, NORMS, Study
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.training.recipes import RECIPES, TUNED, Stage

SIZED = dict(train=224, resize=256, test=224)
CROPPED = (
    *SMALL,
    "--epochs",
    "2",
    "--crop-side",
    "28",
    "32",
    "--taps",
    "pool5:grid2",
    "relu4_3:mean",
)


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_network():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, archive_path):
    """A folder with a finished run of both stages at 32 px, runs/done, and a base at 64 px,
    runs/other.
    """
    folder = tmp_path_factory.mktemp("place")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(train, "--stage", "all", "--out", "runs/done", *CROPPED, *flags).status == 0
        assert call(train, "--stage", "base", "--out", "runs/base", *CROPPED, *flags).status == 0
        assert (
            call(
                evaluate,
                "--run",
                "runs/base",
                "--tta",
                "flip",
                "scales:32,64",
                "--split",
                "val",
                "--device",
                "cpu",
                "--precision",
                "float32",
                *flags,
            ).status
            == 0
        )
        assert (
            call(
                train, "--stage", "base", "--out", "runs/other", *CROPPED, "--size", "64", *flags
            ).status
            == 0
        )
    packed = open_packed(archive_path, folder / "cache")
    return SimpleNamespace(folder=folder, flags=flags, packed=packed)


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    return place


def study_of(place, run, stage="base", method="antialias"):
    folder = StageFolder(place.folder / "runs" / run, stage)
    return Study(Predictor(folder, place.packed, choose_compute("cpu", "float32")), method)


# --- apparent object size ---


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
    count = 100_000 if area == (0.08, 1) else 10_000
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


# --- ways to enlarge ---


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_images_of_the_size_in_the_range(method):
    images = torch.rand(3, 3, 64, 64)
    for size in (48, 64, 96):
        seen = resize_square(images, size, method)
        assert seen.shape == (3, 3, size, size) and seen.min() >= 0 and seen.max() <= 1
    assert torch.equal(resize_square(images, 64, method), images)
    flat = torch.full((1, 3, 64, 64), 128 / 255)
    assert torch.allclose(
        resize_square(flat, 96, method), torch.full((1, 3, 96, 96), 128 / 255), atol=1e-6
    )


def test_methods_agree_with_those_of_pil():
    from PIL import Image

    # no overshoot is cut off
    pixels = np.random.RandomState(0).randint(80, 176, (64, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    for method, theirs in (
        ("antialias", "BILINEAR"),
        ("bicubic", "BICUBIC"),
        ("lanczos", "LANCZOS"),
        ("nearest", "NEAREST"),
    ):
        # elsewhere two neighbours are equally near
        for size in (48, 96) if method != "nearest" else (128,):
            expected = np.asarray(
                Image.fromarray(pixels).resize((size, size), Image.Resampling[theirs])
            )
            found = resize_square(images, size, method)[0].permute(1, 2, 0).numpy() * 255
            assert np.abs(found - expected).max() < 2, (method, size)


# --- features and what corrects them ---


def test_zeros_are_counted_exactly():
    values = np.array([[0, 0, 1.5, 2], [0, 3, 4, 1e-6]], np.float32)
    assert describe(values)["zeros"] == 3 / 8
    assert describe(values)["mean"] == pytest.approx(values.mean()) and describe(values)["max"] == 4
    assert describe(values)["q0.5"] == pytest.approx(np.median(values))


def test_distances_are_those_of_scipy():
    random = np.random.RandomState(0)
    ours, theirs = random.exponential(2, (100, 7)), random.exponential(1, (50, 7))
    found = distances(ours, theirs)
    assert found["ks"] == pytest.approx(ks_2samp(ours.ravel(), theirs.ravel()).statistic)
    assert found["wasserstein"] == pytest.approx(
        wasserstein_distance(ours.ravel(), theirs.ravel()) / theirs.mean()
    )
    assert distances(ours, ours) == {"ks": 0, "wasserstein": 0}


@pytest.mark.parametrize(
    "shape, location, scale", [(0.3, 1, 0.5), (0.3, 0.05, 0.3), (0.6, -0.1, 0.3), (0.15, 40, 30)]
)
def test_a_frechet_distribution_is_recovered_from_what_relu_leaves_of_it(shape, location, scale):
    drawn = genextreme.rvs(-shape, location, scale, 100_000, random_state=np.random.RandomState(1))
    for given_shape in (None, shape):
        found = Frechet.fit(np.maximum(drawn, 0), given_shape)
        assert found.shape == pytest.approx(shape, abs=0.03)
        assert found.location == pytest.approx(location, abs=0.05 * scale)
        assert found.scale == pytest.approx(scale, rel=0.04)


def test_nothing_to_fit_is_refused():
    complaint(lambda: Frechet.fit(np.zeros((5, 5))), "0 different values")
    complaint(lambda: quantile_mapping(np.zeros((5, 5)), np.ones((5, 5))), "one value")


@pytest.fixture
def activations():
    random = np.random.RandomState(0)
    return np.maximum(random.gumbel(0.2, 0.7, (2000, 16)), 0).astype(np.float32)


@pytest.mark.parametrize("mapping", [quantile_mapping, frechet_mapping])
def test_a_distribution_is_mapped_onto_itself_by_the_identity(mapping, activations):
    features = torch.from_numpy(activations)
    assert torch.allclose(mapping(activations, activations)(features), features, atol=1e-5)


def test_both_mappings_undo_a_change_of_scale(activations):
    features = torch.from_numpy(activations)
    for mapping, apart in ((quantile_mapping, 1e-4), (frechet_mapping, 0.05)):
        back = mapping(activations * 3, activations)(features * 3)
        assert (back - features).abs().mean() < apart


def test_frechet_leaves_zeros_where_they_are_even_if_there_should_be_fewer(activations):
    random = np.random.RandomState(1)
    sparser = np.maximum(random.gumbel(-0.4, 0.7, activations.shape), 0).astype(np.float32)
    assert (sparser == 0).mean() > (activations == 0).mean() + 0.1
    mapped = frechet_mapping(sparser, activations)(torch.from_numpy(sparser))
    assert ((mapped == 0) == torch.from_numpy(sparser == 0)).all()
    positive = torch.from_numpy(sparser > 0)
    assert (mapped[positive] - torch.from_numpy(sparser)[positive]).mean() == pytest.approx(
        0.6, abs=0.05
    )


def test_quantiles_map_any_distribution_onto_any_other(activations):
    other = np.random.RandomState(5).exponential(4, activations.shape).astype(np.float32)
    mapped = quantile_mapping(other, activations)(torch.from_numpy(other)).numpy()
    assert distances(mapped, activations)["ks"] < 0.01
    assert describe(mapped)["zeros"] == pytest.approx(describe(activations)["zeros"], abs=0.01)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=40).filter(
        lambda some: len(set(some)) > 1
    )
)
def test_a_mapping_keeps_the_order_and_never_gives_a_number_that_is_none(some):
    values = np.array(some, np.float32)
    reference = np.random.RandomState(0).exponential(1, 1000).astype(np.float32)
    mapped = quantile_mapping(values, reference)(torch.from_numpy(np.sort(values)))
    assert torch.isfinite(mapped).all() and (mapped.diff() >= -1e-6).all()


def test_batch_norms_are_measured_anew():
    def head():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.BatchNorm1d(3, affine=False), nn.Linear(3, 8), nn.Dropout(), nn.BatchNorm1d(8)
        )

    features = torch.randn(1000, 3) * 4 + 7
    one, other = head(), head()
    for module in (one, other):
        update_bn(module, iter(features.split(100)))
    assert torch.allclose(one[0].running_mean, features.mean(0), atol=1e-4)
    assert torch.equal(one[3].running_var, other[3].running_var)  # dropout leaves nothing to chance
    assert one[0].momentum == head()[0].momentum and not any(
        module.training for module in one.modules()
    )


# --- a run at other sizes ---


@pytest.mark.parametrize("run, stage", [("base", "base"), ("done", "finetune")])
def test_at_the_training_size_a_study_says_what_evaluate_says(there, run, stage):
    ran = call(
        evaluate,
        "--run",
        f"runs/{run}",
        "--json",
        "--device",
        "cpu",
        "--precision",
        "float32",
        *there.flags,
    )
    evaluated = {row["split"]: row for row in json.loads(ran.out)}
    study = study_of(there, run, stage)
    for split, row in evaluated.items():
        part, rows = study.predictor.images(split)
        found = score(study.predict(split, 32), part.labels[rows])
        assert {key: found[key] for key in ("n", "top1", "top5")} == {
            key: row[key] for key in ("n", "top1", "top5")
        }
        assert found["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_corrections_change_features_alone_and_leave_the_training_size_as_it_is(there):
    study = study_of(there, "base")
    for name in ("frechet", "quantile"):
        corrected = study.predict("val", 32, name)
        assert np.allclose(corrected, study.predict("val", 32), atol=2e-3), name
    at_other = study.predict("val", 64)
    assert all(
        np.abs(study.predict("val", 64, name) - at_other).max() > 1e-3 for name in study.corrections
    )


def test_quantile_corrected_features_have_the_distribution_of_the_training_size(there):
    study = study_of(there, "base")
    rows = list(study.activations(64))
    _, mappings = study._corrected(64, "quantile")
    seen, trained = study.features("sample", 64), study.features("sample", 32)
    after = [
        distances(mapping(torch.from_numpy(np.array(ours[0], np.float32))).numpy(), theirs[0])["ks"]
        for (_, mapping), ours, theirs in zip(mappings, seen.arrays, trained.arrays, strict=True)
    ]
    assert max(row["ks"] for row in rows) > 0.1
    for row, apart in zip(rows, after, strict=True):  # what is equal, zero, stays equal
        assert apart < 0.02 + row["zeros"] and (apart < row["ks"] or row["ks"] < 0.02), row["tap"]


def test_batch_norms_are_those_of_the_sample_at_the_size_itself(there):
    study = study_of(there, "base")
    head, mappings = study._corrected(64, "batch norm")
    kept = study.features("sample", 64)
    means = np.concatenate([array[0].mean(0, dtype=np.float64) for array in kept.arrays])
    np.testing.assert_allclose(head[0].running_mean, means, rtol=1e-4, atol=1e-6)
    assert not mappings and kept.arrays[0].shape[1] == len(study._sample)


def test_each_mapping_is_that_of_its_own_tap(there):
    study = study_of(there, "base")
    _, mappings = study._corrected(64, "quantile")
    shown = study.features("val", 64)
    mapped = [
        mapping(torch.from_numpy(np.array(array[0], np.float32)))
        for array, (_, mapping) in zip(shown.arrays, mappings, strict=True)
    ]
    with torch.inference_mode():
        expected = torch.log_softmax(study._head.eval()(torch.cat(mapped, 1)), 1)
    np.testing.assert_allclose(study.predict("val", 64, "quantile"), expected, atol=1e-4)
    # swapped, they would not fit
    assert len({array.shape[2] for array in shown.arrays}) == len(mappings) == 2


def test_the_sample_that_corrections_learn_from_was_not_held_out(there):
    study = study_of(there, "base")
    _, held = study.predictor.images("holdout")
    assert not set(study._sample) & set(held)


def test_fixres_trains_the_head_alone_and_on_at_its_size(there):
    ran = call(
        train,
        "--stage",
        "fixres",
        "--run",
        "runs/done",
        "--out",
        "runs/fixed",
        "--size",
        "48",
        "--epochs",
        "1",
        "--batch",
        "16",
        "--json",
        "--device",
        "cpu",
        "--precision",
        "float32",
        *there.flags,
    )
    (row,) = json.loads(ran.out)
    assert (row["stage"], row["size"]) == ("fixres", 48)
    before, _ = load_model(StageFolder("runs/done", "finetune").best, there.packed.wnids)
    after, size = load_model(StageFolder("runs/fixed", "fixres").best, there.packed.wnids)
    assert size == 48 and before.backbone.digest() == after.backbone.digest()
    assert not torch.equal(before.head[-1].weight, after.head[-1].weight)
    learnt = sum(p.numel() for p in before.head.parameters())
    assert (
        f"fixres: training {learnt:,} weights on" in ran.err
        and "finetune was trained at 32 px, fixres at 48" in ran.err
    )


def test_fixres_can_train_the_last_convolutions_too(there):
    ran = call(
        train,
        "--stage",
        "fixres",
        "--run",
        "runs/base",
        "--out",
        "runs/last",
        "--size",
        "48",
        "--epochs",
        "1",
        "--batch",
        "16",
        "--learn",
        "conv5",
        "head",
        "--views",
        "0",
        "--device",
        "cpu",
        "--precision",
        "float32",
        *there.flags,
    )
    assert ran.status == 0, ran.err
    before, after = (
        load_model(path, there.packed.wnids)[0].backbone
        for path in (StageFolder("runs/base", "base").best, StageFolder("runs/last", "fixres").best)
    )
    same = {
        name: all(
            torch.equal(a, b)
            for module, other in zip(before.groups[name], after.groups[name], strict=True)
            for a, b in zip(module.parameters(), other.parameters(), strict=True)
        )
        for name in before.groups
    }
    assert same == {"conv1": True, "conv2": True, "conv3": True, "conv4": True, "conv5": False}


@pytest.fixture(scope="module")
def story(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        ran = call(
            fixres,
            "--run",
            "runs/base",
            "--beside",
            "runs/other",
            "--sizes",
            "48",
            "64",
            "--fit",
            "48",
            "--methods",
            "antialias",
            "nearest",
            "--out",
            "story",
            "--keep",
            "kept",
            "--json",
            "--device",
            "cpu",
            "--precision",
            "float32",
            *place.flags,
        )
    assert ran.status == 0, ran.err
    return SimpleNamespace(rows=json.loads(ran.out), err=ran.err, out=place.folder / "story")


def test_the_story_has_a_row_for_every_size_and_correction(story):
    mine = [row for row in story.rows if row["run"] == "runs/base" and row["split"] == "val"]
    assert [(row["size"], row["correction"]) for row in mine] == [
        (32, "as is"),
        (32, "fine-tuned"),
        *(
            (48, name)
            for name in (
                "as is",
                "frechet",
                "quantile",
                "batch norm",
                "fine-tuned",
                "trained on, own size",
            )
        ),
        *(
            (64, name)
            for name in ("as is", "frechet", "quantile", "batch norm", "trained on, own size")
        ),
    ]
    for row in mine:
        assert 0 <= row["low"] <= row["top1"] <= row["high"] <= 1 and row["pictures_per_second"] > 0
        assert (row["gain"] is None) == (row["correction"] == "as is")
    compared = [row for row in story.rows if row["split"] == "holdout" and "correction" not in row]
    assert [row["method"] for row in compared] == ["antialias", "nearest"] and compared[1][
        "p"
    ] is not None
    beside = [row for row in story.rows if row["run"] == "runs/other"]
    assert {(row["trained"], row["size"], row["correction"]) for row in beside} == {
        (64, size, "as is") for size in (32, 48, 64)
    }


def test_gains_are_over_the_run_its_own_size_and_the_control(story):
    found = {
        (row["split"], row["size"], row["correction"]): row
        for row in story.rows
        if row["run"] == "runs/base" and "correction" in row
    }
    for (split, size, name), row in found.items():
        others = {"": (size, AS_IS), "_over_own": (32, AS_IS), "_over_control": (32, FITTED)}
        there = {
            "": name != AS_IS,
            "_over_own": (size, name) != (32, AS_IS),
            "_over_control": name == FITTED and size != 32,
        }
        for over, other in others.items():
            gain = (
                pytest.approx(row["top1"] - found[(split, *other)]["top1"]) if there[over] else None
            )
            assert row[f"gain{over}"] == gain, (split, size, name, over)
            assert (row[f"p{over}"] is None) == (gain is None)


def test_a_head_trained_on_is_that_of_its_own_size(story, place, monkeypatch):
    monkeypatch.chdir(place.folder)
    for size, name, at in ((48, FITTED, 48), (32, CONTROL, 48), (32, CONTROL, 64)):
        fitted = Study(
            Predictor(
                StageFolder(story.out / str(size), "fixres"),
                place.packed,
                choose_compute("cpu", "float32"),
            )
        )
        part, rows = fitted.predictor.images("val")
        (row,) = (
            row
            for row in story.rows
            if (row["run"], row["split"], row["size"], row.get("correction"))
            == ("runs/base", "val", at, name)
        )
        assert row["loss"] == pytest.approx(
            score(fitted.predict("val", at), part.labels[rows])["loss"], rel=1e-5
        )


def test_sizes_and_corrections_are_chosen_on_the_holdout():
    def row(split, size, name, top1):
        gain = Gain(0.1, p=0.1)
        return ScoreRow(
            run="r",
            split=split,
            size=size,
            correction=name,
            top1=top1,
            low=0,
            high=1,
            gain=gain,
            over={"own": gain, "control": NOT_COMPARED},
        )

    rows = [
        row(split, size, name, 0.9 if size == best and name in (AS_IS, good) else 0.1)
        for split, best, good in (("holdout", 48, "quantile"), ("val", 64, "frechet"))
        for size in (32, 48, 64)
        for name in (AS_IS, "frechet", "quantile")
    ]
    features = [dict(size=size, zeros=0.5, ks=0.1, numbers=1) for size in (32, 48, 64)]
    cost = {("r", size): 1.0 for size in (32, 48, 64)}
    assert jobs_fixres._best(rows) == 48
    said = jobs_fixres._conclusions(rows, features, Policy(train=32, resize=32, test=32), 48, cost)
    assert "is at 48 px: val top-1 10.00%" in said[0]
    assert "'quantile' at 48 px: val top-1 10.00%" in said[1]


def test_a_view_costs_what_its_side_costs(story):
    costs = {
        (row["run"], row["split"], row["views"], row["size"]): row["seconds"]
        for row in json.loads((story.out / "sizes.json").read_text())["costs"]
    }
    once = costs["runs/base", "val", "none", 32]
    assert costs["runs/base", "val", "flip", 32] == pytest.approx(2 * once)
    assert costs["runs/base", "val", "scales:32,64", 32] == pytest.approx(
        once + costs["runs/base", "val", "none", 64]
    )


def test_heads_go_on_from_the_stage_that_is_studied(there):
    predictor = Predictor(
        StageFolder("runs/done", "base"), there.packed, choose_compute("cpu", "float32")
    )
    assert list(jobs_fixres._fitted(predictor, [48], "antialias", Path("ofbase"), ())) == [48]
    start, fitted, last = (
        load_model(folder.best, there.packed.wnids)[0].backbone.digest()
        for folder in (
            StageFolder("runs/done", "base"),
            StageFolder("ofbase/48", "fixres"),
            StageFolder("runs/done", "finetune"),
        )
    )
    assert start == fitted != last
    refused(
        fixres,
        (
            "--run",
            "runs/done",
            "--sizes",
            "48",
            "--fit",
            "48",
            "--out",
            "ofbase",
            "--device",
            "cpu",
            "--precision",
            "float32",
            *there.flags,
        ),
        "starting weights",
    )


def test_what_another_run_began_is_refused_before_anything_is_trained(there):
    other, mine = (
        Predictor(StageFolder("runs/done", stage), there.packed, choose_compute("cpu", "float32"))
        for stage in ("finetune", "base")
    )
    jobs_fixres._fitted(other, [64], "antialias", Path("begun"), ())
    StageFolder("begun/64", "fixres").scores.unlink()  # as if it had been stopped
    complaint(
        lambda: jobs_fixres._fitted(mine, [48, 64], "antialias", Path("begun"), ()),
        "64",
        "starting weights",
    )
    assert not Path("begun/48").exists()


def test_the_run_is_kept_with_the_batch_norms_that_the_hold_out_likes_best(there, story):
    found = {
        (row["split"], row["size"]): row
        for row in story.rows
        if (row["run"], row.get("correction")) == ("runs/base", NORMS)
    }
    best = max((48, 64), key=lambda size: found["holdout", size]["top1"])
    folder = StageFolder(there.folder / "kept", "base")
    (row,) = [json.loads(line) for line in folder.scores.read_text().splitlines()]
    ran = call(
        evaluate,
        "--run",
        "kept",
        "--json",
        "--device",
        "cpu",
        "--precision",
        "float32",
        *there.flags,
    )
    held, val = json.loads(ran.out)
    assert held["size"] == val["size"] == row["size"] == best
    assert f"saved kept, with batch norms recomputed at {best} px" in story.err
    for one, split in ((row, "holdout"), (held, "holdout"), (val, "val")):
        assert {key: one[key] for key in ("n", "top1", "loss")} == pytest.approx(
            {key: found[split, best][key] for key in ("n", "top1", "loss")}
        )
    before, after = (
        load_model(path, there.packed.wnids)[0].state_dict()
        for path in (there.folder / "runs/base/base/best.pt", folder.best)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name or "num_batches" in name for name in changed)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--sizes", "48", "--keep", "runs"), ["--keep runs", "already exists"]),
        (("--sizes", "32", "--keep", "new"), ["--keep new", "32 px", "another --size"]),
        (("--sizes", "48", "--keep", "runs/base/base/best.pt/new"), ["best.pt", "another place"]),
        (("--sizes", "48", "--keep", "new", "--methods", "nearest"), ["nearest", "without --keep"]),
    ],
)
def test_a_run_that_cannot_be_kept_is_refused_before_anything_is_computed(there, flags, words):
    refused(
        fixres,
        (
            "--run",
            "runs/base",
            *flags,
            "--no-fit",
            "--out",
            "none",
            "--device",
            "cpu",
            "--precision",
            "float32",
            *there.flags,
        ),
        *words,
    )


def test_a_story_is_recorded_without_places_and_curves(story):
    kept, found = record.story(story.out), json.loads((story.out / "sizes.json").read_text())
    assert kept.keys() == found.keys() and len(kept["activations"]) == len(found["activations"])
    assert all("curve" in row for row in found["activations"])
    assert not any("curve" in row for row in kept["activations"])
    assert {row["run"] for row in kept["rows"]} == {"base"} and {
        row["run"] for row in kept["beside"]
    } == {"other"}
    assert [row["top1"] for row in kept["rows"]] == [row["top1"] for row in found["rows"]]
    assert (
        record._command(["python", "--run", "a", "--data", "/b", "--out", "c"], keep=("--run",))
        == "python --run a"
    )


def test_what_was_fitted_of_another_run_is_not_taken_for_this_one(there, story):
    refused(
        fixres,
        (
            "--run",
            "runs/other",
            "--sizes",
            "48",
            "--fit",
            "48",
            "--out",
            "story",
            "--device",
            "cpu",
            "--precision",
            "float32",
            *there.flags,
        ),
        "48",
        "starting weights",
    )


def test_the_story_is_a_folder_with_numbers_words_and_images(story):
    stored = json.loads((story.out / "sizes.json").read_text())
    assert len(stored["conclusions"]) == 3 and all(
        sentence in story.err for sentence in stored["conclusions"]
    )
    assert (story.out / "conclusions.txt").read_text().splitlines() == stored["conclusions"]
    recipe = json.loads((story.out.parent / "runs/base/base/recipe.json").read_text())
    assert all(stored[key] == recipe[key] for key in ("data_digest", "split_digest"))
    assert (
        stored["command"]
        and stored["device"]["precision"] == "float32"
        and stored["device"]["processor"]
    )
    held = {
        row["size"]: row["top1"]
        for row in stored["rows"]
        if (row["split"], row["correction"]) == ("holdout", AS_IS)
    }
    best = next(size for size in held if held[size] == max(held.values()))
    assert f"is at {best} px" in stored["conclusions"][0]
    for image in ("accuracy", "activations", "cost", "seen", "grid"):
        assert (story.out / f"{image}.png").read_bytes().startswith(b"\x89PNG")
    assert {row["run"] for row in stored["costs"]} == {"runs/base", "runs/other"}


def test_what_the_story_trained_is_not_trained_again(story, place, monkeypatch):
    monkeypatch.chdir(place.folder)
    before = (story.out / "48" / "fixres" / "best.pt").stat().st_mtime_ns
    predictor = Predictor(
        StageFolder("runs/base", "base"), place.packed, choose_compute("cpu", "float32")
    )
    jobs_fixres._fitted(predictor, [48], "antialias", story.out, ())
    assert (story.out / "48" / "fixres" / "best.pt").stat().st_mtime_ns == before


# --- the command ---


def test_a_policy_of_ones_own_prints_f_the_ratio_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(
        fixres,
        "--policy",
        "--train-scale",
        "0.08",
        "1",
        "--train-size",
        "224",
        "--test-resize",
        "256",
        "--test-size",
        "224",
        "--json",
        "--out",
        "drawn",
    )
    square, any_ratio = json.loads(ran.out)
    assert (round(square["F"], 5), round(square["object_ratio"], 5)) == (0.70824, 0.80942)
    assert square["test_at"] == 316 and any_ratio["F"] == pytest.approx(0.667, abs=5e-4)
    assert (tmp_path / "drawn" / "seen.png").is_file()


def test_the_policies_of_the_recipes_need_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(fixres, "--policy")
    assert (
        ran.status == 0
        and "tuned, finetune" in ran.out
        and "1.1636" in ran.out
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--run", "runs/base", "--sizes", "20"), ("--size 20", "32")),
        (("--run", "runs/base", "--fit", "20"), ("--fit 20", "32")),
        (("--run", "runs/base", "--fit"), ("--fit", "at least one")),
        (("--run", "runs/base", "--fit", "48", "--no-fit"), ("--no-fit", "not allowed")),
        (("--run", "runs/base", "--fit", "48", "--methods", "nearest"), ("nearest", "antialias")),
        (("--run", "runs/base", "--methods", "sinc"), ("sinc", "lanczos")),
        (("--run", "runs/none"), ("runs/none", "not a run")),
        (("--run", "runs/base", "--train-size", "64"), ("--train-size",)),
        (("--policy", "--run", "runs/base"), ("--run",)),
        (("--policy", "--train-size", "64", "--train-scale", "1", "0.5"), ("1 to 0.5",)),
        (("--policy", "--train-scale", "0.5", "1"), ("--train-size",)),
        (
            ("--policy", "--train-size", "64", "--test-size", "96", "--test-resize", "64"),
            ("96", "64"),
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(there, flags, words):
    refused(fixres, flags if "--policy" in flags else (*flags, *there.flags), *words)


def test_a_recipe_names_the_stage_that_fits_a_run_to_a_size():
    assert TUNED.stage("fixres") == TUNED.fixres and isinstance(TUNED.fixres, Stage)
    assert (
        TUNED.fixres.trainable == ("head",)
        and not TUNED.fixres.crop_side
        and not TUNED.fixres.crop_area
    )
