"""The command folder: images scored as the publisher of a network scores them."""

import json
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import IMAGENET_WNIDS, TREE_CLASSES, CellMeans, by_hand, draw_noise
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from support import CPU, argv, call, complaint, refused
from torch import nn
from torchvision.transforms import v2 as tv2
from torchvision.transforms.v2 import functional as tv

from tinynet import compare
from tinynet import folder as folder_command
from tinynet.data.image_folder import labelled_images
from tinynet.evaluation import folder as imagenet
from tinynet.evaluation.folder import FolderRequest, evaluate_folder
from tinynet.models.pretrained import Pretrained
from tinynet.records import to_json
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import view_set

# --- ImageNet's procedure ---


def folder_rows(tree, **how):
    request = FolderRequest(**{"workers": 0, **how})
    return to_json(evaluate_folder(str(tree), None, "reader", "none", request, CPU))


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (dict(), dict()),
        (dict(resize_mode="squash"), dict(mode="squash")),
        (
            dict(interpolation="bicubic", resize=80),
            dict(interpolation=tv.InterpolationMode.BICUBIC, resize=80),
        ),
        (dict(size=48), dict(size=48)),
    ],
)
def test_a_folder_is_scored_as_torchvisions_transforms_would(tree, cell_means, flags, how):
    rows = folder_rows(tree, tta=["ten"], **flags)
    assert [(row["views"], row["forwards"]) for row in rows] == [("none", 1), ("ten", 10)]
    for row in rows:
        expected, labels = by_hand(tree, row["views"], **how)
        assert row["n"] == 15 and row["top1"] == pytest.approx(
            (expected.argmax(1) == labels).double().mean().item()
        )
        assert 0 < row["top1"] < 1
        assert row["loss"] == pytest.approx(
            nn.functional.nll_loss(expected.log(), labels).item(), rel=2e-3
        )
    assert rows[1]["gain"] == pytest.approx(rows[1]["top1"] - rows[0]["top1"])
    assert rows[0]["documented"] == 0.25 and rows[1]["documented"] is None
    assert rows[0]["apart"] == pytest.approx(
        (rows[0]["top1"] - 0.25) / ((rows[0]["high"] - rows[0]["low"]) / 2)
    )


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_scores_do_not_depend_on_batches_and_workers(tree, cell_means, batch, monkeypatch):
    how = dict(tta=["ten", "flip+scales:56,72"], merges=["mean", "gmean", "vote"])
    monkeypatch.setattr(imagenet, "decode_batch_size", lambda views: 4)
    once = folder_rows(tree, **how)
    monkeypatch.setattr(imagenet, "decode_batch_size", lambda views: batch)
    again = folder_rows(tree, workers=batch % 2, **how)
    assert len(once) == 7
    for row, other in zip(once, again, strict=True):
        same = ("views", "merge", "n", "top1", "top5", "forwards")
        assert [row[key] for key in same] == [other[key] for key in same]
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5) and row["p"] == other["p"]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classes_of_unequal_size_count_the_same_in_the_balanced_accuracy(
    tree, cell_means, tmp_path
):
    for wnid, count in zip(TREE_CLASSES, (5, 2, 4), strict=True):
        for file in sorted((tree / wnid).glob(f"{wnid}_*"))[:count]:
            (tmp_path / wnid).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / wnid)
    expected, labels = by_hand(tmp_path, "none")
    best = expected.argmax(1)
    recalls = {k: (best == k)[labels == k].double().mean().item() for k in (3, 500, 999)}
    worst = min(recalls, key=lambda k: (recalls[k], -(labels == k).sum().item()))
    (row,) = folder_rows(tmp_path)
    assert row["balanced"] == pytest.approx(balanced_accuracy_score(labels, best))
    assert abs(row["balanced"] - row["top1"]) > 0.01
    assert (row["worst"], row["worst_class"]) == (
        pytest.approx(recalls[worst]),
        f"{IMAGENET_WNIDS[worst]} name {worst}",
    )


