"""Every command on a folder of photographs of several sizes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_folders import draw_noise
from PIL import Image
from support import ON_CPU, argv, complaint, refused, succeed, thin_network

import tinynet
from tinynet import evaluate, fixres, pick, predict, train
from tinynet.report import __main__ as report
from tinynet.training import order, stage_start

FLAGS = [
    *argv("--weights none --hidden 16 --holdout 0.25 --size 32 --batch 8 --epochs 2"),
    *ON_CPU,
]
COUNTS = {"rose": 20, "tulip": 12, "dandelion": 6}
COLOURS = {"rose": (200, 40, 60), "tulip": (230, 200, 40), "dandelion": (60, 120, 220)}


def draw_flower(path, name, seed):
    """A coloured image with some noise: simple to learn."""
    random = np.random.RandomState(seed)
    height, width = random.randint(40, 90, 2)
    pixels = np.full((height, width, 3), COLOURS[name]) + random.randint(
        -30, 31, (height, width, 3)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    """A folder of photographs, and a run that was trained on it."""
    place = tmp_path_factory.mktemp("garden")
    for name, count in COUNTS.items():
        for number in range(count):
            draw_flower(place / f"photos/{name}/{number}.png", name, number)
    with pytest.MonkeyPatch.context() as patch, thin_network():
        patch.chdir(place)
        ran = succeed(train, "--data", "photos", *FLAGS, "--stage", "all", "--out", "run")
        assert "the centre square of each is stored at 40 px" in ran.err
    return place


@pytest.fixture
def home(garden, monkeypatch):
    monkeypatch.chdir(garden)
    with thin_network():
        yield garden


def test_the_run_says_what_it_was_trained_on(home):
    recipe = json.loads(Path("run/finetune/recipe.json").read_text())
    assert recipe["pack_size"] == 40 and recipe["labels"] is None and recipe["crops_for"] == 64
    assert list(recipe["classes"]) == ["dandelion", "rose", "tulip"]
    assert recipe["pictures"] == {"train": 24, "holdout": 7}
    run = tinynet.Run("run")
    finetune = tinynet.Run("run", "finetune").predictor()
    assert run.data.side == 40 and finetune.stage.crop_side == (29, 40)


def test_evaluate_gives_the_balanced_accuracy_and_the_worst_class(home):
    rows = json.loads(
        succeed(evaluate, "--run", "run", "--json", "--tta", "flip", "--device", "cpu").out
    )
    assert [row["split"] for row in rows] == ["holdout", "holdout", "val", "val"]
    for row in rows:
        assert 0 <= row["worst"] <= row["balanced"] <= 1
        assert row["worst_class"] in COUNTS
    assert rows[2]["n"] == 4 + 2 + 1
    refused(evaluate, ["--run", "run", "--split", "test", "--device", "cpu"], "no test images")


def test_the_other_commands(home, tmp_path):
    ran = succeed(predict, "photos/rose/0.png", "photos/tulip", "--run", "run", "--device", "cpu")
    assert "photos/rose/0.png" in ran.out
    ran = succeed(fixres, "--run", "run", "--size", 32, 48, "--out", tmp_path, "--device", "cpu")
    assert "48" in ran.out
    succeed(report, "run", "--out", tmp_path / "page.html")
    assert "dandelion" in (tmp_path / "page.html").read_text()
    flags = argv("--arch vgg16 --weights none --size 32 64 --minutes 5 --device cpu")
    ran = succeed(pick, "--data", "photos", *flags, "--out", tmp_path / "pick.png")
    assert "--pack-size 74" in ran.err and "--data photos" in ran.err
    refused(predict, ["--run", "run", "--device", "cpu", "--out", "x.txt"], "no test images")


def test_a_labelled_test_is_evaluated_and_predicted(home, tmp_path):
    for subset, count in (("train", 6), ("test", 3)):
        for name in COUNTS:
            for number in range(count):
                source = f"photos/{name}/{number}.png"
                target = tmp_path / "data" / subset / name / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    flags = ["--run", "run", "--data", tmp_path / "data", "--device", "cpu"]
    (row,) = json.loads(succeed(evaluate, *flags, "--split", "test", "--json").out)
    assert row["n"] == 9 and row["split"] == "test"
    succeed(predict, *flags, "--out", tmp_path / "predictions.txt")
    assert len((tmp_path / "predictions.txt").read_text().splitlines()) == 9


def test_balanced_training_and_labels_in_a_file(home, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file,label"]
    for name, count in COUNTS.items():
        for number in range(count):
            shutil.copy(f"photos/{name}/{number}.png", flat / f"{name}{number}.png")
            lines.append(f"{name}{number}.png,{name} of the garden")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    flags = ["--data", flat, "--labels", tmp_path / "labels.csv", "--balanced", *FLAGS]
    succeed(train, *flags, "--stage", "base", "--out", tmp_path / "run")
    recipe = json.loads((tmp_path / "run/base/recipe.json").read_text())
    assert recipe["labels"] == str(tmp_path / "labels.csv") and recipe["recipe"]["base"]["balanced"]
    ran = succeed(evaluate, "--run", tmp_path / "run", "--device", "cpu")
    assert "of the garden" in ran.out
    succeed(train, *ON_CPU, *argv("--stage finetune --epochs 1 --run"), tmp_path / "run")
    moved = tmp_path / "moved.csv"
    (tmp_path / "labels.csv").rename(moved)
    ran = succeed(evaluate, "--run", tmp_path / "run", "--device", "cpu")
    assert "labels.csv: no such file; the labels stored with the images" in ran.err
    refused(
        train,
        ["--stage", "finetune", "--run", tmp_path / "run", "--pack-size", 64, "--out", "other"],
        "--pack-size",
        "fixed by the base",
    )


def test_data_larger_than_half_of_the_memory_is_shuffled_in_blocks(home, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "available_memory", lambda: 1000)
    monkeypatch.setattr(order, "LEAST_BYTES", 0)
    monkeypatch.setattr(order, "BLOCK_BYTES", 3 * 40**2 * 4)
    flags = ["--data", "photos", *FLAGS, "--cached-epochs", 0, "--stage", "base"]
    ran = succeed(train, *flags, "--out", tmp_path / "run")
    assert "read from the disk in blocks of 4 images" in ran.err
    recipe = json.loads((tmp_path / "run/base/recipe.json").read_text())
    assert recipe["shuffle_block"] == 4
    # Later, with more memory, the run goes on in the same order.
    monkeypatch.setattr(stage_start, "block_for", lambda *_: pytest.fail("it is decided"))
    succeed(train, "--resume", tmp_path / "run")


def test_a_folder_that_is_no_data_set_takes_one_line(home, tmp_path):
    draw_noise(tmp_path / "one/rose/a.png")
    flags = [*FLAGS, "--stage", "base", "--out", tmp_path / "run"]
    refused(train, ["--data", tmp_path / "one", *flags], "one class, 'rose'")
    refused(train, ["--data", "photos", *flags, "--pack-size", 4], "--pack-size 4", "8 to 2048")
    refused(train, ["--data", "photos", *flags, "--labels", "no.csv"], "--labels", "no such file")


def test_fit_goes_on_with_the_labels_and_the_size_of_its_base(home, tmp_path):
    lines = [f"{name}/{n}.png,{name}" for name, count in COUNTS.items() for n in range(count)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    settings = dict(
        labels=tmp_path / "labels.csv", pack_size=40, epochs=1, batch=8, hidden=(16,), holdout=0.25
    )
    where = dict(data="photos", weights="none", size=32, device="cpu", precision="float32")
    run = tinynet.fit(tmp_path / "run", stages="base", **settings, **where)
    run = tinynet.fit(tmp_path / "run", stages="all", **settings, **where)
    assert run.data.side == 40 and run.folder.stage == "fixres"
    other = {**settings, "pack_size": 48}
    complaint(lambda: tinynet.fit(tmp_path / "run", stages="base", **other, **where), "pack_size")


def test_predictions_of_a_test_with_class_folders_have_their_folders(home, tmp_path):
    for name in COUNTS:
        for subset in ("train", "test"):
            for number in range(5 if subset == "train" else 1):
                draw_flower(tmp_path / f"data/{subset}/{name}/{number}.png", name, number)
    flags = ["--run", "run", "--data", tmp_path / "data", "--device", "cpu"]
    succeed(predict, *flags, "--out", tmp_path / "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"{name}/0.png" for name in sorted(COUNTS)]


def test_a_test_size_above_that_of_the_stored_images_is_noted(home):
    ran = succeed(evaluate, *argv("--run run --split val --size 64 --device cpu"))
    assert "64 px: the images are stored at 40 px, so they are enlarged" in ran.err
