"""The commands as programs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import PROGRAMS, ROOT, SMALL, call

from tinynet import __main__ as entry
from tinynet.data import __main__ as data_command
from tinynet.data.synthetic import synthetic


def program(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TINYNET_PROGRESS": "0"},
        **more,
    )


def test_help_is_there_without_loading_anything_slow():
    assert {
        "tinynet.train",
        "tinynet.evaluate",
        "tinynet.data.__main__",
        "tinynet.report.__main__",
    } <= set(PROGRAMS)
    code = (
        "import contextlib, importlib, io, sys\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, "
        "contextlib.suppress(SystemExit):\n        importlib.import_module(name).main(['--help'])\n"
        "    assert f'python -m {name.removesuffix(\".__main__\")} ' in out.getvalue(), name\n"
        "    assert name.endswith(('__main__', 'export')) or '--device' in out.getvalue(), name\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PROGRAMS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_entry_lists_and_runs_all_commands(archive_path):
    done = program("tinynet")
    assert done.returncode == 0 and done.stderr == ""
    modules = {module for module, _ in entry.COMMANDS.values()}
    assert modules == set(PROGRAMS) - {"tinynet.__main__"}
    for name in entry.COMMANDS:
        assert f"\n  {name} " in done.stdout
    done = program("tinynet", "data", "info", "--data", archive_path, "--json")
    assert json.loads(done.stdout) == json.loads(
        call(data_command, "info", "--data", archive_path, "--json").out
    )


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("select_views", "select-views"), ("xyz", None)]
)
def test_an_unknown_command_is_refused_with_the_nearest(word, near):
    done = program("tinynet", word, "--help")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    assert f"unknown command '{word}'" in done.stderr and "tinynet --help" in done.stderr
    assert ("did you mean" in done.stderr) == (near is not None)
    assert near is None or f"did you mean {near}?" in done.stderr


@pytest.mark.slow
def test_a_whole_vgg16_goes_all_the_way_as_programs(tmp_path):
    data = synthetic(tmp_path / "drawn.zip", classes=2, train=3, val=1, test=1, side=32)
    done = program(
        "tinynet.train",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--json",
        *SMALL,
        "--crop-side",
        "24",
        "32",
    )
    assert done.returncode == 0, done.stderr
    stages = [row["stage"] for row in json.loads(done.stdout)]
    assert stages == ["base", "finetune", "fixres"]
    weights = torch.load(tmp_path / "run" / "finetune" / "best.pt", weights_only=True)["weights"]
    assert (
        sum(value.numel() for key, value in weights.items() if key.startswith("backbone.features"))
        == 14_714_688
    )

    done = program("tinynet.evaluate", "--run", tmp_path / "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: --run ")
