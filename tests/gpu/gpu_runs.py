"""What the tests on a simulated GPU share: flags, tolerances, comparisons.

With TINYNET_TEST_GPU=real in the environment, the tests run on this machine's GPU instead. It must
have compute capability 8.0 or more.
"""

import json
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu
from support import ON_CPU, SMALL, call, thin_network
from torch.utils._python_dispatch import TorchDispatchMode

from tinynet import runs, train
from tinynet.compute import choose_compute
from tinynet.models.classifier import Classifier
from tinynet.models.weights import load_vgg16
from tinynet.runs import StageFolder
from tinynet.score.probabilities import Probabilities
from tinynet.training.recipes import RECIPES, TUNED

REAL = os.environ.get("TINYNET_TEST_GPU") == "real"
CAPABILITIES = {"float16": (7, 5), "bfloat16": (8, 0), "float32": (7, 5)}
# For tests of whole commands, of which two kinds are enough between two commits.
in_bfloat16_slow = pytest.mark.parametrize(
    "arithmetic",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "bfloat16" else ())
        for name in CAPABILITIES
    ],
    indirect=True,
)
# For tests that read what only the simulated GPU counts, or that compare bits: a real GPU may add
# in another order.
simulated_gpu_only = pytest.mark.skipif(REAL, reason="needs the simulated GPU")
DTYPES = {
    "float16": {torch.float16},
    "float32": {torch.float32},
    # what does not learn may have more digits there
    "bfloat16": {torch.bfloat16, torch.float16},
}
# How far from the CPU's float32: probabilities and mean losses of the same weights, and losses of
# training, relative. With few channels the head's standardised features make more of a rounding
# than those of a whole network.
APART = {"float32": 1e-3 if REAL else 1e-4, "float16": 0.03, "bfloat16": 0.1}
BASE = [flag for flag in SMALL if flag not in ON_CPU]
FINETUNE = ("--stage", "finetune", "--epochs", "1", "--batch", "16", "--size", "32")
NOT_COMPARED = ("run", "precision", "pictures_per_second", "seconds", "path")


@contextmanager
def fast_runs():
    """Thin networks, and a short `fixres` without dropout: chance differs between devices."""
    small = replace(TUNED, fixres=replace(TUNED.fixres, epochs=1, batch=16, dropout=0.0))
    with thin_network() as patch:
        patch.setitem(RECIPES, "tuned", small)
        for module in ("resolution.fixres", "report.page"):
            # the slowest part by far
            patch.setattr(f"tinynet.{module}.save_figure", lambda figure, path: None)
        yield patch


class RealGpu(TorchDispatchMode):
    """Counts convolutions on the GPU of this machine, by dtype."""

    def __init__(self):
        super().__init__()
        self.convolutions = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Inference mode does not decompose conv2d.
        names = ("aten::convolution", "aten::conv2d")
        if func.name() in names and args[0].is_cuda:
            self.convolutions[args[0].dtype] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def gpu_of(arithmetic, **how):
    assert not (REAL and how), "a real GPU cannot be configured"
    gpu = RealGpu() if REAL else pretend_gpu(CAPABILITIES[arithmetic], **how)
    with gpu as entered:
        yield entered


def precision_of(arithmetic):
    """The precision to ask for; `auto` if it is the GPU's default. A real one has bfloat16."""
    named = ("float32", "float16") if REAL else ("float32",)
    return arithmetic if arithmetic in named else "auto"


def flags_of(arithmetic):
    precision = precision_of(arithmetic)
    return () if precision == "auto" else ("--precision", precision)


def device_of(arithmetic):
    return choose_compute(precision=precision_of(arithmetic))


def rows_of(command, *flags):
    """The rows that a command prints."""
    ran = call(command, *flags, "--json")
    assert ran.status == 0, "\n".join(reversed(ran.err.splitlines()))  # the last line says why
    return json.loads(ran.out)


def classifier(dropout=0.0):
    """A network with random weights, for six classes."""
    return Classifier(
        load_vgg16("none"), TUNED.network.features, (16,), 6, dropout, standardise=True
    )


def draw(path, sides):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(sides[0]).randint(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC).save(path)


def trained(run, data, *flags, dropout=0.0):
    """Both stages in a new run."""
    rows_of(
        train,
        "--stage",
        "base",
        "--out",
        run,
        *BASE,
        "--epochs",
        "2",
        "--dropout",
        dropout,
        *data,
        *flags,
    )
    rows_of(train, "--run", run, *FINETUNE, "--dropout", dropout, *flags)


def log_of(run, stage, kind="step"):
    return [row for row in runs.read_rows(StageFolder(run, stage).log) if row["kind"] == kind]


def check_rows(ours, theirs, arithmetic):
    """Words and counts are the same, losses near; in float32 on the simulated GPU, which computes
    as the CPU does, every number is.
    """
    exact = arithmetic == "float32" and not REAL
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - set(NOT_COMPARED):
            if key == "loss" or (exact and isinstance(other[key], float)):
                assert one[key] == pytest.approx(
                    other[key], rel=APART[arithmetic], abs=APART[arithmetic]
                ), (key, one)
            elif exact or isinstance(other[key], (str, int)):
                assert one[key] == other[key], (key, one)


def check_probabilities(ours, theirs, arithmetic, count, split="*"):
    """Every view that two stages keep."""
    files = [path.name for path in Path(ours).glob(f"probabilities/{split}-*.npz")]
    assert len(files) >= count
    for file in files:
        one, other = (
            Probabilities.load(Path(folder, "probabilities", file)) for folder in (ours, theirs)
        )
        assert (one.about["device"], other.about["device"]) == (
            "cuda",
            "cpu",
        ) and one.views == other.views
        assert (
            np.array_equal(one.labels, other.labels) if one.labels is not None else "test" in file
        )
        difference = np.abs(np.exp(one.log_probabilities) - np.exp(other.log_probabilities)).max()
        assert difference < APART[arithmetic], (file, one.views)


def check_names(ours, theirs, arithmetic):
    """The probability of every class of every file."""
    one, other = (
        {(row["file"], row["id"]): row["probability"] for row in rows} for rows in (ours, theirs)
    )
    assert one.keys() == other.keys() and one == pytest.approx(other, abs=APART[arithmetic])
