"""The command select-views: chosen on one half of the hold-out, scored on the other."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import stored_views
from support import call, refused

from tinynet import select_views as select_command
from tinynet.evaluation import select_views as choosing
from tinynet.score.metrics import score
from tinynet.score.views import CORNERS, view_set

pytestmark = pytest.mark.usefixtures("thin")


def test_views_are_selected_on_one_half_and_scored_on_the_other(run_folder, monkeypatch):
    flags = ["--tta", "flip+shift", "scales:32,40", "--most", "4", "--device", "cpu", "--json"]
    chosen_on = []
    for name, made in (("greedy", choosing.greedy), ("learn_weights", choosing.learn_weights)):
        monkeypatch.setattr(
            choosing,
            name,
            lambda said, labels, *more, made=made: (
                chosen_on.append((said[0], labels)) or made(said, labels, *more)
            ),
        )
    ran = call(select_command, *flags)
    found = json.loads(ran.out)
    stored, half = stored_views("finetune", "holdout"), choosing.halves(18)
    held = stored["plain"]
    crops = [stored[name].log_probabilities[0, ~half] for name in view_set("ten", 32).views]
    ten_crop = score(np.log(np.exp(crops).mean(0)), held.labels[~half])
    assert half.sum() == 9 and found[0]["loss"] == pytest.approx(ten_crop.loss, rel=1e-4)
    assert len(chosen_on) == 2
    for said, labels in chosen_on:
        assert np.array_equal(said, held.log_probabilities[0][half]) and np.array_equal(
            labels, held.labels[half]
        )
    assert Path("runs/done/finetune/views.png").read_bytes().startswith(b"\x89PNG")
    names = ["ten", "learned weights", *(f"greedy {k}" for k in range(1, 5))]
    assert [row["views"] for row in found if row["split"] != "val"] == names
    assert {row["n"] for row in found if row["split"] != "val"} == {9} and {
        row["n"] for row in found[6:]
    } == {24}
    greedy = {row["forwards"]: row for row in found if row["views"].startswith("greedy")}
    assert sorted(greedy) == [1, 2, 3, 4] and greedy[1]["taken"] == ["plain"]
    assert all(greedy[k]["taken"] == greedy[4]["taken"][:k] for k in greedy)
    moved = [f"{m}{s} 2" for m in ("", "mirror ") for s in ("left", "right", "up", "down")]
    crops = [f"{m}{c}" for m in ("", "mirror ") for c in CORNERS]
    assert set(greedy[4]["taken"]) <= {"plain", "mirror", "40 px", *moved, *crops}
    learned = found[1]
    assert (
        sum(learned["weights"]) == pytest.approx(1)
        and len(learned["weights"]) == learned["forwards"]
    )
    ten = found[0]
    assert (
        ten["forwards"] == ten["cost"] == 10
        and ten["gain_over_ten"] == 0
        and greedy[1]["gain"] == 0
    )
    for row in found:
        wnid, name = row["worst_class"].split(" ", 1)
        assert wnid in held.wnids and name and row["worst"] <= row["balanced"]
    assert json.loads(call(select_command, *flags).out) == found


def test_views_are_selected_from_some(run_folder):
    refused(select_command, ["--most", "3"], "--tta")
    refused(select_command, ["--most", "0", "--tta", "flip"], "--most")
    refused(select_command, ["--tta", "flip", "--merge", "max"], "--merge")
    refused(select_command, ["--tta", "flip", "dense:64", "--device", "cpu"], "dense")
