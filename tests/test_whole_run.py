"""A run to its end: all stages, a test size and views from the hold-out, or as many as fit."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import differences, score_rows
from support import SMALL, argv, call, refused, succeed, thin_network

import tinynet
from tinynet import evaluate, train
from tinynet.evaluation.use import usual_views
from tinynet.runs import STAGES, StageFolder
from tinynet.training.pace import Budget, Limits, plan_file
from tinynet.training.plans import Part

pytestmark = pytest.mark.usefixtures("thin")
WHOLE_RUN = (*SMALL, *argv("--epochs 2 --crop-side 28 32"))


@pytest.fixture(scope="module")
def place(finished_run, tmp_path_factory):
    """A folder with a whole run, runs/whole, and the flags that name the data."""
    folder = tmp_path_factory.mktemp("whole")
    with thin_network() as patch:
        patch.chdir(folder)
        flags = [*finished_run.flags[:2], "--cache", folder / "cache"]
        ran = call(train, *argv("--out runs/whole --json"), *WHOLE_RUN, *flags)
    assert ran.status == 0, ran.err
    return folder, flags, ran


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place


def test_all_stages_are_trained_and_fixres_at_the_best_size(here):
    _, _, ran = here
    rows = score_rows(ran)
    assert [row["stage"] for row in rows] == list(STAGES)
    sizes = {
        int(text.split(" at ")[1].removesuffix(" px").split(";")[0].removesuffix(" px")): float(
            text.split("%")[0]
        )
        for text in ran.err.split("by test size, before fixres: ")[1].split(";")[0].split(", ")
    }
    assert set(sizes) == {32, 40} and f"at {rows[2]['size']} px" in ran.err
    assert sizes[rows[2]["size"]] == max(sizes.values())
    recipe = StageFolder(Path("runs/whole"), "fixres").read_recipe()
    assert recipe["recipe"]["fixres"]["size"] == rows[2]["size"]
    assert recipe["start_stage"] == "finetune"
    assert recipe["recipe"]["fixres"]["epochs"] == 4  # --epochs is for the others


def test_evaluate_scores_the_run_with_the_views_that_its_hold_out_chose(here, monkeypatch):
    folder = StageFolder(Path("runs/whole"), "fixres")
    use = json.loads(Path("runs/whole/use.json").read_text())
    assert use["stage"] == "fixres" and set(use["holdout"]) == {"none", "flip", "flip+zoom"}
    assert usual_views(folder) == (() if use["views"] == "none" else (use["views"],))

    Path("runs/whole/use.json").write_text(json.dumps({**use, "views": "flip"}))
    command = argv("--run runs/whole --split val --device cpu --json")
    assert [row["views"] for row in score_rows(call(evaluate, *command))] == ["none", "flip"]
    rows = score_rows(call(evaluate, *command, "--tta", "none"))
    assert [row["views"] for row in rows] == ["none"]
    rows = score_rows(call(evaluate, *command, *argv("--stage base")))
    assert [row["views"] for row in rows] == ["none"]
    for text in ("{", '{"stage": 3}', '{"stage": "fixres", "views": "nonsense"}'):
        Path("runs/whole/use.json").write_text(text)
        assert refused(evaluate, command, "use.json", "--tta") == 2
    Path("runs/whole/use.json").write_text(json.dumps(use))


@pytest.mark.parametrize("last", ["base", "finetune"])
def test_a_run_that_was_stopped_between_its_stages_goes_on_to_the_end(here, tmp_path, last):
    shutil.copytree("runs/whole", tmp_path / "run")
    for name in STAGES[STAGES.index(last) + 1 :]:
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "use.json").unlink()
    succeed(train, "--resume", tmp_path / "run")
    runs = Path("runs/whole"), tmp_path / "run"
    for name in STAGES:
        logs = [
            [json.loads(line) for line in StageFolder(run, name).log.read_text().splitlines()]
            for run in runs
        ]
        assert not differences(*logs)
    use = [json.loads((run / "use.json").read_text()) for run in runs]
    assert use[0] == use[1]


def test_a_command_that_torchrun_starts_again_ends_the_run(here, monkeypatch, tmp_path):
    """It has no --resume, and fixres has the size that the hold-out has chosen before."""
    shutil.copytree("runs/whole", tmp_path / "run")
    (tmp_path / "run/fixres/scores.jsonl").unlink()
    (tmp_path / "run/use.json").unlink()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    ran = call(train, "--out", tmp_path / "run", "--json", *WHOLE_RUN, *here[1])
    sizes = [row["size"] for row in score_rows(here[2])]
    assert [row["size"] for row in score_rows(ran)] == sizes
    assert (tmp_path / "run/use.json").is_file()


def test_views_are_chosen_after_a_stop_before_it(here, tmp_path):
    shutil.copytree("runs/whole", tmp_path / "run")
    (tmp_path / "run/use.json").unlink()
    succeed(train, "--resume", tmp_path / "run")
    runs = (Path("runs/whole"), tmp_path / "run")
    use = [json.loads((run / "use.json").read_text()) for run in runs]
    assert use[0] == use[1]


def test_fit_leaves_a_run_that_resume_can_end(here, tmp_path):
    data, settings = here[1][1], dict(epochs=1, crop_side=(28, 32), weights="none", size=32)
    common = dict(hidden=(16,), holdout=0.25, batch=16, device="cpu", precision="float32")
    tinynet.fit(tmp_path / "run", data, "base", **settings, **common)
    run = tinynet.fit(tmp_path / "run", data, **settings, **common)
    recipe = StageFolder(tmp_path / "run", "finetune").read_recipe()
    assert recipe["stages"] == ["finetune", "fixres"] and run.folder.stage == "fixres"


def test_fixres_that_was_left_out_is_trained_by_its_own_command(here, tmp_path):
    run = tmp_path / "run"
    shutil.copytree("runs/whole", run)
    shutil.rmtree(run / "fixres")
    (run / "use.json").unlink()
    parts = [Part("finetune", "", 60.0), Part("fixres", "", 60.0)]
    Budget(1.5, parts, Limits("finetune", 1.0, 8.0, 1.0), 100.0).save(run)
    ran = call(train, "--resume", run, "--json")
    assert [row["stage"] for row in score_rows(ran)] == ["base", "finetune"]
    assert "fixres is left out" in ran.err and f"--stage fixres --run {run}" in ran.err
    assert json.loads((run / "use.json").read_text())["stage"] == "finetune"
    ran = call(
        train, *argv("--stage fixres --size 40 --batch 16 --device cpu --json"), "--run", run
    )
    assert [row["stage"] for row in score_rows(ran)] == ["fixres"]
    assert usual_views(StageFolder(run, "fixres")) == ()  # those of finetune are not its own


def test_a_stale_plan_is_not_that_of_a_new_run(here, tmp_path):
    """A run with minutes was stopped before it trained; another has its folder."""
    run = tmp_path / "run"
    run.mkdir()
    Budget(1.0, [Part("base", "", 60.0)], Limits("base", 1.0, 8.0, 1.0), 100.0).save(run)
    succeed(train, *argv("--stage base --out"), run, *SMALL, *here[1])
    assert not plan_file(run).exists()


@pytest.fixture
def quick(monkeypatch):
    """Rates are measured for a moment."""
    monkeypatch.setattr("tinynet.training.rates.SECONDS", 0.01)


def test_a_number_of_minutes_gives_a_plan_and_a_run(here, quick):
    _, flags, _ = here
    small = argv("--weights none --hidden 16 --holdout 0.25 --batch 16 --device cpu")
    ran = call(train, *argv("--minutes 0.7 --out runs/timed --json"), *small, *flags)
    rows = score_rows(ran)
    assert "plan for 0.7 minutes: conv4 and conv5 at 96 px" in ran.err
    assert [row["stage"] for row in rows] == list(STAGES)
    assert "took 0." in ran.err and "(planned: " in ran.err
    stored = json.loads(plan_file(Path("runs/timed")).read_text())
    assert set(stored["actual"]) == {*STAGES, "views"} and stored["spent"] < 0.7 * 60 * 1.15
    finetune = StageFolder(Path("runs/timed"), "finetune").read_recipe()["recipe"]["finetune"]
    assert finetune["size"] == 96 and finetune["trainable"] == ["conv4", "conv5", "head"]
    assert Path("runs/timed/use.json").is_file()
    again = call(train, "--resume", "runs/timed", "--json")
    assert [row["stage"] for row in score_rows(again)] == list(STAGES)


def test_a_machine_that_is_too_slow_is_told_the_shortest_plan(here, quick, monkeypatch):
    _, flags, _ = here
    small = argv("--weights none --hidden 16 --device cpu --minutes 0.0001 --out runs/none")
    assert refused(train, [*small, *flags], "--minutes 0.0001", "too short", "64 px") == 2
    assert not Path("runs/none").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--minutes 0", ["--minutes", "greater than 0"]),
        ("--minutes -3", ["--minutes", "greater than 0"]),
        ("--minutes nan", ["--minutes", "greater than 0"]),
        ("--minutes inf", ["--minutes", "greater than 0"]),
        ("--minutes soon", ["--minutes", "'soon' is not a number greater than 0"]),
        ("--minutes 5 --epochs 3", ["--minutes", "--epochs"]),
        ("--minutes 5 --epochs 3 --size 96 --stage base", ["--stage", "--epochs", "--size"]),
        ("--minutes 5 --schedule cosine", ["--schedule"]),
        ("--minutes 5 --resume runs/whole", ["--minutes", "new run"]),
        ("--minutes 5 --run runs/whole", ["--run"]),
        ("--minutes 5 --summary", ["--summary"]),
        ("--minutes 5 --recipe reference", ["reference"]),
    ],
)
def test_what_contradicts_minutes_is_named(here, text, words):
    assert refused(train, argv(text), *words) == 1
