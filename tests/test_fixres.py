"""The stage and the command fixres."""

import json
from pathlib import Path

import pytest
import torch
from support import ON_CPU, argv, call, complaint, refused, thin_network

import tinynet
from tinynet import evaluate, fixres, train
from tinynet.compute import choose_compute
from tinynet.evaluation.predictor import Predictor
from tinynet.models.checkpoint import load_model
from tinynet.records import NOT_COMPARED, Gain, ScoreRow
from tinynet.resolution.activations import Distances, Distribution, FeatureRow
from tinynet.resolution.conclusions import best_size, conclude
from tinynet.resolution.crops import Policy
from tinynet.resolution.heads import fine_tuned
from tinynet.resolution.study import AS_IS, CONTROL, FITTED, NORMS, Study
from tinynet.runs import StageFolder
from tinynet.score.metrics import score

pytestmark = pytest.mark.usefixtures("thin")


# --- a run at other sizes ---


def test_fixres_trains_the_head_alone_and_on_at_its_size(sized_folder):
    ran = call(
        train,
        *argv("--stage fixres --run runs/done --out runs/fixed"),
        *argv("--size 48 --epochs 1 --batch 16 --json"),
        *ON_CPU,
        *sized_folder.flags,
    )
    (row,) = json.loads(ran.out)
    assert (row["stage"], row["size"]) == ("fixres", 48)
    before, _ = load_model(StageFolder("runs/done", "finetune").best, sized_folder.packed.wnids)
    after, size = load_model(StageFolder("runs/fixed", "fixres").best, sized_folder.packed.wnids)
    assert size == 48 and before.backbone.digest() == after.backbone.digest()
    assert not torch.equal(before.head[-1].weight, after.head[-1].weight)
    learnt = sum(p.numel() for p in before.head.parameters())
    assert (
        f"fixres: training {learnt:,} weights on" in ran.err
        and "finetune was trained at 32 px, fixres at 48" in ran.err
    )


def test_fixres_can_train_the_last_convolutions_too(sized_folder):
    ran = call(
        train,
        *argv("--stage fixres --run runs/base --out runs/last --size 48"),
        *argv("--epochs 1 --batch 16 --learn conv5 head --views 0"),
        *ON_CPU,
        *sized_folder.flags,
    )
    assert ran.status == 0, ran.err
    before, after = (
        load_model(path, sized_folder.packed.wnids)[0].backbone
        for path in (StageFolder("runs/base", "base").best, StageFolder("runs/last", "fixres").best)
    )
    same = {
        name: all(
            torch.equal(a, b) for a, b in zip(before.groups[name], after.groups[name], strict=True)
        )
        for name in before.groups
    }
    assert same == {"conv1": True, "conv2": True, "conv3": True, "conv4": True, "conv5": False}


def test_a_study_has_a_row_for_every_size_and_correction(size_study):
    mine = [row for row in size_study.rows if row["run"] == "runs/base" and row["split"] == "val"]
    assert [(row["size"], row["correction"]) for row in mine] == [
        (32, "as is"),
        (32, "fine-tuned"),
        *(
            (48, name)
            for name in (
                "as is",
                "frechet",
                "quantile",
                "batch norm",
                "fine-tuned",
                "trained on, own size",
            )
        ),
        *(
            (64, name)
            for name in ("as is", "frechet", "quantile", "batch norm", "trained on, own size")
        ),
    ]
    for row in mine:
        assert 0 <= row["low"] <= row["top1"] <= row["high"] <= 1 and row["pictures_per_second"] > 0
        assert (row["gain"] is None) == (row["correction"] == "as is")
        assert row["worst"] <= row["balanced"] and len(row["worst_class"].split()) > 1
    compared = [
        row for row in size_study.rows if row["split"] == "holdout" and "correction" not in row
    ]
    assert [row["method"] for row in compared] == ["antialias", "nearest"] and compared[1][
        "p"
    ] is not None
    beside = [row for row in size_study.rows if row["run"] == "runs/other"]
    assert {(row["trained"], row["size"], row["correction"]) for row in beside} == {
        (64, size, "as is") for size in (32, 48, 64)
    }


