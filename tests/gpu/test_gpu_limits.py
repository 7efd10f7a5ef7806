"""What a simulated GPU cannot hold or do."""

import json
import re
import shutil

import pytest
import torch
from gpu_runs import BASE, FINETUNE, check_names, check_rows, draw, rows_of, simulated_gpu_only
from pretend_gpu import pretend_gpu
from support import call

from tinynet import evaluate, predict, train
from tinynet import soup as soup_command
from tinynet.models.weights import load_vgg16

pytestmark = [
    simulated_gpu_only,
    pytest.mark.usefixtures("small_gpu_runs"),
    pytest.mark.filterwarnings("ignore:.*not writable"),
]


MEMORY = ["torch", "cublas", "cublas at its start", "cudnn", "cudnn, integers"]


@pytest.mark.parametrize("error", MEMORY)
def test_oom_halves_batch_when_scoring(there, on_cpu, tmp_path, error):
    """Where the network sees views, and where features are extracted."""
    run = shutil.copytree("cpu", tmp_path / "run", ignore=shutil.ignore_patterns("probabilities"))
    with pretend_gpu() as gpu, gpu.short_of_memory(5, error):
        for stage, elsewhere in (("finetune", ()), ("base", ("--cache", tmp_path / "cache"))):
            flags = ("--stage", stage, "--tta", "flip", "--split", "val")
            ran = call(
                evaluate, "--run", run, *flags, *elsewhere, "--precision", "float32", "--json"
            )
            assert ran.status == 0, ran.err
            assert re.search(
                r"24 images of 32x32 pixels at once; continuing with 12 at a time\n", ran.err
            )
            check_rows(json.loads(ran.out), on_cpu(evaluate, "--run", "cpu", *flags), "float32")


@pytest.mark.parametrize("error", MEMORY)
def test_a_step_that_does_not_fit_takes_one_line(there, tmp_path, error):
    with pretend_gpu() as gpu, gpu.short_of_memory(15, error):
        ran = call(train, "--out", tmp_path / "large", "--run", "cpu", *FINETUNE)
    last = ran.err.splitlines()[-1]
    assert (
        ran.status == 2
        and "a training step (" in last
        and "--resume" in last
        and "Traceback" not in ran.err
    )


def test_oom_halves_batch_when_predicting(there, on_cpu):
    flags = ("tree", "--size", "64", "--top", "6")
    with pretend_gpu() as gpu, gpu.short_of_memory(3):
        ours = rows_of(predict, "--run", "cpu", *flags, "--precision", "float32")
    check_names(ours, on_cpu(predict, "--run", "cpu", *flags), "float32")


def test_oom_halves_batch_for_soup(there, on_cpu):
    flags = ("cpu", "other", "--stage", "base")
    with pretend_gpu() as gpu, gpu.short_of_memory(20):
        check_rows(
            rows_of(soup_command, *flags, "--precision", "float32"),
            on_cpu(soup_command, *flags),
            "float32",
        )


def test_large_files_are_shrunk_on_a_gpu_too(there, on_cpu, tmp_path):
    draw(tmp_path / "large.jpg", (3200, 3100))
    flags = (tmp_path / "large.jpg", "--tta", "scales:32,64", "--top", "6")
    theirs = on_cpu(predict, "--run", "cpu", *flags)
    with pretend_gpu():
        check_names(
            rows_of(predict, "--run", "cpu", *flags, "--precision", "float32"), theirs, "float32"
        )


def test_float16_overflow_suggests_precision(there, tmp_path):
    large = {
        f"features.{name}": 30 * value
        for name, value in load_vgg16("none").features.state_dict().items()
    }
    torch.save(large, tmp_path / "large.pth")
    with pretend_gpu():
        ran = call(
            train,
            "--stage",
            "base",
            "--out",
            tmp_path / "run",
            *BASE,
            "--weights",
            tmp_path / "large.pth",
            "--feature-dtype",
            "float32",
            *there.data,
        )
    assert ran.status == 2 and "--precision float32" in ran.err