def test_scales_keep_the_aspect_ratio(tree, cell_means):
    rows = folder_rows(tree, tta=["scales:60,90"])
    found = labelled_images(tree, IMAGENET_WNIDS)
    model = Pretrained(CellMeans(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    losses = []
    for file, label in zip(found.files, found.labels, strict=True):
        image = tv.to_dtype(tv.to_image(Image.open(file).convert("RGB")), scale=True)[None]
        with torch.inference_mode():
            seen = [model(tv.resize(image, side, antialias=True)).softmax(1) for side in (60, 90)]
        losses.append(-((seen[0] + seen[1]) / 2)[0, label].log().item())
    assert rows[1]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_the_command_scores_a_folder_and_saves_what_is_requested(
    tree, cell_means, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--data",
        tree,
        "--arch",
        "reader",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    ran = call(
        folder_command, *flags, "--tta", "ten", "--save-probabilities", "kept/ten.npz", "--json"
    )
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    kept = Probabilities.load(Path("kept/ten.npz"))
    assert [path.name for path in Path("kept").iterdir()] == ["ten.npz"]
    assert kept.log_probabilities.shape == (10, 15, 1000) and kept.wnids == IMAGENET_WNIDS
    (again,) = json.loads(call(compare, "kept/ten.npz", "--json").out)
    assert again["top1"] == rows[1]["top1"] and again["loss"] == pytest.approx(rows[1]["loss"])
    assert "documented" in call(folder_command, *flags).out


def test_a_network_of_one_size_does_not_see_oblong_images():
    class Square(nn.Module):
        def forward(self, images):
            assert images.shape[-1] == images.shape[-2] == 32, "wrong size"
            return images.mean((2, 3))

    probe = torch.zeros(1, 3, 32, 32)
    imagenet.check_views(Square(), view_set("flip", 32, prepared=True), probe, "--arch square")
    complaint(
        lambda: imagenet.check_views(
            Square(), view_set("scales:32", 32, prepared=True), probe, "--arch square"
        ),
        "--arch square",
        "42x32",
        "wrong size",
    )


def test_a_folder_that_cannot_be_scored_is_refused(tree, cell_means, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--arch", "reader", "--device", "cpu", "--workers", "1"]
    refused(folder_command, [*flags, "--data", tree, "--size", "80"], "--size 80", "64", "--resize")
    refused(folder_command, [*flags, "--data", tree, "--tta", "dense"], "dense")
    refused(folder_command, [*flags, "--data", tree, "--tta", "six"], "six")
    refused(folder_command, [*flags, "--data", "nowhere"], "nowhere")
    refused(folder_command, [*flags[:-1], "-1", "--data", tree], "--workers -1")
    assert refused(folder_command, [*flags, "--data", tree, "--precision", "int8"], "int8") == 1
    refused(folder_command, flags, "--data", "--arch")
    refused(folder_command, [*flags, "--data", tree, "--split", "val"], "--split")
    refused(
        folder_command,
        [*flags, "--data", tree, *argv("--tta ten five --save-probabilities a.npz")],
        "one set",
    )
    broken = tmp_path / "broken"
    draw_noise(broken / TREE_CLASSES[0] / "a.png")
    (broken / TREE_CLASSES[0] / "b.png").write_text("no picture")
    refused(
        folder_command,
        [*flags, "--data", broken, "--save-probabilities", "kept/a.npz"],
        "b.png",
        "is not an image",
    )
    assert not list(Path("kept").iterdir())


def test_workers_need_no_sockets(tree, cell_means, tmp_path, monkeypatch):
    """The path of a socket has at most 107 bytes, and that of a temporary folder has no limit."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    def too_late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    try:
        assert folder_rows(tree, workers=1)[0]["n"] == 15
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- preparation ---


def test_an_image_is_prepared_as_its_publisher_does():
    how = tv2.Compose([tv2.Resize(64), tv2.CenterCrop(56)])
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (75, 133, 3), np.uint8))
    expected = tv.to_image(how(image))
    shown = imagenet.DecodedImages([Path("a.png")], 64, "shorter", "bilinear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "open_image", lambda *_: image)
        _, found = shown[0]
    assert torch.equal(view_set("none", 56, prepared=True).views["plain"](found[None])[0], expected)
