"""Runs that are stopped or killed end as if they had not been."""

import dataclasses
import json
import math

import pytest
import torch
from small_runs import checkpoints, differences, interrupt_at, of_kind, run_config
from support import CPU, complaint

from tinynet import runs
from tinynet.data.synthetic import synthetic
from tinynet.runs import StageFolder
from tinynet.training import single_stage, stages

pytestmark = pytest.mark.usefixtures("thin")


def logs(run):
    return {stage: runs.read_rows(StageFolder(run, stage).log) for stage in runs.WHOLE}


def check_same_run(run, other):
    assert not differences(checkpoints(run), checkpoints(other))
    assert not differences(logs(run), logs(other))
    for stage in runs.WHOLE:
        rows = [runs.read_rows(StageFolder(r, stage).scores) for r in (run, other)]
        assert (
            len(rows[0]) == 1
            and rows[0][0].pop("run") == str(run)
            and rows[1][0].pop("run") == str(other)
        )
        assert not differences(*rows)
        assert not list((run / stage).glob(".*"))


def interruptions(run, asked, monkeypatch, questions):
    """Train to the end, stopped again and again after so many questions; how often that was."""
    for stops in range(100):
        interrupt_at(monkeypatch, questions)
        try:
            stages.train(run, asked, CPU, resume=stops > 0)
        except KeyboardInterrupt:
            continue
        return stops
    raise AssertionError("training makes no progress")


def test_the_uninterrupted_run_is_what_the_others_are_compared_with(whole_run):
    found = logs(whole_run)
    for stage in runs.WHOLE:
        assert [row["step"] for row in of_kind(found[stage], "step")] == list(range(1, 7))
        assert len(of_kind(found[stage], "epoch")) == 2
    weights = [
        {
            name: value
            for name, value in checkpoints(whole_run)[f"{stage}/best.pt"]["weights"].items()
            if not name.endswith("num_batches_tracked")
        }
        for stage in runs.WHOLE
    ]
    assert len(differences(*weights)) == len(weights[0]) - 2  # all but mean and std


@pytest.mark.parametrize("questions", [1, 3, 11])
def test_a_run_stopped_anywhere_ends_bit_for_bit_as_if_it_had_not_been(
    whole_run, archive_path, cache_folder, tmp_path, monkeypatch, questions
):
    stops = interruptions(
        tmp_path / "run", run_config(archive_path, cache_folder), monkeypatch, questions
    )
    assert stops == {1: 12, 3: 4, 11: 1}[questions]
    check_same_run(tmp_path / "run", whole_run)


def test_a_stop_between_the_stages_leaves_the_second_for_later(
    archive_path, cache_folder, tmp_path, monkeypatch, whole_run
):
    interrupt_at(monkeypatch, 7)  # the last step of base
    with pytest.raises(KeyboardInterrupt):
        stages.train(tmp_path / "run", run_config(archive_path, cache_folder), CPU)
    assert not StageFolder(tmp_path / "run", "finetune").started
    interrupt_at(monkeypatch, 100)
    stages.train(tmp_path / "run", run_config(archive_path, cache_folder), CPU, resume=True)
    check_same_run(tmp_path / "run", whole_run)


class Killed(Exception):
    pass


class EverySecond:
    """A time that has passed every second time one looks."""

    looks = 0

    def __lt__(self, passed):
        self.looks += 1
        return self.looks % 2 == 0


@pytest.mark.parametrize(
    "flush_after", [0.0, 1.0, EverySecond()], ids=["step", "epoch", "two steps"]
)
def test_a_run_killed_between_any_two_writes_is_resumed_exactly(
    whole_run, archive_path, cache_folder, tmp_path, monkeypatch, flush_after
):
    writes = left = 0

    def deadly(name, module):
        write = getattr(module, name)

        def write_or_die(*arguments):
            nonlocal writes, left
            writes, left = writes + 1, left - 1
            if left == 0:
                raise Killed
            return write(*arguments)

        monkeypatch.setattr(module, name, write_or_die)

    monkeypatch.setattr(single_stage, "SAVE_EVERY", 0.0)
    monkeypatch.setattr("tinynet.training.loop.FLUSH_AFTER", flush_after)
    deadly("append_rows", runs)
    deadly("save_model", single_stage)
    deadly("save_training", single_stage)
    deadly("write_json", single_stage)
    # Killed at every write once, one after the other: each life gets one write further than the
    # last.
    run, asked = tmp_path / "run", run_config(archive_path, cache_folder)
    for life in range(1, 200):
        left = life
        try:
            stages.train(run, asked, CPU, resume=life > 1)
        except Killed:
            continue
        break
    assert life >= 5
    check_same_run(run, whole_run)


def test_rows_that_a_killed_run_wrote_after_its_checkpoint_are_cut(
    whole_run, archive_path, cache_folder, tmp_path, monkeypatch
):
    run, asked = tmp_path / "run", run_config(archive_path, cache_folder)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run, asked, CPU)
    log = StageFolder(run, "base").log
    assert [row["kind"] for row in runs.read_rows(log)] == ["step", "step", "stopped"]
    with open(log, "a") as stream:
        for step in (3, 4):
            stream.write(
                json.dumps({"kind": "step", "epoch": 0, "step": step, "lr": 9.0, "loss": 9.0})
                + "\n"
            )
        stream.write(json.dumps({"kind": "epoch", "epoch": 0, "step": 3, "loss": 9.0}) + "\n")
        stream.write('{"kind": "step", "epo')
    interrupt_at(monkeypatch, 100)
    stages.train(run, asked, CPU, resume=True)
    check_same_run(run, whole_run)


def test_a_run_is_not_resumed_on_other_data_split_or_weights(
    archive_path, cache_folder, tmp_path, monkeypatch
):
    run, asked = tmp_path / "run", run_config(archive_path, cache_folder)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run, asked, CPU)
    before = checkpoint_of(run)
    other = synthetic(tmp_path / "other.zip", classes=6, train=12, val=1, test=1, seed=5)
    for word, changed in (
        ("data", dataclasses.replace(asked, data=str(other))),
        ("split", dataclasses.replace(asked, recipe=asked.recipe.override({"split_seed": 1}))),
        ("starting weights", dataclasses.replace(asked, seed=1)),
    ):
        complaint(
            lambda changed=changed: stages.train(run, changed, CPU, resume=True),
            run / "base",
            f"the {word} changed (",
        )
    assert not differences(checkpoint_of(run), before)


def checkpoint_of(run):
    return torch.load(run / "base" / "last.pt", weights_only=True)


@pytest.mark.parametrize("epochs, steps", [(1.5, 4), (0.4, 1), (0.01, 1)])
def test_the_last_epoch_may_be_a_part_of_one(
    archive_path, cache_folder, tmp_path, monkeypatch, epochs, steps
):
    """Its rate falls to the end of the schedule, and a stopped training ends in the same way."""
    config = run_config(
        archive_path, cache_folder, base={"epochs": epochs}, finetune={"epochs": epochs}
    )
    stages.train(tmp_path / "whole", config, CPU)
    for stage in runs.WHOLE:
        folder = StageFolder(tmp_path / "whole", stage)
        found = runs.read_rows(folder.log)
        assert [row["step"] for row in of_kind(found, "step")] == list(range(1, steps + 1))
        ends = of_kind(found, "epoch")
        assert len(ends) == math.ceil(epochs) and ends[-1]["step"] == steps
    stops = interruptions(tmp_path / "stopped", config, monkeypatch, 2)
    assert stops > 0
    check_same_run(tmp_path / "whole", tmp_path / "stopped")
