"""Runs whose files are lost or broken, whose surroundings have moved, or that lie where nothing can
be written.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support import SMALL, call, refused, thin_network

from tinynet import evaluate, fixres, predict, runs, train
from tinynet import select_views as select_command
from tinynet.data.packed import open_packed
from tinynet.models.vgg import Backbone
from tinynet.report import __main__ as report_command
from tinynet.runs import StageFolder
from tinynet.training import single_stage

LATER = (
    "--epochs",
    "2",
    "--batch",
    "16",
    "--size",
    "32",
    "--crop-side",
    "28",
    "32",
    "--device",
    "cpu",
    "--precision",
    "float32",
)


@pytest.fixture(scope="module")
def place(archive_path, tmp_path_factory):
    """A folder with weights, a finished base, a finetune on it that goes elsewhere, and one that
    was stopped.
    """
    root = tmp_path_factory.mktemp("place")
    with thin_network() as patch:
        patch.chdir(root)
        shutil.copy(archive_path, "drawn.zip")
        torch.save(
            {
                f"features.{name}": tensor
                for name, tensor in Backbone().features.state_dict().items()
            },
            "vgg.pth",
        )
        flags = list(SMALL)
        flags[flags.index("none")] = "vgg.pth"
        base = ("--stage", "base", "--data", "drawn.zip", *flags, "--epochs", "2")
        assert call(train, *base, "--out", "base").status == 0
        assert (
            call(train, "--stage", "finetune", "--run", "base", *LATER, "--out", "whole").status
            == 0
        )
        stop(patch, 2)
        assert (
            call(train, "--stage", "finetune", "--run", "base", *LATER, "--out", "stopped").status
            == 130
        )
        stop(patch, 3)
        assert call(train, *base, "--out", "stopped-base").status == 130
    return root


def stop(patch, questions):
    """Ctrl-C, for the loop that asks for the n-th time."""
    from contextlib import nullcontext

    left = [questions]

    def asked():
        left[0] -= 1
        return left[0] <= 0

    patch.setattr("tinynet.console.stop_on_interrupt", lambda: nullcontext(asked))


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A copy of the place, to be changed at will."""
    copy = tmp_path / "here"
    shutil.copytree(place, copy)
    for recipe in copy.rglob("recipe.json"):
        recipe.write_text(recipe.read_text().replace(str(place), str(copy)))
    monkeypatch.chdir(copy)
    open_packed("drawn.zip")  # its cache learns where it is now
    with thin_network():
        yield copy


def weights(run, stage="finetune"):
    return torch.load(StageFolder(run, stage).best, weights_only=True)["weights"]


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


# --- lost and broken ---


def test_a_stage_has_its_first_checkpoint_before_its_recipe(here, monkeypatch):
    order = []

    def watched(write):
        return lambda path, *rest: order.append(path.name) or write(path, *rest)

    for name in ("save_training", "write_json"):
        monkeypatch.setattr(single_stage, name, watched(getattr(single_stage, name)))
    assert call(train, "--stage", "finetune", "--run", "base", *LATER, "--out", "new").status == 0
    assert order[:2] == ["last.pt", "recipe.json"]


def test_resume_without_checkpoint_needs_restart(here):
    folder = StageFolder("stopped", "finetune")
    folder.last.unlink()
    assert folder.best.is_file() is False  # stopped within the first epoch
    refused(train, ["--resume", "stopped"], "stopped/finetune/last.pt", "missing", "--restart")
    ran = call(train, "--resume", "stopped", "--restart")
    assert ran.status == 0 and same(weights("stopped"), weights("whole"))


def test_the_best_weights_are_not_replaced_where_the_last_are_lost(here):
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
    here, stage, file, content, words
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


def put(state, *path, value):
    """Another value somewhere inside."""
    *outer, last = path
    for key in outer:
        state = state[key]
    state[last] = value


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda state: put(
                state, "schedule", "last_epoch", value=state["schedule"]["last_epoch"] + 1
            ),
            ["the schedule"],
        ),
        (lambda state: put(state, "schedule", "last_epoch", value=0), ["the schedule"]),
        (
            lambda state: put(state, "optimizer", "param_groups", 0, "lr", value=float("nan")),
            ["a learning rate"],
        ),
        (lambda state: put(state, "loss_sum", value=float("nan")), ["loss_sum"]),
        (
            lambda state: put(state, "module", value={}),
            ["does not belong to finetune", "Missing key"],
        ),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(here, change, words):
    path = StageFolder("stopped", "finetune").last
    stored = torch.load(path, weights_only=True)
    change(stored["state"])
    torch.save(stored, path)
    refused(train, ["--resume", "stopped"], "stopped/finetune/last.pt", "--restart", *words)


