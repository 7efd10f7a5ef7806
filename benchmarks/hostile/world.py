"""The good inputs that the cases damage: a synthetic archive, runs, weights, and two networks whose
outputs give the colours of an image.

The truth is computed here from the bytes of the archive, without tinynet's readers.
"""

import hashlib
import io
import json
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from tinynet import evaluate, predict, runs, train
from tinynet.data import __main__ as data
from tinynet.data.synthetic import synthetic
from tinynet.flags import run_command
from tinynet.models import vgg
from tinynet.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.checkpoint import save_model
from tinynet.models.classifier import Classifier
from tinynet.records import EpochRow, LogRow

# VGG16's layers with a sixteenth of the channels; their number does not matter to the readers.
THIN = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
SIDE = 32
ON = ("--device", "cpu", "--precision", "float32")
SHARPNESS = 8.0  # the difference between the logits of white and black
ROOT = "tiny-imagenet-200"
SQUEEZE = "squeezenet1_1"  # torchvision's smallest classifier
_TRAINED = (
    "--weights",
    "none",
    "--hidden",
    "16",
    "--holdout",
    "0.25",
    "--size",
    str(SIDE),
    "--batch",
    "6",
    *ON,
)
_CLASSES = tuple(f"c{number:02d}" for number in range(13))


@contextmanager
def thin_network() -> Iterator[None]:
    """Use a thin VGG16 and one thread."""
    torch.set_num_threads(1)
    wide = vgg.cfgs["D"]
    vgg.cfgs["D"] = THIN
    try:
        yield
    finally:
        vgg.cfgs["D"] = wide


def build(folder: Path) -> None:
    """Write all inputs into the empty `folder`."""
    archive = synthetic(folder / "drawn.zip", classes=4, train=4, val=2, test=1, side=SIDE, seed=1)
    with zipfile.ZipFile(archive) as source:
        source.extractall(folder / "extracted")
    _write(
        folder / "truth.json",
        truth_of(
            {
                name: (folder / "extracted" / name).read_bytes()
                for name in zipfile.ZipFile(archive).namelist()
            }
        ),
    )
    with thin_network():
        torch.save(vgg.VGG16().state_dict(), folder / "thin.pt")
        _runs(folder, archive)
        save_model(folder / "probe/base/best.pt", _probe(), _CLASSES, SIDE)
    for name, text in (("recipe.json", "{}\n"), ("scores.jsonl", "")):
        (folder / "probe/base" / name).write_text(text)
    torch.save(_squeeze(), folder / "squeeze.pt")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def truth_of(members: dict[str, bytes]) -> dict[str, dict[str, list]]:
    """For each part: file -> label, box, and digest of the pixels. `members`: name -> bytes, in the
    official layout.
    """
    text = {name.removeprefix(f"{ROOT}/"): content for name, content in members.items()}
    wnids = sorted(text["wnids.txt"].decode().split())
    truth: dict[str, dict[str, list]] = {"train": {}, "val": {}, "test": {}}
    rows = [line.split("\t") for line in text["val/val_annotations.txt"].decode().splitlines()]
    annotated = {row[0]: (row[1], list(map(int, row[2:6]))) for row in rows}
    for name in sorted(name for name in text if name.endswith(".JPEG")):
        part, pieces = name.split("/")[0], name.split("/")
        label, box = None, [-1] * 4
        if part == "train":
            label, lines = (
                wnids.index(pieces[1]),
                text[f"train/{pieces[1]}/{pieces[1]}_boxes.txt"].decode(),
            )
            box = next(
                list(map(int, line.split("\t")[1:]))
                for line in lines.splitlines()
                if line.startswith(pieces[-1] + "\t")
            )
        if part == "val":
            label, box = wnids.index(annotated[pieces[-1]][0]), annotated[pieces[-1]][1]
        truth[part][name] = [
            label,
            box,
            digest(np.asarray(Image.open(io.BytesIO(text[name])).convert("RGB"))),
        ]
    return truth


