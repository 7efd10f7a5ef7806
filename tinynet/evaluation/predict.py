"""Names for pictures of any files, by a trained run or a pretrained network, and how each view
votes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from tinynet import console
from tinynet.compute import Compute
from tinynet.data.image_folder import imagenet_wnids
from tinynet.evaluation.folder import DecodedImages, at_once, can_see, refuse_dense, see
from tinynet.models.checkpoint import class_order, load_model
from tinynet.models.dense import Dense
from tinynet.models.pretrained import load_pretrained
from tinynet.models.vgg import check_side
from tinynet.runs import StageFolder
from tinynet.score import merges as merging
from tinynet.score.views import view_set
from tinynet.training.config import RunConfig


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared and merged; None stands for the network's own way."""

    tta: str = "none"
    merge: str = "mean"
    size: int | None = None
    resize: int | None = None
    resize_mode: str | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class Explanation:
    """The views of an image and how each votes.

    `views`: names. `images`: (H, W, 3) floats in [0, 1], one a view. `votes`: the class with the
    greatest probability of each view, and that probability. `winner`: the class of all together.
    """

    views: list[str]
    images: list[np.ndarray]
    votes: list[tuple[str, float]]
    winner: str
    title: str


@dataclass(frozen=True)
class FilePredictor:
    """A network and what its classes are called: `ids` (wnids) and `names`, in the order of its
    outputs.

    `size`, `resize`, `interpolation`: what it wants where nothing else is said; `resize` None: as
    the views need. `dense`: the network that slides over larger pictures, where there is one.
    """

    network: nn.Module
    ids: Sequence[str]
    names: Sequence[str]
    size: int
    resize: int | None
    interpolation: str
    compute: Compute
    resize_mode: str = "shorter"
    dense: nn.Module | None = None

    def name(
        self,
        files: Sequence[Path],
        how: Preparation,
        top: int,
        explain: Callable[[Explanation], None] | None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """A row for each of the `top` classes of each picture, and a line for each file that cannot
        be read.

        `explain`: called with the views of the first picture and their votes.
        Raises `InputError` for views, a merge or sizes that there are not.
        """
        merge, size = merging.get(how.merge), how.size or self.size
        if self.dense is not None:
            check_side(size)
        chosen = view_set(how.tta, size, prepared=True)
        if self.dense is None:
            refuse_dense(chosen)
        cropped = any(step in how.tta.split("+") for step in ("five", "ten"))
        resize = how.resize or self.resize or (round(size * 8 / 7) if cropped else size)
        network = self.dense if chosen.dense else self.network
        can_see(
            network,
            chosen,
            torch.zeros(1, 3, resize, resize, device=self.compute.device),
            "the network",
        )
        shown = DecodedImages(
            files,
            None if chosen.resizes else resize,
            how.resize_mode or self.resize_mode,
            how.interpolation or self.interpolation,
            upright=True,
        )
        rows, unreadable = [], []
        step = at_once(chosen)
        with console.progress(total=len(files), label="pictures", unit="pictures") as bar:
            for first in range(0, len(files), step):
                some = [shown[i] for i in range(first, min(first + step, len(files)))]
                bar.update(len(some))
                unreadable += [image for _, image in some if isinstance(image, str)]
                read = [(files[i], image) for i, image in some if not isinstance(image, str)]
                if not read:
                    continue
                found = see(network, [image for _, image in read], chosen, self.compute)
                if found.isnan().any():
                    raise FloatingPointError(
                        "the network's output contains NaN; use --precision float32, or another run"
                    )
                if explain and not rows:
                    seen = [
                        view(read[0][1][None].float() / 255)[0] for view in chosen.views.values()
                    ]
                    explain(
                        self._explanation(
                            read[0][0], list(chosen.views), seen, found[:, 0], merge(found)[0]
                        )
                    )
                for (file, _), merged in zip(read, merge(found).exp(), strict=True):
                    rows += self._rows(file, merged, top)
        return rows, unreadable

    def _rows(self, file: Path, probabilities: Tensor, top: int) -> list[dict[str, Any]]:
        best = probabilities.topk(min(top, len(probabilities)))
        return [
            {
                "file": str(file),
                "rank": rank,
                "class": self.names[index],
                "id": self.ids[index],
                "probability": value,
            }
            for rank, (index, value) in enumerate(
                zip(best.indices.tolist(), best.values.tolist(), strict=True), 1
            )
        ]

    def _explanation(
        self, file: Path, views: list[str], images: list[Tensor], votes: Tensor, merged: Tensor
    ) -> "Explanation":
        best = int(merged.argmax())
        return Explanation(
            views,
            [image.permute(1, 2, 0).clamp(0, 1).numpy() for image in images],
            [(self.names[int(one.argmax())], float(one.max())) for one in votes.exp()],
            self.names[best],
            f"{file.name}: {self.names[best]}, {merged[best].exp():.0%}",
        )


def run_predictor(folder: StageFolder, compute: Compute) -> FilePredictor:
    """The network of a finished stage; its classes are called as ImageNet calls them, others as the
    data did.
    """
    wnids = class_order(folder.best)
    model, size = load_model(folder.best, wnids, folder.origin)
    if compute.frozen:
        compute = (
            compute.for_training()
            if RunConfig.of(folder).trains_backbone(folder.stage)
            else compute.for_frozen()
        )
    running = model.for_inference(compute.device, compute.dtype)
    classes = folder.read_recipe({}).get("classes", {})
    called = (
        {wnid: str(name).split(",")[0] for wnid, name in classes.items()}
        if isinstance(classes, dict)
        else {}
    )
    called |= dict(zip(imagenet_wnids(), VGG16_Weights.DEFAULT.meta["categories"], strict=True))
    return FilePredictor(
        running,
        wnids,
        [called.get(wnid, wnid) for wnid in wnids],
        size,
        None,
        "bilinear",
        compute,
        dense=Dense(running, size),
    )


def pretrained_predictor(arch: str, weights: str, compute: Compute) -> FilePredictor:
    """A pretrained classifier of torchvision's or timm's."""
    model, published = load_pretrained(arch, weights)
    compute = compute.for_frozen()
    ids = (
        imagenet_wnids()
        if len(published.names) == 1000
        else [str(i) for i in range(len(published.names))]
    )
    return FilePredictor(
        model.on(compute),
        ids,
        published.names,
        published.size,
        published.resize,
        published.interpolation,
        compute,
        published.resize_mode,
    )
