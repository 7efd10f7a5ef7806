"""The harness that ends processes: nothing is lost here, and what is broken on purpose is
reported.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support import ROOT, argv, call

from benchmarks import faults
from benchmarks.killing import launch
from benchmarks.killing.chains import chain, draw_blows, has_traceback, next_line
from benchmarks.killing.moments import MOMENTS, Scene
from benchmarks.killing.processes import (
    Ending,
    Processes,
    Room,
    Strike,
    end_session,
    in_session,
    orphans,
)
from benchmarks.killing.states import differences
from tinynet import files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs Linux"),
]

# Ways to break tinynet, the moment at which that shows, and what is reported.
BROKEN = {
    "checkpoints are written in place": (
        """
from contextlib import contextmanager
from tinynet.models import checkpoint

@contextmanager
def in_place(path):
    open(path, "wb").close()
    with open(path, "r+b") as stream:
        yield stream

checkpoint.atomic_file = in_place
""",
        Strike("SIGKILL", change="open work/run/base/last.pt", number=4),
        "does not go on: status 2",
    ),
    "the log is not cut": (
        """
from tinynet import runs
runs.cut_log = lambda path, step: None
""",
        Strike(
            "SIGKILL",
            change=launch.alike(f"open work/run/base/.last.pt.tinynet-{files.HOST}-1234.partial"),
            number=4,
        ),
        "run/base/log.jsonl: differs",
    ),
    "the random state is not restored": (
        """
import torch
torch.set_rng_state = lambda state: None
""",
        Strike("SIGKILL", change="os.rename work/run/base/last.pt", number=4),
        "run/base/last.pt: differs",
    ),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two moments gone through undisturbed, and what is before them."""
    root = tmp_path_factory.mktemp("faults")
    with closing(Processes(root)) as processes, closing(Scene(root, processes)) as play:
        play.go(MOMENTS["base"])
        yield play


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_nothing_is_lost(scene, kind):
    trials = [
        chain(
            scene,
            MOMENTS["base"],
            kind,
            draw_blows(scene, MOMENTS["base"], kind, f"0, {number}", 2),
        )
        for number in range(2)
    ]
    assert sum(trial.kills for trial in trials) > 0
    assert not [fault for trial in trials for fault in trial.faults]


@pytest.mark.parametrize("way", BROKEN)
def test_what_is_broken_is_reported(scene, tmp_path, monkeypatch, way):
    code, strike, report = BROKEN[way]
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.setitem(scene.processes.environment, "FAULTS_ALSO", str(tmp_path / "broken.py"))
    trial = chain(scene, MOMENTS["base"], "SIGKILL", [(strike, False)])
    assert trial.kills == 1
    assert [fault for fault in trial.faults if fault.startswith(report)], (
        trial.faults,
        trial.lines,
    )


