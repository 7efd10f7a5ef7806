"""Check that `tinynet folder` prepares and scores images as timm does, image by image.

    python -m benchmarks.procedure --weights lite0.pth --out procedure.json

The val images of Tiny ImageNet are written as one folder per class. Four procedures: (1) resize the
shorter side, crop the centre; (2) the same with ten crops, for every tenth image; and, on images
cut to 64 x 48 pixels, (3) resize the shorter side, (4) resize both sides. tinynet and timm both run
timm's network in float32. A row has the greatest difference of an input pixel (0 to 255) and of a
probability, the number of images with the same top class, and the accuracy of tinynet and of timm
over 1,000 classes.
"""

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from benchmarks.machine import facts
from tinynet import console
from tinynet.compute import Compute
from tinynet.data.download import find_data
from tinynet.evaluation.folder import DecodedImages, FolderRequest, evaluate_folder
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.models.pretrained import Pretrained, load_pretrained
from tinynet.score.metrics import score
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import ViewSet, view_set

CPU = Compute(torch.device("cpu"), torch.float32)
OBLONG = "64 x 48"
PROCEDURES = {  # how to resize, and the views
    "published": ("shorter", "none"),
    "ten": ("shorter", "ten"),
    f"published, {OBLONG}": ("shorter", "none"),
    f"squash, {OBLONG}": ("squash", "none"),
}
TEN = 10  # every tenth image gets ten crops
BATCH = 32


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks.procedure", __doc__)
    parser.add_argument("--arch", default="timm/tf_efficientnet_lite0", help="a network of timm")
    parser.add_argument("--weights", required=True, help="its weights")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image")
    add_common(parser, "data")
    parser.add_argument("--out", type=user_path, required=True, help="file for the result")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        val, oblong, few = (Path(temporary, name) for name in ("val", "oblong", "few"))
        archive = find_data(options.data)
        class_folders(archive, val, options.every)
        class_folders(archive, few, TEN * options.every)
        crop_all(val, oblong)
        for name in PROCEDURES:
            folder = oblong if OBLONG in name else few if name == "ten" else val
            rows.append(compare(name, folder, options.arch, options.weights))
            console.log(str(rows[-1]))
    write_json(options.out, {"arch": options.arch, "machine": facts(CPU), "rows": rows})


def class_folders(archive: Path, folder: Path, every: int) -> None:
    """Write every Nth val image of the official zip to a folder of its class."""
    with zipfile.ZipFile(archive) as source:
        root = "tiny-imagenet-200/val"
        lines = source.read(f"{root}/val_annotations.txt").decode().splitlines()
        for name, wnid in (line.split("\t")[:2] for line in lines[::every]):
            path = folder / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(f"{root}/images/{name}"))


def crop_all(source: Path, folder: Path) -> None:
    """Write the upper 48 rows of all images of `source` to the same places of `folder`."""
    for file in source.glob("*/*"):
        path = (folder / file.relative_to(source)).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        opened(file).crop((0, 0, 64, 48)).save(path)


def compare(procedure: str, folder: Path, arch: str, weights: str) -> dict[str, Any]:
    """Score the images of `folder` with tinynet and with timm."""
    mode, views = PROCEDURES[procedure]
    path = folder.parent / "probabilities.npz"
    request = FolderRequest(resize_mode=mode, tta=[views], save=str(path))
    *_, ours = evaluate_folder(str(folder), None, arch, weights, request, CPU)
    saved = Probabilities.load(path)
    files = sorted(folder.glob("*/*"))
    model, published = load_pretrained(arch, weights)
    decoded = DecodedImages(files, published.resize, mode, published.interpolation)
    view = view_set(views, published.size, prepared=True)
    prepare = timm_transform(model.network, mode, views == "ten")
    theirs = np.stack(list(timm_probabilities(model.network, files, prepare)))
    probabilities = np.exp(saved.log_probabilities).mean(0)
    return {
        "procedure": procedure,
        "n": ours.n,
        "pixel": pixel_difference(files, prepare, model, decoded, view),
        "probability": float(np.abs(probabilities - theirs).max()),
        "equal": int((probabilities.argmax(1) == theirs.argmax(1)).sum()),
        "top1": ours.top1,
        "top5": ours.top5,
        "timm": score(np.log(theirs), saved.labels).to_json(),
    }


def timm_transform(network: nn.Module, mode: str, ten: bool) -> Callable[[Image.Image], Tensor]:
    """timm's transform: an image to (V, 3, H, W) normalised."""
    from timm.data import create_transform, resolve_model_data_config

    settings = resolve_model_data_config(network)
    if mode == "squash":
        settings["crop_mode"] = "squash"
    whole = create_transform(**settings)
    if not ten:
        return lambda image: whole(image)[None]
    resize, crop, *rest = whole.transforms

    def crops(image: Image.Image) -> Tensor:
        parts = functional.ten_crop(resize(image), crop.size)
        for step in rest:
            parts = [step(part) for part in parts]
        return torch.stack(list(parts))

    return crops


@torch.inference_mode()
def timm_probabilities(
    network: nn.Module, files: Sequence[Path], prepare: Callable[[Image.Image], Tensor]
) -> Iterator[np.ndarray]:
    """The mean probabilities (C,) of each image's views."""
    for first in range(0, len(files), BATCH):
        views = torch.stack([prepare(opened(file)) for file in files[first : first + BATCH]])
        yield from (
            network(views.flatten(0, 1)).softmax(1).unflatten(0, views.shape[:2]).mean(1).numpy()
        )


def pixel_difference(
    files: Sequence[Path],
    prepare: Callable[[Image.Image], Tensor],
    model: Pretrained,
    decoded: DecodedImages,
    view: ViewSet,
) -> float:
    """The greatest difference between the inputs of tinynet and timm, in steps of 255."""
    greatest = 0.0
    for number, file in enumerate(files):
        image = decoded[number][1]
        assert isinstance(image, Tensor)
        ours = torch.cat(list(view(image.float().div(255)[None]).values()))
        theirs = prepare(opened(file)) * model.std + model.mean
        # tinynet and timm have ten crops in another order.
        pairs = torch.cdist(ours.flatten(1), theirs.flatten(1), p=float("inf"))
        greatest = max(greatest, float(pairs.min(1).values.max()))
    return 255 * greatest


def opened(file: Path) -> Image.Image:
    """An image of a file, in RGB."""
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    run_command(main)
