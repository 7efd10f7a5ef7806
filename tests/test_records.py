"""Rows of scores and of logs: written with the keys of their files, and read back."""

import json
from dataclasses import replace

import pytest
from support import ROOT

from tinynet.records import (
    MISSING,
    NOT_COMPARED,
    EpochRow,
    Gain,
    Score,
    ScoreRow,
    StepRow,
    StopRow,
    class_names,
    short_name,
)
from tinynet.runs import StageFolder, append_rows

RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


def rows_in(value):
    """Every object with a top-1 accuracy inside a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get("top1"), float):
            yield value
        for inner in value.values():
            yield from rows_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from rows_in(inner)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_committed_results_are_read_and_written_back(path):
    for row in rows_in(json.loads(path.read_text())):
        record = ScoreRow.from_json(row)
        assert record.to_json() == row
        assert record.top1 == row["top1"]
        assert not {"n", "gain", "p", "views", "split"} & set(record.other)


def test_there_are_results():
    rows = [row for path in RESULTS for row in rows_in(json.loads(path.read_text()))]
    assert len(rows) > 400


def test_what_does_not_apply_is_left_out_and_none_is_written():
    row = ScoreRow(run="a", top1=0.5, images_per_second=None, gain=NOT_COMPARED)
    assert row.to_json() == {
        "run": "a",
        "top1": 0.5,
        "pictures_per_second": None,
        "gain": None,
        "gain_low": None,
        "gain_high": None,
        "p": None,
    }
    assert row.views is MISSING and not row.views


def test_gains_over_several_references_have_keys_of_their_own():
    row = ScoreRow(
        gain=Gain(0.1, 0.0, 0.2, 0.5), over={"ten": Gain(-0.1, -0.2, 0.0, 0.4), "own": Gain()}
    )
    written = row.to_json()
    assert written["gain"] == 0.1 and written["gain_low_over_ten"] == -0.2
    assert written["p_over_own"] is None
    assert ScoreRow.from_json(written) == row


SCORE = Score(
    n=8,
    top1=0.25,
    top5=1.0,
    loss=1.5,
    ece=0.125,
    low=0.07,
    high=0.59,
    balanced=0.3,
    worst=0.0,
    worst_label=1,
)
LOG = """\
{"kind": "step", "epoch": 0, "step": 1, "lr": 0.001, "loss": 2.5}
{"kind": "epoch", "epoch": 0, "step": 1, "loss": 2.5, "seconds": 0.5, "pictures_per_second": 16.0, \
"improved": true, "holdout": {"n": 8, "top1": 0.25, "top5": 1.0, "loss": 1.5, "ece": 0.125, \
"low": 0.07, "high": 0.59, "balanced": 0.3, "worst": 0.0, "worst_label": 1}}
{"kind": "stopped", "epoch": 1, "step": 1}
"""


def test_a_log_is_written_and_read_back(tmp_path):
    folder = StageFolder(tmp_path, "base")
    folder.make()
    rows = [
        StepRow(epoch=0, step=1, lr=0.001, loss=2.5),
        EpochRow(0, 1, loss=2.5, seconds=0.5, images_per_second=16.0, improved=True, holdout=SCORE),
        StopRow(epoch=1, step=1),
    ]
    append_rows(folder.log, rows[:1])
    append_rows(folder.log, rows[1:])
    assert folder.log.read_text() == LOG
    assert folder.read_log() == rows


def test_a_log_of_another_version_is_read(tmp_path):
    """Early logs have fewer keys; later ones may have other keys and other kinds of rows."""
    folder = StageFolder(tmp_path, "base")
    folder.make()
    scores = {"top1": 0.25, "top5": 1.0, "loss": 1.5, "low": 0.07, "high": 0.59, "later": 1}
    early = {"kind": "epoch", "epoch": 0, "step": 2, "loss": 2.5, "seconds": 0.5, "holdout": scores}
    later = {"kind": "later", "epoch": 0, "step": 2}
    folder.log.write_text("".join(json.dumps(row) + "\n" for row in (early, later)))
    (row,) = folder.read_log()
    assert isinstance(row, EpochRow) and row.holdout.top1 == 0.25
    assert row.images_per_second is MISSING and row.holdout.ece is MISSING
    assert row.holdout.balanced is MISSING and row.holdout.worst_label is MISSING
    again = ScoreRow(run="a").with_score(row.holdout, ["x", "y"])
    assert list(again.to_json()) == ["run", "top1", "top5", "loss", "low", "high"]
    del scores["later"]
    assert row.to_json() == early


def test_a_row_takes_all_of_a_score_and_names_the_worst_class():
    row = ScoreRow(run="a", precision="float32").with_score(SCORE, ["n01 ant", "n02 bee"])
    *keys, label = SCORE.to_json()
    assert label == "worst_label"
    assert list(row.to_json()) == ["run", *keys, "worst_class", "precision"]
    assert row.worst_class == "n02 bee" and (row.worst, row.balanced) == (0.0, 0.3)
    assert ScoreRow.from_json(row.to_json()) == row and row.to_json()["loss"] == 1.5
    assert row.with_score(replace(SCORE, worst_label=0), ["ant", "bee"]).worst_class == "ant"
    unnamed = row.with_score(SCORE)
    assert list(unnamed.to_json()) == ["run", *keys, "precision"]
    assert ScoreRow(run="a", precision="float32").with_score_of(row) == row


def test_a_row_of_an_earlier_version_has_no_worst_class():
    row = ScoreRow.from_json({"run": "a", "top1": 0.5, "low": 0.4, "high": 0.6})
    assert row.balanced is row.worst is row.worst_class is MISSING
    assert list(row.to_json()) == ["run", "top1", "low", "high"]


def test_a_class_has_its_id_and_its_name_unless_they_are_equal():
    ids, names = ("n01443537", "red fox"), ("goldfish, Carassius auratus", "red fox")
    assert class_names(ids, names) == ["n01443537 goldfish, Carassius auratus", "red fox"]


def test_only_wordnet_names_are_cut_at_the_first_synonym():
    assert short_name("n02123045", "tabby, tabby cat") == "tabby"
    assert short_name("red, large", "red, large") == "red, large"
