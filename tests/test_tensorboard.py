"""What TensorBoard shows: the rows of the log, training images, errors on the hold-out."""

import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ON_CPU, SMALL, argv, call, refused, succeed

from tinynet import train
from tinynet.records import StepRow, StopRow
from tinynet.report.tensorboard import TensorBoard
from tinynet.runs import StageFolder
from tinynet.training import stages

pytestmark = pytest.mark.usefixtures("thin")


event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture
def data(archive_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["--data", archive_path, "--cache", tmp_path / "cache"]


def events(folder):
    found = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"images": 0, "scalars": 0}
    )
    return found.Reload()


def scalars(found, name):
    events = found.Scalars(name)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


@pytest.mark.parametrize("stage", ["base", "finetune"])
def test_it_shows_what_the_log_says(data, stage):
    flags = ("--stage", "base", "--out", "run", *SMALL, *data)
    succeed(train, *flags, *(["--tensorboard"] if stage == "base" else []))
    if stage == "finetune":
        assert not Path("run/base/tensorboard").exists()
        succeed(
            train,
            *argv("--stage finetune --run run --epochs 2 --batch 16"),
            *argv("--size 32 --crop-side 28 32 --tensorboard"),
            *ON_CPU,
        )
    folder = Path("run") / stage
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = events(folder / "tensorboard")
    steps = [row for row in log if row["kind"] == "step"]
    epochs = [row for row in log if row["kind"] == "epoch"]
    assert scalars(found, "learning rate") == pytest.approx(
        {row["step"]: row["lr"] for row in steps}
    )
    assert scalars(found, "train/loss of a step") == pytest.approx(
        {row["step"]: row["loss"] for row in steps}
    )
    for name, key in (
        ("hold-out/top-1", "top1"),
        ("hold-out/top-5", "top5"),
        ("hold-out/loss", "loss"),
    ):
        assert scalars(found, name) == pytest.approx(
            {row["step"]: row["holdout"][key] for row in epochs}
        )
    assert [event.step for event in found.Images("hold-out/confusion")] == [
        row["step"] for row in epochs
    ]
    (grid,) = found.Images("training images")
    pixels = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
    assert pixels.shape[1] >= 8 * 32 and pixels.std() > 10


@pytest.mark.parametrize("done", [0, 5])
def test_what_a_resumed_run_does_again_is_shown_once(tmp_path, done):
    for before, last in ((0, 9), (done, 7)):
        board = TensorBoard()
        board.start(StageFolder(tmp_path, "base"), before)
        for step in range(before + 1, last + 1):
            board.row(StepRow(epoch=0, step=step, lr=0.1, loss=float(10 * before + step)))
        board.row(StopRow(epoch=0, step=last))
        board.close()
    assert scalars(events(tmp_path / "base" / "tensorboard"), "train/loss of a step") == {
        step: step if step <= done else 10 * done + step for step in range(1, 8)
    }


def test_a_run_that_was_stopped_goes_on_showing(data, monkeypatch):
    flags = ("--stage", "base", "--out", "run", *SMALL, "--epochs", "3", *data, "--tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(
            stages.console,
            "stop_on_interrupt",
            lambda: nullcontext(lambda: Path("run/base/last.pt").is_file()),
        )
        ran = call(train, *flags)
    assert ran.status == 130 and "--resume run --tensorboard" in ran.err
    succeed(train, "--resume", "run", "--tensorboard")
    found = events("run/base/tensorboard")
    log = [json.loads(line) for line in Path("run/base/log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in log if row["kind"] == "step"}
    assert scalars(found, "train/loss of a step") == pytest.approx(losses) and len(losses) > 3
    assert len(found.Images("training images")) == 1
    assert len(found.Images("hold-out/confusion")) == 3


def test_without_the_package_nothing_begins(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(
        train,
        [*argv("--stage base --out run"), *SMALL, *data, "--tensorboard"],
        "--tensorboard",
        "pip install -U tensorboard",
    )
