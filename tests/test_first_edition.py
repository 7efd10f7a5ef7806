"""A run, its caches and its scores, written by the first edition, are still read."""

import json
import platform
import shutil
from pathlib import Path

import pytest
from support import ON_CPU, SMALL, argv, call, thin_network

from tinynet import evaluate, runs, train
from tinynet.errors import InputError
from tinynet.report import __main__ as report
from tinynet.training.config import FORMAT, RunConfig, upgrade

FIRST = Path(__file__).parent / "data" / "first-edition"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the first edition's files; the network is thin, as it was."""
    shutil.copytree(FIRST, tmp_path / "first")
    monkeypatch.chdir(tmp_path / "first")
    with thin_network():
        yield


def folders():
    return sorted(path.name for path in Path("cache").glob("features-*"))


def test_it_is_of_format_1():
    stored = json.loads((FIRST / "run/base/recipe.json").read_text())
    assert "format" not in stored and stored["recipe"]["base"]["learn"] == ["head"]
    present = upgrade(stored)
    assert present["format"] == FORMAT and present["recipe"]["base"]["trainable"] == ["head"]
    assert present["recipe"]["network"]["features"] == stored["recipe"]["network"]["taps"]
    assert upgrade(present) == present
    assert RunConfig.read(stored) == RunConfig.read(present)


def test_a_newer_format_is_refused():
    stored = json.loads((FIRST / "run/base/recipe.json").read_text()) | {"format": FORMAT + 1}
    with pytest.raises(InputError, match="install a newer version"):
        RunConfig.read(stored)


def test_a_run_is_scored_as_before_from_its_cached_features(here):
    before = folders()
    shutil.rmtree("run/base/probabilities")
    flags = argv("--run run --data data.zip --cache cache --tta flip --json")
    ran = call(evaluate, *flags, *ON_CPU)
    assert ran.status == 0, ran.err
    assert folders() == before
    rows, expected = json.loads(ran.out), json.loads(Path("scores.json").read_text())
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys() | {"balanced", "worst", "worst_class"}
        assert row["top1"] == other["top1"] and row["loss"] == pytest.approx(other["loss"], 1e-4)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors draw other weights"
)
def test_training_from_its_cached_features_is_the_same_training(here):
    before = folders()
    small = list(SMALL)
    small[small.index("--hidden") + 1] = "4"
    flags = ["--stage", "base", *small, *argv("--batch 8 --epochs 2 --cached-epochs 2")]
    ran = call(
        train,
        *flags,
        *argv("--taps pool5:grid2 relu4_3:mean --out again --data data.zip --cache cache"),
    )
    assert ran.status == 0, ran.err
    assert folders() == before
    first, again = (runs.read_rows(Path(name, "base/log.jsonl")) for name in ("run", "again"))
    for row, other in zip(first, again, strict=True):
        assert row.keys() == other.keys()
    recipes = (json.loads(Path(name, "base/recipe.json").read_text()) for name in ("run", "again"))
    one, other = recipes
    assert one["origin"] == other["origin"]  # its checkpoints are exchangeable
    if one["versions"]["torch"] == other["versions"]["torch"]:  # others drop other activations
        losses = [[row["loss"] for row in rows] for rows in (first, again)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_is_continued_and_reported(here, no_figures):
    ran = call(train, "--resume", "run", "--data", "data.zip", "--cache", "cache")
    assert ran.status == 0, ran.err
    flags = ("--stage", "finetune", "--run", "run", "--data", "data.zip", "--cache", "cache")
    small = ("--epochs", "1", "--batch", "8", "--size", "32", "--crop-side", "28", "32")
    ran = call(train, *flags, *small, *ON_CPU, "--json")
    assert ran.status == 0, ran.err
    assert json.loads(Path("run/finetune/recipe.json").read_text())["format"] == FORMAT
    ran = call(report, "run", "--data", "data.zip", "--cache", "cache")
    assert ran.status == 0, ran.err
