"""A stage that is trained with several seeds, whose weights are averaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import (
    LATER_FLAGS,
    best_weights,
    interrupt_at,
    same_tensors,
    score_rows,
)
from support import ON_CPU, SMALL, argv, call, complaint, refused, succeed, thin_network

import tinynet
from tinynet import evaluate, train
from tinynet.models.checkpoint import load_model
from tinynet.models.digests import weights_digest
from tinynet.report import __main__ as report
from tinynet.runs import STAGES, StageFolder
from tinynet.training.recipes import TUNED

pytestmark = pytest.mark.usefixtures("thin")
LATER = (*argv("--stage finetune --run runs/done"), *LATER_FLAGS)
SOUP = (*LATER, "--soup", "2")


def training_of(run, seed):
    """The folder of one training of a stage that is an average."""
    return Path(run, "finetune", f"seed-{seed}")


@pytest.fixture(scope="module")
def place(finished_run, tmp_path_factory):
    """A folder with an average of two trainings, runs/both, and the trainings alone."""
    folder = tmp_path_factory.mktemp("soups")
    shutil.copytree(finished_run.folder / "runs/done", folder / "runs/done")
    with thin_network() as patch:
        patch.chdir(folder)
        ran = call(train, *SOUP, *argv("--seed 3 --out runs/both --json"))
        assert ran.status == 0, ran.err
        for seed in (3, 4):
            succeed(train, *LATER, *argv(f"--seed {seed} --out runs/{seed}"))
    return folder, ran


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place[1]


def test_a_stage_is_the_average_of_trainings_with_consecutive_seeds(here):
    weights = [best_weights(training_of("runs/both", seed)) for seed in (3, 4)]
    for seed, own in zip((3, 4), weights, strict=True):
        assert same_tensors(own, best_weights(f"runs/{seed}"))
    assert not same_tensors(*weights)
    average = best_weights("runs/both")
    for name, value in average.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert "training 2 of 2, seed 4" in here.err and "average of their weights" in here.err


def test_the_average_is_scored_with_norms_of_its_own(here):
    names = [name for name in best_weights("runs/both") if "running_mean" in name]
    ours, *others = (best_weights(run) for run in ("runs/both", "runs/3", "runs/4"))
    mean = {name: (others[0][name] + others[1][name]) / 2 for name in names}
    assert any(not torch.allclose(ours[name], mean[name]) for name in names)
    (row,) = score_rows(here)
    again = call(evaluate, *argv("--run runs/both --split holdout --json"), *ON_CPU)
    assert score_rows(again)[0]["loss"] == pytest.approx(row["loss"], rel=1e-3)
    assert score_rows(again)[0]["top1"] == row["top1"]


def test_an_average_is_reported_without_curves(here):
    succeed(report, *argv("runs/both --out page.html"))
    page = Path("page.html").read_text()
    (row,) = score_rows(here)
    assert f"hold-out top-1 {row['top1']:.1%}" in page and "no accuracy yet" not in page
    assert "in each of 2 trainings, weights averaged" in page and "3, 4" in page


def test_fixres_starts_from_the_average(here):
    succeed(train, *argv("--stage fixres --run runs/both --size 40 --out runs/adapted"), *ON_CPU)
    recipe = StageFolder(Path("runs/adapted"), "fixres").read_recipe()
    assert recipe["start_run"] == str(Path("runs/both").resolve())
    average, _ = load_model(Path("runs/both/finetune/best.pt"), tuple(recipe["classes"]))
    assert recipe["start_digest"] == weights_digest(average)
    shutil.rmtree("runs/adapted")


@pytest.mark.parametrize("question", [2, 6, 7, 10])
def test_a_stopped_average_goes_on_where_it_was(here, question, monkeypatch):
    """In its first training, between the two, and in its second."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, question)
        ran = call(train, *SOUP, *argv("--seed 3 --out runs/stopped"))
    assert ran.status == 130 and "--resume runs/stopped" in ran.err
    succeed(train, *argv("--resume runs/stopped"))
    assert same_tensors(best_weights("runs/stopped"), best_weights("runs/both"))
    recipes = [
        StageFolder(Path(run), "finetune").read_recipe() for run in ("runs/stopped", "runs/both")
    ]
    assert recipes[0]["recipe"] == recipes[1]["recipe"]
    refused(train, argv("--resume runs/stopped --restart"), "is finished")
    shutil.rmtree("runs/stopped")


