"""`--compile`: the same training in compiled steps, and one line where nothing can be compiled."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support import SMALL, call, thin_network

from tinynet import train
from tinynet.device import choose_device
from tinynet.fit.loop import Training
from tinynet.fit.recipes import TUNED
from tinynet.models.vgg import Classifier, load_backbone
from tinynet.runs import StageFolder

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler here")


@needs_compiler
def test_compiled_steps_learn_the_same():
    stage = replace(TUNED.finetune, epochs=1, size=32, crop_side=(28, 32))
    draw = torch.Generator().manual_seed(0)
    pictures, labels = torch.rand(6, 3, 32, 32, generator=draw), torch.randint(0, 5, (6,), generator=draw)
    losses = {}
    with thin_network():
        torch.manual_seed(0)
        first = Classifier(load_backbone("none"), TUNED.network.taps, (16,), 5, dropout=0.0, standardise=True)
        state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
        for compiled in (False, True):
            model = Classifier(load_backbone("none"), TUNED.network.taps, (16,), 5, dropout=0.0, standardise=True)
            model.load_state_dict(state)
            model.train_only(stage.learn)
            device = choose_device("cpu", "float32", compiled=compiled)
            training = Training(model.train(), {name: model.parts[name] for name in stage.learn}, stage, 10, device)
            losses[compiled] = [training.learn(pictures, labels).item() for _ in range(4)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[True][-1] < losses[True][0]
    assert "compiled" in str(device)


@needs_compiler
def test_a_run_says_that_it_was_compiled(archive_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with thin_network():
        ran = call(train, "--stage", "base", "--out", "run", *SMALL, "--data", archive_path, "--cache", "cache",
                   "--compile")
    assert ran.status == 0, ran.err
    assert "compiled" in StageFolder("run", "base").read_recipe()["device"]["name"]


def test_without_a_compiler_nothing_begins(archive_path, tmp_path):
    given = [sys.executable, "-m", "tinynet.train", "--stage", "base", "--out", "run", *SMALL, "--data", archive_path,
             "--cache", "cache", "--compile"]
    ran = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, env={
        **os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")})
    *_, line = ran.stderr.splitlines()
    assert ran.returncode == 2 and "--compile" in line and "g++" in line and "Traceback" not in ran.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
