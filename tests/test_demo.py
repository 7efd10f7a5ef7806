"""The demo, from images to scores."""

import json
from pathlib import Path

import pytest
from small_runs import SCORED_KEYS
from support import call, refused

from tinynet import demo, runs
from tinynet.records import ScoreRow

pytestmark = pytest.mark.usefixtures("thin")


def test_the_demo_goes_all_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = demo.DEMO.override(dict(epochs=1))
    monkeypatch.setattr(demo, "DEMO", recipe)
    flags = ["--out", "drawn", "--json", "--device", "cpu", "--precision", "float32"]
    rows = json.loads(call(demo, *flags).out)
    assert [(row["stage"], row["split"], row["views"]) for row in rows] == [
        (stage, split, views)
        for stage in runs.WHOLE
        for split in ("holdout", "val")
        for views in ("none", "flip")
    ]
    assert {row["n"] for row in rows if row["split"] == "val"} == {8 * 20}
    assert Path("drawn/finetune/curves.png").is_file()
    refused(demo, flags, "drawn", "already contains a run")


@pytest.mark.parametrize("low", [0.24, 0.26])
def test_the_demo_reports_whether_it_beats_chance(tmp_path, monkeypatch, low):
    """Chance is one in eight, and twice that is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinynet.training.stages.train", lambda *_, **__: None)
    monkeypatch.setattr("tinynet.evaluation.predictor.Predictor", lambda *_: None)
    monkeypatch.setattr(
        "tinynet.evaluation.evaluate.evaluate",
        lambda *_: [ScoreRow.from_json(dict.fromkeys(SCORED_KEYS, low))],
    )
    ran = call(demo, "--out", "drawn", "--json", "--device", "cpu")
    assert ran.status == int(low < 0.25) and "chance is 12.5%" in ran.err
    assert ("tinynet is broken" in ran.err, "predict IMAGE --run drawn" in ran.err) == (
        low < 0.25,
        low > 0.25,
    )
