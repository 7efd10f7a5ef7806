"""VGG16's 13 convolutions as a backbone with named layers that normalises its own input."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from tinynet.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, collect


class VGG16(Backbone):
    """The 13 convolutions of VGG16 (configuration D, Simonyan & Zisserman 2014).

    The nodes are `relu1_1` ... `relu5_3` and `pool1` ... `pool5`, the groups `conv1` ... `conv5`.
    """

    min_size = 32  # pixels: the fifth pooling of a smaller image leaves nothing

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__("vgg16", mean, std)
        self.features = make_layers(cfgs["D"], batch_norm=False)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.channels, self.strides, self.groups = {}, {}, {}
        self._names: list[str] = []
        block, position, channels = 1, 1, 3
        for module in self.features:
            self.groups.setdefault(f"conv{block}", []).extend(module.parameters())
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

    @property
    def body(self) -> nn.Module:
        """The layers, without the normalisation."""
        return self.features

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """Return (name, layer) in forward order, convolutions `conv1_1` ... `conv5_3` included."""
        return zip(self._names, self.features, strict=True)

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute feature maps (N, C, h, w) of the layers `nodes`, by name.

        `images`: (N, 3, H, W) float in [0, 1], H and W at least 32. The maps have the dtype of the
        weights. Layers after the last node do not run.
        """
        return collect(self.walk(images), nodes)
