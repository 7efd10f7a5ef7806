"""`--compile`: the same training in compiled steps, and one line where nothing can be compiled."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from support import SMALL, argv, call, thin_network
from torch._dynamo.utils import counters

from tinynet import train
from tinynet.compute import choose_compute
from tinynet.models.classifier import Classifier
from tinynet.models.weights import load_vgg16
from tinynet.runs import StageFolder
from tinynet.training.loop import Training, weight_groups
from tinynet.training.recipes import TUNED

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler here")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()
    counters.clear()


def flags(archive_path):
    """Of a small base in compiled steps."""
    data = ("--data", archive_path, "--cache", "cache")
    return [*argv("--stage base --out run --compile"), *SMALL, *data]


def compiled_graphs():
    return counters["stats"]["unique_graphs"]


def training(compiled, precision="float32"):
    """A training of a thin network, always from the same weights, in steps of six images."""
    stage = replace(TUNED.finetune, epochs=1, size=64, crop_side=(46, 64), batch=6)
    torch.manual_seed(0)
    model = Classifier(
        load_vgg16("none"), TUNED.network.features, (16,), 5, dropout=0.0, standardise=True
    )
    model.train_only(stage.trainable)
    return Training(
        model.train(),
        weight_groups(model, stage),
        stage,
        10,
        choose_compute("cpu", precision, compiled=compiled),
    )


def losses(of, first=0, last=5):
    """Of steps of 6, 6, 4, 6, 6 images, always the same ones."""
    draw = torch.Generator().manual_seed(0)
    steps = [
        (torch.rand(n, 3, 64, 64, generator=draw), torch.randint(0, 5, (n,), generator=draw))
        for n in (6, 6, 4, 6, 6)
    ]
    return [of.train_batch(images, labels).item() for images, labels in steps[first:last]]


@needs_compiler
@pytest.mark.parametrize("precision, apart", [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_compiled_steps_train_the_same(precision, apart):
    with thin_network():
        plain = losses(training(False, precision))
        assert compiled_graphs() == 0
        made = training(True, precision)
        before = compiled_graphs()  # the one that tries whether anything can be compiled
        found = losses(made)
    assert compiled_graphs() - before == 1, "full steps alone are compiled, and once"
    assert found == pytest.approx(plain, rel=apart)


@needs_compiler
def test_compiled_training_goes_on_exactly():
    with thin_network():
        whole = losses(training(True))
        first = training(True)
        assert losses(first, 0, 2) == whole[:2]
        again = training(True)
        again.load_state_dict(first.state_dict())
        assert losses(again, 2) == whole[2:]


@needs_compiler
def test_a_run_says_that_it_was_compiled(archive_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with thin_network():
        ran = call(train, *flags(archive_path))
        again = call(train, "--resume", "run")
        plain = call(train, "--resume", "run", "--no-compile")
    assert again.status == 0 and "compiled" in again.err
    assert plain.status == 0 and "compiled" not in plain.err
    assert ran.status == 0, ran.err
    assert "compiled" in StageFolder("run", "base").read_recipe()["device"]["name"]
    assert compiled_graphs() >= 2


def test_without_a_compiler_nothing_begins(archive_path, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "tinynet.train", *flags(archive_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "CXX": "/nowhere/g++",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
        },
    )
    *_, line = ran.stderr.splitlines()
    assert (
        ran.returncode == 2
        and "--compile" in line
        and "compiler found" in line
        and "Traceback" not in ran.stderr
    )
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
