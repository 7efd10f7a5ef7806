"""The command predict: the official test set, files, pretrained networks."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import IMAGENET_WNIDS, SMALL_ARCH, TREE_CLASSES, by_hand, draw_noise
from PIL import Image
from support import ON_CPU, argv, call, refused, thin_network
from torchvision.transforms.v2 import functional as tv

from tinynet import predict
from tinynet.data.copies import open_packed
from tinynet.data.image_folder import labelled_images
from tinynet.evaluation import predictor as predictor
from tinynet.models.checkpoint import load_model
from tinynet.score.probabilities import Probabilities

pytestmark = pytest.mark.usefixtures("thin")


# --- predictions of a run ---


def test_predictions_name_every_test_image_once(run_folder):
    ran = call(
        predict, "--device", "cpu", "--precision", "float32", "--out", "here/predictions.txt"
    )
    assert ran.status == 0 and ran.out == "here/predictions.txt\n"
    lines = [line.split(" ") for line in Path("here/predictions.txt").read_text().splitlines()]
    assert sorted(file for file, _ in lines) == sorted(f"test_{k}.JPEG" for k in range(18))

    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
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


def test_predictions_go_into_the_run_unless_told_otherwise(run_folder):
    ran = call(predict, "--tta", "flip", "--size", "40", "--device", "cpu")
    assert ran.out == "runs/done/finetune/test-predictions.txt\n"
    assert len(Path(ran.out.strip()).read_text().splitlines()) == 18


def test_predictions_are_those_of_all_views_merged(run_folder, monkeypatch):
    packed = open_packed(run_folder.flags[1], str(run_folder.flags[3]))
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


def test_files_are_named_by_the_run(run_folder, archive):
    Path("some").mkdir()
    for file in archive.val.files[:5]:
        Path("some", Path(file).name).write_bytes(archive.read(file))
    rows = json.loads(call(predict, *argv("some --run runs/done --top 6 --json"), *ON_CPU).out)
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


def test_files_are_predicted_by_a_run_with_an_empty_recipe(finished_run, tmp_path, thin):
    """Classes and weights are in the checkpoint; only their names are missing."""
    shutil.copytree(finished_run.folder / "runs" / "done", tmp_path / "run")
    (tmp_path / "run" / "finetune" / "recipe.json").write_text("{}")
    draw_noise(tmp_path / "photo.png", (64, 64), seed=1)
    run = ["--run", tmp_path / "run", "--stage", "finetune"]
    ran = call(predict, tmp_path / "photo.png", *run, *ON_CPU)
    assert (ran.status, len(ran.out.splitlines())) == (0, 6), ran.err


def test_predict_takes_the_stage_that_is_named(run_folder):
    assert (
        call(predict, "--stage", "base", "--device", "cpu").out
        == "runs/done/base/test-predictions.txt\n"
    )


# --- predictions of pretrained networks ---


def test_files_are_named_by_a_pretrained_network(tree, cell_means, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = sorted((tree / TREE_CLASSES[0]).glob("*.JPEG"))[0]
    ran = call(
        predict,
        one,
        tree / TREE_CLASSES[1],
        *argv("--arch reader --top 3 --tta ten --device cpu --json --explain views.png"),
    )
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert (
        len(rows) == 18
        and rows[0]["file"] == str(one)
        and [row["rank"] for row in rows[:3]] == [1, 2, 3]
    )
    expected, _ = by_hand(tree, "ten")
    files = labelled_images(tree, IMAGENET_WNIDS).files
    best = expected[files.index(one)].topk(3)
    assert [row["id"] for row in rows[:3]] == [IMAGENET_WNIDS[i] for i in best.indices]
    assert [row["class"] for row in rows[:3]] == [f"name {i}" for i in best.indices]
    assert [row["probability"] for row in rows[:3]] == pytest.approx(best.values.tolist(), rel=1e-2)
    assert Image.open("views.png").size[0] > 400
    table = call(predict, one, "--arch", "reader", "--device", "cpu").out.splitlines()
    assert table[0].split() == ["file", "rank", "class", "id", "probability"] and len(table) == 6


def test_unreadable_files_are_named_and_the_others_still_predicted(tree, cell_means, tmp_path):
    draw_noise(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    ran = call(predict, tmp_path, "--arch", "reader", "--device", "cpu", "--json")
    assert ran.status == 1 and "a.png: is not an image" in ran.err and "Traceback" not in ran.err
    assert {row["file"] for row in json.loads(ran.out)} == {str(tmp_path / "b.png")}
    ran = call(predict, tmp_path / "a.png", "--arch", "reader", "--device", "cpu")
    assert ran.status == 1 and ran.out == ""


def test_predictions_that_cannot_be_made_are_refused(tree, cell_means, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(predict, ["nowhere.png", "--arch", "reader"], "nowhere.png")
    refused(predict, [tmp_path, "--arch", "reader"], "contains no images")
    refused(predict, [tree, "--arch", "reader", "--tta", "six"], "six")
    refused(predict, [tree, "--arch", "reader", "--merge", "six"], "six")
    refused(predict, [tree, "--arch", "reader", "--top", "0"], "--top")
    refused(predict, [tree, "--arch", "reader", "--out", "a.txt"], "--out")
    refused(predict, ["--arch", "reader"], "--arch")
    refused(predict, [tree], "no run")
    refused(predict, [tree, "--weights", "none"], "--weights")
    refused(predict, [tree, "--arch", "reader", "--data", "a.zip"], "--data")
    refused(predict, ["--top", "3"], "--top")
    refused(predict, [tree, "--arch", SMALL_ARCH, "--weights", "none", "--size", "-5"], "--size")


def test_an_image_turned_by_exif_is_read_upright(cell_means, tmp_path):
    draw_noise(tmp_path / "upright.png", (60, 100), seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "upright.png").rotate(90, expand=True).save(
        tmp_path / "turned.png", exif=exif
    )
    rows = json.loads(
        call(
            predict,
            tmp_path / "upright.png",
            tmp_path / "turned.png",
            *argv("--arch reader --device cpu --json --top 1"),
        ).out
    )
    assert rows[0]["id"] == rows[1]["id"] and rows[0]["probability"] == pytest.approx(
        rows[1]["probability"]
    )


# --- file names that are not text ---


def test_files_whose_names_are_no_text_are_predicted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.new("RGB", (70, 70)).save("a.png")
    os.rename("a.png", os.path.join(b"images", b"caf\xe9.png"))
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)
    )
    with thin_network() as patch:
        patch.setattr("torchvision.models.get_model", lambda *_, **__: network)
        ran = call(predict, "images", "--arch", "resnet18", "--weights", "none", "--json")
    assert ran.status == 0 and json.loads(ran.out)[0]["file"] == "images/caf\udce9.png"
