"""The predictor: stored probabilities are used where they fit, and computed again elsewhere."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import score_rows, stored_views
from support import ON_CPU, argv, call, in_floats

from tinynet import evaluate, runs
from tinynet.compute import Compute
from tinynet.data.copies import open_packed
from tinynet.errors import InputError
from tinynet.evaluation import predictor as predictor
from tinynet.models.checkpoint import load_model
from tinynet.models.dense import Dense
from tinynet.runs import StageFolder
from tinynet.score.metrics import score

pytestmark = pytest.mark.usefixtures("thin")


def test_what_scores_on_the_device_is_a_copy(run_folder, monkeypatch):
    """The head moves to the device alone; whoever asks for the network finds all of it in one
    place.
    """
    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
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


def test_stored_probabilities_give_the_same_scores(run_folder):
    found = score_rows(
        call(evaluate, "--tta", "flip", "--json", "--split", "val", "--device", "cpu")
    )
    kept = stored_views("finetune", "val")
    assert set(kept) == {"plain", "mirror"} and kept["mirror"].rows.tolist() == list(range(24))
    plain, hflip = (
        kept[name].log_probabilities[0].astype(np.float64) for name in ("plain", "mirror")
    )
    mean, labels = np.log((np.exp(plain) + np.exp(hflip)) / 2), kept["plain"].labels
    for row, logs in zip(found, (plain, mean), strict=True):
        again = score(logs, labels).to_json()
        wnid = kept["plain"].wnids[again.pop("worst_label")]
        assert row["worst_class"].startswith(f"{wnid} ")
        assert {key: row[key] for key in again} == pytest.approx(again, rel=1e-4)
    assert found[0]["gain"] is None and found[0]["p"] is None
    assert (
        found[1]["gain"] == pytest.approx(found[1]["top1"] - found[0]["top1"])
        and 0 < found[1]["p"] <= 1
    )
    rows = runs.read_rows(Path("runs/done/finetune/scores.jsonl"))
    assert rows[-2:] == found and len(rows) == 3


def test_a_grid_computes_every_view_once(run_folder, monkeypatch):
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
    found = score_rows(call(evaluate, *grid))
    assert [(row["size"], row["views"], row["merge"]) for row in found] == [
        (size, views, merge)
        for size in (32, 40)
        for views in ("none", "flip", "ten", "flip+scales:32,40")
        for merge in (("mean",) if views == "none" else ("mean", "gmean", "vote"))
    ]
    assert [row["forwards"] for row in found[:10]] == [1, 2, 2, 2, 10, 10, 10, 4, 4, 4]
    # plain and mirrored at 32 and at 40 pixels, and ten crops of each size
    assert len(seen) == 4 + 10 + 10
    assert score_rows(call(evaluate, *grid)) == found and len(seen) == 24
    assert all(row["pictures_per_second"] > 0 for row in found)


def test_stored_probabilities_of_other_weights_are_not_used(run_folder):
    first = score_rows(call(evaluate, "--split", "val", "--json", "--device", "cpu"))
    best = Path("runs/done/finetune/best.pt")
    stored = torch.load(best, weights_only=True)
    stored["weights"]["head.1.weight"] *= -1
    before = best.read_bytes()
    torch.save(stored, best)
    assert (
        score_rows(call(evaluate, "--split", "val", "--json", "--device", "cpu"))[0]["loss"]
        != first[0]["loss"]
    )
    best.write_bytes(before)


def test_stored_probabilities_that_cannot_be_read_are_computed_again(run_folder):
    flags = ["--split", "val", "--json", "--device", "cpu"]
    first = score_rows(call(evaluate, *flags))
    for path in Path("runs/done/finetune/probabilities").iterdir():
        path.write_bytes(b"broken")
    assert score_rows(call(evaluate, *flags))[0]["loss"] == first[0]["loss"]


def test_changed_images_are_not_taken_for_those_of_the_run(run_folder, tmp_path):
    """The same names and labels, other pixels: nothing that was kept of the run's own images is
    used.
    """
    flags = ["--tta", "flip", "--split", "val", "--json", "--device", "cpu"]
    first = score_rows(call(evaluate, *flags))
    black = io.BytesIO()
    Image.new("RGB", (64, 64)).save(black, "JPEG")
    with (
        zipfile.ZipFile(run_folder.flags[1]) as whole,
        zipfile.ZipFile(tmp_path / "black.zip", "w") as made,
    ):
        for name in whole.namelist():
            made.writestr(name, black.getvalue() if "/images/val_" in name else whole.read(name))
    ran = call(evaluate, *flags, "--data", tmp_path / "black.zip", "--cache", run_folder.flags[3])
    assert "not the data that runs/done was trained on" in ran.err
    found = score_rows(ran)
    assert found[0]["loss"] != first[0]["loss"] and found[0]["top1"] == pytest.approx(1 / 6)
    assert score_rows(call(evaluate, *flags)) == first


def test_stored_probabilities_of_another_precision_are_not_used(run_folder):
    flags = ["--split", "val", "--json", "--device", "cpu", "--precision"]
    losses = [
        score_rows(call(evaluate, *flags, precision))[0]["loss"]
        for precision in ("bfloat16", "float32")
    ]
    assert losses[0] != losses[1]


def test_a_dense_view_is_the_network_that_slides(run_folder):
    found = score_rows(
        call(evaluate, *argv("--tta scales:64 dense:64 --split val --json"), *ON_CPU)
    )
    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
    model, size = load_model(Path("runs/done/finetune/best.pt"), packed.wnids)
    images = in_floats(packed.val.images)
    with torch.inference_mode():
        for row, network in zip(found[1:], (model, Dense(model, size)), strict=True):
            logs = torch.log_softmax(network(images), 1).numpy()
            assert row["loss"] == pytest.approx(score(logs, packed.val.labels).loss, rel=1e-4)
    assert found[1]["loss"] != pytest.approx(found[2]["loss"], rel=1e-3)
