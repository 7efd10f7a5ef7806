"""tinynet's own steps; each function returned here processes all of its images once."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import PeakMemory
from tinynet.compute import Compute
from tinynet.data.batches import Batch, batches, default_batch_size
from tinynet.data.copies import open_packed
from tinynet.data.packed import Packed
from tinynet.data.packing import decode, pack
from tinynet.data.tiny_imagenet import Archive
from tinynet.data.workers import CHUNK, in_workers
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16
from tinynet.score.merges import mean
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import resize, view_set
from tinynet.training.config import RunConfig
from tinynet.training.extraction import frozen_backbone
from tinynet.training.features import FeatureCache
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training, weight_groups
from tinynet.training.recipes import FIRST, TUNED, Network, Stage
from tinynet.training.stages import train

BATCH = 64
Work = Callable[[], Any]


def spread(total: int, count: int) -> np.ndarray:
    """(count,) evenly spaced rows of a part with `total` images; all jobs and peers use them."""
    return np.linspace(0, total - 1, count).astype(np.int64)


def classifier(backbone: VGG16, network: Network, classes: int) -> Classifier:
    """The network of a recipe on a backbone, which it shares."""
    return Classifier(
        backbone,
        network.features,
        network.hidden,
        classes,
        TUNED.base.dropout,
        network.standardise,
    )


def frozen_forward(
    model: Classifier, packed: Packed, size: int, compute: Compute, count: int
) -> Work:
    """The backbone alone on one batch in memory, of the size that extraction uses."""
    frozen = frozen_backbone(model, packed, size, compute)
    at_once = default_batch_size(size, compute)
    images = torch.rand(at_once, size, size, 3, device=compute.device).permute(0, 3, 1, 2)
    nodes = {feature.split(":")[0] for feature in model.feature_names}

    def work() -> None:
        with torch.inference_mode():
            for first in range(0, count, at_once):
                frozen(images[: count - first], nodes)

    return work


def extraction(
    model: Classifier, packed: Packed, stage: Stage, compute: Compute, count: int
) -> Work:
    """The features of `count` views of training images, from packed images to the cache on disk."""
    rows = spread(len(packed.train), count // stage.cached_epochs)

    def work() -> None:
        with _EmptyCache(packed) as packed_alone:
            FeatureCache(model, packed_alone, compute).train_features(rows, stage, seed=0)

    return work


class _EmptyCache:
    """The same packed images with a cache that contains nothing else."""

    def __init__(self, packed: Packed):
        self.packed, self.folder = packed, tempfile.TemporaryDirectory()

    def __enter__(self) -> Packed:
        link = Path(self.folder.name) / self.packed.folder.name
        link.symlink_to(self.packed.folder.resolve())
        packed = copy.copy(self.packed)  # with its parts, which may be on the device already
        packed.folder = link
        return packed

    def __exit__(self, *_: Any) -> None:
        self.folder.cleanup()


def head_epoch(
    model: Classifier, packed: Packed, stage: Stage, compute: Compute, count: int
) -> Work:
    """An epoch of the head on cached features of `count` images."""
    rows = spread(len(packed.train), count)
    with _EmptyCache(packed) as packed_alone:
        cache = FeatureCache(model, packed_alone, compute)
        on_disk = cache.view_features(packed.train, rows, _unchanged, stage)
        arrays = tuple(np.array(array) for array in on_disk.arrays)
    in_memory = type(on_disk)(arrays, on_disk.labels)
    training = _training(model, stage, compute, module=model.head)

    def work() -> None:
        for features, labels in in_memory.epoch(0, 0, stage.batch, compute.device):
            training.train_batch(features, labels)

    return work


def train_step(
    model: Classifier,
    packed: Packed,
    stage: Stage,
    compute: Compute,
    count: int,
    resident: bool = False,
) -> Work:
    """Training steps on images; `resident`: always on the same batch in memory, not augmented.

    `count` is a multiple of the batch size.
    """
    training, rows = _training(model, stage, compute), spread(len(packed.train), count)
    fixed = next(batches(packed.train, rows, batch_size=stage.batch, device=compute.device))

    def work() -> None:
        stream: Iterator[Batch] | list[Batch] = (
            [fixed] * (count // stage.batch)
            if resident
            else TrainingImages(packed.train, rows, stage, seed=0).epoch(0, compute.device)
        )
        for batch in stream:
            training.train_batch(batch.images, batch.labels)

    return work


def load(packed: Packed, stage: Stage, compute: Compute, count: int) -> Work:
    """The augmented batches of one epoch, without a network."""

    def work() -> None:
        rows = spread(len(packed.train), count)
        for _ in TrainingImages(packed.train, rows, stage, seed=0).epoch(0, compute.device):
            pass

    return work


def _training(
    model: Classifier, stage: Stage, compute: Compute, module: nn.Module | None = None
) -> Training:
    model.to(compute.device, memory_format=torch.channels_last).train_only(stage.trainable)
    model.train()
    return Training(
        module or model,
        weight_groups(model, stage),
        stage,
        10**6,
        compute,
    )


def one_view(network: nn.Module, packed: Packed, compute: Compute, count: int) -> Work:
    """Probabilities of one view of images of val; `network` is in eval mode."""
    rows = spread(len(packed.val), count)
    return lambda: view_probabilities(network, batches(packed.val, rows, device=compute.device))


def ten_crop(
    network: nn.Module, packed: Packed, size: int, compute: Compute, count: int
) -> Callable[[], Tensor]:
    """Ten-crop of images of val: (N, C) probabilities."""
    views, rows = view_set("ten", size).views, spread(len(packed.val), count)

    def work() -> Tensor:
        each = [
            view_probabilities(network, batches(packed.val, rows, device=compute.device), view)
            for view in views.values()
        ]
        return mean(torch.from_numpy(np.stack(each))).exp()

    return work


def ten_crop_of_ttach(
    network: nn.Module, packed: Packed, size: int, compute: Compute, count: int
) -> Callable[[], Tensor]:
    """The same with ttach, which averages the output of the model: here probabilities."""
    import ttach

    rows = spread(len(packed.val), count)
    wrapped = ttach.ClassificationTTAWrapper(
        nn.Sequential(network, nn.Softmax(1)),
        ttach.aliases.ten_crop_transform(size, size),
        merge_mode="mean",
    )

    def work() -> Tensor:
        with torch.inference_mode():
            return torch.cat(
                [
                    wrapped(resize(batch.images, round(size * 8 / 7))).cpu()
                    for batch in batches(packed.val, rows, device=compute.device)
                ]
            )

    return work


def packing(source: Path) -> tuple[Work, int]:
    """A job that packs the archive into a temporary folder and returns it; the number of images."""
    archive = Archive(source)

    def work() -> tempfile.TemporaryDirectory:
        place = tempfile.TemporaryDirectory()
        pack(archive, Path(place.name) / "packed")
        return place

    return work, sum(len(archive.part(name).files) for name in ("train", "val", "test"))


def from_the_zip(
    source: Path, weights: str, per_class: int | None, compute: Compute
) -> dict[str, Any]:
    """A whole base (one cached epoch, four epochs) with an empty cache: seconds, GB and accuracy.

    `per_class`: the number of images of each class, None: all. The accuracy is on the hold-out.
    """
    recipe = FIRST.override(dict(per_class=per_class, cached_epochs=1, epochs=4), ("base",))
    with tempfile.TemporaryDirectory() as place, PeakMemory(compute) as memory:
        started = time.perf_counter()
        packed = open_packed(source, place)
        between = time.perf_counter()
        (row,) = train(
            Path(place) / "run",
            RunConfig(recipe, str(source), ("base",), weights, cache=place),
            compute,
        )
        ended = time.perf_counter()
    count = len(packed.train) if per_class is None else per_class * len(packed.wnids)
    return {
        "pictures": count,
        "packing": between - started,
        "rest": ended - between,
        "memory": memory.gigabytes,
        "holdout": row.top1,
        "low": row.low,
        "high": row.high,
        "n": row.n,
    }


def decoding(source: Path) -> Work:
    """Decode every image on all cores, and discard it."""
    archive = Archive(source)
    files = [file for name in ("train", "val", "test") for file in archive.part(name).files]

    def work() -> None:
        for _ in in_workers(
            _decode_only, [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)], archive
        ):
            pass

    return work


def _decode_only(read: Callable[[str], bytes], files: list[str]) -> int:
    for file in files:
        decode(read(file), file)
    return len(files)


def _unchanged(images: Tensor) -> Tensor:
    return images
