"""A run to its end: all stages, a test size and views from the hold-out, or as many as fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import differences, score_rows
from support import SMALL, argv, call, complaint, refused, succeed, thin_network

import tinynet
from benchmarks import minutes
from tinynet import evaluate, train
from tinynet.evaluation.use import usual_views
from tinynet.runs import STAGES, StageFolder
from tinynet.training import loop, plans
from tinynet.training.config import RunConfig
from tinynet.training.pace import Budget, Limits, plan_file
from tinynet.training.plans import Part, Rates, larger_size, sizes_of
from tinynet.training.recipes import TUNED
from tinynet.values import as_minutes

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
    size = use["size"]
    larger = f"flip+scales:{size},{larger_size(size)}"
    assert use["stage"] == "fixres"
    assert set(use["holdout"]) == {"none", "flip", larger}
    assert use["holdout"][use["views"]] == max(use["holdout"].values())
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


def test_fit_compares_the_recipe_of_fixres_but_for_its_size(here):
    recipe = RunConfig.of(StageFolder(Path("runs/whole"), "fixres")).recipe
    factors = [2.0] * len(recipe.fixres.lr_factors)
    for name, value in {"dropout": 0.33, "lr_factors": tuple(factors)}.items():
        other = recipe.override({name: value}, ("fixres",))
        complaint(lambda other=other: tinynet.fit("runs/whole", recipe=other), name, "for fixres")
    # The hold-out chose the size, so that of a recipe is not compared.
    for same in (recipe, recipe.override({"size": 48}, ("fixres",))):
        assert tinynet.fit("runs/whole", recipe=same).folder.stage == "fixres"


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
    plan_file(run).write_text("{}")
    recipe = StageFolder(run, "base").recipe
    recipe.rename(tmp_path / "kept.json")  # lost: the plan is still that of this run
    call(train, *argv("--stage base --out"), run, *SMALL, *here[1])
    assert plan_file(run).exists()


TIMED = argv("--weights none --hidden 16 --holdout 0.25 --batch 16 --device cpu")


@pytest.fixture
def quick(monkeypatch):
    """Rates are not measured: those of a busy machine would give other plans."""

    def rates(config, kinds, *_):
        images = {size: 5_000.0 for sizes in sizes_of(kinds, config.recipe) for size in sizes}
        return Rates(images, images, images, 50_000.0)

    monkeypatch.setattr("tinynet.training.minutes.measure_rates", rates)


def test_a_number_of_minutes_gives_a_plan_and_a_run(here, quick):
    _, flags, _ = here
    ran = call(train, *argv("--minutes 7 --out runs/timed --json"), *TIMED, *flags)
    rows = score_rows(ran)
    assert "plan for 7 minutes: conv4 and conv5 at 96 px, average of two" in ran.err
    assert [row["stage"] for row in rows] == list(STAGES)
    assert "the run took " in ran.err and "(planned: " in ran.err
    stored = json.loads(plan_file(Path("runs/timed")).read_text())
    assert set(stored["actual"]) == {*STAGES, "average", "views"}
    assert sum(stored["actual"].values()) < stored["spent"] + 1
    finetune = StageFolder(Path("runs/timed"), "finetune").read_recipe()["recipe"]["finetune"]
    assert finetune["size"] == 96 and finetune["trainable"] == ["conv4", "conv5", "head"]
    assert finetune["soup"] == 2
    trainings = [
        StageFolder(Path(f"runs/timed/finetune/seed-{seed}"), "finetune") for seed in (0, 1)
    ]
    epochs = [RunConfig.of(training).recipe.finetune.epochs for training in trainings]
    assert finetune["epochs"] == pytest.approx(sum(epochs) / 2)
    assert not list(Path("runs/timed").rglob("seed-*/plan.json"))
    assert Path("runs/timed/use.json").is_file()
    again = call(train, "--resume", "runs/timed", "--json")
    assert [row["stage"] for row in score_rows(again)] == list(STAGES)
    assert json.loads(plan_file(Path("runs/timed")).read_text()) == stored


def test_a_timed_run_is_recorded_with_its_plan_and_scores(here, quick):
    _, flags, _ = here
    run = Path("runs/recorded")
    succeed(train, *argv(f"--minutes 7 --out {run}"), *TIMED, *flags)
    complaint(lambda: minutes.entry(run), "no score", "tinynet.evaluate")
    succeed(evaluate, *argv(f"--run {run} --device cpu"))
    result, stored = minutes.entry(run), json.loads(plan_file(run).read_text())
    epochs = StageFolder(run, "finetune").read_recipe()["recipe"]["finetune"]["epochs"]
    assert result["trained"] == (
        f"base at 96 px (12 epochs), then conv4, conv5, head at 96 px (2 times {epochs:.3g} "
        "epochs), "
        f"then fixres at {result['use']['size']} px"
    )
    assert (result["minutes"], result["seconds"]) == (7, stored["spent"])
    assert {row["split"] for row in result["rows"]} == {"holdout", "val"}
    assert len({row["precision"] for row in result["rows"]}) == 1
    Path(run / "use.json").unlink()
    complaint(lambda: minutes.entry(run), "views", "recorded")
    complaint(lambda: minutes.entry(Path("runs/whole")), "--minutes")


def test_stale_views_are_not_those_of_a_new_run_with_minutes(here, monkeypatch, tmp_path):
    """Here the rates are measured, for a moment, so that any plan may follow."""
    monkeypatch.setattr("tinynet.training.rates.SECONDS", 0.01)
    run = tmp_path / "run"
    run.mkdir()
    stale = dict(stage="fixres", size=112, views="flip", holdout={})
    (run / "use.json").write_text(json.dumps(stale))
    ran = call(train, *argv("--minutes 7 --out"), run, *TIMED, *here[1])
    assert ran.status == 0 and "hold-out top-1 by views" in ran.err


def test_a_machine_that_is_too_slow_is_told_the_shortest_plan(here):
    """Here the rates are measured, for a moment; so any base may be the fastest."""
    _, flags, _ = here
    small = argv("--weights none --hidden 16 --device cpu --minutes 0.0001 --out runs/none")
    words = "--minutes 0.0001", "too short", "shortest plan (base at ", " takes about "
    assert refused(train, [*small, *flags], *words) == 2
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


FITTED = dict(weights="none", hidden=(16,), holdout=0.25, batch=16, device="cpu")


@pytest.fixture
def fit(here):
    """`tinynet.fit` with small settings."""
    place, flags, _ = here

    def call(run, **settings):
        return tinynet.fit(run, **FITTED | dict(data=flags[1], cache=place / "cache") | settings)

    return call


def test_fit_keeps_to_a_number_of_minutes(fit, quick, capsys):
    run = fit("runs/fitted", minutes=7)
    assert run.folder.stage == "fixres" and Path("runs/fitted/use.json").is_file()
    printed = capsys.readouterr().err
    assert "plan for 7 minutes: conv4 and conv5 at 96 px, average of two" in printed
    assert "the run took " in printed
    before = plan_file(Path("runs/fitted")).read_text()
    for again in (dict(minutes=7), {}):  # nothing is left to do
        assert fit("runs/fitted", **again).folder.stage == "fixres"
    assert plan_file(Path("runs/fitted")).read_text() == before
    complaint(lambda: fit("runs/fitted", minutes=5), "minutes=7", "not 5", "runs/fitted")
    for other in (dict(epochs=4), dict(size=64, schedule="cosine")):
        complaint(lambda other=other: fit("runs/fitted", **other), *other, "cannot be set")
    for other in (dict(seed=1), dict(batch=32), dict(recipe="general"), dict(hidden=(8,))):
        complaint(lambda other=other: fit("runs/fitted", **other), *other, "was started with")
    complaint(lambda: fit("runs/whole", minutes=5), "runs/whole", "no minutes", "remove minutes")


def interrupt(fit, run, stage, monkeypatch):
    """Start a run with minutes, and interrupt it at the start of a stage."""
    with monkeypatch.context() as patch:
        patch.setattr("tinynet.training.single_stage.fit", _interrupted_in(stage))
        with pytest.raises(KeyboardInterrupt):
            fit(run, minutes=7)


@pytest.mark.parametrize("stage", ["base", "finetune"])
def test_fit_continues_a_run_with_the_minutes_that_are_left(fit, here, quick, monkeypatch, stage):
    run = Path(f"runs/stopped-{stage}")
    interrupt(fit, run, stage, monkeypatch)
    assert StageFolder(run, stage).started and not StageFolder(run, stage).finished
    before = json.loads(plan_file(run).read_text())
    moved = here[0] / "moved.zip"
    shutil.copy(here[1][1], moved)
    assert fit(run, data=moved).folder.stage == "fixres"
    after = json.loads(plan_file(run).read_text())
    assert all(after[name] == before[name] for name in ("minutes", "limits", "parts"))
    assert set(after["actual"]) == {*STAGES, "average", "views"}
    later = sum(after["actual"].values()) - sum(before["actual"].values())
    assert after["spent"] > before["spent"] + later - 1
    assert RunConfig.of(StageFolder(run, "fixres")).data == str(moved.resolve())


def test_fit_refuses_another_recipe_for_a_stage_that_is_not_started(fit, quick, monkeypatch):
    run = Path("runs/stopped-early")
    interrupt(fit, run, "base", monkeypatch)
    for stage in STAGES:
        other = TUNED.override({"dropout": 0.33}, (stage,))
        complaint(lambda other=other: fit(run, recipe=other), "dropout=", f"for {stage}, not 0.33")
    assert not StageFolder(run, "finetune").started
    assert fit(run, recipe=TUNED).folder.stage == "fixres"


def test_fit_compares_all_stages_of_a_run_with_minutes(fit, quick, monkeypatch):
    """Also after a fixres of another size, trained alone."""
    run = Path("runs/stopped-late")
    interrupt(fit, run, "finetune", monkeypatch)
    tinynet.fit(run, stages="fixres", size=40, device="cpu")
    complaint(lambda: fit(run, batch=32), "batch=16 for base, not 32")


def _interrupted_in(stage):
    """The training loop, interrupted at the start of a stage."""

    def interrupted(training, *arguments, **others):
        if stage == "base" or "conv5" in training.stage.trainable:
            raise KeyboardInterrupt
        return loop.fit(training, *arguments, **others)

    return interrupted


def test_a_stage_after_the_plan_has_no_minutes(fit, here, quick, monkeypatch):
    run = Path("runs/short")
    monkeypatch.setitem(plans.KINDS, "tuned", plans.TUNED_KINDS[:1])
    assert fit(run, minutes=7).folder.stage == "base"
    before = plan_file(run).read_text()
    assert (
        fit(run, stages="finetune", epochs=1, size=32, crop_side=[28, 32]).folder.stage
        == "finetune"
    )
    assert fit(run).folder.stage == "fixres"  # all stages
    assert plan_file(run).read_text() == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(minutes=0), ["minutes is 0", "greater than 0"]),
        (dict(minutes=float("nan")), ["minutes is nan"]),
        (dict(minutes=True), ["minutes is True"]),
        (dict(minutes="20"), ["minutes is '20'"]),
        (dict(minutes=5, epochs=3, size=64), ["minutes", "epochs, size"]),
        (dict(minutes=5, stages="base"), ["minutes", "stages"]),
        (dict(minutes=5, recipe="first"), ["no plan suits", "first", "remove minutes"]),
        (
            dict(minutes=5, recipe=TUNED.override({"schedule": "cosine"})),
            ["minutes", "schedule of the recipe"],
        ),
    ],
)
def test_what_contradicts_the_minutes_of_fit_is_named(here, settings, words):
    complaint(lambda: tinynet.fit("runs/none", data=here[1][1], **settings), *words)
    assert not Path("runs/none").exists()


def test_minutes_may_be_a_number_of_numpy():
    assert as_minutes(np.float32(20), "minutes") == 20.0
