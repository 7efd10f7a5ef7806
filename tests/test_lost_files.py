"""Runs whose files are lost or broken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import LATER_FLAGS, best_weights, same_tensors
from support import argv, call, refused, succeed, thin_network

from tinynet import evaluate, fixres, predict, train
from tinynet.report import __main__ as report_command
from tinynet.runs import StageFolder
from tinynet.training import single_stage


def test_a_stage_has_its_first_checkpoint_before_its_recipe(runs_copy, monkeypatch):
    order = []

    def watched(write):
        return lambda path, *rest: order.append(path.name) or write(path, *rest)

    for name in ("save_training", "write_json"):
        monkeypatch.setattr(single_stage, name, watched(getattr(single_stage, name)))
    succeed(train, "--stage", "finetune", "--run", "base", *LATER_FLAGS, "--out", "new")
    assert order[:2] == ["last.pt", "recipe.json"]


def test_resume_without_checkpoint_needs_restart(runs_copy):
    folder = StageFolder("stopped", "finetune")
    folder.last.unlink()
    assert folder.best.is_file() is False  # stopped within the first epoch
    refused(train, ["--resume", "stopped"], "stopped/finetune/last.pt", "missing", "--restart")
    ran = call(train, "--resume", "stopped", "--restart")
    assert ran.status == 0 and same_tensors(best_weights("stopped"), best_weights("whole"))


def test_the_best_weights_are_not_replaced_where_the_last_are_lost(runs_copy):
    folder = StageFolder("whole", "finetune")
    folder.last.unlink()
    (folder.path / "scores.jsonl").unlink()
    before = folder.best.read_bytes()
    refused(train, ["--resume", "whole"], "whole/finetune/last.pt", "missing")
    assert folder.best.read_bytes() == before


@pytest.mark.parametrize(
    "stage, file, content, words",
    [
        ("finetune", "last.pt", b"", ["last.pt", "--restart"]),
        ("finetune", "last.pt", b"PK\x03\x04 cut short", ["last.pt", "--restart"]),
        ("finetune", "last.pt", "base/base/last.pt", ["last.pt", "another training", "--restart"]),
        ("finetune", "last.pt", "base/base/best.pt", ["last.pt", "training", "--restart"]),
        ("finetune", "best.pt", None, ["best.pt", "no such checkpoint", "--restart"]),
        ("finetune", "best.pt", b"broken", ["best.pt", "--restart"]),
        ("finetune", "best.pt", "whole/finetune/last.pt", ["best.pt", "--restart"]),
        (
            "finetune",
            "log.jsonl",
            b'{"kind": "step", "step": 1}\nno row\n',
            ["log.jsonl, line 2", "not JSON"],
        ),
        ("finetune", "log.jsonl", b"[1, 2]\n", ["log.jsonl, line 1", "list"]),
        (
            "finetune",
            "log.jsonl",
            b'{"kind": "step", "step": "one"}\n',
            ["log.jsonl, line 1", "step"],
        ),
        ("finetune", "log.jsonl", b"\xff\xfe\x00\n", ["log.jsonl", "not text"]),
        ("finetune", "recipe.json", b"[]", ["recipe.json", "list"]),
        ("finetune", "recipe.json", b'{"recipe": 3}', ["recipe.json", "recipe is '3'"]),
        ("finetune", "recipe.json", b"[" * 100_000, ["recipe.json"]),
    ],
)
def test_what_a_stage_holds_is_looked_at_before_anything_is_written(
    runs_copy, stage, file, content, words
):
    shutil.copytree("whole", "broken")
    folder = StageFolder("broken", stage)
    (folder.path / "scores.jsonl").unlink()
    path = folder.path / file
    bytes_before = Path(content).read_bytes() if isinstance(content, str) else content
    path.unlink()
    if bytes_before is not None:
        path.write_bytes(bytes_before)
    refused(train, ["--resume", "broken"], *words)


def put_value(state, *path, value):
    """Another value somewhere inside."""
    *outer, last = path
    for key in outer:
        state = state[key]
    state[last] = value


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda state: put_value(
                state, "schedule", "last_epoch", value=state["schedule"]["last_epoch"] + 1
            ),
            ["the schedule"],
        ),
        (lambda state: put_value(state, "schedule", "last_epoch", value=0), ["the schedule"]),
        (
            lambda state: put_value(
                state, "optimizer", "param_groups", 0, "lr", value=float("nan")
            ),
            ["a learning rate"],
        ),
        (lambda state: put_value(state, "loss_sum", value=float("nan")), ["loss_sum"]),
        (
            lambda state: put_value(state, "module", value={}),
            ["does not belong to finetune", "Missing key"],
        ),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(runs_copy, change, words):
    path = StageFolder("stopped", "finetune").last
    stored = torch.load(path, weights_only=True)
    change(stored["state"])
    torch.save(stored, path)
    refused(train, ["--resume", "stopped"], "stopped/finetune/last.pt", "--restart", *words)


@pytest.fixture(scope="module")
def other_seed(stopped_runs):
    """The same finetune with another seed, finished."""
    with pytest.MonkeyPatch.context() as patch, thin_network():
        patch.chdir(stopped_runs)
        succeed(
            train,
            *argv("--stage finetune --run base"),
            *LATER_FLAGS,
            *argv("--seed 1 --out seed-1"),
        )
    return stopped_runs / "seed-1"


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
@pytest.mark.parametrize("source", ["seed-1/finetune", "base/base"])
def test_checkpoints_of_another_training_are_refused(other_seed, runs_copy, file, source):
    (Path("whole/finetune/scores.jsonl")).unlink()  # what says that it is finished
    shutil.copy(f"{source}/{file}", "whole/finetune")
    refused(train, ["--resume", "whole"], f"whole/finetune/{file}", "another training", "--restart")


@pytest.mark.parametrize(
    "command, flags",
    [
        (evaluate, ["--run", "whole"]),
        (predict, ["--run", "whole"]),
        (train, ["--stage", "fixres", "--run", "whole", "--out", "later"]),
    ],
)
def test_weights_of_another_training_are_not_scored_or_trained_on(
    other_seed, runs_copy, command, flags
):
    shutil.copy("seed-1/finetune/best.pt", "whole/finetune")
    refused(command, flags, "whole/finetune/best.pt", "another training", "use the file")


def test_epochs_that_a_finished_stage_was_not_trained_for_are_reported(runs_copy):
    path = StageFolder("whole", "finetune").recipe
    recipe = json.loads(path.read_text())
    epochs = recipe["recipe"]["finetune"]["epochs"]
    recipe["recipe"]["finetune"]["epochs"] += 3
    path.write_text(json.dumps(recipe))
    ran = call(train, "--resume", "whole")
    assert (
        ran.status == 0
        and f"finished after {epochs:g} epochs, but its recipe.json says {epochs + 3:g}" in ran.err
    )


def test_unfinished_runs_say_how_to_finish_them(runs_copy):
    refused(
        evaluate,
        argv("--run stopped --stage finetune"),
        "stopped/finetune is not finished",
        "--resume stopped",
    )
    StageFolder("whole", "finetune").best.unlink()
    refused(
        predict,
        argv("--run whole --stage finetune"),
        "whole/finetune/best.pt is missing",
        "--resume whole",
    )


def test_data_that_moved_is_found_by_the_environment(runs_copy, monkeypatch):
    recipe = json.loads(StageFolder("whole", "finetune").recipe.read_text())
    data = Path(recipe["data"])
    moved = shutil.copy(data, runs_copy / "elsewhere.zip")
    for stage in ("base", "finetune"):
        folder = StageFolder("whole", stage)
        if folder.started:
            folder.recipe.write_text(
                json.dumps(json.loads(folder.recipe.read_text()) | {"data": "/gone.zip"})
            )
    refused(evaluate, ["--run", "whole"], "/gone.zip", "--data")
    monkeypatch.setenv("TINYNET_DATA", str(moved))
    succeed(evaluate, "--run", "whole", "--cache", "cache")


def test_a_stage_whose_recipe_is_lost_is_not_begun_again(runs_copy):
    folder = StageFolder("whole", "finetune")
    folder.recipe.unlink()
    (folder.path / "scores.jsonl").unlink()
    before = folder.best.read_bytes()
    refused(
        train,
        [*argv("--stage finetune --run base"), *LATER_FLAGS, "--out", "whole"],
        "whole/finetune/recipe.json",
        "is missing",
        "a trained finetune",
    )
    assert folder.best.read_bytes() == before


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e300"])
@pytest.mark.parametrize(
    "row",
    [
        '{"kind": "step", "epoch": 0, "step": 1, "lr": 0.1, "loss": %s}',
        '{"kind": "step", "epoch": 0, "step": 1, "lr": %s, "loss": 0.1}',
    ],
)
def test_a_log_with_numbers_beyond_reason_is_refused(runs_copy, row, number):
    log = StageFolder("whole", "finetune").log
    before = log.read_text()
    log.write_text(before + row % number + "\n")
    line = before.count("\n") + 1
    refused(
        report_command,
        ["whole", "--data", "drawn.zip"],
        f"whole/finetune/log.jsonl, line {line}:",
        "not a finite number",
    )


def test_restart_starts_an_unfinished_stage_over(runs_copy):
    ran = call(train, "--resume", "stopped", "--restart")
    assert (
        ran.status == 0
        and "resumed at" not in ran.err
        and same_tensors(best_weights("stopped"), best_weights("whole"))
    )
    before = StageFolder("whole", "finetune").best.read_bytes()
    refused(train, ["--resume", "whole", "--restart"], "--restart", "whole is finished")
    assert StageFolder("whole", "finetune").best.read_bytes() == before
    refused(train, ["--restart"], "--restart", "--resume")


def test_missing_log_only_loses_curves(runs_copy):
    StageFolder("stopped", "finetune").log.unlink()
    ran = call(train, "--resume", "stopped")
    assert ran.status == 0 and same_tensors(best_weights("stopped"), best_weights("whole"))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda recipe: recipe["recipe"]["finetune"].update(epochs="two"),
            ["epochs is 'two'", "a number"],
        ),
        (
            lambda recipe: recipe["recipe"]["finetune"].update(lr=float("nan")),
            ["lr is nan", "a number"],
        ),
        (
            lambda recipe: recipe["recipe"]["finetune"].update(weight_decay=float("inf")),
            ["weight_decay is inf"],
        ),
        (lambda recipe: recipe["recipe"]["finetune"].update(batch=True), ["batch is True"]),
        (lambda recipe: recipe["recipe"]["finetune"].update(crop_side=[28, "x"]), ["crop_side"]),
        (lambda recipe: recipe["recipe"]["data"].update(split_seed=-1), ["split_seed is -1"]),
        (lambda recipe: recipe["recipe"].pop("network"), ["KeyError"]),
        (lambda recipe: recipe.update(stages=["basis"]), ["basis"]),
        (lambda recipe: recipe.update(data=3), ["data is '3'"]),
        (lambda recipe: recipe.update(device="cpu"), ["device", "not a JSON object"]),
        (lambda recipe: recipe.pop("data_digest"), ["has no data_digest"]),
    ],
)
def test_a_recipe_with_strange_values_is_refused(runs_copy, change, words):
    path = StageFolder("stopped", "finetune").recipe
    recipe = json.loads(path.read_text())
    change(recipe)
    path.write_text(json.dumps(recipe))
    refused(train, ["--resume", "stopped"], "stopped/finetune/recipe.json", *words)


FINISHED = {
    evaluate: ["--run", "whole", "--stage", "finetune", "--split", "val"],
    report_command: ["whole"],
    fixres: ["--run", "whole", "--stage", "finetune", "--sizes", "40", "--no-fit"],
}


@pytest.mark.parametrize(
    "command, file, content",
    [
        *((command, "scores.jsonl", b"no row\n") for command in FINISHED),
        *((command, "best.pt", b"broken") for command in FINISHED),
        (evaluate, "scores.jsonl", b'{"split": "val"}\n'),
        (evaluate, "scores.jsonl", b"\xff\n"),
        (
            evaluate,
            "scores.jsonl",
            b'{"split": "val", "views": "none", "merge": "mean", "size": 32, "top1": 0.1, '
            b'"n": "many"}\n',
        ),
    ],
)
def test_broken_files_of_a_finished_run_take_one_line(runs_copy, command, file, content):
    path = StageFolder("whole", "finetune").path / file
    path.write_bytes(content)
    flags = FINISHED[command]
    ran = call(command, *flags, *(("--data", "drawn.zip") if command is not report_command else ()))
    if (command, file) == (report_command, "best.pt"):
        assert ran.status == 0  # a report needs no weights where nothing is known of single images
        return
    assert ran.status == 2 and file in ran.err.splitlines()[-1] and "Traceback" not in ran.err
