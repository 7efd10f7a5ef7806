"""Runs: what a folder holds, which run is taken, the rows of scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import copy_run
from support import call, refused

from tinynet import evaluate, predict, runs
from tinynet.errors import InputError
from tinynet.records import ScoreRow
from tinynet.runs import StageFolder

pytestmark = pytest.mark.usefixtures("thin")


# --- what a run holds ---


def test_a_run_is_a_folder_that_holds_everything(finished_run):
    for stage in runs.WHOLE:
        folder = finished_run.folder / "runs" / "done" / stage
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
    runs.put_scores(path, map(ScoreRow.from_json, [row, *other]))
    runs.put_scores(path, [ScoreRow.from_json(row | dict(top1=0.2))])
    assert runs.read_rows(path) == [row | dict(top1=0.2), *other]


def test_a_worst_class_that_is_no_name_is_refused(tmp_path):
    folder = StageFolder(tmp_path, "base")
    folder.make()
    row = dict(split="val", views="none", merge="mean", size=32, top1=0.1, worst_class=3)
    folder.scores.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="line 1: worst_class is '3', not a string"):
        folder.read_scores()


# --- which run is taken ---


def test_the_newest_finished_run_is_taken(run_folder):
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


def test_what_is_no_run_is_answered_with_what_there_is(run_folder, tmp_path, monkeypatch):
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


# --- no run ---


@pytest.mark.parametrize("command", [evaluate, predict])
def test_without_a_run_there_is_nothing_to_score(empty_folder, command):
    assert refused(command, [], "runs/", "python -m tinynet.train --stage base") == 1
    assert (
        refused(
            command, ["--run", "nowhere"], "--run nowhere", "not a run", "python -m tinynet.train"
        )
        == 1
    )


# --- rows of scores ---


def test_rows_saved_elsewhere_take_the_place_of_the_runs_own(tmp_path):
    row = ScoreRow(split="val", views="none", merge="mean", size=32, top1=0.1)
    folder = StageFolder(tmp_path / "run", "base")
    folder.make()
    runs.put_scores(folder.scores, [row, replace(row, views="flip")])
    elsewhere = folder.with_results(tmp_path / "out")
    runs.put_scores(elsewhere.scores, [replace(row, top1=0.2)])
    assert [r.top1 for r in elsewhere.read_scores()] == [0.2, 0.1]
    assert folder.read_scores()[0] == row
    assert elsewhere.path == folder.path
