"""Paired comparisons, and the command compare."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_support import quickly
from small_runs import copy_run, score_rows
from support import argv, call, refused

from tinynet import compare, evaluate
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities

pytestmark = pytest.mark.usefixtures("thin")


# --- the command ---


def save_probabilities(name, *flags):
    ran = call(
        evaluate,
        "--split",
        "val",
        "--save-probabilities",
        name,
        "--device",
        "cpu",
        "--json",
        *flags,
    )
    return score_rows(ran)[-1]


def test_saved_probabilities_are_scored_without_the_run(run_folder):
    rows = [
        save_probabilities("flip.npz", "--tta", "flip"),
        save_probabilities("large.npz", "--size", "48"),
        save_probabilities("base.npz", "--stage", "base"),
    ]
    shutil.rmtree("runs/done/finetune/probabilities")
    found = json.loads(call(compare, "flip.npz", "large.npz", "base.npz", "--json").out)
    assert len(found) == 4 and found[3]["run"] == "all 3 together" and found[3]["forwards"] == 4
    for row, again in zip(rows, found, strict=False):
        assert again["loss"] == pytest.approx(row["loss"]) and again["top1"] == row["top1"]
        assert again["run"] == "runs/done" and again["split"] == "val"
        assert again["worst"] == row["worst"]
        assert again["worst_class"] == row["worst_class"].split()[0]  # files have only ids
    assert [row["gain"] is None for row in found] == [True, False, False, False]
    parts = [Probabilities.load(Path(name)) for name in ("flip.npz", "large.npz", "base.npz")]
    mean = np.mean([np.exp(part.log_probabilities.astype(np.float64)).mean(0) for part in parts], 0)
    assert found[3]["loss"] == pytest.approx(score(np.log(mean), parts[0].labels).loss, rel=1e-4)
    right = [np.exp(part.log_probabilities).mean(0).argmax(1) == part.labels for part in parts]
    assert found[2]["p"] == pytest.approx(mcnemar(right[2], right[0]).p)
    grid = json.loads(call(compare, "flip.npz", "--merge", "max", "vote", "--json").out)
    assert [row["merge"] for row in grid] == ["max", "vote"]


def test_runs_are_compared_in_pairs(run_folder):
    copy_run("copy", 0)
    flags = ("--device", "cpu", "--precision", "float32", "--json")
    rows = json.loads(call(compare, "runs/done", "runs/copy", "--tta", "flip", *flags).out)
    assert [row["run"] for row in rows] == ["runs/done", "runs/copy", "all 2 together"]
    assert rows[0]["gain"] is None and rows[1]["gain"] == 0 and rows[1]["p"] == 1
    expected = json.loads(call(evaluate, "--split", "val", "--tta", "flip", *flags).out)[1]
    assert rows[0]["top1"] == expected["top1"] == rows[2]["top1"]
    assert {row["worst_class"] for row in rows} == {expected["worst_class"]}
    assert {row["split"] for row in rows} == {"val"}


def test_saved_probabilities_that_do_not_fit_are_refused(run_folder):
    save_probabilities("val.npz")
    score_rows(
        call(evaluate, *argv("--split holdout --save-probabilities held.npz --device cpu --json"))
    )
    turned = Probabilities.load(Path("val.npz"))
    dataclasses.replace(turned, rows=turned.rows[::-1]).save(Path("turned.npz"))
    refused(compare, ["val.npz", "held.npz"], "held.npz", "val.npz", "holdout")
    refused(compare, ["val.npz", "turned.npz"], "turned.npz", "another order")
    refused(compare, ["nowhere.npz"], "nowhere.npz")
    refused(compare, ["val.npz", "--merge", "median"], "median", "gmean")
    refused(compare, ["val.npz", "--views", "flip"], "--views")
    refused(compare, ["val.npz", "held.npz", "--tta", "flip"], "comparing files takes no --tta")
    refused(compare, ["val.npz", "val.npz"], "val.npz", "twice")
    refused(compare, ["val.npz", "runs/none"], "runs/none")
    relabelled = Probabilities.load(Path("val.npz"))
    dataclasses.replace(relabelled, labels=relabelled.labels[::-1]).save(Path("labels.npz"))
    refused(compare, ["val.npz", "labels.npz"], "labels.npz", "other labels")
    Path("folder").mkdir()
    refused(
        evaluate,
        argv("--split val --save-probabilities folder --device cpu"),
        "folder",
        "a folder",
    )
    refused(
        evaluate, ["--split", "holdout", "--calibrate", "--device", "cpu"], "--calibrate", "--split"
    )
    refused(evaluate, ["--save-probabilities", "a.npz", "--device", "cpu"], "2 splits", "--split")
    refused(
        evaluate,
        argv("--save-probabilities a.npz --split val --tta flip ten --device cpu"),
        "2 sets of views",
    )
    assert not Path("a.npz").exists()


# --- paired comparison ---


def test_mcnemar_is_the_exact_binomial_of_the_books():
    right, other = np.zeros(314, bool), np.zeros(314, bool)
    right[: 4 + 5] = other[:5] = True  # Lachenbruch's kind of table: 4 against 15
    other[9:24] = True
    found = mcnemar(right, other)
    assert (found.wins, found.losses) == (4, 15) and found.gain == pytest.approx(-11 / 314)
    assert found.p == pytest.approx(2 * sum(math.comb(19, k) for k in range(5)) / 2**19)
    assert found.low < found.gain < found.high < 0


@quickly
@given(seed=st.integers(0, 10_000))
def test_a_comparison_turned_round_changes_its_sign(seed):
    draw = np.random.RandomState(seed)
    right, other = draw.rand(60) < 0.6, draw.rand(60) < 0.5
    found, turned = mcnemar(right, other), mcnemar(other, right)
    assert found.gain == pytest.approx(right.mean() - other.mean()) == -turned.gain
    assert found.p == turned.p and 0 < found.p <= 1
    assert found.low == pytest.approx(-turned.high)
    assert mcnemar(right, right).p == 1 and mcnemar(right, right).gain == 0


def test_the_interval_of_a_gain_holds_it_as_often_as_it_says():
    draw, held = np.random.RandomState(0), 0
    # outcomes of a pair: both 0.5, first alone 0.2, second alone 0.1: a gain of 0.1
    for _ in range(600):
        drawn = draw.rand(150)
        found = mcnemar(drawn < 0.7, (drawn < 0.5) | (drawn > 0.9))
        held += found.low <= 0.1 <= found.high
    assert 0.92 < held / 600 < 0.98
