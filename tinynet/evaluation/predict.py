"""Classify image files with a trained run or a pretrained network, and show how each view votes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights  # type: ignore[import-untyped]  # has no stubs

from tinynet import console
from tinynet.compute import Compute, choose_compute
from tinynet.data.image_folder import imagenet_wnids
from tinynet.distributed import get_world
from tinynet.evaluation.folder import (
    DecodedImages,
    check_resize,
    check_views,
    decode_batch_size,
    image_probabilities,
    refuse_dense,
)
from tinynet.models.checkpoint import class_order, load_model
from tinynet.models.classifier import Classifier
from tinynet.models.dense import Dense
from tinynet.models.export import Exported
from tinynet.models.pretrained import load_pretrained
from tinynet.records import Json, short_name
from tinynet.runs import StageFolder
from tinynet.score import merges as merging
from tinynet.score.views import ViewSet, view_set
from tinynet.training.config import RunConfig


@dataclass(frozen=True)
class Preparation:
    """How to prepare images and merge views; None: as the network was trained or published."""

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
class Prediction:
    """One of the most probable classes of an image; `rank` 1 is the most probable."""

    file: str
    rank: int
    class_name: str
    class_id: str
    probability: float

    def to_json(self) -> Json:
        """Keys `file`, `rank`, `class`, `id` and `probability`."""
        return {
            "file": self.file,
            "rank": self.rank,
            "class": self.class_name,
            "id": self.class_id,
            "probability": self.probability,
        }


@dataclass(frozen=True)
class FilePredictor:
    """A network with its class ids and class names, in the order of its outputs.

    `size`, `resize`, `resize_mode`, `interpolation`: defaults of `Preparation`; `resize` None:
    chosen by the views. `dense`: the network for dense views of larger images, if there is one.
    """

    network: nn.Module
    ids: Sequence[str]
    names: Sequence[str]
    size: int
    resize: int | None
    interpolation: str
    compute: Compute
    resize_mode: str = "shorter"
    dense: Dense | None = None

    def predict(
        self,
        files: Sequence[Path],
        preparation: Preparation,
        top: int,
        explain: Callable[[Explanation], None] | None,
    ) -> tuple[list[Prediction], list[str]]:
        """Predict the `top` classes of each image; return also a message per unreadable file.

        `explain`: called with the views of the first image and their votes. Raises `InputError` for
        unknown views or merges, and for sizes that the network cannot process.
        """
        merge, views = merging.get(preparation.merge), self._views(preparation)
        network = self.dense if views.dense and self.dense is not None else self.network
        world = get_world()
        names = hashlib.sha256("\n".join(map(str, files)).encode("utf-8", "surrogateescape"))
        world.check_equal(f"{len(files):,} images, {names.hexdigest()[:8]}", "list of images")
        files = files[world.share(len(files))]
        dataset = self._dataset(files, views, network, preparation)
        predictions: list[Prediction] = []
        unreadable: list[str] = []
        step = decode_batch_size(views)
        with console.progress(total=len(files), label="images", unit="images") as bar:
            for start in range(0, len(files), step):
                world.check()
                batch = [dataset[i] for i in range(start, min(start + step, len(files)))]
                bar.update(len(batch))
                unreadable += [image for _, image in batch if isinstance(image, str)]
                images = [(files[i], image) for i, image in batch if not isinstance(image, str)]
                if not images:
                    continue
                log_probabilities = image_probabilities(
                    network, [image for _, image in images], views, self.compute
                )
                if log_probabilities.isnan().any():
                    raise FloatingPointError(
                        "the network's output contains NaN; use "
                        f"{console.option('precision')} float32, or another run"
                    )
                merged = merge(log_probabilities)
                if explain and not predictions and world.main:
                    votes = log_probabilities[:, 0]
                    explain(self._explanation(*images[0], views, votes, merged[0]))
                for (file, _), probabilities in zip(images, merged.exp(), strict=True):
                    predictions += self._predictions(file, probabilities, top)
        shares = world.gather_objects((predictions, unreadable))
        return [p for share, _ in shares for p in share], [m for _, share in shares for m in share]

    def _views(self, preparation: Preparation) -> ViewSet:
        """Parse the set of views; dense views need a dense network."""
        size = preparation.size or self.size
        if self.dense is not None:
            self.dense.model.backbone.check_size(size)
        views = view_set(preparation.tta, size, prepared=True)
        if self.dense is None:
            refuse_dense(views)
        return views

    def _dataset(
        self, files: Sequence[Path], views: ViewSet, network: nn.Module, preparation: Preparation
    ) -> DecodedImages:
        """The images as the views need them; raises `InputError` if the network cannot use them."""
        size = preparation.size or self.size
        crops = any(step in preparation.tta.split("+") for step in ("five", "ten"))
        resize = preparation.resize or self.resize or (round(size * 8 / 7) if crops else size)
        check_resize(resize)
        probe = torch.zeros(1, 3, resize, resize, device=self.compute.device)
        check_views(network, views, probe, "the network")
        return DecodedImages(
            files,
            None if views.resizes else resize,
            preparation.resize_mode or self.resize_mode,
            preparation.interpolation or self.interpolation,
            upright=True,
        )

    def _predictions(self, file: Path, probabilities: Tensor, top: int) -> Iterable[Prediction]:
        best = probabilities.topk(min(top, len(probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for rank, (index, value) in enumerate(pairs, 1):
            yield Prediction(str(file), rank, self.names[index], self.ids[index], value)

    def _explanation(
        self, file: Path, image: Tensor, views: ViewSet, votes: Tensor, merged: Tensor
    ) -> Explanation:
        """`votes`: (V, C) log-probabilities of each view; `merged`: (C,) of all together."""
        best = int(merged.argmax())
        images = [view(image[None].float() / 255)[0] for view in views.views.values()]
        return Explanation(
            list(views.views),
            [pixels.permute(1, 2, 0).clamp(0, 1).numpy() for pixels in images],
            [(self.names[int(vote.argmax())], float(vote.max())) for vote in votes.exp()],
            self.names[best],
            f"{file.name}: {self.names[best]}, {merged[best].exp():.0%}",
        )


@dataclass(frozen=True)
class _SavedRun:
    """What a finished stage saved. `trained`: whether it trained the backbone. `classes`: names."""

    wnids: tuple[str, ...]
    model: Classifier
    size: int
    trained: bool
    classes: Any

    @classmethod
    def read(cls, folder: StageFolder, compute: Compute) -> "_SavedRun":
        wnids = class_order(folder.best)
        model, size = load_model(folder.best, wnids, folder.origin)
        # Where all networks have one precision, the run needs no recipe.
        trained = compute.frozen is None or RunConfig.of(folder).trains_backbone(folder.stage)
        return cls(wnids, model, size, trained, folder.read_recipe({}).get("classes", {}))


def run_predictor(folder: StageFolder, compute: Compute) -> FilePredictor:
    """Load the network of a finished stage.

    ImageNet's classes have ImageNet's names; other classes have the names of the run's data.
    """
    # Other machines may not have the run.
    run = get_world().from_main(lambda: _SavedRun.read(folder, compute))
    wnids, size = run.wnids, run.size
    if compute.frozen:
        compute = compute.for_training() if run.trained else compute.for_frozen()
    network = run.model.for_inference(compute.device, compute.dtype)
    names = (
        {wnid: short_name(wnid, str(name)) for wnid, name in run.classes.items()}
        if isinstance(run.classes, dict)
        else {}
    )
    names |= dict(zip(imagenet_wnids(), VGG16_Weights.DEFAULT.meta["categories"], strict=True))
    return FilePredictor(
        network,
        wnids,
        [names.get(wnid, wnid) for wnid in wnids],
        size,
        None,
        "bilinear",
        compute,
        dense=Dense(network, size),
    )


def exported_predictor(path: Path) -> FilePredictor:
    """Load a file that `tinynet export` wrote; it runs on the CPU in float32."""
    network = Exported(path)
    about, compute = network.about, choose_compute("cpu", "float32")
    return FilePredictor(
        network,
        about.class_ids,
        list(map(short_name, about.class_ids, about.class_names)),
        about.image_size,
        None,
        "bilinear",
        compute,
    )


def pretrained_predictor(arch: str, weights: str, compute: Compute) -> FilePredictor:
    """Load a pretrained classifier of torchvision or timm."""
    model, published = get_world().main_first(lambda: load_pretrained(arch, weights))
    compute = compute.for_frozen().for_network(runs_in_int8=False)
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
