"""The peers: the published loop, the same loop with its best settings, and timm.

The published loop (derwind 2024), written again: `ImageFolder`, PIL, torchvision's transforms one
image at a time, batches of 64, VGG16 with a classifier of 25,088-512-512-200, Adam. Best settings:
persistent workers, channels last, autocast if the processor supports bfloat16, a fused optimizer,
with and without torch.compile. timm: its loader and its optimizer, with the same network.
"""

import copy
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tinynet.compute import Compute
from tinynet.data.tiny_imagenet import Archive
from tinynet.models.classifier import Head
from tinynet.models.vgg import VGG16

BATCH = 64
SIDE = 64
AREA = (56 / 64, 56 / 64)
KINDS = ("as written", "best flags", "best flags, compiled", "timm")


def unpack(source: Path, part: str, rows: np.ndarray, folder: Path) -> Path:
    """Write the images of a part at `rows` as JPEG files in class folders below `folder`."""
    archive = Archive(source)
    images = archive.part(part)
    for row in rows:
        path = folder / part / archive.wnids[images.labels[row]] / Path(images.files[row]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(images.files[row]))
    return folder / part


def _with_tf32() -> AbstractContextManager:
    """torch's default: float32 convolutions on a GPU round to TF32, unlike in tinynet's float32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=True)


class Peer:
    """One of `KINDS` on images in class folders; each method processes all of them once."""

    def __init__(self, kind: str, folder: Path, backbone: VGG16, classes: int, compute: Compute):
        self.kind, self.compute = kind, compute
        self.network = _network(backbone, classes).to(compute.device)
        self._half = kind != "as written" and compute.dtype != torch.float32
        if kind != "as written":
            self.network.to(memory_format=torch.channels_last)
        self._forward = (
            torch.compile(self.network) if kind == "best flags, compiled" else self.network
        )
        self._norm = v2.Normalize(backbone.mean.flatten().tolist(), backbone.std.flatten().tolist())
        self._folder = folder
        self._loaders: dict[bool, Iterable] = {}

    def train(self, all_of_it: bool) -> Callable[[], None]:
        """An epoch that trains the head, or with `all_of_it` the whole network."""
        self.network[0].requires_grad_(all_of_it)
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = self._optimizer(trainable)
        scaler = self.compute.scaler()

        @_with_tf32()
        def epoch() -> None:
            self.network[0].requires_grad_(all_of_it)
            self.network.train()
            total = 0.0
            for images, labels in self._batches(train=True):
                with self._autocast():
                    loss = F.cross_entropy(self._forward(images), labels)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.item() if self.kind == "as written" else 0

        return epoch

    @_with_tf32()
    def evaluate(self) -> None:
        """Classify every image once, and count the correct predictions."""
        self.network.eval()
        hits = 0
        with torch.inference_mode(), self._autocast():
            for images, labels in self._batches(train=False):
                hits += int((self._forward(images).argmax(1) == labels).sum())

    def _autocast(self) -> AbstractContextManager:
        return self.compute.autocast() if self._half else nullcontext()

    def load(self) -> None:
        """Load the augmented training images, without a network."""
        for _ in self._batches(train=True):
            pass

    def _optimizer(self, trainable: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.kind == "timm":
            from timm.optim import create_optimizer_v2

            return create_optimizer_v2(trainable, opt="adam", lr=1e-4)
        return torch.optim.Adam(trainable, lr=1e-4, fused=self.kind != "as written")

    def _batches(self, train: bool) -> Iterable[tuple[Tensor, Tensor]]:
        if train not in self._loaders:
            self._loaders[train] = self._timm(train) if self.kind == "timm" else self._torch(train)
        for images, labels in self._loaders[train]:
            images = images.to(self.compute.device, non_blocking=True)
            if self.kind != "as written":
                images = images.to(memory_format=torch.channels_last)
            yield images, labels.to(self.compute.device, non_blocking=True)

    def _torch(self, train: bool) -> DataLoader:
        changes = (
            [
                v2.RandomResizedCrop(SIDE, scale=AREA, ratio=(1, 1)),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(saturation=(0.5, 2), hue=0.05),
            ]
            if train
            else []
        )
        whole = v2.Compose(
            [*changes, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), self._norm]
        )
        best = (
            dict(
                num_workers=os.cpu_count(),
                persistent_workers=True,
                pin_memory=self.compute.device.type == "cuda",
            )
            if self.kind != "as written"
            else {}
        )
        return DataLoader(
            ImageFolder(str(self._folder), transform=whole), BATCH, shuffle=train, **best
        )

    def _timm(self, train: bool) -> Iterable:
        from timm.data import create_loader

        return create_loader(
            ImageFolder(str(self._folder)),
            (3, SIDE, SIDE),
            BATCH,
            is_training=train,
            scale=AREA,
            ratio=(1, 1),
            color_jitter=(0, 0, (0.5, 2), 0.05),
            interpolation="bilinear",
            crop_pct=1.0,
            mean=self._norm.mean,
            std=self._norm.std,
            num_workers=os.cpu_count(),
            use_prefetcher=self.compute.device.type == "cuda",
            device=self.compute.device,
            persistent_workers=True,
        )


def _network(backbone: VGG16, classes: int) -> nn.Sequential:
    """The published network; its loader normalises the images, so the backbone does not."""
    return nn.Sequential(
        copy.deepcopy(backbone.features),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        Head(512 * 49, (512, 512), classes, dropout=0.5, standardise=False),
    )
