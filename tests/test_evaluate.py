"""The command evaluate: the scores of a run and what is refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SCORED_KEYS, TRAINED_KEYS, copy_run, score_rows, stored_views
from support import ON_CPU, argv, call, files, in_floats, refused
from torchvision.transforms.v2 import functional as tv

from tinynet import evaluate, predict, runs
from tinynet.data.copies import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.models.checkpoint import load_model
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.metrics import score

pytestmark = pytest.mark.usefixtures("thin")


def assert_as_trained(found, trained):
    """The scores of training come again, to the last digits of float32."""
    numbers = {key: pytest.approx(trained[key], rel=1e-5) for key in ("loss", "ece")}
    assert {key: found[key] for key in TRAINED_KEYS} == {**trained, **numbers}


# --- scores of a run ---


def test_evaluation_gives_each_split_plain_and_over_views(run_folder):
    found = score_rows(
        call(evaluate, "--tta", "flip", "--json", "--device", "cpu", "--precision", "float32")
    )
    assert [(row["split"], row["views"], row["n"]) for row in found] == [
        ("holdout", "none", 18),
        ("holdout", "flip", 18),
        ("val", "none", 24),
        ("val", "flip", 24),
    ]
    assert {(row["run"], row["stage"], row["size"]) for row in found} == {
        ("runs/done", "finetune", 32)
    }
    trained = score_rows(run_folder.ran)[1]
    assert_as_trained(found[0], trained)
    assert found[0]["loss"] != found[1]["loss"] and found[2]["loss"] != found[3]["loss"]
    # training's row is one of them
    assert runs.read_rows(Path("runs/done/finetune/scores.jsonl")) == found


def test_a_base_is_scored_as_it_was_in_training(run_folder):
    found = score_rows(call(evaluate, *argv("--stage base --tta flip --json"), *ON_CPU))
    trained = score_rows(run_folder.ran)[0]
    assert_as_trained(found[0], trained)
    # The same from images instead of cached features, which are rounded to float16.
    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
    model, size = load_model(Path("runs/done/base/best.pt"), packed.wnids)
    images = in_floats(packed.val.images)
    small = tv.resize(images, [size, size], antialias=True)
    with torch.inference_mode():
        expected = torch.log_softmax(torch.stack([model(small), model(small.flip(-1))]), -1)
    stored = stored_views("base", "val")
    assert set(stored) == {"plain", "mirror"}
    for name, exact in zip(("plain", "mirror"), expected, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(stored[name].log_probabilities[0]), exact, rtol=0, atol=0.05
        )
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_views_that_are_alike_count_once(run_folder):
    ran = call(
        evaluate, "--tta", "scales:32,40+five", "--split", "val", "--json", "--device", "cpu"
    )
    assert (
        score_rows(ran)[1]["forwards"] == 6 and "10 views" in ran.err and "6 different" in ran.err
    )


def test_a_row_a_class(run_folder):
    ran = call(evaluate, "--split", "val", "--per-class", "--json", "--device", "cpu")
    found = json.loads(ran.out)
    assert len(found) == 6 and {row["n"] for row in found} == {4}
    assert [row["top1"] for row in found] == sorted(row["top1"] for row in found)
    whole = score_rows(call(evaluate, "--split", "val", "--json", "--device", "cpu"))[0]
    assert np.mean([row["top1"] for row in found]) == pytest.approx(whole["top1"])
    assert whole["balanced"] == pytest.approx(whole["top1"])  # all classes have four images
    assert (whole["worst"], whole["worst_class"]) == (found[0]["top1"], found[0]["name"])
    assert not {"balanced", "worst", "worst_class"} & found[0].keys()
    kept = stored_views("finetune", "val")["plain"]
    right = kept.log_probabilities[0].argmax(1) == kept.labels
    each = {wnid: right[kept.labels == label].mean() for label, wnid in enumerate(kept.wnids)}
    assert len({row["name"].split(" ")[0] for row in found}) == 6
    assert {row["name"].split(" ")[0]: row["top1"] for row in found} == each and len(
        set(each.values())
    ) > 1


def test_calibration_is_fitted_on_the_holdout_and_shown_on_val(run_folder):
    ran = call(evaluate, "--tta", "flip", "--calibrate", "--json", "--device", "cpu")
    found = json.loads(ran.out)
    assert [(row["split"], row["views"], "temperature" in row) for row in found] == [
        ("holdout", "none", False),
        ("holdout", "flip", False),
        ("val", "none", False),
        ("val", "none", True),
        ("val", "flip", False),
        ("val", "flip", True),
    ]
    kept = {split: stored_views("finetune", split)["plain"] for split in ("holdout", "val")}
    temperature, of_val = (
        fit_temperature(kept[split].log_probabilities[0], kept[split].labels)
        for split in ("holdout", "val")
    )
    assert abs(temperature / of_val - 1) > 0.01
    assert (
        found[3]["temperature"] == pytest.approx(temperature, rel=1e-3)
        and found[3]["top1"] == found[2]["top1"]
    )
    mended = at_temperature(kept["val"].log_probabilities[0], temperature)
    assert found[3]["loss"] == pytest.approx(score(mended, kept["val"].labels).loss, rel=1e-3)


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_rows_as_csv_and_markdown(run_folder, form):
    exact = score_rows(
        call(evaluate, "--tta", "flip", "--split", "val", "--json", "--device", "cpu")
    )
    ran = call(evaluate, "--tta", "flip", "--split", "val", "--format", form, "--device", "cpu")
    if form == "csv":
        found = list(csv.DictReader(io.StringIO(ran.out)))
        assert [row["views"] for row in found] == ["none", "flip"] and list(found[0]) == SCORED_KEYS
        assert [float(row["loss"]) for row in found] == [row["loss"] for row in exact]
        assert found[0]["gain"] == ""
    else:
        head, rule, *lines = ran.out.splitlines()
        assert len(lines) == 2 and set(rule) == set("| -") and "top-1" in head
        assert {line.count("|") for line in ran.out.splitlines()} == {head.count("|")}


@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("--choose", "select-views"),
        ("--soup", "soup"),
        ("--from-probabilities", "compare"),
        ("--head", "zero-shot"),
        ("--dataset=imagefolder", "folder"),
    ],
)
def test_flags_that_became_commands_lead_there(flag, command):
    ran = call(evaluate, flag, "x")
    assert ran.status == 2 and f"python -m tinynet.{command.replace('-', '_')} " in ran.err
    assert len(ran.err.splitlines()) == 1


# --- sizes, tables, other data ---


def test_several_sizes_are_scored_one_after_the_other(run_folder):
    found = score_rows(
        call(evaluate, "--size", "32", "48", "64", "--split", "val", "--json", "--device", "cpu")
    )
    assert [row["size"] for row in found] == [32, 48, 64] and len(
        {row["loss"] for row in found}
    ) == 3


def test_without_json_the_rows_are_a_table(run_folder):
    ran = call(evaluate, "--split", "val", "--device", "cpu")
    head, line = ran.out.splitlines()
    assert head.split()[:4] == ["run", "stage", "split", "views"] and line.split()[:4] == [
        "runs/done",
        "finetune",
        "val",
        "none",
    ]
    row = runs.read_rows(Path("runs/done/finetune/scores.jsonl"))[-1]
    for shown in (f"{row['top1']:.2%}", f"{row['top5']:.2%}", f"{row['loss']:.3f}"):
        assert shown in line


def test_scores_on_other_images_of_the_same_classes_are_printed_and_not_saved(run_folder, tmp_path):
    more = synthetic(tmp_path / "more.zip", classes=6, train=1, val=2, test=1)
    before = files()
    ran = call(
        evaluate,
        "--data",
        more,
        "--cache",
        tmp_path / "cache",
        *argv("--split val --json --device cpu"),
    )
    assert [row["n"] for row in score_rows(ran)] == [12]
    assert "not the data that runs/done was trained on" in ran.err
    assert files() == before


# --- what is refused ---


def test_what_cannot_be_scored_is_refused(run_folder):
    refused(evaluate, ["--split", "test", "--device", "cpu"], "test: has no labels")
    assert refused(evaluate, ["--split", "train"], "--split", "'holdout', 'val', 'both'") == 1
    refused(evaluate, ["--tta", "flip", "tencrop"], "tencrop", "flip, five, ten")
    refused(evaluate, ["--merge", "median"], "median", "gmean")
    refused(evaluate, ["--tta", "dense:48", "--device", "cpu"], "dense", "dense:64")
    refused(evaluate, ["--tta", "resize:32+five", "--size", "40", "--device", "cpu"], "40", "32x32")
    refused(evaluate, ["--size", "64", "20"], "--size 20", "32")
    refused(predict, ["--size", "20"], "--size 20", "32")
    refused(predict, ["--size", "0"], "--size", "greater than 0")
    refused(evaluate, ["--data", "nowhere.zip"], "nowhere.zip")
    Path("file.txt").write_text("a file in the way")
    refused(predict, ["--device", "cpu", "--out", "file.txt/predictions.txt"], "file.txt", "--out")
    copy_run("base-alone", 0, without=["finetune"])
    refused(
        evaluate,
        argv("--run runs/base-alone --stage finetune"),
        "runs/base-alone",
        "--stage finetune",
    )


def test_a_run_is_not_scored_on_other_classes_or_without_images(run_folder, tmp_path):
    other = synthetic(tmp_path / "other.zip", classes=6, train=2, val=1, test=1, seed=3)
    flags = ["--data", other, "--cache", tmp_path / "cache"]
    refused(evaluate, flags, "runs/done", "other data", "--data")
    refused(evaluate, [*flags, "--split", "val"], "other classes", "--data")
    refused(predict, flags, "other classes", "--data")
    few = synthetic(tmp_path / "few.zip", classes=6, train=12, val=0, test=0)
    flags = ["--data", few, "--cache", tmp_path / "cache"]
    refused(evaluate, [*flags, "--split", "val"], "no val images", "--split")
    refused(evaluate, [*flags, "--split", "holdout"], "runs/done", "other data", "--data")
    refused(predict, flags, "no test images")