def digest(pixels: np.ndarray) -> str:
    """The digest of an image (H, W, 3) uint8."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def _runs(folder: Path, archive: Path) -> None:
    """Write a finished and evaluated run, one that stopped after the first of two epochs, and their
    output.
    """
    place = ("--data", str(archive), "--cache", str(folder / "cache"))
    base = ("--stage", "base", *_TRAINED, *place)
    _output(train.main, *base, "--epochs", "1", "--out", str(folder / "run"))
    rows = _output(
        evaluate.main, "--run", str(folder / "run"), "--tta", "flip", "--json", *ON, *place
    )
    _write(folder / "scores.json", json.loads(rows))
    _output(
        evaluate.main,
        "--run",
        str(folder / "run"),
        "--split",
        "val",
        "--save-probabilities",
        str(folder / "stored.npz"),
        *ON,
        *place,
    )
    Image.new("RGB", (SIDE, SIDE), (240, 20, 10)).save(folder / "red.png")
    named = _output(
        predict.main, str(folder / "red.png"), "--run", str(folder / "run"), "--json", *ON
    )
    _write(folder / "predicted.json", json.loads(named))
    _output(data.main, "verify", "--data", str(archive), "--json", into=folder / "verify.json")
    after_epoch = runs.append_rows

    def interrupted(path: Path, rows: list[LogRow]) -> None:
        after_epoch(path, rows)
        if isinstance(rows[0], EpochRow):
            signal.raise_signal(signal.SIGINT)

    runs.append_rows = interrupted
    try:
        _output(train.main, *base, "--epochs", "2", "--out", str(folder / "stopped"), status=130)
    finally:
        runs.append_rows = after_epoch


def _output(
    main: Callable[[list[str]], None], *flags: str, status: int = 0, into: Path | None = None
) -> str:
    """The standard output of a command."""
    usual, sys.stdout = sys.stdout, io.StringIO()
    try:
        run_command(lambda: main(list(flags)))
    except SystemExit as ended:
        if ended.code != status:
            raise RuntimeError(f"{flags}: status {ended.code}") from None
        if into:
            into.write_text(sys.stdout.getvalue())
        return sys.stdout.getvalue()
    finally:
        sys.stdout = usual


def _probe() -> Classifier:
    """The probe: its logits are the mean red, green and blue of the four quarters of an image; the
    last one is 0.
    """
    model = Classifier(
        vgg.VGG16(), ("relu1_1:grid2",), (), len(_CLASSES), 0.0, standardise=False
    ).eval()
    _see_colours(model.backbone.features[0])
    layer = model.head[0]
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for quarter in range(4):
        for channel in range(3):
            layer.weight.data[3 * quarter + channel, 4 * channel + quarter] = SHARPNESS
    return model


def _see_colours(layer: nn.Conv2d) -> None:
    """Make the first three outputs the pixels in [0, 1], before the normalisation."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        layer.weight.data[channel, channel, 1, 1] = std
        layer.bias.data[channel] = mean


def _squeeze() -> dict[str, torch.Tensor]:
    """SqueezeNet with logits for the red, green and blue of an image in one colour; the others are
    0.
    """
    network = torchvision.models.get_model(SQUEEZE, weights=None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            middle = module.kernel_size[0] // 2
            if module.kernel_size == (1, 1):
                module.weight.data[range(3), range(3), middle, middle] = 1.0
    network.classifier[1].weight.data *= SHARPNESS
    _see_colours(network.features[0])
    return network.state_dict()


def quarters(row: dict[str, float]) -> list[list[float]]:
    """The colours (0 to 255) of the four quarters, from the probe's probabilities."""
    logs = np.log([row[name] for name in _CLASSES])
    return (((logs[:12] - logs[12]) / SHARPNESS * 255).reshape(4, 3)).tolist()