def test_the_command(tmp_path):
    flags = [
        "--moments",
        "download",
        "--signals",
        "SIGINT",
        "--kills",
        "2",
        "--parts",
        "--out",
        tmp_path / "out.json",
        "--keep",
        tmp_path / "evidence",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TINYNET_PROGRESS": "0"},
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["kills"] == 2 and not result["faults"] and not (tmp_path / "evidence").exists()
    assert [(row["moment"], row["signal"], row["as if undisturbed"]) for row in result["rows"]] == [
        ("download", "SIGINT", 2)
    ]
    assert ran.stdout.splitlines()[1].split()[:4] == ["download", "SIGINT", "2", "2"]


def test_the_command_ends_with_status_1_and_names_lines_and_evidence(scene, tmp_path, monkeypatch):
    for name, value in (
        ("closing", nullcontext),
        ("Processes", lambda root: scene.processes),
        ("Scene", lambda root, processes: scene),
        ("signal", Mock()),
    ):
        monkeypatch.setattr(faults, name, value)
    monkeypatch.setattr(scene.processes, "environment", dict(scene.processes.environment))
    monkeypatch.setenv("TINYNET_PROGRESS", "0")
    (tmp_path / "broken.py").write_text(
        'import os\nos.replace = lambda old, new: open(new, "wb").write(b"other")\n'
    )
    ran = call(
        faults,
        *argv("--moments download --signals SIGINT --kills 1 --parts --also"),
        tmp_path / "broken.py",
        "--out",
        tmp_path / "out.json",
        "--keep",
        tmp_path / "new",
    )
    assert ran.status == 1, ran.err
    fault = json.loads((tmp_path / "out.json").read_text())["faults"][0]
    assert Path(fault["evidence"], "logs/lines.txt").is_file()
    for words in (fault["fault"], fault["evidence"], *(f"$ {line}" for line in fault["lines"])):
        assert words in ran.out


def rooms(tmp_path):
    """Two rooms that hold the same."""
    both = [Room(tmp_path / name).make() for name in ("expected", "room")]
    for room in both:
        torch.save(
            {"weights": torch.zeros(3, dtype=torch.bfloat16), "seconds": time.monotonic()},
            room.work / "a.pt",
        )
        (room.work / "log.jsonl").write_text(
            json.dumps({"loss": 0.1, "seconds": time.monotonic()}) + "\n"
        )
        (room.work / "recipe.json").write_text(json.dumps({"data": str(room.work / "data.zip")}))
        np.savez(
            room.work / "p.npz",
            values=np.zeros(3),
            seconds=np.array(time.monotonic()),
            about=np.array("{}"),
        )
    return both


def test_timestamps_and_paths_are_ignored(tmp_path):
    assert differences(*rooms(tmp_path)) == []


def change_a_bit(room):
    torch.save({"weights": -torch.zeros(3, dtype=torch.bfloat16)}, room.work / "a.pt")


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (change_a_bit, ["a.pt: differs in weights"]),
        (
            lambda room: (room.work / "recipe.json").write_text("{"),
            ["recipe.json: cannot be read (JSONDecodeError)"],
        ),
        (
            lambda room: (room.work / "log.jsonl").write_text('{"loss": 0.2}\n'),
            ["log.jsonl: differs in [0].loss"],
        ),
        (
            lambda room: (room.work / "log.jsonl").write_text('{"loss": 0.1}\n' * 2),
            ["log.jsonl: differs in .length, [1].loss, [1].keys"],
        ),
        (lambda room: (room.work / "log.jsonl").unlink(), ["missing: log.jsonl"]),
        (lambda room: (room.work / ".a/b").mkdir(parents=True), ["left behind: .a"]),
        (lambda room: (room.tmp / "x").touch(), ["left behind: x in the temporary folder"]),
        (
            lambda room: np.savez(
                room.work / "p.npz", values=np.zeros(3, np.float32), about=np.array("{}")
            ),
            ["p.npz: differs in values"],
        ),
    ],
)
def test_differences(tmp_path, change, lines):
    expected, room = rooms(tmp_path)
    change(room)
    assert differences(expected, room) == lines


def ending(**values):
    return Ending(
        **{
            **dict(
                line="python -m a",
                pid=0,
                status=None,
                struck="",
                began=True,
                complete=False,
                still=False,
                seconds=0.0,
                real=False,
                traced=[],
                ended=0.0,
                out="",
                err="",
            ),
            **values,
        }
    )


@pytest.mark.parametrize(
    ("err", "line"),
    [
        ("", "python -m a"),
        (
            "stopped and saved; continue with: python -m b --resume 'a run'\ninterrupted\n",
            "python -m b --resume 'a run'",
        ),
        (
            "error: run/a: already contains base; continue it with python -m tinynet.train "
            "--resume run/a, or use another folder with --out\n",
            "python -m tinynet.train --resume run/a",
        ),
    ],
)
def test_what_is_typed_next(err, line):
    assert next_line(ending(err=err)) == line


@pytest.mark.parametrize(
    ("err", "wrong"),
    [
        ("interrupted\n", False),
        ("\rTraceback (most recent call last):\nKeyboardInterrupt\n", True),
        (
            "Exception ignored in: <f>\nTraceback (most recent call "
            "last):\nKeyError\ninterrupted\n",
            False,
        ),
    ],
)
def test_tracebacks(err, wrong):
    assert has_traceback(err) is wrong


def test_numbers_and_names_by_chance_are_alike():
    assert launch.alike("open run/.last.pt.4711.partial") == launch.alike(
        "open run/.last.pt.host-815.partial"
    ).replace("host-", "")
    assert launch.alike("a/features-0123456789abcdef/b2") == "a/features-N/b2"


def test_orphans_are_found_and_killed():
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & exit"], start_new_session=True)
    parent.wait()
    try:
        assert len(in_session(parent.pid)) == 1
        left = ending(pid=parent.pid, ended=time.monotonic())
        assert orphans([left, ending()], 0.1) == [left]
    finally:
        end_session(parent.pid)
    assert orphans([left], 5.0) == []
