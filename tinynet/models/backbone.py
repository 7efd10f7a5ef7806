"""The backbone: a network without its classifier, as the rest of tinynet knows it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile

import torch
from torch import Tensor, nn

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.models.digests import weights_digest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLED = "pooled"  # the node with the vector that a network's own classifier is given


def collect(layers: Iterable[tuple[str, Tensor]], nodes: Iterable[str]) -> dict[str, Tensor]:
    """Return the outputs of `nodes` among (name, output) of `layers`; stop at the last of them."""
    missing = set(nodes)
    outputs: dict[str, Tensor] = {}
    if missing:
        for name, maps in layers:
            if name in missing:
                outputs[name] = maps
                missing.remove(name)
                if not missing:
                    break
    return outputs


class Backbone(nn.Module, ABC):
    """A network without its classifier; its layers have names, and it normalises its own input.

    `models.vgg` and `models.zoo` implement it. A node is a layer whose output can be a feature.
    Attributes:

    `arch`: the network's name: `vgg16`, `resnet50` (torchvision's) or `timm/resnet50`.
    `channels`: number of channels of each node, in the order of the forward pass.
    `strides`: distance between neighbouring cells of each node's map, in pixels of the image; 0 if
    the output is no map (tokens, or one vector).
    `groups`: the weights of each group of layers, in the order of the forward pass. Freezing and
    learning rates go by groups.
    `min_size`: the smallest side of an image in pixels.
    `mean`, `std`: (3, 1, 1) per channel, for images in [0, 1].
    """

    arch: str
    channels: dict[str, int]
    strides: dict[str, int]
    groups: dict[str, list[nn.Parameter]]
    min_size: int
    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.arch = arch
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @property
    @abstractmethod
    def body(self) -> nn.Module:
        """The layers, without the normalisation."""

    @abstractmethod
    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute the outputs (N, C, h, w) of `nodes`, by name.

        `images`: (N, 3, H, W) float in [0, 1]. Tokens are (N, C, tokens, 1), a vector is
        (N, C, 1, 1). The outputs have the dtype of the weights.
        """

    def chain(self) -> Iterator[tuple[str, nn.Module]] | None:
        """Return (name, layer) of a network of convolutions, ReLUs and 2x2 max poolings in a row.

        None for any other network, which cannot be run in int8.
        """
        return None

    @property
    def floors(self) -> bool:
        """Whether a map has size // stride cells, also where the stride does not divide it."""
        return self.chain() is not None

    def walk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, output) of each layer of `chain` for images (N, 3, H, W) in [0, 1].

        A ReLU works in place, so it overwrites the output of its convolution.
        """
        return self.walk_on(self.normalised(images))

    def walk_on(self, maps: Tensor, after: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, output) of each layer of `chain` that follows `after`, whose output is
        `maps`; '': of all layers, for normalised images.
        """
        layers = self.chain()
        assert layers is not None, "the caller has a network that is a chain"
        if after:
            layers = dropwhile(lambda layer: layer[0] != after, layers)
            next(layers)
        for name, layer in layers:
            maps = layer(maps)
            yield name, maps

    def frozen_start(self, trained: Iterable[str]) -> str:
        """Return the last layer of `chain` before those of the groups `trained`; '' without any."""
        weights = {id(weight) for group in trained for weight in self.groups.get(group, ())}
        last = ""
        for name, layer in self.chain() or ():
            if any(id(weight) in weights for weight in layer.parameters()):
                break
            last = name
        return last

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise images (N, 3, H, W) in [0, 1], in the dtype of the weights."""
        weight = next(self.body.parameters())
        return ((images - self.mean) / self.std).to(weight.dtype)

    def node(self, name: str) -> str:
        """Return the node called `name`; `last` is the last one, `last-1` the one before it.

        The vector of the network's own classifier (`pooled`) does not count. Raises `InputError`
        if there is no such node.
        """
        layers = [node for node in self.channels if node != POOLED]
        if match := re.fullmatch(r"last(?:-(\d+))?", name):
            position = len(layers) - 1 - int(match[1] or 0)
            name = layers[position] if position >= 0 else name
        if name not in self.channels:
            raise InputError(
                f"layer {name!r}: {self.arch} has no such layer; use one of "
                f"{', '.join(self.channels)}, or last, last-1, ... counted from the end"
            )
        return name

    def check_size(self, side: int, name: str = "") -> None:
        """Raise `InputError` if the network does not take images of `side` pixels.

        `name`: what the message calls the side (default: the option `size`).
        """
        if side < self.min_size:
            raise InputError(
                f"{name or option('size')} {side}: too small for {self.arch}, which needs "
                f"{self.min_size} pixels or more; use a larger size"
            )

    def digest(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of all weights and the normalisation."""
        return weights_digest(self)
