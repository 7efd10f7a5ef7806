"""Runs whose data, weights or base have moved."""

import json
import shutil
import subprocess
from pathlib import Path

import torch
from small_runs import best_weights, interrupt_at, same_tensors
from support import argv, call, refused, succeed

from tinynet import train
from tinynet.data.copies import open_packed


def test_a_run_whose_base_data_and_weights_have_moved_goes_on(runs_copy):
    for old in ("base", "drawn.zip", "vgg.pth", "cache"):
        Path(old).rename(f"moved-{old}")
    refused(train, ["--resume", "stopped"], "data of this run no longer exists", "--data")
    open_packed("moved-drawn.zip")
    refused(
        train,
        argv("--resume stopped --data moved-drawn.zip"),
        "base/base: does not exist",
        "--run",
    )
    ran = call(train, "--resume", "stopped", "--data", "moved-drawn.zip", "--run", "moved-base")
    assert ran.status == 0 and same_tensors(best_weights("stopped"), best_weights("whole")), ran.err
    recipe = json.loads(Path("stopped/finetune/recipe.json").read_text())
    assert recipe["start_run"] == str(runs_copy / "moved-base") and recipe["data"] == str(
        runs_copy / "moved-drawn.zip"
    )
    refused(
        train, ["--resume", "stopped-base", "--data", "moved-drawn.zip"], "vgg.pth", "--weights"
    )
    succeed(train, *argv("--resume stopped-base --data moved-drawn.zip --weights moved-vgg.pth"))
    assert same_tensors(best_weights("stopped-base", "base"), best_weights("moved-base", "base"))


def test_another_base_or_other_weights_are_not_taken_for_those_that_moved(runs_copy):
    other = {name: tensor + 1 for name, tensor in torch.load("vgg.pth", weights_only=True).items()}
    torch.save(other, "other.pth")
    refused(
        train,
        argv("--resume stopped-base --weights other.pth"),
        "the starting weights changed",
        "--weights",
    )
    shutil.copytree("stopped-base", "another")
    shutil.copy("base/base/scores.jsonl", "another/base")
    checkpoint = torch.load("base/base/best.pt", weights_only=True)
    checkpoint["weights"]["head.0.running_mean"] += 1
    torch.save(checkpoint, "another/base/best.pt")
    refused(
        train, ["--resume", "stopped", "--run", "another"], "the starting weights changed", "--run"
    )
    refused(train, ["--resume", "stopped-base", "--run", "base"], "--run base", "remove --run")


def test_printed_commands_are_shell_quoted(runs_copy, monkeypatch):
    Path("stopped").rename("it's my run; $HOME")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        ran = call(train, "--resume", "it's my run; $HOME")
    assert ran.status == 130
    line = next(line for line in ran.err.splitlines() if "continue with: " in line)
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line.split('continue with: ')[1]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["python", "-m", "tinynet.train", "--resume", "it's my run; $HOME"]
