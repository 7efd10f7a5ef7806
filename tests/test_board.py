"""What TensorBoard is shown: the rows of the log, pictures as they are learnt from, mistakes of the hold-out."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SMALL, call, refused, thin_network

from tinynet import train
from tinynet.report.board import Board

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture(autouse=True)
def thin():
    with thin_network():
        yield


@pytest.fixture
def data(archive_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["--data", archive_path, "--cache", tmp_path / "cache"]


def events(folder):
    found = event_accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def scalars(found, name):
    return {event.step: event.value for event in found.Scalars(name)}


@pytest.mark.parametrize("stage", ["base", "finetune"])
def test_it_shows_what_the_log_says(data, stage):
    flags = ("--stage", "base", "--out", "run", *SMALL, *data)
    assert call(train, *flags, *(["--tensorboard"] if stage == "base" else [])).status == 0
    if stage == "finetune":
        assert not Path("run/base/tensorboard").exists()
        assert call(train, "--stage", "finetune", "--run", "run", "--epochs", "2", "--batch", "16", "--size", "32",
                    "--crop-side", "28", "32", "--tensorboard", "--device", "cpu", "--precision", "float32").status == 0
    folder = Path("run") / stage
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = events(folder / "tensorboard")
    steps = [row for row in log if row["kind"] == "step"]
    epochs = [row for row in log if row["kind"] == "epoch"]
    assert scalars(found, "learning rate") == pytest.approx({row["step"]: row["lr"] for row in steps})
    assert scalars(found, "train/loss of a step") == pytest.approx({row["step"]: row["loss"] for row in steps})
    for name, key in (("hold-out/top-1", "top1"), ("hold-out/top-5", "top5"), ("hold-out/loss", "loss")):
        assert scalars(found, name) == pytest.approx({row["step"]: row["holdout"][key] for row in epochs})
    assert [event.step for event in found.Images("hold-out/confusion")] == [row["step"] for row in epochs]
    grid, = found.Images("pictures as they are learnt from")
    pixels = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
    assert pixels.shape[1] >= 8 * 32 and pixels.std() > 10


def test_what_a_resumed_run_does_again_is_shown_once(tmp_path):
    for done, last in ((0, 9), (5, 7)):
        with Board(tmp_path, done) as board:
            for step in range(done + 1, last + 1):
                board.row({"kind": "step", "step": step, "lr": 0.1, "loss": float(10 * done + step)})
            board.row({"kind": "stopped", "step": last})
    assert scalars(events(tmp_path), "train/loss of a step") == {**{n: n for n in range(1, 6)}, 6: 56, 7: 57}


def test_without_the_package_nothing_begins(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(train, ["--stage", "base", "--out", "run", *SMALL, *data, "--tensorboard"], "--tensorboard",
            "pip install tensorboard")
