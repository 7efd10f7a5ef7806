"""VGG16's 13 convolutions as a backbone with named layers that normalises its own input."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.models.digests import weights_digest

MIN_SIDE = 32  # pixels: the fifth pooling of a smaller image leaves nothing
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """The 13 convolutions of VGG16 (configuration D, Simonyan & Zisserman 2014) with named layers.

    Layers with feature maps are `relu1_1` ... `relu5_3` and `pool1` ... `pool5`; groups are `conv1`
    ... `conv5`. Attributes:

    `channels`: number of channels of each of these layers, in the order of the forward pass.
    `strides`: distance between neighbouring cells of each layer's map, in pixels of the image.
    `groups`: the modules of each group.
    `mean`, `std`: (3, 1, 1) per channel, for images in [0, 1]; `forward` normalises with them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=False)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        self._names: list[str] = []
        self.groups: dict[str, list[nn.Module]] = {}
        block, position, channels = 1, 1, 3
        for module in self.features:
            self.groups.setdefault(f"conv{block}", []).append(module)
            if isinstance(module, nn.Conv2d):
                channels = module.out_channels
                self._names.append(f"conv{block}_{position}")
                continue
            pooling = isinstance(module, nn.MaxPool2d)
            name = f"pool{block}" if pooling else f"relu{block}_{position}"
            self._names.append(name)
            self.channels[name] = channels
            self.strides[name] = 2 ** (block if pooling else block - 1)
            block, position = (block + 1, 1) if pooling else (block, position + 1)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Return (name, layer) in forward order, convolutions `conv1_1` ... `conv5_3` included."""
        return zip(self._names, self.features, strict=True)

    def walk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, output) of each layer for images (N, 3, H, W) in [0, 1].

        A ReLU works in place, so it overwrites the output of its convolution.
        """
        maps = ((images - self.mean) / self.std).to(self.features[0].weight.dtype)
        for name, layer in self.layers():
            maps = layer(maps)
            yield name, maps

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute feature maps (N, C, h, w) of the layers `nodes`, by name.

        `images`: (N, 3, H, W) float in [0, 1], H and W at least 32. The maps have the dtype of the
        weights. Layers after the last node do not run.
        """
        layers = set(nodes)
        outputs: dict[str, Tensor] = {}
        for name, maps in self.walk(images):
            if name in layers:
                outputs[name] = maps
                if len(outputs) == len(layers):
                    break
        return outputs

    def digest(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of all weights and the normalisation."""
        return weights_digest(self)


def check_side(side: int, name: str = "") -> None:
    """Raise `InputError` if images of `side` pixels are too small for the backbone.

    `name`: what the message calls the side (default: the option `size`).
    """
    if side < MIN_SIDE:
        raise InputError(
            f"{name or option('size')} {side}: too small for VGG16, which halves an image five "
            f"times; use {MIN_SIDE} pixels or more"
        )
