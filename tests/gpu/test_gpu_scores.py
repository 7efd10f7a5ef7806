"""Scores on a simulated GPU, compared with the CPU."""

import shutil
from pathlib import Path

import pytest
import torch
from gpu_runs import (
    APART,
    DTYPES,
    check_probabilities,
    check_rows,
    classifier,
    device_of,
    flags_of,
    gpu_of,
    in_bfloat16_slow,
    rows_of,
    simulated_gpu_only,
)
from pretend_gpu import pretend_gpu
from support import ON_CPU

from tinynet import evaluate, fixres
from tinynet import select_views as select_views_command
from tinynet import soup as soup_command
from tinynet.compute import choose_compute
from tinynet.score.gradcam import gradcam
from tinynet.score.probabilities import Probabilities

pytestmark = [
    pytest.mark.usefixtures("small_gpu_runs"),
    pytest.mark.filterwarnings("ignore:.*not writable"),
]


VIEWS = (
    "flip",
    "five",
    "ten",
    "shift",
    "rotate",
    "zoom",
    "scales:32,48",
    "resize:48",
    "dense:64",
    "flip+scales:32,48",
    "resize:40+flip+rotate:10",
)


# --- scores ---


@pytest.mark.parametrize("stage, count", [("base", 2 * 11), ("finetune", 2 * 28)])
def test_scores_are_those_of_the_cpu(there, copies, on_cpu, arithmetic, stage, count):
    """All views; merges are of the CPU, so that two are enough."""
    views = VIEWS if stage == "finetune" else ("flip", "ten")
    flags = (
        "--stage",
        stage,
        "--tta",
        *views,
        "--merge",
        "mean",
        "sharpen",
        "--size",
        "32",
        "--calibrate",
    )
    theirs = on_cpu(evaluate, "--run", "cpu", *flags)
    with gpu_of(arithmetic) as gpu:
        ours = rows_of(evaluate, "--run", copies("cpu"), *flags, *flags_of(arithmetic))
    assert gpu.convolutions and set(gpu.convolutions) <= DTYPES[arithmetic]
    check_rows(ours, theirs, arithmetic)
    check_probabilities(Path(copies("cpu"), stage), Path("cpu", stage), arithmetic, count)


def test_cache_is_separate_per_device(there, arithmetic, tmp_path):
    """What they say in the same precision differs in its last bits."""
    run = shutil.copytree("cpu", tmp_path / "run", ignore=shutil.ignore_patterns("probabilities"))
    rows_of(evaluate, "--run", run, "--split", "val", *ON_CPU)
    with gpu_of(arithmetic):
        rows_of(evaluate, "--run", run, "--split", "val", "--precision", "float32")
    (file,) = run.glob("finetune/probabilities/*.npz")
    assert Probabilities.load(file).about["device"] == "cuda"


def test_float32_disables_tf32(arithmetic, monkeypatch):
    """cuDNN's convolutions round to ten bits unless they are told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with gpu_of(arithmetic):
        device_of(arithmetic)
    assert torch.backends.cudnn.allow_tf32 == (arithmetic != "float32")


@in_bfloat16_slow
def test_choosing_and_souping_match_cpu(there, copies, on_cpu, arithmetic):
    """Which views are worth it may differ by a rounding, and so the rows; what ten-crop is worth
    may not.
    """

    def ten(rows):
        return [row for row in rows if row["views"] == "ten"]

    choosing = ("--stage", "finetune", "--tta", "flip+shift", "zoom", "--most", "4")
    choices = on_cpu(select_views_command, "--run", "cpu", *choosing)
    rows = on_cpu(soup_command, "cpu", "other", "--stage", "base")
    with gpu_of(arithmetic):
        ours = rows_of(
            select_views_command, "--run", copies("cpu"), *choosing, *flags_of(arithmetic)
        )
        soup = rows_of(
            soup_command,
            copies("cpu"),
            copies("other"),
            "--stage",
            "base",
            *flags_of(arithmetic),
        )
    check_rows(ten(ours), ten(choices), arithmetic)
    if arithmetic == "float32":
        check_rows(ours, choices, arithmetic)
    assert {row["views"] for row in ours} >= {"ten", "learned weights", "greedy 1", "greedy 4"}
    check_rows(soup, rows, arithmetic)


@in_bfloat16_slow
def test_other_sizes_match_cpu(there, copies, on_cpu, arithmetic):
    """All ways to enlarge, corrections, a head that learns on, and a run that is kept."""

    def flags(run):
        return (
            "--run",
            run,
            "--stage",
            "base",
            "--sizes",
            "32",
            "48",
            "--fit",
            "48",
            "--keep",
            f"{run}-norms",
            "--methods",
            "antialias",
            "bilinear",
            "bicubic",
            "nearest",
            "area",
            "lanczos",
        )

    theirs = on_cpu(fixres, *flags("cpu"))
    with gpu_of(arithmetic) as gpu:
        ours = rows_of(fixres, *flags(copies("cpu")), *flags_of(arithmetic))
        again = rows_of(evaluate, "--run", f"{copies('cpu')}-norms", *flags_of(arithmetic))
    assert set(gpu.convolutions) <= DTYPES[arithmetic]
    corrections = {(row.get("correction"), row["size"], row["split"]): row["loss"] for row in ours}
    assert {name for name, *_ in corrections} == {
        "as is",
        "frechet",
        "quantile",
        "batch norm",
        "fine-tuned",
        "trained on, own size",
        None,
    }
    check_rows(ours, theirs, arithmetic)
    assert [(row["split"], row["size"]) for row in again] == [("holdout", 48), ("val", 48)]
    assert again[1]["loss"] == pytest.approx(corrections["batch norm", 48, "val"], rel=1e-3)
    weights = [
        torch.load(f"{run}-norms/base/best.pt", map_location="cpu", weights_only=True)["weights"]
        for run in (copies("cpu"), "cpu")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            value, weights[1][name], rtol=APART[arithmetic], atol=APART[arithmetic]
        )


# --- heat maps ---


@simulated_gpu_only
def test_gradcam_matches_cpu(there):
    torch.manual_seed(0)
    model = classifier().eval()
    images, classes = torch.rand(3, 3, 64, 64), torch.tensor([0, 3, 5])
    theirs = gradcam(model, images, classes, "relu4_3")
    with pretend_gpu():
        network = model.for_inference(choose_compute().device, torch.float32)
        ours = gradcam(network, images.cuda(), classes.cuda(), "relu4_3").cpu()
    assert torch.allclose(ours, theirs, atol=1e-6)