def test_a_restarted_average_trains_all_of_it_again(here, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        call(train, *SOUP, *argv("--seed 3 --out runs/stopped"))
    first = training_of("runs/stopped", 3) / "finetune"
    before = (first / "best.pt").stat().st_mtime_ns
    succeed(train, *argv("--resume runs/stopped --restart"))
    assert (first / "best.pt").stat().st_mtime_ns > before
    assert same_tensors(best_weights("runs/stopped"), best_weights("runs/both"))
    shutil.rmtree("runs/stopped")


@pytest.mark.parametrize("scored", [True, False])
def test_an_average_that_was_killed_before_its_end_is_computed_again(here, scored):
    """The second training has another number of epochs, as with minutes, and its score or not."""
    shutil.copytree("runs/both", "runs/killed")
    stage = StageFolder(Path("runs/killed"), "finetune")
    last = StageFolder(training_of("runs/killed", 4), "finetune")
    for file in (stage.best, stage.scores, *([] if scored else [last.scores])):
        file.unlink()
    recipe = json.loads(last.recipe.read_text())
    recipe["recipe"]["finetune"]["epochs"] = 2.5
    last.recipe.write_text(json.dumps(recipe))
    succeed(train, *argv("--resume runs/killed"))
    if scored:  # else it is trained for half an epoch more
        assert same_tensors(best_weights("runs/killed"), best_weights("runs/both"))
    assert stage.read_recipe()["recipe"]["finetune"]["epochs"] == 2.25
    shutil.rmtree("runs/killed")


def test_trainings_of_another_recipe_are_not_averaged(here):
    shutil.copytree("runs/both", "runs/edited")
    stage = StageFolder(Path("runs/edited"), "finetune")
    for file in (stage.best, stage.scores):
        file.unlink()
    last = StageFolder(training_of("runs/edited", 4), "finetune").recipe
    recipe = json.loads(last.read_text())
    recipe["recipe"]["finetune"]["lr"] *= 2
    last.write_text(json.dumps(recipe))
    refused(train, argv("--resume runs/edited"), "seed-4", "different recipe or seed")
    shutil.rmtree("runs/edited")


def test_only_finetune_is_an_average(here, finished_run):
    refused(train, [*SMALL, *argv("--stage base --soup 2 --out x"), *finished_run.flags], "base")
    flags = argv("--stage fixres --run runs/done --soup 2 --out x")
    refused(train, flags, "fixres", "finetune only")
    refused(train, [*LATER, *argv("--soup 0 --out x")], "soup is 0", "1 (one training)")
    complaint(lambda: TUNED.override({"soup": 2}), "only finetune")
    head = {"soup": 2, "trainable": ("head",), "cached_epochs": 1}
    complaint(lambda: TUNED.override(head, ("finetune",)), "cached features")
    for stages in ("base", "fixres", ["base", "fixres"]):
        complaint(lambda stages=stages: tinynet.fit("x", stages=stages, soup=2), "soup", "finetune")
    assert not Path("x").exists()


def test_a_whole_run_averages_finetune_alone(here, finished_run):
    settings = dict(
        data=str(finished_run.flags[1]),
        device="cpu",
        precision="float32",
        hidden=[16],
        weights="none",
        epochs=1,
        holdout=0.25,
        batch=16,
        size=32,
        crop_side=[28, 32],
        soup=2,
    )
    run = tinynet.fit("runs/whole", **settings)
    assert tinynet.fit("runs/whole", **settings).folder.stage == "fixres"  # nothing is left
    complaint(
        lambda: tinynet.fit("runs/whole", **settings | {"soup": 3}), "soup=2 for finetune, not 3"
    )
    recipe = json.loads(Path("runs/whole/fixres/recipe.json").read_text())["recipe"]
    assert [recipe[stage]["soup"] for stage in STAGES] == [1, 2, 1]
    assert {path.name for path in Path("runs/whole/finetune").glob("seed-*")} == {
        "seed-0",
        "seed-1",
    }
    average = tinynet.Run(run.path, "finetune")
    (row, *_) = average.evaluate(split="holdout", device="cpu", precision="float32")
    assert row.top1 == StageFolder(run.path, "finetune").read_scores()[0].top1
    shutil.rmtree("runs/whole")


def test_an_average_goes_on_after_its_files_have_moved(here, finished_run, monkeypatch, tmp_path):
    shutil.copytree("runs/done", tmp_path / "start")
    data = shutil.copy(finished_run.flags[1], tmp_path / "before.zip")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        flags = [word if word != "runs/done" else tmp_path / "start" for word in SOUP]
        call(train, *flags, *argv("--seed 3 --out runs/stopped --data"), data)
    (tmp_path / "start").rename(tmp_path / "renamed")
    moved = Path(data).rename(tmp_path / "after.zip")
    Path("runs/stopped").rename("runs/moved")
    places = ("--data", moved, "--run", tmp_path / "renamed")
    succeed(train, *argv("--resume runs/moved"), *places)
    recipe = StageFolder(Path("runs/moved"), "finetune").read_recipe()
    assert (recipe["data"], recipe["start_run"]) == (str(moved), str(tmp_path / "renamed"))
    assert same_tensors(best_weights("runs/moved"), best_weights("runs/both"))
    shutil.rmtree("runs/moved")
