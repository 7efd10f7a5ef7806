"""Rows of scores: written with the keys of the result files, and read back."""

import json

import pytest
from support import ROOT

from tinynet.records import MISSING, NOT_COMPARED, Gain, ScoreRow

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
