"""One stage: the best epoch; cached features and live training are one training."""

import dataclasses

import pytest
import torch
from small_runs import differences, of_kind, run_config
from support import CPU

from tinynet import runs
from tinynet.data.batches import batches
from tinynet.data.copies import open_packed
from tinynet.models.checkpoint import load_model
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import resize
from tinynet.training import single_stage, stages
from tinynet.training.config import split_of

pytestmark = pytest.mark.usefixtures("thin")


# --- the best epoch ---


def test_the_best_epoch_is_saved(whole_run, archive_path, cache_folder):
    packed, asked = (
        open_packed(archive_path, str(cache_folder)),
        run_config(archive_path, cache_folder),
    )
    for stage in runs.WHOLE:
        folder = StageFolder(whole_run, stage)
        rows = of_kind(runs.read_rows(folder.log), "epoch")
        best = max(rows, key=lambda row: row["holdout"]["top1"])  # the first among equals
        assert [row["improved"] for row in rows] == [True, best is rows[1]]
        model, _ = load_model(folder.best, packed.wnids)
        held = split_of(asked, packed).holdout
        found = view_probabilities(
            model, batches(packed.train, held), lambda images: resize(images, 32)
        )
        loss = score(found, packed.train.labels[held]).loss
        assert loss == pytest.approx(best["holdout"]["loss"], rel=1e-5)
        assert rows[0]["holdout"]["loss"] != pytest.approx(rows[1]["holdout"]["loss"], rel=1e-3)


def test_a_worse_epoch_does_not_replace_the_best(archive_path, cache_folder, tmp_path, monkeypatch):
    tops, score = iter([0.9, 0.1]), single_stage.score
    monkeypatch.setattr(
        single_stage,
        "score",
        lambda *arguments: dataclasses.replace(score(*arguments), top1=next(tops)),
    )
    stages.train(tmp_path / "run", run_config(archive_path, cache_folder, stages=("base",)), CPU)
    best, last = (
        torch.load(tmp_path / "run" / "base" / file, weights_only=True)
        for file in ("best.pt", "last.pt")
    )
    assert differences(
        {f"head.{name}": value for name, value in last["state"]["module"].items()},
        {name: value for name, value in best["weights"].items() if name.startswith("head.")},
    )


# --- cached features and live training are one training ---


def test_training_on_cached_random_views_is_live_training_bit_for_bit(
    archive_path, cache_folder, tmp_path
):
    for name, views in (("kept", 2), ("live", 0)):
        asked = run_config(
            archive_path, cache_folder, base={"cached_epochs": views, "ema": 0.8}, stages=("base",)
        )
        stages.train(tmp_path / name, asked, CPU)
    one, other = (
        {
            f: torch.load(tmp_path / name / "base" / f, weights_only=True)
            for f in ("best.pt", "last.pt")
        }
        for name in ("kept", "live")
    )
    for stored in (one["best.pt"], other["best.pt"]):
        assert stored.pop("origin")  # of the recipe, which has views or none
    assert not differences(one["best.pt"], other["best.pt"])
    for where, prefix in (("module", "head."), ("average", "module.head.")):
        live = {
            key: value for key, value in other["last.pt"]["state"][where].items() if "head." in key
        }
        head = {
            prefix + key.removeprefix("module."): value
            for key, value in one["last.pt"]["state"][where].items()
            if key != "n_averaged"
        }
        assert len(head) > 5 and not differences(head, live)
    logged = [runs.read_rows(tmp_path / name / "base" / "log.jsonl") for name in ("kept", "live")]
    assert len(logged[0]) == 8 and not differences(*logged)


def test_two_cached_views_of_alternating_flips_are_four_epochs_of_live_training(
    archive_path, cache_folder, tmp_path
):
    alternating = {"flip": "alternating", "crop_side": (), "epochs": 4}
    for name, views in (("kept", 2), ("live", 0)):
        asked = run_config(
            archive_path,
            cache_folder,
            base={**alternating, "cached_epochs": views},
            stages=("base",),
        )
        stages.train(tmp_path / name, asked, CPU)
    one, other = (
        torch.load(tmp_path / name / "base" / "last.pt", weights_only=True)["state"]["module"]
        for name in ("kept", "live")
    )
    # Features are extracted in batches of another size, which may change their last bits.
    for key, value in one.items():
        torch.testing.assert_close(value, other[f"head.{key}"], rtol=1e-4, atol=1e-5)
    losses = [
        [row["loss"] for row in runs.read_rows(tmp_path / name / "base" / "log.jsonl")]
        for name in ("kept", "live")
    ]
    assert len(losses[0]) == 16 and losses[0] == pytest.approx(losses[1], rel=1e-4)
