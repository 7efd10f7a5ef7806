"""Runs in places that cannot be written to."""

import json
import os
from pathlib import Path

import pytest
from support import argv, call

from tinynet import evaluate, fixres, predict
from tinynet import select_views as select_command
from tinynet.data.copies import open_packed
from tinynet.report import __main__ as report_command


def forbid_writing(monkeypatch, folder):
    """Let nothing be written in a folder, whoever asks."""
    access, write = os.access, open

    def denied(path, mode=os.R_OK, **how):
        inside = Path(path).resolve().is_relative_to(folder)
        return not (inside and mode & os.W_OK) and access(path, mode, **how)

    def guarded(path, mode="r", *more, **how):
        if (
            not isinstance(path, int)
            and set(mode) & set("wa+")
            and Path(path).resolve().is_relative_to(folder)
        ):
            raise OSError(30, "Read-only file system", str(path))
        return write(path, mode, *more, **how)

    monkeypatch.setattr(os, "access", denied)
    monkeypatch.setattr("builtins.open", guarded)


@pytest.fixture
def read_only(runs_copy, monkeypatch):
    """The run `whole`, in which nothing can be written."""
    forbid_writing(monkeypatch, runs_copy / "whole")
    return runs_copy / "whole"


def test_a_run_in_a_read_only_place_is_scored_and_reported(read_only, no_figures):
    before = {path: path.stat().st_mtime_ns for path in read_only.rglob("*")}
    ran = call(evaluate, "--run", "whole", "--data", "drawn.zip", "--tta", "flip", "--json")
    assert ran.status == 0 and len(json.loads(ran.out)) == 4
    assert "scores are not saved" in ran.err and "--out" in ran.err
    kept = call(evaluate, *argv("--run whole --data drawn.zip --tta flip --json --out results"))
    assert kept.status == 0 and "not saved" not in kept.err
    places = [
        path.relative_to("results").as_posix()
        for path in sorted(Path("results").rglob("*"))
        if path.is_file()
    ]
    assert "whole/finetune/scores.jsonl" in places and len(places) == 5
    again = call(evaluate, *argv("--run whole --data drawn.zip --tta flip --json --out results"))
    assert json.loads(again.out) == json.loads(kept.out)  # to the rate: nothing was computed again
    page = call(report_command, "whole", "--data", "drawn.zip", "--out", "results")
    assert page.status == 0, page.err
    html = Path("results/whole.html").read_text()
    assert "There are no results of single images" not in html and html.count("mirror")
    assert {path: path.stat().st_mtime_ns for path in read_only.rglob("*")} == before


def test_read_only_errors_suggest_out(read_only):
    for command, flags, why in (
        (report_command, ["whole"], "Read-only file system"),
        (predict, ["--run", "whole", "--data", "drawn.zip"], "whole/finetune: Permission denied"),
        (
            fixres,
            ["--run", "whole", "--data", "drawn.zip", "--sizes", "32", "--no-fit"],
            "Read-only file system",
        ),
    ):
        ran = call(command, *flags)
        assert ran.status == 2 and why in ran.err and "--out" in ran.err.splitlines()[-1], ran.err


def test_views_are_chosen_in_a_run_that_cannot_be_written_to(read_only):
    flags = ("--run", "whole", "--data", "drawn.zip", "--tta", "flip", "--most", "1", "--json")
    ran = call(select_command, *flags)
    assert ran.status == 0 and json.loads(ran.out) and "Traceback" not in ran.err, ran.err
    assert not (read_only / "finetune/views.png").exists()


def test_a_prepared_packed_copy_is_used_where_nothing_can_be_written(runs_copy, monkeypatch):
    wanted = open_packed("drawn.zip").contents
    os.utime("drawn.zip", (1, 1))  # so that it is not known at sight
    forbid_writing(monkeypatch, runs_copy / "cache")
    assert open_packed("drawn.zip").contents == wanted


def test_a_folder_in_place_of_predictions_is_refused_before_scoring(runs_copy, monkeypatch):
    monkeypatch.setattr(
        "tinynet.evaluation.predictor.Predictor.predict",
        lambda *_, **__: pytest.fail("scores before it looks"),
    )
    ran = call(predict, "--run", "whole", "--data", "drawn.zip", "--out", "base")
    assert ran.status == 2 and ran.err.splitlines()[-1].startswith("error: base: Is a directory")
