"""Predictions on a simulated GPU, compared with the CPU."""

from pathlib import Path

import pytest
import torch
from gpu_runs import (
    APART,
    DTYPES,
    check_names,
    check_probabilities,
    check_rows,
    classifier,
    device_of,
    flags_of,
    gpu_of,
    rows_of,
    simulated_gpu_only,
)
from support import ON_CPU, argv, call

from tinynet import folder as folder_command
from tinynet import predict, runs
from tinynet import zero_shot as zero_shot_command
from tinynet.data.copies import open_packed
from tinynet.data.image_folder import imagenet_wnids
from tinynet.evaluation import zero_shot
from tinynet.score.merges import MERGES
from tinynet.score.tta import TestTimeAugmentation

pytestmark = [
    pytest.mark.usefixtures("small_gpu_runs"),
    pytest.mark.filterwarnings("ignore:.*not writable"),
]


PRETRAINED = ("--arch", "shufflenet_v2_x0_5", "--weights", "none")


@pytest.mark.parametrize(
    "flags",
    [
        ("--tta", "ten", "--explain", "votes.png"),
        ("--tta", "flip+scales:32,48"),
        ("--tta", "dense:64", "--merge", "gmean"),
        ("--size", "48"),
    ],
    ids=lambda flags: flags[1],
)
def test_files_are_named_as_on_the_cpu(there, copies, on_cpu, arithmetic, flags):
    flags = ("photo.png", "tree", *flags, "--top", "6")
    theirs = on_cpu(predict, "--run", "cpu", *flags)
    Path("votes.png").unlink(missing_ok=True)
    with gpu_of(arithmetic):
        ours = rows_of(predict, "--run", copies("cpu"), *flags, *flags_of(arithmetic))
    check_names(ours, theirs, arithmetic)
    assert Path("votes.png").is_file() == ("--explain" in flags)


@pytest.mark.parametrize("stage", runs.WHOLE)
def test_the_official_test_set_is_named_as_on_the_cpu(there, copies, arithmetic, stage):
    def lines(run, *flags):
        ran = call(
            predict, "--run", run, "--stage", stage, "--tta", "flip", "--out", f"{run}.txt", *flags
        )
        assert ran.status == 0, ran.err
        return Path(f"{run}.txt").read_text().splitlines()

    theirs = lines("cpu", *ON_CPU)
    with gpu_of(arithmetic):
        ours = lines(copies("cpu"), *flags_of(arithmetic))
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    # near ties may fall otherwise
    assert len(ours) == 18 and equal >= (18 if arithmetic == "float32" else 15)
    check_probabilities(Path(copies("cpu"), stage), Path("cpu", stage), arithmetic, 2, "test")


def small_network():
    """1,000 classes from one convolution, instead of a network of torchvision."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 7, stride=4),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 1000),
    )


def imagenet_with(wnids):
    """ImageNet's 1,000 ids, the first of which are called like the drawn classes."""
    return (*wnids, *imagenet_wnids()[len(wnids) :])


def test_pretrained_networks_match_cpu(there, on_cpu, arithmetic, monkeypatch):
    """With random weights, the same ones everywhere."""
    wnids = imagenet_with(open_packed(there.archive, there.folder / "cache").wnids)
    monkeypatch.setattr(zero_shot, "imagenet_wnids", lambda: wnids)
    monkeypatch.setattr("torchvision.models.get_model", lambda *_, **__: small_network())
    folder = argv("--data tree --resize 72 --size 64 --workers 0 --tta ten scales:64,80")
    folder += argv("--merge mean vote")
    whole = (*there.data, *argv("--size 64 --tta flip --merge mean vote"))
    files = argv("photo.png tree --tta flip --top 9")

    def rows(ask, *flags):
        """Of each command, with new random weights of the network."""
        for command, way in (
            (folder_command, folder),
            (zero_shot_command, whole),
            (predict, files),
        ):
            torch.manual_seed(0)
            yield ask(command, *way, *PRETRAINED, *flags)

    theirs = list(rows(on_cpu))
    with gpu_of(arithmetic) as gpu:
        *ours, names = rows(rows_of, *flags_of(arithmetic))
    assert gpu.convolutions and set(gpu.convolutions) <= DTYPES[arithmetic]
    for one, other in zip(ours, theirs, strict=False):
        check_rows(one, other, arithmetic)
    assert [row["file"] for row in names] == [row["file"] for row in theirs[-1]]
    assert [row["probability"] for row in names] == pytest.approx(
        [row["probability"] for row in theirs[-1]], rel=APART[arithmetic]
    )


@simulated_gpu_only
def test_any_classifier_with_its_views_matches_cpu(there, arithmetic):
    """`TestTimeAugmentation` merges on the device."""
    torch.manual_seed(0)
    network, images = classifier().eval(), torch.rand(3, 3, 64, 64)
    for merge in MERGES:
        with torch.inference_mode():
            theirs = TestTimeAugmentation(network, "ten", merge, 48)(images)
        with gpu_of(arithmetic):
            device = device_of(arithmetic)
            on_device = network.for_inference(device.device, device.dtype)
            module = TestTimeAugmentation(on_device, "ten", merge, 48)
            with torch.inference_mode():
                ours = module(images.cuda())
        assert (
            ours.is_cuda and ours.cpu_tensor.exp().sub(theirs.exp()).abs().max() < APART[arithmetic]
        )
