"""VGG16's 13 convolutions as a backbone with named layers that normalises its own input."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from tinynet.errors import InputError
from tinynet.models.digests import weights_digest

MIN_SIDE = 32  # pixels: the fifth pooling of a smaller image leaves nothing
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """The 13 convolutions of VGG16 (configuration D, Simonyan & Zisserman 2014) with named depths.

    Depths are `relu1_1` ... `relu5_3` and `pool1` ... `pool5`; groups are `conv1` ... `conv5`.
    `channels`: channels of every depth, in the order of the forward pass. `strides`: pixels of the
    picture between neighbours of its map. `mean`, `std`: of the three channels, in [0, 1] units;
    subtracted and divided by in `forward`.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=False)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
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
            self.channels[name], self.strides[name] = (
                channels,
                2 ** (block if pooling else block - 1),
            )
            block, position = (block + 1, 1) if pooling else (block, position + 1)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers in order, with their names: a depth, or `conv1_1` ... `conv5_3`."""
        return zip(self._names, self.features, strict=True)

    def walk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Layer after layer: its name and what it makes of `pictures`; a map may be changed by the
        next layer.
        """
        maps = ((images - self.mean) / self.std).to(self.features[0].weight.dtype)
        for name, layer in self.layers():
            maps = layer(maps)
            yield name, maps

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps at `depths`; `pictures`: (N, 3, H, W) float in [0, 1], H and W at least
        32.
        """
        wanted = set(nodes)
        found: dict[str, Tensor] = {}
        for name, maps in self.walk(images):
            if name in wanted:
                found[name] = maps
                if len(found) == len(wanted):
                    break
        return found

    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) over all weights and the normalisation."""
        return weights_digest(self)


def check_side(side: int, flag: str = "--size") -> None:
    """Raise `InputError` where pictures of `side` pixels are too small for the backbone."""
    if side < MIN_SIDE:
        raise InputError(
            f"{flag} {side}: VGG16 halves a picture five times, so it needs {MIN_SIDE} pixels or "
            "more"
        )
