"""Results of runs and studies, as benchmarks/record.py saves them."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import record
from tinynet import runs
from tinynet.records import ScoreRow
from tinynet.runs import StageFolder

pytestmark = pytest.mark.usefixtures("thin")


# --- a study of sizes ---


def test_a_study_is_recorded_without_paths_and_curves(size_study):
    kept, found = (
        record.story(size_study.out),
        json.loads((size_study.out / "sizes.json").read_text()),
    )
    assert kept.keys() == found.keys() and len(kept["activations"]) == len(found["activations"])
    assert all("curve" in row for row in found["activations"])
    assert not any("curve" in row for row in kept["activations"])
    assert {row["run"] for row in kept["rows"]} == {"base"} and {
        row["run"] for row in kept["beside"]
    } == {"other"}
    assert [row["top1"] for row in kept["rows"]] == [row["top1"] for row in found["rows"]]
    assert (
        record.without_paths(
            ["python", "--run", "a", "--data", "/b", "--out", "c"], keep=("--run",)
        )
        == "python --run a"
    )


# --- results of a run ---


def test_what_is_recorded_is_of_the_own_size_and_precision(scored_folder):
    before = record.record(["runs/one", "runs/two"], "two")["rows"]
    scores = StageFolder(Path("runs/one"), "base").scores
    kept = scores.read_text()
    row = next(
        row for row in runs.read_rows(scores) if (row["split"], row["views"]) == ("val", "none")
    )
    runs.put_scores(
        scores,
        [
            ScoreRow.from_json(row | change | dict(top1=0.99))
            for change in (
                dict(size=48),
                dict(merge="gmean"),
                dict(precision="int8"),
                dict(temperature=2.0),
            )
        ],
    )
    assert (
        scores.read_text() != kept
        and record.record(["runs/one", "runs/two"], "two")["rows"] == before
    )
    scores.write_text(kept)
    assert [(row["run"], row["split"], row["views"]) for row in before] == [
        (run, split, views) for run in ("one", "two") for split, views in record.SCORES
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in record.HERE.glob("*.py")))
def test_the_benchmarks_fit_the_package(name):
    """What they import of it is there; they are run by hand."""
    importlib.import_module(f"benchmarks.{name}")
