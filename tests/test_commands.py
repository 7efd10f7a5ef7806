"""The commands from end to end on a drawn archive, and what they say to whoever mistypes."""

import argparse
import csv
import dataclasses
import errno
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support import PROGRAMS, ROOT, SMALL, call, files, in_floats, refused, thin_network
from torchvision.transforms.v2 import functional as tv

from tinynet import __main__ as entry
from tinynet import compare, demo, evaluate, fixres, predict, runs, train, zero_shot
from tinynet import folder as folder_command
from tinynet import select_views as select_command
from tinynet import soup as soup_command
from tinynet.compute import Compute
from tinynet.data.packed import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.errors import InputError
from tinynet.evaluation import predictor as predictor
from tinynet.evaluation import select_views as choosing
from tinynet.evaluation import soup
from tinynet.files import locked, new_array
from tinynet.flags import run_command
from tinynet.models.checkpoint import load_model
from tinynet.models.dense import Dense
from tinynet.records import ScoreRow
from tinynet.runs import StageFolder
from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import CORNERS
from tinynet.training.config import RunConfig, split_of
from tinynet.training.plan import recipe_fields

KEYS = [
    "run",
    "stage",
    "split",
    "views",
    "merge",
    "size",
    "n",
    "top1",
    "top5",
    "loss",
    "ece",
    "low",
    "high",
]
TRAINED = [*KEYS, "precision"]
SCORED = [*TRAINED, "forwards", "pictures_per_second", "gain", "gain_low", "gain_high", "p"]


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_network():
        yield


def rows_of(ran):
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert isinstance(rows, list) and all(list(row) in (TRAINED, SCORED) for row in rows)
    return rows


def assert_as_trained(found, trained):
    """The scores of training come again, to the last digits of float32."""
    numbers = {key: pytest.approx(trained[key], rel=1e-5) for key in ("loss", "ece")}
    assert {key: found[key] for key in TRAINED} == {**trained, **numbers}


@pytest.fixture(scope="module")
def place(tmp_path_factory, archive_path):
    """A folder with a finished run of both stages, called runs/done, and what training it said."""
    folder = tmp_path_factory.mktemp("place")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = call(train, "--stage", "all", "--out", "runs/done", "--json", *SMALL, *flags)
    return SimpleNamespace(folder=folder, ran=ran, flags=flags)