@pytest.fixture(scope="module")
def other_seed(place):
    """The same finetune with another seed, finished."""
    with pytest.MonkeyPatch.context() as patch, thin_network():
        patch.chdir(place)
        assert (
            call(
                train,
                "--stage",
                "finetune",
                "--run",
                "base",
                *LATER,
                "--seed",
                "1",
                "--out",
                "seed-1",
            ).status
            == 0
        )
    return place / "seed-1"


@pytest.mark.parametrize("file", ["last.pt", "best.pt"])
@pytest.mark.parametrize("source", ["seed-1/finetune", "base/base"])
def test_checkpoints_of_another_training_are_refused(other_seed, here, file, source):
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
def test_weights_of_another_training_are_not_scored_or_trained_on(other_seed, here, command, flags):
    shutil.copy("seed-1/finetune/best.pt", "whole/finetune")
    refused(command, flags, "whole/finetune/best.pt", "another training", "use the file")


def test_epochs_that_a_finished_stage_was_not_trained_for_are_reported(here):
    path = StageFolder("whole", "finetune").recipe
    recipe = json.loads(path.read_text())
    epochs = recipe["recipe"]["finetune"]["epochs"]
    recipe["recipe"]["finetune"]["epochs"] += 3
    path.write_text(json.dumps(recipe))
    ran = call(train, "--resume", "whole")
    assert (
        ran.status == 0
        and f"finished after {epochs} epochs, but its recipe.json says {epochs + 3}" in ran.err
    )


def test_unfinished_runs_say_how_to_finish_them(here):
    refused(
        evaluate,
        ["--run", "stopped", "--stage", "finetune"],
        "stopped/finetune is not finished",
        "--resume stopped",
    )
    StageFolder("whole", "finetune").best.unlink()
    refused(
        predict,
        ["--run", "whole", "--stage", "finetune"],
        "whole/finetune/best.pt is missing",
        "--resume whole",
    )


def test_data_that_moved_is_found_by_the_environment(here, monkeypatch):
    recipe = json.loads(StageFolder("whole", "finetune").recipe.read_text())
    data = Path(recipe["data"])
    moved = shutil.copy(data, here / "elsewhere.zip")
    for stage in ("base", "finetune"):
        folder = StageFolder("whole", stage)
        if folder.started:
            folder.recipe.write_text(
                json.dumps(json.loads(folder.recipe.read_text()) | {"data": "/gone.zip"})
            )
    refused(evaluate, ["--run", "whole"], "/gone.zip", "--data")
    monkeypatch.setenv("TINYNET_DATA", str(moved))
    assert call(evaluate, "--run", "whole", "--cache", "cache").status == 0