def test_gains_are_over_the_run_its_own_size_and_the_control(size_study):
    found = {
        (row["split"], row["size"], row["correction"]): row
        for row in size_study.rows
        if row["run"] == "runs/base" and "correction" in row
    }
    for (split, size, name), row in found.items():
        others = {"": (size, AS_IS), "_over_own": (32, AS_IS), "_over_control": (32, FITTED)}
        sized_folder = {
            "": name != AS_IS,
            "_over_own": (size, name) != (32, AS_IS),
            "_over_control": name == FITTED and size != 32,
        }
        for over, other in others.items():
            gain = (
                pytest.approx(row["top1"] - found[(split, *other)]["top1"])
                if sized_folder[over]
                else None
            )
            assert row[f"gain{over}"] == gain, (split, size, name, over)
            assert (row[f"p{over}"] is None) == (gain is None)


def test_a_head_trained_on_is_that_of_its_own_size(size_study, sized_runs, monkeypatch):
    monkeypatch.chdir(sized_runs.folder)
    for size, name, at in ((48, FITTED, 48), (32, CONTROL, 48), (32, CONTROL, 64)):
        fitted = Study(
            Predictor(
                StageFolder(size_study.out / str(size), "fixres"),
                sized_runs.packed,
                choose_compute("cpu", "float32"),
            )
        )
        part, rows = fitted.predictor.images("val")
        (row,) = (
            row
            for row in size_study.rows
            if (row["run"], row["split"], row["size"], row.get("correction"))
            == ("runs/base", "val", at, name)
        )
        assert row["loss"] == pytest.approx(
            score(fitted.predict("val", at), part.labels[rows]).loss, rel=1e-5
        )


def test_sizes_and_corrections_are_chosen_on_the_holdout():
    def row(split, size, name, top1):
        gain = Gain(0.1, p=0.1)
        return ScoreRow(
            run="r",
            split=split,
            size=size,
            correction=name,
            top1=top1,
            low=0,
            high=1,
            gain=gain,
            over={"own": gain, "control": NOT_COMPARED},
        )

    rows = [
        row(split, size, name, 0.9 if size == best and name in (AS_IS, good) else 0.1)
        for split, best, good in (("holdout", 48, "quantile"), ("val", 64, "frechet"))
        for size in (32, 48, 64)
        for name in (AS_IS, "frechet", "quantile")
    ]
    features = [
        FeatureRow(size, name, count, Distribution(zeros, 1, 9, {}), Distances(ks, 0.1), [])
        for size in (32, 48, 64)
        for name, count, zeros, ks in (("a", 1, 0.5, 0.1), ("b", 3, 0.1, 0.3))
    ]
    cost = {("r", size): 1.0 for size in (32, 48, 64)}
    assert best_size(rows) == 48
    said = conclude(rows, features, Policy(train=32, resize=32, test=32), 48, cost)
    assert "is at 48 px: val top-1 10.00%" in said[0]
    assert "'quantile' at 48 px: val top-1 10.00%" in said[1]
    # each feature counts by its values
    assert "at 48 px 20.0% of the features are exactly zero" in said[2]
    assert "to the training size 0.250" in said[2]


def test_a_view_costs_what_its_side_costs(size_study):
    costs = {
        (row["run"], row["split"], row["views"], row["size"]): row["seconds"]
        for row in json.loads((size_study.out / "sizes.json").read_text())["costs"]
    }
    once = costs["runs/base", "val", "none", 32]
    assert costs["runs/base", "val", "flip", 32] == pytest.approx(2 * once)
    assert costs["runs/base", "val", "scales:32,64", 32] == pytest.approx(
        once + costs["runs/base", "val", "none", 64]
    )