@pytest.fixture
def there(place, monkeypatch):
    """Stand in the place of the finished run; what a test adds there is removed again."""
    monkeypatch.chdir(place.folder)
    before = set(place.folder.rglob("*"))
    scores = {path: path.read_bytes() for path in place.folder.rglob("scores.jsonl")}
    yield place
    for path in sorted(set(place.folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, content in scores.items():
        path.write_bytes(content)


@pytest.fixture
def elsewhere(place, tmp_path, monkeypatch):
    """Stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return place


# --- the way from archive to score ---


def test_training_prints_one_array_of_rows_and_nothing_else(place):
    base, finetune = rows_of(place.ran)
    for row, stage in ((base, "base"), (finetune, "finetune")):
        assert (row["run"], row["stage"], row["split"], row["views"]) == (
            "runs/done",
            stage,
            "holdout",
            "none",
        )
        assert (row["size"], row["n"]) == (32, 18)
        assert (
            0 <= row["low"] <= row["top1"] <= row["high"] <= 1
            and row["top1"] <= row["top5"]
            and row["loss"] > 0
        )


def test_a_run_is_a_folder_that_holds_everything(place):
    for stage in runs.WHOLE:
        folder = place.folder / "runs" / "done" / stage
        assert {path.name for path in folder.iterdir()} == {
            "recipe.json",
            "log.jsonl",
            "best.pt",
            "last.pt",
            "scores.jsonl",
            "curves.png",
        }
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        kinds = [
            json.loads(line)["kind"] for line in (folder / "log.jsonl").read_text().splitlines()
        ]
        assert kinds == ["step"] * 4 + ["epoch"]


def test_evaluation_gives_each_split_plain_and_over_views(there):
    found = rows_of(
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
    trained = rows_of(there.ran)[1]
    assert_as_trained(found[0], trained)
    assert found[0]["loss"] != found[1]["loss"] and found[2]["loss"] != found[3]["loss"]
    # training's row is one of them
    assert runs.read_rows(Path("runs/done/finetune/scores.jsonl")) == found


def test_a_base_is_scored_as_it_was_in_training(there):
    found = rows_of(
        call(
            evaluate,
            "--stage",
            "base",
            "--tta",
            "flip",
            "--json",
            "--device",
            "cpu",
            "--precision",
            "float32",
        )
    )
    trained = rows_of(there.ran)[0]
    assert_as_trained(found[0], trained)
    # The same from pictures instead of kept features, which are rounded to float16.
    packed = open_packed(there.flags[1], str(there.flags[3]))
    model, size = load_model(Path("runs/done/base/best.pt"), packed.wnids)
    images = in_floats(packed.val.images)
    small = tv.resize(images, [size, size], antialias=True)
    with torch.inference_mode():
        expected = torch.log_softmax(torch.stack([model(small), model(small.flip(-1))]), -1)
    stored = kept_views("base", "val")
    assert set(stored) == {"plain", "mirror"}
    for name, exact in zip(("plain", "mirror"), expected, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(stored[name].log_probabilities[0]), exact, rtol=0, atol=0.05
        )
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_what_scores_on_the_device_is_a_copy(there, monkeypatch):
    """The head moves to the device alone; whoever asks for the network finds all of it in one
    place.
    """
    packed = open_packed(there.flags[1], str(there.flags[3]))
    stage = predictor.Predictor(
        StageFolder(Path("runs/done"), "base"), packed, Compute(torch.device("cpu"), torch.float32)
    )
    given, says = [], predictor.head_probabilities
    monkeypatch.setattr(
        predictor,
        "head_probabilities",
        lambda head, inputs: given.append(head) or says(head, inputs),
    )
    monkeypatch.setattr(predictor.Probabilities, "load", lambda path: complain())
    (chosen,) = stage.sets(["flip"], stage.size)
    stage.predict("val", chosen)
    assert len(given) == 2 and all(
        head is given[0] and head is not stage.model.head for head in given
    )


def complain():
    raise InputError("not kept")


def kept_views(stage, split):
    """The probabilities that the finished run has kept, by the names of their views."""
    found = [
        Probabilities.load(path)
        for path in Path(f"runs/done/{stage}/probabilities").glob(f"{split}-*.npz")
    ]
    return {one.views[0]: one for one in found}


def test_kept_probabilities_give_the_scores_again(there):
    found = rows_of(call(evaluate, "--tta", "flip", "--json", "--split", "val", "--device", "cpu"))
    kept = kept_views("finetune", "val")
    assert set(kept) == {"plain", "mirror"} and kept["mirror"].rows.tolist() == list(range(24))
    plain, hflip = (
        kept[name].log_probabilities[0].astype(np.float64) for name in ("plain", "mirror")
    )
    mean, labels = np.log((np.exp(plain) + np.exp(hflip)) / 2), kept["plain"].labels
    for row, logs in zip(found, (plain, mean), strict=True):
        again = score(logs, labels)
        assert {key: row[key] for key in again} == pytest.approx(again, rel=1e-4)
    assert found[0]["gain"] is None and found[0]["p"] is None
    assert (
        found[1]["gain"] == pytest.approx(found[1]["top1"] - found[0]["top1"])
        and 0 < found[1]["p"] <= 1
    )
    rows = runs.read_rows(Path("runs/done/finetune/scores.jsonl"))
    assert rows[-2:] == found and len(rows) == 3


def test_a_grid_computes_every_view_once(there, monkeypatch):
    seen = []
    whole = predictor.view_probabilities
    monkeypatch.setattr(
        predictor, "view_probabilities", lambda *given: seen.append(1) or whole(*given)
    )
    grid = [
        "--tta",
        "flip",
        "ten",
        "flip+scales:32,40",
        "--merge",
        "mean",
        "gmean",
        "vote",
        "--size",
        "32",
        "40",
        "--split",
        "val",
        "--json",
        "--device",
        "cpu",
    ]
    found = rows_of(call(evaluate, *grid))
    assert [(row["size"], row["views"], row["merge"]) for row in found] == [
        (size, views, merge)
        for size in (32, 40)
        for views in ("none", "flip", "ten", "flip+scales:32,40")
        for merge in (("mean",) if views == "none" else ("mean", "gmean", "vote"))
    ]
    assert [row["forwards"] for row in found[:10]] == [1, 2, 2, 2, 10, 10, 10, 4, 4, 4]
    # plain and mirrored at 32 and at 40 pixels, and ten crops of each size
    assert len(seen) == 4 + 10 + 10
    assert rows_of(call(evaluate, *grid)) == found and len(seen) == 24
    assert all(row["pictures_per_second"] > 0 for row in found)


def test_kept_probabilities_of_other_weights_are_not_believed(there):
    first = rows_of(call(evaluate, "--split", "val", "--json", "--device", "cpu"))
    best = Path("runs/done/finetune/best.pt")
    stored = torch.load(best, weights_only=True)
    stored["weights"]["head.1.weight"] *= -1
    before = best.read_bytes()
    torch.save(stored, best)
    assert (
        rows_of(call(evaluate, "--split", "val", "--json", "--device", "cpu"))[0]["loss"]
        != first[0]["loss"]
    )
    best.write_bytes(before)


def test_kept_probabilities_that_cannot_be_read_are_computed_again(there):
    flags = ["--split", "val", "--json", "--device", "cpu"]
    first = rows_of(call(evaluate, *flags))
    for path in Path("runs/done/finetune/probabilities").iterdir():
        path.write_bytes(b"broken")
    assert rows_of(call(evaluate, *flags))[0]["loss"] == first[0]["loss"]


def test_changed_images_are_not_taken_for_those_of_the_run(there, tmp_path):
    """The same names and labels, other pixels: nothing that was kept of the run's own pictures is
    used.
    """
    flags = ["--tta", "flip", "--split", "val", "--json", "--device", "cpu"]
    first = rows_of(call(evaluate, *flags))
    black = io.BytesIO()
    Image.new("RGB", (64, 64)).save(black, "JPEG")
    with (
        zipfile.ZipFile(there.flags[1]) as whole,
        zipfile.ZipFile(tmp_path / "black.zip", "w") as made,
    ):
        for name in whole.namelist():
            made.writestr(name, black.getvalue() if "/images/val_" in name else whole.read(name))
    ran = call(evaluate, *flags, "--data", tmp_path / "black.zip", "--cache", there.flags[3])
    assert "not the data that runs/done was trained on" in ran.err
    found = rows_of(ran)
    assert found[0]["loss"] != first[0]["loss"] and found[0]["top1"] == pytest.approx(1 / 6)
    assert rows_of(call(evaluate, *flags)) == first


def test_kept_probabilities_of_another_precision_are_not_believed(there):
    flags = ["--split", "val", "--json", "--device", "cpu", "--precision"]
    losses = [
        rows_of(call(evaluate, *flags, precision))[0]["loss"]
        for precision in ("bfloat16", "float32")
    ]
    assert losses[0] != losses[1]


def test_a_score_takes_the_place_of_one_of_its_own_kind_alone(tmp_path):
    path = tmp_path / "scores.jsonl"
    row = dict(split="val", views="none", merge="mean", size=32, precision="float32", top1=0.1)
    other = [
        row | change
        for change in (
            dict(split="holdout"),
            dict(views="flip"),
            dict(merge="gmean"),
            dict(size=64),
            dict(precision="int8"),
            dict(temperature=1.5),
        )
    ]
    runs.put_scores(path, [row, *other])
    runs.put_scores(path, [row | dict(top1=0.2)])
    assert runs.read_rows(path) == [row | dict(top1=0.2), *other]


def test_a_dense_view_is_the_network_that_slides(there):
    found = rows_of(
        call(
            evaluate,
            "--tta",
            "scales:64",
            "dense:64",
            "--split",
            "val",
            "--json",
            "--device",
            "cpu",
            "--precision",
            "float32",
        )
    )
    packed = open_packed(there.flags[1], str(there.flags[3]))
    model, size = load_model(Path("runs/done/finetune/best.pt"), packed.wnids)
    images = in_floats(packed.val.images)
    with torch.inference_mode():
        for row, network in zip(found[1:], (model, Dense(model, size)), strict=True):
            logs = torch.log_softmax(network(images), 1).numpy()
            assert row["loss"] == pytest.approx(score(logs, packed.val.labels)["loss"], rel=1e-4)
    assert found[1]["loss"] != pytest.approx(found[2]["loss"], rel=1e-3)


def test_views_that_are_alike_count_once(there):
    ran = call(
        evaluate, "--tta", "scales:32,40+five", "--split", "val", "--json", "--device", "cpu"
    )
    assert rows_of(ran)[1]["forwards"] == 6 and "10 views" in ran.err and "6 different" in ran.err


def test_a_row_a_class(there):
    ran = call(evaluate, "--split", "val", "--per-class", "--json", "--device", "cpu")
    found = json.loads(ran.out)
    assert len(found) == 6 and {row["n"] for row in found} == {4}
    assert [row["top1"] for row in found] == sorted(row["top1"] for row in found)
    whole = rows_of(call(evaluate, "--split", "val", "--json", "--device", "cpu"))[0]
    assert np.mean([row["top1"] for row in found]) == pytest.approx(whole["top1"])
    kept = kept_views("finetune", "val")["plain"]
    right = kept.log_probabilities[0].argmax(1) == kept.labels
    each = {wnid: right[kept.labels == label].mean() for label, wnid in enumerate(kept.wnids)}
    assert len({row["name"].split(" ")[0] for row in found}) == 6
    assert {row["name"].split(" ")[0]: row["top1"] for row in found} == each and len(
        set(each.values())
    ) > 1


def test_calibration_is_fitted_on_the_holdout_and_shown_on_val(there):
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
    kept = {split: kept_views("finetune", split)["plain"] for split in ("holdout", "val")}
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
    assert found[3]["loss"] == pytest.approx(score(mended, kept["val"].labels)["loss"], rel=1e-3)


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_rows_as_csv_and_markdown(there, form):
    exact = rows_of(call(evaluate, "--tta", "flip", "--split", "val", "--json", "--device", "cpu"))
    ran = call(evaluate, "--tta", "flip", "--split", "val", "--format", form, "--device", "cpu")
    if form == "csv":
        found = list(csv.DictReader(io.StringIO(ran.out)))
        assert [row["views"] for row in found] == ["none", "flip"] and list(found[0]) == SCORED
        assert [float(row["loss"]) for row in found] == [row["loss"] for row in exact]
        assert found[0]["gain"] == ""
    else:
        head, rule, *lines = ran.out.splitlines()
        assert len(lines) == 2 and set(rule) == set("| -") and "top-1" in head
        assert {line.count("|") for line in ran.out.splitlines()} == {head.count("|")}


def test_views_are_chosen_on_one_half_and_judged_on_the_other(there, monkeypatch):
    flags = ["--tta", "flip+shift", "scales:32,40", "--most", "4", "--device", "cpu", "--json"]
    chosen_on, judged_on, rows = [], [], choosing._rows
    monkeypatch.setattr(
        choosing, "_rows", lambda row, of, *more: judged_on.append(of.rows) or rows(row, of, *more)
    )
    for name, made in (("greedy", choosing.greedy), ("learn_weights", choosing.learn_weights)):
        monkeypatch.setattr(
            choosing,
            name,
            lambda said, labels, *more, made=made: (
                chosen_on.append((said[0], labels)) or made(said, labels, *more)
            ),
        )
    ran = call(select_command, *flags)
    found = json.loads(ran.out)
    held, half = kept_views("finetune", "holdout")["plain"], choosing.halves(18)
    assert (
        half.sum() == 9
        and np.array_equal(judged_on[0], held.rows[~half])
        and len(judged_on[1]) == 24
    )
    assert len(chosen_on) == 2
    for said, labels in chosen_on:
        assert np.array_equal(said, held.log_probabilities[0][half]) and np.array_equal(
            labels, held.labels[half]
        )
    assert Path("runs/done/finetune/views.png").read_bytes().startswith(b"\x89PNG")
    names = ["ten", "learned weights", *(f"greedy {k}" for k in range(1, 5))]
    assert [row["views"] for row in found if row["split"] != "val"] == names
    assert {row["n"] for row in found if row["split"] != "val"} == {9} and {
        row["n"] for row in found[6:]
    } == {24}
    greedy = {row["forwards"]: row for row in found if row["views"].startswith("greedy")}
    assert sorted(greedy) == [1, 2, 3, 4] and greedy[1]["taken"] == ["plain"]
    assert all(greedy[k]["taken"] == greedy[4]["taken"][:k] for k in greedy)
    moved = [f"{m}{s} 2" for m in ("", "mirror ") for s in ("left", "right", "up", "down")]
    crops = [f"{m}{c}" for m in ("", "mirror ") for c in CORNERS]
    assert set(greedy[4]["taken"]) <= {"plain", "mirror", "40 px", *moved, *crops}
    learned = found[1]
    assert (
        sum(learned["weights"]) == pytest.approx(1)
        and len(learned["weights"]) == learned["forwards"]
    )
    ten = found[0]
    assert (
        ten["forwards"] == ten["cost"] == 10
        and ten["gain_over_ten"] == 0
        and greedy[1]["gain"] == 0
    )
    assert json.loads(call(select_command, *flags).out) == found


def test_quiet_says_results_and_errors_alone(there):
    loud = call(evaluate, "--split", "val", "--device", "cpu", "--json")
    quiet = call(evaluate, "--split", "val", "--device", "cpu", "--json", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (0, loud.out, "") and loud.err
    assert call(evaluate, "--split", "val", "--device", "cpu", "--json").err  # it does not last
    refused(evaluate, ["--quiet", "--run", "nowhere"], "nowhere")


def test_views_are_selected_from_some(there):
    refused(select_command, ["--most", "3"], "--tta")
    refused(select_command, ["--most", "0", "--tta", "flip"], "--most")
    refused(select_command, ["--tta", "flip", "--merge", "max"], "--merge")
    refused(select_command, ["--tta", "flip", "dense:64", "--device", "cpu"], "dense")


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
    assert ran.status == 2 and f"python -m tinynet {command}" in ran.err
    assert len(ran.err.splitlines()) == 1


def always(name, label, other):
    """A copy of the finished run that always says one class, by its biases; `other` takes back what
    `label` gets.
    """
    copy_run(name, 0)
    stored = torch.load("runs/done/finetune/best.pt", weights_only=True)
    stored["weights"]["head.5.bias"][label] += 1000
    stored["weights"]["head.5.bias"][other] -= 1000
    torch.save(stored, f"runs/{name}/finetune/best.pt")


def test_a_soup_is_the_mean_of_weights_and_written_where_it_is_better(there, monkeypatch):
    made = []
    monkeypatch.setattr(soup, "_with_updated_bn", lambda model, *_: made.append(model) or model)
    always("up", 0, 1)
    always("down", 1, 0)
    ran = call(
        soup_command,
        "runs/up",
        "runs/down",
        "--out",
        "runs/both",
        "--json",
        "--device",
        "cpu",
        "--precision",
        "float32",
    )
    found, trained = json.loads(ran.out), rows_of(there.ran)[1]
    assert [row["run"] for row in found] == ["runs/up", "runs/down", "runs/both"]
    assert [row["top1"] for row in found] == [3 / 18, 3 / 18, trained["top1"]] and trained[
        "top1"
    ] > 3 / 18
    assert found[2]["loss"] == pytest.approx(trained["loss"], rel=1e-3)
    assert found[2]["gain"] == pytest.approx(trained["top1"] - 3 / 18)
    assert "is better" in ran.err and "may be chance" in ran.err
    again = rows_of(
        call(evaluate, "--run", "runs/both", "--split", "holdout", "--json", "--device", "cpu")
    )
    assert again[0]["top1"] == trained["top1"]
    recipe = json.loads(Path("runs/both/finetune/recipe.json").read_text())
    assert recipe["soup"] == ["runs/up/finetune", "runs/down/finetune"]
    ran = call(
        soup_command,
        "runs/done",
        "runs/done",
        "--out",
        "runs/same",
        "--json",
        "--device",
        "cpu",
    )
    assert (
        "not better" in ran.err
        and not Path("runs/same").exists()
        and json.loads(ran.out)[2]["gain"] == 0
    )
    assert len(made) == 2


def test_a_soup_measures_its_statistics_anew(there):
    packed = open_packed(there.flags[1], str(there.flags[3]))
    folder = StageFolder(Path("runs/done"), "finetune")
    model, size = load_model(folder.best, packed.wnids)
    train_rows = split_of(RunConfig.read(folder.read_recipe()), packed).train
    images = in_floats(packed.train.images[train_rows])
    with torch.inference_mode():
        features = model.features(tv.resize(images, [size, size], antialias=True))
    before = model.head[0].running_mean.clone()
    found = soup._with_updated_bn(
        model, folder, packed, Compute(torch.device("cpu"), torch.float32), size
    )
    torch.testing.assert_close(found.head[0].running_mean, features.mean(0), rtol=1e-3, atol=1e-4)
    assert not found.training and (found.head[0].running_mean - before).abs().max() > 1e-4


def test_runs_that_make_no_soup_are_refused(there):
    assert refused(soup_command, ["runs/done"], "two runs") == 1
    refused(soup_command, ["runs/done", "runs/none"], "runs/none")
    refused(soup_command, ["runs/done", "runs/done", "--out", "runs"], "--out runs")
    copy_run("other", 0)
    recipe = Path("runs/other/finetune/recipe.json")
    recipe.write_text(recipe.read_text().replace('"split_digest": "', '"split_digest": "0'))
    refused(soup_command, ["runs/done", "runs/other"], "runs/other", "different split")
    copy_run("wide", 0)
    stored = torch.load("runs/wide/finetune/best.pt", weights_only=True)
    torch.save({**stored, "size": 48}, "runs/wide/finetune/best.pt")
    refused(soup_command, ["runs/done", "runs/wide"], "runs/wide", "size")


# --- stored probabilities ---


def saved(name, *flags):
    ran = call(
        evaluate,
        "--split",
        "val",
        "--save-probabilities",
        name,
        "--device",
        "cpu",
        "--json",
        *flags,
    )
    return rows_of(ran)[-1]


def test_saved_probabilities_are_scored_without_the_run(there):
    rows = [
        saved("flip.npz", "--tta", "flip"),
        saved("large.npz", "--size", "48"),
        saved("base.npz", "--stage", "base"),
    ]
    shutil.rmtree("runs/done/finetune/probabilities")
    found = json.loads(call(compare, "flip.npz", "large.npz", "base.npz", "--json").out)
    assert len(found) == 4 and found[3]["run"] == "all 3 together" and found[3]["forwards"] == 4
    for row, again in zip(rows, found, strict=False):
        assert again["loss"] == pytest.approx(row["loss"]) and again["top1"] == row["top1"]
        assert again["run"] == "runs/done" and again["split"] == "val"
    assert [row["gain"] is None for row in found] == [True, False, False, False]
    parts = [Probabilities.load(Path(name)) for name in ("flip.npz", "large.npz", "base.npz")]
    mean = np.mean([np.exp(part.log_probabilities.astype(np.float64)).mean(0) for part in parts], 0)
    assert found[3]["loss"] == pytest.approx(score(np.log(mean), parts[0].labels)["loss"], rel=1e-4)
    right = [np.exp(part.log_probabilities).mean(0).argmax(1) == part.labels for part in parts]
    assert found[2]["p"] == pytest.approx(mcnemar(right[2], right[0])["p"])
    grid = json.loads(call(compare, "flip.npz", "--merge", "max", "vote", "--json").out)
    assert [row["merge"] for row in grid] == ["max", "vote"]


def test_runs_are_compared_in_pairs(there):
    copy_run("copy", 0)
    flags = ("--device", "cpu", "--precision", "float32", "--json")
    rows = json.loads(call(compare, "runs/done", "runs/copy", "--tta", "flip", *flags).out)
    assert [row["run"] for row in rows] == ["runs/done", "runs/copy", "all 2 together"]
    assert rows[0]["gain"] is None and rows[1]["gain"] == 0 and rows[1]["p"] == 1
    expected = json.loads(call(evaluate, "--split", "val", "--tta", "flip", *flags).out)[1]
    assert rows[0]["top1"] == expected["top1"] == rows[2]["top1"]
    assert {row["split"] for row in rows} == {"val"}


def test_saved_probabilities_that_do_not_fit_are_refused(there):
    saved("val.npz")
    rows_of(
        call(
            evaluate,
            "--split",
            "holdout",
            "--save-probabilities",
            "held.npz",
            "--device",
            "cpu",
            "--json",
        )
    )
    turned = Probabilities.load(Path("val.npz"))
    dataclasses.replace(turned, rows=turned.rows[::-1]).save(Path("turned.npz"))
    refused(compare, ["val.npz", "held.npz"], "held.npz", "val.npz", "holdout")
    refused(compare, ["val.npz", "turned.npz"], "turned.npz", "another order")
    refused(compare, ["nowhere.npz"], "nowhere.npz")
    refused(compare, ["val.npz", "--merge", "median"], "median", "gmean")
    refused(compare, ["val.npz", "--views", "flip"], "--views")
    refused(compare, ["val.npz", "held.npz", "--tta", "flip"], "comparing files takes no --tta")
    refused(compare, ["val.npz", "val.npz"], "val.npz", "twice")
    refused(compare, ["val.npz", "runs/none"], "runs/none")
    relabelled = Probabilities.load(Path("val.npz"))
    dataclasses.replace(relabelled, labels=relabelled.labels[::-1]).save(Path("labels.npz"))
    refused(compare, ["val.npz", "labels.npz"], "labels.npz", "other labels")
    Path("folder").mkdir()
    refused(
        evaluate,
        ["--split", "val", "--save-probabilities", "folder", "--device", "cpu"],
        "folder",
        "a folder",
    )
    refused(
        evaluate, ["--split", "holdout", "--calibrate", "--device", "cpu"], "--calibrate", "--split"
    )
    refused(evaluate, ["--save-probabilities", "a.npz", "--device", "cpu"], "2 splits", "--split")
    refused(
        evaluate,
        [
            "--save-probabilities",
            "a.npz",
            "--split",
            "val",
            "--tta",
            "flip",
            "ten",
            "--device",
            "cpu",
        ],
        "2 sets of views",
    )
    assert not Path("a.npz").exists()


def test_several_sizes_are_scored_one_after_the_other(there):
    found = rows_of(
        call(evaluate, "--size", "32", "48", "64", "--split", "val", "--json", "--device", "cpu")
    )
    assert [row["size"] for row in found] == [32, 48, 64] and len(
        {row["loss"] for row in found}
    ) == 3


def test_without_json_the_rows_are_a_table(there):
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


def test_predictions_name_every_test_image_once(there):
    ran = call(
        predict, "--device", "cpu", "--precision", "float32", "--out", "here/predictions.txt"
    )
    assert ran.status == 0 and ran.out == "here/predictions.txt\n"
    lines = [line.split(" ") for line in Path("here/predictions.txt").read_text().splitlines()]
    assert sorted(file for file, _ in lines) == sorted(f"test_{k}.JPEG" for k in range(18))

    packed = open_packed(there.flags[1], str(there.flags[3]))
    model, _ = load_model(Path("runs/done/finetune/best.pt"), packed.wnids)
    for (file, wnid), name, image in zip(lines, packed.test.files, packed.test.images, strict=True):
        assert name == f"test/images/{file}"
        small = tv.resize(
            torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255,
            [32, 32],
            antialias=True,
        )
        with torch.inference_mode():
            logits = model(small[None])[0]
        assert logits[packed.wnids.index(wnid)] >= logits.max() - 1e-4


def test_predictions_go_into_the_run_unless_told_otherwise(there):
    ran = call(predict, "--tta", "flip", "--size", "40", "--device", "cpu")
    assert ran.out == "runs/done/finetune/test-predictions.txt\n"
    assert len(Path(ran.out.strip()).read_text().splitlines()) == 18


def test_predictions_are_what_all_views_together_say(there, monkeypatch):
    packed = open_packed(there.flags[1], str(there.flags[3]))
    drawn = torch.randn(2, 18, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    said = Probabilities(
        ("plain", "mirror"), drawn.numpy(), np.arange(18), None, packed.wnids, np.ones(2)
    )
    monkeypatch.setattr(
        predictor.Predictor, "predict", lambda self, split, chosen: {"test": said}[split]
    )
    best = {"plain": drawn[0], "mean": drawn.exp().mean(0), "max": drawn.amax(0)}
    best = {
        name: [packed.wnids[label] for label in values.argmax(1)] for name, values in best.items()
    }
    assert len(set(map(tuple, best.values()))) == 3
    for merge in ("mean", "max"):
        ran = call(predict, "--tta", "flip", "--merge", merge, "--device", "cpu")
        assert [
            line.split(" ")[1] for line in Path(ran.out.strip()).read_text().splitlines()
        ] == best[merge]


def test_files_are_named_by_the_run(there, archive):
    Path("some").mkdir()
    for file in archive.val.files[:5]:
        Path("some", Path(file).name).write_bytes(archive.read(file))
    rows = json.loads(
        call(
            predict,
            "some",
            "--run",
            "runs/done",
            "--top",
            "6",
            "--json",
            "--device",
            "cpu",
            "--precision",
            "float32",
        ).out
    )
    model, size = load_model(Path("runs/done/finetune/best.pt"), archive.wnids)
    files = sorted(Path("some").iterdir())
    assert len(rows) == 6 * len(files)
    for number, file in enumerate(files):
        image = tv.to_dtype(
            tv.to_image(tv.resize(Image.open(file).convert("RGB"), [size, size])), scale=True
        )
        with torch.inference_mode():
            best = model(image[None]).softmax(1)[0].sort(descending=True)
        mine = rows[6 * number : 6 * number + 6]
        assert {row["file"] for row in mine} == {str(file)}
        assert [row["id"] for row in mine] == [archive.wnids[label] for label in best.indices]
        assert [row["class"] for row in mine] == [
            archive.names[label].split(",")[0] for label in best.indices
        ]
        assert [row["probability"] for row in mine] == pytest.approx(best.values.tolist(), rel=0.02)


def test_scores_on_other_images_of_the_same_classes_are_given_and_not_kept(there, tmp_path):
    more = synthetic(tmp_path / "more.zip", classes=6, train=1, val=2, test=1)
    before = files()
    ran = call(
        evaluate,
        "--data",
        more,
        "--cache",
        tmp_path / "cache",
        "--split",
        "val",
        "--json",
        "--device",
        "cpu",
    )
    assert [row["n"] for row in rows_of(ran)] == [12]
    assert "not the data that runs/done was trained on" in ran.err
    assert files() == before


def copy_run(name, age, without=()):
    """A copy of the finished run, begun `age` seconds earlier than another."""
    shutil.copytree("runs/done", f"runs/{name}", ignore=shutil.ignore_patterns(*without))
    for recipe in Path("runs", name).rglob("recipe.json"):
        stamp = recipe.stat().st_mtime - age
        os.utime(recipe, (stamp, stamp))


def test_the_newest_finished_run_is_taken(there):
    copy_run("a-new", -1000)
    copy_run("z-old", 1000)
    copy_run("unfinished", -2000, without=["scores.jsonl"])
    copy_run("base-alone", -500, without=["finetune"])
    assert (
        "evaluating runs/a-new/finetune" in call(evaluate, "--split", "val", "--device", "cpu").err
    )
    assert "predicting with runs/a-new/finetune" in call(predict, "--device", "cpu").err
    assert (
        "evaluating runs/z-old/base"
        in call(
            evaluate, "--run", "runs/z-old", "--stage", "base", "--split", "val", "--device", "cpu"
        ).err
    )
    shutil.rmtree("runs/a-new")
    assert (
        "evaluating runs/base-alone/base" in call(evaluate, "--split", "val", "--device", "cpu").err
    )
    assert (
        "evaluating runs/done/finetune"
        in call(evaluate, "--stage", "finetune", "--split", "val", "--device", "cpu").err
    )


def test_what_is_no_run_is_answered_with_what_there_is(there, tmp_path, monkeypatch):
    shutil.copytree("runs/done", tmp_path / "runs" / "done")
    shutil.copytree("runs/done", tmp_path / "runs" / "demo" / "drawn")
    monkeypatch.chdir(tmp_path)
    refused(evaluate, ["--run", "done"], "--run done", "not a run", "did you mean --run runs/done?")
    refused(evaluate, ["--run", "runs/doen"], "did you mean --run runs/done?")
    # a demo is nobody's first choice
    refused(evaluate, ["--run", "unlike"], "did you mean --run runs/done?")
    refused(evaluate, ["--run", "drawn"], "did you mean --run runs/demo/drawn?")
    refused(evaluate, ["--run", "runs/done/base"], "a stage of runs/done; pass that run")
    shutil.rmtree("runs/done")
    refused(evaluate, [], "no run below runs/ has a finished stage", "--run runs/demo/drawn")
    for scores in Path("runs").rglob("scores.jsonl"):
        scores.unlink()
    assert "demo" not in call(evaluate).err  # it is not finished
    shutil.rmtree("runs")
    refused(evaluate, ["--run", "runs/done"], "python -m tinynet.train --stage base")


def test_a_flag_that_is_nearly_right_is_named(there):
    refused(train, ["--epoch", "1"], "did you mean --epochs?", "--help")
    refused(train, ["--nonsense"], "unrecognized arguments: --nonsense; see --help")
    refused(train, [""], "unrecognized arguments: ; see --help")
    # a flag that was right
    refused(soup_command, ["runs/done"], "takes two runs or more, not 1; see --help")


def test_predict_takes_the_stage_that_is_named(there):
    assert (
        call(predict, "--stage", "base", "--device", "cpu").out
        == "runs/done/base/test-predictions.txt\n"
    )


def test_finetune_goes_on_from_the_newest_finished_base(there):
    copy_run("base-alone", -500, without=["finetune"])
    ran = call(
        train, "--stage", "finetune", "--json", "--epochs", "1", "--size", "32", "--device", "cpu"
    )
    (row,) = rows_of(ran)
    assert (row["run"], row["stage"]) == ("runs/base-alone", "finetune")
    base = Path("runs/done/base/best.pt").read_bytes()
    assert Path("runs/base-alone/base/best.pt").read_bytes() == base

    ran = call(
        train,
        "--stage",
        "finetune",
        "--run",
        "runs/done",
        "--out",
        "runs/apart",
        "--json",
        "--epochs",
        "1",
        "--size",
        "32",
        "--device",
        "cpu",
    )
    (row,) = rows_of(ran)
    assert row["run"] == "runs/apart" and not Path("runs/apart/base").exists()
    recipe = StageFolder(Path("runs/apart"), "finetune").read_recipe()
    assert recipe["start_run"] == str(there.folder / "runs" / "done") and recipe["recipe"][
        "network"
    ]["hidden"] == [16]


def test_a_later_stage_has_the_seed_of_its_run_unless_told(there):
    assert (
        call(
            train, "--stage", "base", "--out", "runs/seeded", "--seed", 3, *SMALL, *there.flags
        ).status
        == 0
    )
    for given, seed in (((), 3), (("--seed", 0), 0)):
        out = f"runs/seed-{seed}"
        assert (
            call(
                train,
                "--stage",
                "fixres",
                "--run",
                "runs/seeded",
                "--out",
                out,
                "--epochs",
                "1",
                "--size",
                "32",
                "--device",
                "cpu",
                *given,
            ).status
            == 0
        )
        assert StageFolder(Path(out), "fixres").read_recipe()["seed"] == seed


def test_a_batch_of_more_images_than_there_are_is_said(elsewhere):
    said = (
        "note: the batch size (60) exceeds the 54 training images, so each epoch is one step; "
        "use a smaller --batch"
    )
    for batch, there in ((60, True), (54, False)):
        ran = call(
            train,
            "--stage",
            "base",
            "--out",
            f"run-{batch}",
            *SMALL,
            *elsewhere.flags,
            "--batch",
            batch,
        )
        assert ran.status == 0 and (said in ran.err) is there


def test_a_summary_is_printed_and_nothing_is_left(elsewhere):
    ran = call(train, "--stage", "base", "--summary", *SMALL, *elsewhere.flags)
    assert ran.status == 0 and "Trainable params" in ran.out and "Conv2d" in ran.out
    assert not list(Path().iterdir())


# --- Ctrl-C ---------------------------------------------------------------------------------------


def press_ctrl_c(monkeypatch, row, times=1):
    """Press it while the given row of the log is written."""
    append, written = runs.append_rows, []

    def append_and_press(path, rows):
        append(path, rows)
        written.extend(rows)
        if len(written) == row:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs, "append_rows", append_and_press)
    monkeypatch.setattr("tinynet.training.loop._FLUSH_AFTER", 0.0)


def test_ctrl_c_stops_after_a_step_and_resume_ends_as_if_it_had_not(elsewhere, monkeypatch):
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, row=2)
        ran = call(train, "--out", "stopped", "--json", *SMALL, *elsewhere.flags)
    assert ran.status == 130 and ran.out == ""
    assert "stopping after this step" in ran.err and "--resume stopped" in ran.err
    assert ran.err.splitlines()[-1] == "interrupted"
    # three steps, and that it was stopped
    assert len(runs.read_rows(Path("stopped/base/log.jsonl"))) == 4
    found = rows_of(
        call(train, "--resume", "stopped", "--json", "--device", "cpu", "--precision", "float32")
    )
    assert found == [{**row, "run": "stopped"} for row in rows_of(elsewhere.ran)]
    again = call(train, "--resume", "stopped", "--json", "--device", "cpu")
    assert rows_of(again) == found


def test_ctrl_c_twice_stops_at_once(elsewhere, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # jobs in the background of a shell ignore it
    press_ctrl_c(monkeypatch, row=2, times=2)
    ran = call(train, "--out", "stopped", *SMALL, *elsewhere.flags)
    assert ran.status == 130 and ran.err.splitlines()[-1] == "interrupted"
    assert len(runs.read_rows(Path("stopped/base/log.jsonl"))) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_features_are_extracted_keeps_them(elsewhere, monkeypatch, archive_path):
    from tinynet.training import extraction

    pooled_features, calls = extraction.pooled_features, []

    def describe_and_press(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pooled_features(*arguments)

    flags = ["--stage", "base", "--out", "new", *SMALL, "--data", archive_path, "--cache", "cache"]
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "pooled_features", describe_and_press)
        ran = call(train, *flags)
    assert ran.status == 130 and "run the same command to continue" in ran.err
    ran = call(train, *flags, "--json")
    assert rows_of(ran)[0]["loss"] == rows_of(elsewhere.ran)[0]["loss"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--stage middle", ["--stage", "'base', 'finetune', 'fixres', 'all'"]),
        ("--recipe best", ["--recipe", "'tuned', 'reference'"]),
        ("--device tpu", ["--device", "'cuda'"]),
        ("--precision float8", ["--precision"]),
        ("--lr fast", ["--lr", "invalid float value", "'fast'"]),
        ("--max-grad-norm fast", ["--max-grad-norm", "invalid float or none value", "'fast'"]),
        ("--batch 2.5", ["--batch", "invalid int value"]),
        ("--schedule square", ["--schedule", "cyclic"]),
        ("--epoch 3", ["--epoch"]),
        ("--learning-rate 3", ["--learning-rate"]),
    ],
    ids=str,
)
def test_flags_that_do_not_exist_take_one_line(elsewhere, flags, words):
    assert refused(train, flags.split(), *words, "python -m tinynet.train") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", ["epochs is 0"]),
        ("--ema 1", ["ema is 1.0"]),
        ("--trainable conv9", ["trainable", "conv9", "conv5"]),
        ("--learn conv9", ["trainable", "conv9"]),
        ("--lr-factors 1 1", ["lr_factors", "six"]),
        (
            "--cached-epochs 2",
            ["cached_epochs", "frozen"],
        ),  # of both stages, and the second trains the backbone
        ("--crop-side 64 40", ["crop_side"]),
        ("--dropout 2", ["dropout is 2.0"]),
        ("--run runs/x", ["--run", "--out"]),
        ("--stage finetune", ["runs/", "python -m tinynet.train --stage base"]),
        (
            "--stage finetune --run runs/x",
            ["--run runs/x", "not a run", "python -m tinynet.train --stage base"],
        ),
        ("--data nowhere.zip", ["nowhere.zip", "--data", "python -m tinynet.data get"]),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_in_one_line(elsewhere, flags, words):
    assert refused(train, [*SMALL, *elsewhere.flags, *flags.split()], *words) == 1


def test_what_is_no_run_is_not_resumed(elsewhere):
    Path("runs/x/base").mkdir(parents=True)
    for name in ("runs/nowhere", "runs/x", "runs"):
        assert refused(train, ["--resume", name], f"--resume {name}", "not a run") == 1
    assert (
        refused(
            train, ["--resume", "runs/x", "--lr", "0.1"], "--lr", "changed when a run is resumed"
        )
        == 1
    )


@pytest.mark.parametrize(
    ("flags", "kept"),
    [((), ("cpu", "int8", "float32")), (("--precision", "bfloat16"), ("cpu", "bfloat16", None))],
)
def test_a_resumed_run_keeps_its_arithmetic_unless_another_is_named(elsewhere, flags, kept):
    shutil.copytree(elsewhere.folder / "runs/done", "runs/mine")
    recipe = StageFolder("runs/mine", "finetune").recipe
    stored = json.loads(recipe.read_text())
    recipe.write_text(
        json.dumps({**stored, "device": {"type": "cpu", "precision": "int8", "floats": "float32"}})
    )
    asked = train.parser().parse_args(["--resume", "runs/mine", *flags])
    train._resumed(asked)
    assert (asked.device, asked.precision, asked.floats) == kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--size 20", ["--size 20", "32"]),
        ("--size -5", ["size is -5"]),
        ("--stage base --size 31", ["--size 31"]),
        ("--precision float16", ["--precision float16", "float32", "bfloat16"]),
        ("--taps pool9:mean", ["pool9:mean", "relu4_3", "grid2"]),
        ("--crop-side 40 65", ["crop_side", "65", "64"]),
        ("--holdout 1.5", ["1.5"]),
        ("--per-class 1", ["--per-class 1"]),
        ("--per-class 13", ["--per-class 13", "12 images"]),
        ("--weights nowhere.pth", ["nowhere.pth", "IMAGENET1K_V1"]),
        ("--weights file.txt", ["file.txt", "torch.save"]),
        ("--weights resnet.pth", ["resnet.pth", "do not match the network"]),
        ("--out file.txt/run", ["file.txt/run", "--out"]),
        ("--out file.txt", ["file.txt", "--out"]),
    ],
    ids=str,
)
def test_what_cannot_be_trained_leaves_nothing_behind(elsewhere, flags, words):
    Path("file.txt").write_text("a file in the way")
    if "resnet" in flags:
        torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "resnet.pth")
    refused(train, [*SMALL, *elsewhere.flags, *flags.split()], *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has cuda")
def test_a_device_that_is_not_there_is_refused(there):
    assert refused(train, [*SMALL, *there.flags, "--device", "cuda"], "--device cuda", "cpu") == 1
    refused(evaluate, ["--device", "cuda"], "--device cuda", "cpu")
    refused(predict, ["--device", "cuda"], "--device cuda", "cpu")


def test_data_that_is_no_archive_is_refused(elsewhere):
    Path("text.zip").write_text("no zip")
    Path("empty").mkdir()
    for name, word in (("text.zip", "not a zip"), ("empty", "no Tiny ImageNet")):
        refused(train, [*SMALL, "--data", name], name, word)


def test_a_run_that_is_there_is_not_overwritten(there):
    assert (
        refused(
            train,
            [*SMALL, *there.flags, "--out", "runs/done"],
            "runs/done",
            "--resume runs/done",
            "--out",
        )
        == 1
    )
    refused(train, ["--stage", "finetune", *SMALL[-4:]], "runs/done", "--resume runs/done", "--out")


@pytest.mark.parametrize("command", [evaluate, predict])
def test_without_a_run_there_is_nothing_to_score(elsewhere, command):
    assert refused(command, [], "runs/", "python -m tinynet.train --stage base") == 1
    assert (
        refused(
            command, ["--run", "nowhere"], "--run nowhere", "not a run", "python -m tinynet.train"
        )
        == 1
    )


def test_what_cannot_be_scored_is_refused(there):
    assert refused(evaluate, ["--split", "test"], "--split", "'holdout', 'val', 'both'") == 1
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
        ["--run", "runs/base-alone", "--stage", "finetune"],
        "runs/base-alone",
        "--stage finetune",
    )


def test_a_run_is_not_scored_on_other_classes_or_without_images(there, tmp_path):
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


def test_finetune_stays_with_the_images_of_its_base(there, tmp_path):
    # of the same classes
    more = synthetic(tmp_path / "more.zip", classes=6, train=5, val=1, test=1)
    refused(
        train,
        [
            "--stage",
            "finetune",
            "--run",
            "runs/done",
            "--out",
            "new",
            "--data",
            more,
            "--cache",
            tmp_path / "cache",
            "--size",
            "32",
            "--device",
            "cpu",
        ],
        "runs/done/base",
        "the data changed",
        "--data",
    )


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 half of one"], ids=["empty", "text", "zip"]
)
def test_a_checkpoint_that_is_none_is_refused(there, content):
    copy_run("broken", -100)
    for path in Path("runs/broken").rglob("best.pt"):
        path.write_bytes(content)
    refused(evaluate, ["--device", "cpu"], "runs/broken/finetune/best.pt", "not a checkpoint")
    refused(predict, ["--device", "cpu"], "runs/broken/finetune/best.pt", "not a checkpoint")
    refused(
        train,
        ["--stage", "finetune", "--run", "runs/broken", "--out", "more", "--device", "cpu"],
        "runs/broken/base/best.pt",
        "not a checkpoint",
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"recipe": {"name": "tuned"}}'])
def test_a_recipe_that_is_none_is_refused(there, content):
    copy_run("broken", -100)
    for path in Path("runs/broken").rglob("recipe.json"):
        path.write_text(content)
    refused(train, ["--resume", "runs/broken"], "recipe.json")
    refused(evaluate, ["--run", "runs/broken"], "recipe.json")


def test_a_run_is_not_resumed_with_other_data(elsewhere, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, row=2)
        call(train, "--out", "stopped", *SMALL, *elsewhere.flags)
    other = synthetic(tmp_path / "other.zip", classes=6, train=12, val=1, test=1, seed=3)
    open_packed(other)
    refused(
        train,
        ["--resume", "stopped", "--data", other, "--cache", tmp_path / "cache", *SMALL[-4:]],
        "stopped/base",
        "the data changed",
        "use the original data",
        "--data",
    )


def test_one_process_at_a_time_trains_a_stage(elsewhere):
    flags = [*SMALL, "--out", "new", *elsewhere.flags]
    with locked("new/base", None):
        refused(train, flags, "new/base", "another process", "--out")
    assert not files()


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path):
    inside, waited, turns = [], [], []

    def enter(name):
        for _ in range(20):
            with locked(tmp_path / "lock", lambda: waited.append(name)):
                inside.append(name)
                turns.append(list(inside))
                time.sleep(0.0005)  # others have their chance
                inside.remove(name)

    threads = [threading.Thread(target=enter, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 80 and all(len(turn) == 1 for turn in turns)
    assert waited and not list(tmp_path.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="space is not reserved on this system"
)
def test_a_full_disk_takes_one_line_and_is_not_left_fuller(elsewhere, monkeypatch, archive_path):
    flags = [*SMALL, "--out", "new", "--data", archive_path]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full_disk)
        refused(train, [*flags, "--cache", "fresh"], "No space left", "--cache")

    # Room for the pictures, and then for one of the features' arrays.
    open_packed(archive_path, "fresh")
    reserve, calls = os.posix_fallocate, []

    def reserve_once(*arguments):
        calls.append(arguments)
        return reserve(*arguments) if len(calls) == 1 else full_disk()

    monkeypatch.setattr(os, "posix_fallocate", reserve_once)
    ran = call(train, *flags, "--cache", "fresh")
    assert ran.status == 2 and len(calls) == 2
    assert "No space left" in ran.err.splitlines()[-1] and "--cache" in ran.err.splitlines()[-1]
    assert not [
        path
        for path in Path().rglob("*")
        if path.is_file()
        and (path.suffix in (".npy", ".pt") or path.is_relative_to("new"))
        and "packed" not in path.parts[1]
    ]


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="space is not reserved on this system"
)
def test_an_array_without_its_space_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(OSError) as caught:
        new_array(tmp_path / "array.npy", (3, 4), np.float32)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
        tmp_path / "array.npy"
    )
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges_takes_one_line(elsewhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(
        train,
        "--stage",
        "base",
        "--out",
        "new",
        *SMALL,
        *elsewhere.flags,
        "--epochs",
        "9",
        "--lr",
        "1e38",
    )
    assert ran.status == 2 and ran.out == ""
    assert "--lr" in ran.err.splitlines()[-1] and "Traceback" not in ran.err


def test_unexpected_exceptions_keep_their_traceback():
    for error in (ValueError("strange"), KeyError("strange"), RuntimeError("strange")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            run_command(main)
        assert caught.value is error


def test_expected_exceptions_take_one_line(capsys):
    for error, status, line in (
        (InputError("what\n and how"), 2, "error: what and how"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):

        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == status and capsys.readouterr().err == line + "\n"


# --- the demo ---


def test_the_demo_goes_all_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = demo.small_recipe().override(dict(epochs=1))
    monkeypatch.setattr(demo, "small_recipe", lambda: recipe)
    flags = ["--out", "drawn", "--json", "--device", "cpu", "--precision", "float32"]
    rows = json.loads(call(demo, *flags).out)
    assert [(row["stage"], row["split"], row["views"]) for row in rows] == [
        (stage, split, views)
        for stage in runs.WHOLE
        for split in ("holdout", "val")
        for views in ("none", "flip")
    ]
    assert {row["n"] for row in rows if row["split"] == "val"} == {8 * 20}
    assert Path("drawn/finetune/curves.png").is_file()
    refused(demo, flags, "drawn", "already contains a run")


@pytest.mark.parametrize("low", [0.24, 0.26])
def test_the_demo_says_whether_it_learnt(tmp_path, monkeypatch, low):
    """Chance is one in eight, and twice that is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinynet.training.stages.train", lambda *_, **__: None)
    monkeypatch.setattr("tinynet.evaluation.predictor.Predictor", lambda *_: None)
    monkeypatch.setattr(
        "tinynet.evaluation.evaluate.evaluate",
        lambda *_: [ScoreRow.from_json(dict.fromkeys(SCORED, low))],
    )
    ran = call(demo, "--out", "drawn", "--json", "--device", "cpu")
    assert ran.status == int(low < 0.25) and "chance is 12.5%" in ran.err
    assert ("tinynet is broken" in ran.err, "predict IMAGE --run drawn" in ran.err) == (
        low < 0.25,
        low > 0.25,
    )


# --- as programs ---


def program(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TINYNET_PROGRESS": "0"},
        **more,
    )


def test_help_recipe_shows_the_value_of_every_stage_or_one_for_all():
    text = " ".join(call(train, "--help-recipe").out.split())
    for name in recipe_fields():
        assert f"--{name.replace('_', '-')} " in text or f"--no-{name}" in text, name
    assert "(tuned: 64 / 64 / 80)" in text and "(tuned: 256 / 64 / 256)" in text
    assert "(tuned: adamw)" in text


def test_help_fits_a_screen():
    assert len(call(train, "--help").out.splitlines()) <= 60
    assert "--lr-factors" not in call(train, "--help").out


def test_every_flag_has_a_help_text():
    commands = (train, evaluate, predict, fixres, compare, select_command, soup_command, zero_shot)
    first_edition = {"--taps", "--learn", "--views", "--sizes"}
    recipe = {f"--{name.replace('_', '-')}" for name in recipe_fields()}
    for module in (*commands, folder_command):
        flags = module.parser()._actions
        assert len(flags) > 8 and all(flag.help for flag in flags), module
        hidden = {flag.option_strings[0] for flag in flags if flag.help == argparse.SUPPRESS}
        assert hidden <= first_edition | (recipe if module is train else set())


@pytest.mark.parametrize(
    "typed", [["tinynet"], ["tinynet.train", "--help"], ["tinynet.fixres", "--policy", "--json"]]
)
def test_a_reader_who_has_left_is_no_error(typed):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", *typed], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_there_without_loading_anything_slow():
    assert {
        "tinynet.train",
        "tinynet.evaluate",
        "tinynet.data.__main__",
        "tinynet.report.__main__",
    } <= set(PROGRAMS)
    code = (
        "import contextlib, importlib, io, sys\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, "
        "contextlib.suppress(SystemExit):\n        importlib.import_module(name).main(['--help'])\n"
        "    assert f'python -m {name.removesuffix(\".__main__\")} ' in out.getvalue(), name\n"
        "    assert name.endswith('__main__') or '--device' in out.getvalue(), name\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PROGRAMS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        *([name] for name in PROGRAMS if name not in ("tinynet.data.__main__", "tinynet.__main__")),
        *(
            ["tinynet.data.__main__", part]
            for part in ("get", "verify", "pack", "info", "show", "synthetic", "cache")
        ),
    ],
)
def test_every_command_takes_quiet_and_json(words, capsys):
    name, *part = words
    with pytest.raises(SystemExit):
        importlib.import_module(name).main([*part, "--help"])
    assert {"--quiet", "--json"} <= set(
        capsys.readouterr().out.replace("]", " ").replace("[", " ").split()
    )


def test_one_entry_lists_and_runs_all_commands():
    done = program("tinynet")
    assert done.returncode == 0 and done.stderr == ""
    modules = {module for module, _ in entry.COMMANDS.values()}
    assert modules == set(PROGRAMS) - {"tinynet.__main__"}
    for name in entry.COMMANDS:
        assert f"\n  {name} " in done.stdout
    done = program("tinynet", "fixres", "--policy", "--json")
    assert json.loads(done.stdout) == json.loads(
        program("tinynet.fixres", "--policy", "--json").stdout
    )


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("select_views", "select-views"), ("xyz", None)]
)
def test_an_unknown_command_is_refused_with_the_nearest(word, near):
    done = program("tinynet", word, "--help")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    assert f"unknown command '{word}'" in done.stderr and "tinynet --help" in done.stderr
    assert ("did you mean" in done.stderr) == (near is not None)
    assert near is None or f"did you mean {near}?" in done.stderr


@pytest.mark.slow
def test_a_whole_vgg16_goes_all_the_way_as_programs(tmp_path):
    data = synthetic(tmp_path / "drawn.zip", classes=2, train=3, val=1, test=1, side=32)
    done = program(
        "tinynet.train",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--json",
        *SMALL,
        "--crop-side",
        "24",
        "32",
    )
    assert done.returncode == 0, done.stderr
    assert [row["stage"] for row in json.loads(done.stdout)] == ["base", "finetune"]
    weights = torch.load(tmp_path / "run" / "finetune" / "best.pt", weights_only=True)["weights"]
    assert (
        sum(value.numel() for key, value in weights.items() if key.startswith("backbone.features"))
        == 14_714_688
    )

    done = program("tinynet.evaluate", "--run", tmp_path / "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: --run ")