def test_a_stage_whose_recipe_is_lost_is_not_begun_again(here):
    folder = StageFolder("whole", "finetune")
    folder.recipe.unlink()
    (folder.path / "scores.jsonl").unlink()
    before = folder.best.read_bytes()
    refused(
        train,
        ["--stage", "finetune", "--run", "base", *LATER, "--out", "whole"],
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
def test_a_log_with_numbers_beyond_reason_is_refused(here, row, number):
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


def test_restart_starts_an_unfinished_stage_over(here):
    ran = call(train, "--resume", "stopped", "--restart")
    assert (
        ran.status == 0
        and "resumed at" not in ran.err
        and same(weights("stopped"), weights("whole"))
    )
    before = StageFolder("whole", "finetune").best.read_bytes()
    refused(train, ["--resume", "whole", "--restart"], "--restart", "whole is finished")
    assert StageFolder("whole", "finetune").best.read_bytes() == before
    refused(train, ["--restart"], "--restart", "--resume")


def test_missing_log_only_loses_curves(here):
    StageFolder("stopped", "finetune").log.unlink()
    ran = call(train, "--resume", "stopped")
    assert ran.status == 0 and same(weights("stopped"), weights("whole"))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda recipe: recipe["recipe"]["finetune"].update(epochs="two"),
            ["epochs is 'two'", "an integer"],
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
def test_a_recipe_with_strange_values_is_refused(here, change, words):
    path = StageFolder("stopped", "finetune").recipe
    recipe = json.loads(path.read_text())
    change(recipe)
    path.write_text(json.dumps(recipe))
    refused(train, ["--resume", "stopped"], "stopped/finetune/recipe.json", *words)


@pytest.mark.parametrize(
    "command, flags",
    [
        (evaluate, ["--run", "whole", "--stage", "finetune"]),
        (report_command, ["whole"]),
        (fixres, ["--run", "whole", "--stage", "finetune", "--sizes", "40", "--no-fit"]),
    ],
)
@pytest.mark.parametrize(
    "file, content",
    [
        ("scores.jsonl", b"no row\n"),
        ("scores.jsonl", b'{"split": "val"}\n'),
        ("scores.jsonl", b"\xff\n"),
        (
            "scores.jsonl",
            b'{"split": "val", "views": "none", "merge": "mean", "size": 32, "top1": 0.1, '
            b'"n": "many"}\n',
        ),
        ("best.pt", b"broken"),
    ],
)
def test_broken_files_of_a_finished_run_take_one_line(here, command, flags, file, content):
    path = StageFolder("whole", "finetune").path / file
    path.write_bytes(content)
    ran = call(command, *flags, *(("--data", "drawn.zip") if command is not report_command else ()))
    if (command, file) == (report_command, "best.pt"):
        assert ran.status == 0  # a report needs no weights where nothing is known of single images
        return
    assert ran.status == 2 and file in ran.err.splitlines()[-1] and "Traceback" not in ran.err


# --- moved ---


def test_a_run_whose_base_data_and_weights_have_moved_goes_on(here):
    for old in ("base", "drawn.zip", "vgg.pth", "cache"):
        Path(old).rename(f"moved-{old}")
    refused(train, ["--resume", "stopped"], "data of this run no longer exists", "--data")
    open_packed("moved-drawn.zip")
    refused(
        train,
        ["--resume", "stopped", "--data", "moved-drawn.zip"],
        "base/base: does not exist",
        "--run",
    )
    ran = call(train, "--resume", "stopped", "--data", "moved-drawn.zip", "--run", "moved-base")
    assert ran.status == 0 and same(weights("stopped"), weights("whole")), ran.err
    recipe = json.loads(Path("stopped/finetune/recipe.json").read_text())
    assert recipe["start_run"] == str(here / "moved-base") and recipe["data"] == str(
        here / "moved-drawn.zip"
    )
    refused(
        train, ["--resume", "stopped-base", "--data", "moved-drawn.zip"], "vgg.pth", "--weights"
    )
    assert (
        call(
            train,
            "--resume",
            "stopped-base",
            "--data",
            "moved-drawn.zip",
            "--weights",
            "moved-vgg.pth",
        ).status
        == 0
    )
    assert same(weights("stopped-base", "base"), weights("moved-base", "base"))


def test_another_base_or_other_weights_are_not_taken_for_those_that_moved(here):
    other = {name: tensor + 1 for name, tensor in torch.load("vgg.pth", weights_only=True).items()}
    torch.save(other, "other.pth")
    refused(
        train,
        ["--resume", "stopped-base", "--weights", "other.pth"],
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


def test_printed_commands_are_shell_quoted(here, monkeypatch):
    Path("stopped").rename("it's my run; $HOME")
    with monkeypatch.context() as patch:
        stop(patch, 1)
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


# --- places that cannot be written to ---


def forbid_writing(monkeypatch, folder):
    """Let nothing be written in a folder, whoever asks."""
    access, write = os.access, open

    def denied(path, mode=os.R_OK, **how):
        inside = Path(path).resolve().is_relative_to(folder)
        return not (inside and mode & os.W_OK) and access(path, mode, **how)

    def guarded(path, mode="r", *more, **how):
        if (
            not isinstance(path, int)
            and set(mode) & set("wa+")
            and Path(path).resolve().is_relative_to(folder)
        ):
            raise OSError(30, "Read-only file system", str(path))
        return write(path, mode, *more, **how)

    monkeypatch.setattr(os, "access", denied)
    monkeypatch.setattr("builtins.open", guarded)


@pytest.fixture
def read_only(here, monkeypatch):
    """The run `whole`, in which nothing can be written."""
    forbid_writing(monkeypatch, here / "whole")
    return here / "whole"


def test_a_run_in_a_read_only_place_is_scored_and_reported(read_only):
    before = {path: path.stat().st_mtime_ns for path in read_only.rglob("*")}
    ran = call(evaluate, "--run", "whole", "--data", "drawn.zip", "--tta", "flip", "--json")
    assert ran.status == 0 and len(json.loads(ran.out)) == 4
    assert "scores are not saved" in ran.err and "--out" in ran.err
    kept = call(
        evaluate,
        "--run",
        "whole",
        "--data",
        "drawn.zip",
        "--tta",
        "flip",
        "--json",
        "--out",
        "results",
    )
    assert kept.status == 0 and "not saved" not in kept.err
    places = [
        path.relative_to("results").as_posix()
        for path in sorted(Path("results").rglob("*"))
        if path.is_file()
    ]
    assert "whole/finetune/scores.jsonl" in places and len(places) == 5
    again = call(
        evaluate,
        "--run",
        "whole",
        "--data",
        "drawn.zip",
        "--tta",
        "flip",
        "--json",
        "--out",
        "results",
    )
    assert json.loads(again.out) == json.loads(kept.out)  # to the rate: nothing was computed again
    page = call(report_command, "whole", "--data", "drawn.zip", "--out", "results")
    assert page.status == 0, page.err
    html = Path("results/whole.html").read_text()
    assert "There are no results of single images" not in html and html.count("mirror")
    assert {path: path.stat().st_mtime_ns for path in read_only.rglob("*")} == before


def test_read_only_errors_suggest_out(read_only):
    for command, flags, why in (
        (report_command, ["whole"], "Read-only file system"),
        (predict, ["--run", "whole", "--data", "drawn.zip"], "whole/finetune: Permission denied"),
        (
            fixres,
            ["--run", "whole", "--data", "drawn.zip", "--sizes", "32", "--no-fit"],
            "Read-only file system",
        ),
    ):
        ran = call(command, *flags)
        assert ran.status == 2 and why in ran.err and "--out" in ran.err.splitlines()[-1], ran.err


def test_views_are_chosen_in_a_run_that_cannot_be_written_to(read_only):
    flags = ("--run", "whole", "--data", "drawn.zip", "--tta", "flip", "--most", "1", "--json")
    ran = call(select_command, *flags)
    assert ran.status == 0 and json.loads(ran.out) and "Traceback" not in ran.err, ran.err
    assert not (read_only / "finetune/views.png").exists()


def test_a_prepared_packed_copy_is_used_where_nothing_can_be_written(here, monkeypatch):
    wanted = open_packed("drawn.zip").contents
    os.utime("drawn.zip", (1, 1))  # so that it is not known at sight
    forbid_writing(monkeypatch, here / "cache")
    assert open_packed("drawn.zip").contents == wanted


def test_a_folder_in_place_of_predictions_is_refused_before_scoring(here, monkeypatch):
    monkeypatch.setattr(
        "tinynet.evaluation.predictor.Predictor.predict",
        lambda *_, **__: pytest.fail("scores before it looks"),
    )
    ran = call(predict, "--run", "whole", "--data", "drawn.zip", "--out", "base")
    assert ran.status == 2 and ran.err.splitlines()[-1].startswith("error: base: Is a directory")


def test_rows_kept_elsewhere_take_the_place_of_the_runs_own(tmp_path):
    row = dict(split="val", views="none", merge="mean", size=32, top1=0.1)
    folder = StageFolder(tmp_path / "run", "base")
    folder.make()
    runs.put_scores(folder.scores, [row, row | dict(views="flip")])
    elsewhere = folder.with_results(tmp_path / "out")
    runs.put_scores(elsewhere.scores, [row | dict(top1=0.2)])
    assert [r["top1"] for r in elsewhere.read_scores()] == [0.2, 0.1] and folder.read_scores()[0][
        "top1"
    ] == 0.1
    assert elsewhere.path == folder.path