def test_heads_go_on_from_the_stage_that_is_studied(sized_folder):
    predictor = Predictor(
        StageFolder("runs/done", "base"), sized_folder.packed, choose_compute("cpu", "float32")
    )
    assert list(fine_tuned(predictor, [48], "antialias", Path("ofbase"), ())) == [48]
    start, fitted, last = (
        load_model(folder.best, sized_folder.packed.wnids)[0].backbone.digest()
        for folder in (
            StageFolder("runs/done", "base"),
            StageFolder("ofbase/48", "fixres"),
            StageFolder("runs/done", "finetune"),
        )
    )
    assert start == fitted != last
    refused(
        fixres,
        [*argv("--run runs/done --sizes 48 --fit 48 --out ofbase"), *ON_CPU, *sized_folder.flags],
        "starting weights",
    )


def test_what_another_run_began_is_refused_before_anything_is_trained(sized_folder):
    other, mine = (
        Predictor(
            StageFolder("runs/done", stage), sized_folder.packed, choose_compute("cpu", "float32")
        )
        for stage in ("finetune", "base")
    )
    fine_tuned(other, [64], "antialias", Path("begun"), ())
    StageFolder("begun/64", "fixres").scores.unlink()  # as if it had been stopped
    complaint(
        lambda: fine_tuned(mine, [48, 64], "antialias", Path("begun"), ()),
        "64",
        "starting weights",
    )
    assert not Path("begun/48").exists()


def test_the_run_is_saved_with_the_batch_norms_that_are_best_on_the_holdout(
    sized_folder, size_study
):
    found = {
        (row["split"], row["size"]): row
        for row in size_study.rows
        if (row["run"], row.get("correction")) == ("runs/base", NORMS)
    }
    best = max((48, 64), key=lambda size: found["holdout", size]["top1"])
    folder = StageFolder(sized_folder.folder / "kept", "base")
    (row,) = [json.loads(line) for line in folder.scores.read_text().splitlines()]
    ran = call(evaluate, "--run", "kept", "--json", *ON_CPU, *sized_folder.flags)
    held, val = json.loads(ran.out)
    assert held["size"] == val["size"] == row["size"] == best
    assert f"saved kept, with batch norms recomputed at {best} px" in size_study.err
    for one, split in ((row, "holdout"), (held, "holdout"), (val, "val")):
        assert {key: one[key] for key in ("n", "top1", "loss")} == pytest.approx(
            {key: found[split, best][key] for key in ("n", "top1", "loss")}
        )
    before, after = (
        load_model(path, sized_folder.packed.wnids)[0].state_dict()
        for path in (sized_folder.folder / "runs/base/base/best.pt", folder.best)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name or "num_batches" in name for name in changed)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--sizes", "48", "--keep", "runs"), ["--keep runs", "already exists"]),
        (("--sizes", "32", "--keep", "new"), ["--keep new", "32 px", "another --size"]),
        (("--sizes", "48", "--keep", "runs/base/base/best.pt/new"), ["best.pt", "another place"]),
        (("--sizes", "48", "--keep", "new", "--methods", "nearest"), ["nearest", "without --keep"]),
    ],
)
def test_a_run_that_cannot_be_saved_is_refused_before_anything_is_computed(
    sized_folder, flags, words
):
    refused(
        fixres,
        ["--run", "runs/base", *flags, "--no-fit", "--out", "none", *ON_CPU, *sized_folder.flags],
        *words,
    )


def test_what_was_fitted_of_another_run_is_not_taken_for_this_one(sized_folder, size_study):
    refused(
        fixres,
        [*argv("--run runs/other --sizes 48 --fit 48 --out story"), *ON_CPU, *sized_folder.flags],
        "48",
        "starting weights",
    )


