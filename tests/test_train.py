"""The command train: what it prints, how it is stopped, what it refuses."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torchvision
from small_runs import copy_run, score_rows
from support import SMALL, argv, call, files, full_disk, refused, succeed

from tinynet import runs, train
from tinynet.compute import choose_compute
from tinynet.data.copies import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.files import locked
from tinynet.runs import StageFolder
from tinynet.training.plan import recipe_fields

pytestmark = pytest.mark.usefixtures("thin")


# --- rows ---


def test_training_prints_one_array_of_rows_and_nothing_else(finished_run):
    base, finetune = score_rows(finished_run.ran)
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


# --- later stages ---


def test_finetune_goes_on_from_the_newest_finished_base(run_folder):
    copy_run("base-alone", -500, without=["finetune"])
    ran = call(
        train, "--stage", "finetune", "--json", "--epochs", "1", "--size", "32", "--device", "cpu"
    )
    (row,) = score_rows(ran)
    assert (row["run"], row["stage"]) == ("runs/base-alone", "finetune")
    base = Path("runs/done/base/best.pt").read_bytes()
    assert Path("runs/base-alone/base/best.pt").read_bytes() == base

    ran = call(
        train,
        *argv("--stage finetune --run runs/done --out runs/apart"),
        *argv("--json --epochs 1 --size 32 --device cpu"),
    )
    (row,) = score_rows(ran)
    assert row["run"] == "runs/apart" and not Path("runs/apart/base").exists()
    recipe = StageFolder(Path("runs/apart"), "finetune").read_recipe()
    assert recipe["start_run"] == str(run_folder.folder / "runs" / "done") and recipe["recipe"][
        "network"
    ]["hidden"] == [16]


def test_a_later_stage_has_the_seed_of_its_run_unless_told(run_folder):
    succeed(
        train, "--stage", "base", "--out", "runs/seeded", "--seed", 3, *SMALL, *run_folder.flags
    )
    for given, seed in (((), 3), (("--seed", 0), 0)):
        out = f"runs/seed-{seed}"
        succeed(
            train,
            *argv("--stage fixres --run runs/seeded --out"),
            out,
            *argv("--epochs 1 --size 32 --device cpu"),
            *given,
        )
        assert StageFolder(Path(out), "fixres").read_recipe()["seed"] == seed


def test_a_batch_of_more_images_than_there_are_is_reported(empty_folder):
    said = (
        "note: the batch size (60) exceeds the 54 training images, so each epoch is one step; "
        "use a smaller --batch"
    )
    for batch, run_folder in ((60, True), (54, False)):
        ran = call(
            train,
            "--stage",
            "base",
            "--out",
            f"run-{batch}",
            *SMALL,
            *empty_folder.flags,
            "--batch",
            batch,
        )
        assert ran.status == 0 and (said in ran.err) is run_folder


def test_a_summary_is_printed_and_nothing_is_left(empty_folder):
    ran = call(train, "--stage", "base", "--summary", *SMALL, *empty_folder.flags)
    assert ran.status == 0 and "Trainable params" in ran.out and "Conv2d" in ran.out
    assert not list(Path().iterdir())


# --- Ctrl-C ---


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
    monkeypatch.setattr("tinynet.training.loop.FLUSH_AFTER", 0.0)


def test_ctrl_c_stops_after_a_step_and_resume_ends_as_if_it_had_not(empty_folder, monkeypatch):
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, row=2)
        patch.setattr("tinynet.train.whole_run", lambda recipe: runs.WHOLE)
        ran = call(train, "--out", "stopped", "--json", *SMALL, *empty_folder.flags)
    assert ran.status == 130 and ran.out == ""
    assert "stopping after this step" in ran.err and "--resume stopped" in ran.err
    assert ran.err.splitlines()[-1] == "interrupted"
    # three steps, and that it was stopped
    assert len(runs.read_rows(Path("stopped/base/log.jsonl"))) == 4
    found = score_rows(
        call(train, "--resume", "stopped", "--json", "--device", "cpu", "--precision", "float32")
    )
    assert found == [{**row, "run": "stopped"} for row in score_rows(empty_folder.ran)]
    again = call(train, "--resume", "stopped", "--json", "--device", "cpu")
    assert score_rows(again) == found


def test_ctrl_c_twice_stops_at_once(empty_folder, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # jobs in the background of a shell ignore it
    press_ctrl_c(monkeypatch, row=2, times=2)
    ran = call(train, "--out", "stopped", *SMALL, *empty_folder.flags)
    assert ran.status == 130 and ran.err.splitlines()[-1] == "interrupted"
    assert len(runs.read_rows(Path("stopped/base/log.jsonl"))) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_features_are_extracted_keeps_them(empty_folder, monkeypatch, archive_path):
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
    assert score_rows(ran)[0]["loss"] == score_rows(empty_folder.ran)[0]["loss"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--stage middle", ["--stage", "'base', 'finetune', 'fixres', 'all'"]),
        ("--recipe best", ["--recipe", "'tuned', 'general', 'first', 'reference'"]),
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
def test_flags_that_do_not_exist_take_one_line(empty_folder, flags, words):
    assert refused(train, flags.split(), *words, "python -m tinynet.train") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", ["epochs is 0"]),
        ("--ema 1", ["ema is 1.0"]),
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
def test_what_cannot_be_trained_is_refused_in_one_line(empty_folder, flags, words):
    assert refused(train, [*SMALL, *empty_folder.flags, *flags.split()], *words) == 1


def test_what_is_no_run_is_not_resumed(empty_folder):
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
def test_a_resumed_run_keeps_its_arithmetic_unless_another_is_named(
    empty_folder, monkeypatch, flags, kept
):
    shutil.copytree(empty_folder.folder / "runs/done", "runs/mine")
    recipe = StageFolder("runs/mine", "finetune").recipe
    stored = json.loads(recipe.read_text())
    recipe.write_text(
        json.dumps({**stored, "device": {"type": "cpu", "precision": "int8", "floats": "float32"}})
    )
    devices = []
    monkeypatch.setattr(
        "tinynet.compute.choose_compute",
        lambda *chosen, **more: devices.append((*chosen, more["floats"])) or choose_compute("cpu"),
    )
    call(train, "--resume", "runs/mine", *flags)
    assert devices == [kept]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--trainable conv9 --cached-epochs 0", ["trainable", "conv9", "conv5"]),
        ("--learn conv9 --cached-epochs 0", ["trainable", "conv9"]),
        ("--lr-factors 1 1", ["lr_factors", "6 numbers"]),
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
def test_what_cannot_be_trained_leaves_nothing_behind(empty_folder, flags, words):
    Path("file.txt").write_text("a file in the way")
    if "resnet" in flags:
        torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "resnet.pth")
    refused(train, [*SMALL, *empty_folder.flags, *flags.split()], *words)


def test_data_that_is_no_archive_is_refused(empty_folder):
    Path("text.zip").write_text("no zip")
    Path("empty").mkdir()
    for name, word in (("text.zip", "not a zip"), ("empty", "no images")):
        refused(train, [*SMALL, "--data", name], name, word)


def test_a_run_that_is_there_is_not_overwritten(run_folder):
    assert (
        refused(
            train,
            [*SMALL, *run_folder.flags, "--out", "runs/done"],
            "runs/done",
            "--resume runs/done",
            "--out",
        )
        == 1
    )
    refused(train, ["--stage", "finetune", *SMALL[-4:]], "runs/done", "--resume runs/done", "--out")


def test_finetune_stays_with_the_images_of_its_base(run_folder, tmp_path):
    # of the same classes
    more = synthetic(tmp_path / "more.zip", classes=6, train=5, val=1, test=1)
    refused(
        train,
        [
            *argv("--stage finetune --run runs/done --out new --data"),
            more,
            "--cache",
            tmp_path / "cache",
            *argv("--size 32 --device cpu"),
        ],
        "runs/done/base",
        "the data changed",
        "--data",
    )


def test_a_run_is_not_resumed_with_other_data(empty_folder, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, row=2)
        call(train, "--out", "stopped", *SMALL, *empty_folder.flags)
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


def test_one_process_at_a_time_trains_a_stage(empty_folder):
    flags = [*SMALL, "--out", "new", *empty_folder.flags]
    with locked("new/base", None):
        refused(train, flags, "new/base", "another process", "--out")
    assert not files()


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="space is not reserved on this system"
)
def test_a_full_disk_takes_one_line_and_is_not_left_fuller(empty_folder, monkeypatch, archive_path):
    flags = [*SMALL, "--out", "new", "--data", archive_path]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full_disk)
        refused(train, [*flags, "--cache", "fresh"], "No space left", "--cache")

    # Room for the images, and then for one of the features' arrays.
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


def test_a_training_that_diverges_takes_one_line(empty_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(
        train,
        *argv("--stage base --out new"),
        *SMALL,
        *empty_folder.flags,
        *argv("--epochs 9 --lr 1e38"),
    )
    assert ran.status == 2 and ran.out == ""
    assert "--lr" in ran.err.splitlines()[-1] and "Traceback" not in ran.err


# --- help ---


def test_help_recipe_shows_the_value_of_every_stage_or_one_for_all():
    text = " ".join(call(train, "--help-recipe").out.split())
    for name in recipe_fields():
        assert f"--{name.replace('_', '-')} " in text or f"--no-{name}" in text, name
    assert "(tuned: 96 / 96 / 112)" in text and "(tuned: 256 / 64 / 256)" in text
    assert "(tuned: adamw)" in text
    for flags in (["--recipe", "general"], ["--arch", "resnet18"]):
        text = " ".join(call(train, "--help-recipe", *flags).out.split())
        assert "values of `general`" in text and "(general: 224 / 160 / 192)" in text


def test_help_fits_a_screen():
    assert len(call(train, "--help").out.splitlines()) <= 67
    assert "--lr-factors" not in call(train, "--help").out