def test_a_study_is_a_folder_with_numbers_words_and_images(size_study):
    stored = json.loads((size_study.out / "sizes.json").read_text())
    assert len(stored["conclusions"]) == 3 and all(
        sentence in size_study.err for sentence in stored["conclusions"]
    )
    assert (size_study.out / "conclusions.txt").read_text().splitlines() == stored["conclusions"]
    recipe = json.loads((size_study.out.parent / "runs/base/base/recipe.json").read_text())
    assert all(stored[key] == recipe[key] for key in ("data_digest", "split_digest"))
    assert (
        stored["command"]
        and stored["device"]["precision"] == "float32"
        and stored["device"]["processor"]
    )
    held = {
        row["size"]: row["top1"]
        for row in stored["rows"]
        if (row["split"], row["correction"]) == ("holdout", AS_IS)
    }
    best = next(size for size in held if held[size] == max(held.values()))
    assert f"is at {best} px" in stored["conclusions"][0]
    for image in ("accuracy", "activations", "cost", "seen", "grid"):
        assert (size_study.out / f"{image}.png").read_bytes().startswith(b"\x89PNG")
    assert {row["run"] for row in stored["costs"]} == {"runs/base", "runs/other"}


def test_what_a_study_trained_is_not_trained_again(size_study, sized_runs, monkeypatch):
    monkeypatch.chdir(sized_runs.folder)
    before = (size_study.out / "48" / "fixres" / "best.pt").stat().st_mtime_ns
    predictor = Predictor(
        StageFolder("runs/base", "base"), sized_runs.packed, choose_compute("cpu", "float32")
    )
    fine_tuned(predictor, [48], "antialias", size_study.out, ())
    assert (size_study.out / "48" / "fixres" / "best.pt").stat().st_mtime_ns == before


# --- the command ---


def test_a_policy_of_ones_own_prints_f_the_ratio_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(
        fixres,
        *argv("--policy --train-scale 0.08 1 --train-size 224"),
        *argv("--test-resize 256 --test-size 224 --json --out drawn"),
    )
    square, any_ratio = json.loads(ran.out)
    assert (round(square["F"], 5), round(square["object_ratio"], 5)) == (0.70824, 0.80942)
    assert square["test_at"] == 316 and any_ratio["F"] == pytest.approx(0.667, abs=5e-4)
    assert (tmp_path / "drawn" / "seen.png").is_file()


def test_the_policies_of_the_recipes_need_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = call(fixres, "--policy")
    assert (
        ran.status == 0
        and "tuned, finetune" in ran.out
        and "1.1636" in ran.out
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--run", "runs/base", "--sizes", "20"), ("--size 20", "32")),
        (("--run", "runs/base", "--fit", "20"), ("--fit 20", "32")),
        (("--run", "runs/base", "--fit"), ("--fit", "at least one")),
        (("--run", "runs/base", "--fit", "48", "--no-fit"), ("--no-fit", "not allowed")),
        (("--run", "runs/base", "--fit", "48", "--methods", "nearest"), ("nearest", "antialias")),
        (("--run", "runs/base", "--methods", "sinc"), ("sinc", "lanczos")),
        (("--run", "runs/none"), ("runs/none", "not a run")),
        (("--run", "runs/base", "--train-size", "64"), ("--train-size",)),
        (("--policy", "--run", "runs/base"), ("--run",)),
        (("--policy", "--train-size", "64", "--train-scale", "1", "0.5"), ("1 to 0.5",)),
        (("--policy", "--train-scale", "0.5", "1"), ("--train-size",)),
        (
            ("--policy", "--train-size", "64", "--test-size", "96", "--test-resize", "64"),
            ("96", "64"),
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(sized_folder, flags, words):
    refused(fixres, flags if "--policy" in flags else (*flags, *sized_folder.flags), *words)


def test_a_run_that_is_adapted_to_a_size_is_not_studied(size_study, sized_folder):
    """Neither by the command nor from Python."""
    with thin_network():
        run = tinynet.Run(size_study.out / "48")
        complaint(lambda: run.resolution([48], device="cpu"), "already adapted", "base or finetune")
