"""VGG16 as a backbone with named depths that normalises its own input, and a head on what it says.

Nobody outside this file knows VGG's layer numbers, channel counts or least picture side.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from tinynet.errors import InputError

MIN_SIDE = 32  # pixels: below it the fifth pooling leaves nothing
MAX_SIDE = 4096  # pixels: larger images would fill memory
# Pictures that batch norms are measured on; with 1,024 one network had 55.6 % of 1,667 held-out
# ones, with 4,096 57.0.
FOR_STATISTICS = 6400
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STATISTICS = {
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: _greatest(maps),
    "grid2": lambda maps: F.adaptive_avg_pool2d(maps, 2).flatten(1),
    "grid7": lambda maps: F.adaptive_avg_pool2d(maps, 7).flatten(1),
}


def _greatest(maps: Tensor) -> Tensor:
    """(N, C) the maximum of every map (N, C, H, W)."""
    if not maps.requires_grad:
        return maps.amax((2, 3))  # which is faster
    # Where steps are compiled the gradient of amax is 0 / 0 (pytorch#186799).
    return F.adaptive_max_pool2d(maps, 1).flatten(1)


_NUMBERS = {"mean": 1, "max": 1, "grid2": 4, "grid7": 49}  # a channel


class Backbone(nn.Module):
    """The 13 convolutions of VGG16 (configuration D, Simonyan & Zisserman 2014) with named depths.

    Depths are `relu1_1` ... `relu5_3` and `pool1` ... `pool5`; parts are `conv1` ... `conv5`.
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
        self.parts: dict[str, list[nn.Module]] = {}
        block, position, channels = 1, 1, 3
        for module in self.features:
            self.parts.setdefault(f"conv{block}", []).append(module)
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

    def walk(self, pictures: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Layer after layer: its name and what it makes of `pictures`; a map may be changed by the
        next layer.
        """
        maps = ((pictures - self.mean) / self.std).to(self.features[0].weight.dtype)
        for name, layer in self.layers():
            maps = layer(maps)
            yield name, maps

    def forward(self, pictures: Tensor, depths: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps at `depths`; `pictures`: (N, 3, H, W) float in [0, 1], H and W at least
        32.
        """
        wanted = set(depths)
        found: dict[str, Tensor] = {}
        for name, maps in self.walk(pictures):
            if name in wanted:
                found[name] = maps
                if len(found) == len(wanted):
                    break
        return found

    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) over all weights and the normalisation."""
        return weights_digest(self)


class Head(nn.Sequential):
    """Hidden layers of Linear, ReLU, BatchNorm, Dropout, then logits; He-uniform weights, zero
    biases.

    With `standardise`, a BatchNorm without weights stands first: the depths differ in scale.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], classes: int, dropout: float, standardise: bool
    ):
        layers: list[nn.Module] = [nn.BatchNorm1d(inputs, affine=False)] if standardise else []
        for width in hidden:
            layers += [
                nn.Linear(inputs, width),
                nn.ReLU(),
                nn.BatchNorm1d(width),
                nn.Dropout(dropout),
            ]
            inputs = width
        layers.append(nn.Linear(inputs, classes))
        super().__init__(*layers)
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)


class Classifier(nn.Module):
    """A backbone, the statistics of its depths that the head sees (`taps`), and the head.

    `taps`: names like `relu4_3:mean`: a depth and one of `mean`, `max`, `grid2`, `grid7` (average
    over a 2x2 or 7x7 grid), so the features' length does not depend on the picture's size.

    Raises `InputError` for a tap that the backbone has not.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[str],
        hidden: Sequence[int],
        classes: int,
        dropout: float,
        standardise: bool,
    ):
        super().__init__()
        check_taps(backbone, taps)
        self.backbone, self.taps = backbone, tuple(taps)
        self.shape = dict(
            taps=list(taps),
            hidden=list(hidden),
            classes=classes,
            dropout=dropout,
            standardise=standardise,
        )
        self.head = Head(feature_count(backbone, taps), hidden, classes, dropout, standardise)
        self.parts = {**backbone.parts, "head": [self.head]}

    def features(self, pictures: Tensor) -> Tensor:
        """(N, F) float32 features of pictures (N, 3, H, W) in [0, 1]."""
        return pooled_features(self.backbone, self.taps, pictures)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, classes) logits of pictures (N, 3, H, W) in [0, 1]."""
        return self.head(self.features(pictures))

    def set_dropout(self, share: float) -> None:
        """Drop this share of the head's hidden activations from now on."""
        self.shape["dropout"] = share
        for module in self.head:
            if isinstance(module, nn.Dropout):
                module.p = share

    def train_only(self, parts: Iterable[str]) -> int:
        """Let only `parts` (of `conv1` ... `conv5`, `head`) learn; returns the number of weights
        that do.

        Frozen parts get no gradient, stay in eval mode (batch norm keeps its running statistics,
        dropout is off) and, where nothing before them learns, run without autograd.
        """
        chosen = set(parts)
        unknown = chosen - set(self.parts)
        if unknown:
            raise InputError(
                f"no part called {', '.join(sorted(unknown))}; the parts are "
                f"{', '.join(self.parts)}"
            )
        for name, modules in self.parts.items():
            for module in modules:
                module.requires_grad_(name in chosen)
        self.train(self.training)
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode; frozen groups stay in evaluation mode."""
        super().train(mode)
        for modules in self.parts.values():
            frozen = not any(p.requires_grad for module in modules for p in module.parameters())
            for module in modules if frozen else ():
                module.train(False)
        return self

    def for_inference(self, device: torch.device, dtype: torch.dtype) -> "Classifier":
        """A copy in eval mode on `device`, its backbone in `dtype`, channels last."""
        twin = copy.deepcopy(self).eval().requires_grad_(False).to(device)
        twin.backbone.features.to(dtype=dtype, memory_format=torch.channels_last)
        return twin


def pooled_features(backbone: nn.Module, taps: Sequence[str], pictures: Tensor) -> Tensor:
    """(N, F) float32: the statistics of the depths that `taps` name, side by side."""
    return statistics(backbone(pictures, {tap.split(":")[0] for tap in taps}), taps)


def statistics(maps: dict[str, Tensor], taps: Sequence[str]) -> Tensor:
    """(N, F) float32: `pooled_features` of maps that are there already, by depth."""
    return torch.cat(
        [STATISTICS[tap.split(":")[1]](maps[tap.split(":")[0]]) for tap in taps], 1
    ).float()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over all weights and buffers, with their names."""
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        whole.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


@torch.no_grad()
def measure_norms(
    module: nn.Module,
    inputs: Iterable[Tensor],
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Give the batch norms of `module` the statistics of these batches of inputs; it is in eval
    mode afterwards.

    `context`: what the module runs in; the inputs are made outside it.

    Cumulative means over the batches, as in Izmailov et al. 2018; dropout stays off, so nothing is
    left to chance.
    """
    norms = [part for part in module.eval().modules() if isinstance(part, nn.BatchNorm1d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for some in inputs:
        if len(some) > 1:
            with context():
                module(some)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    module.eval()


def feature_count(backbone: nn.Module, taps: Sequence[str]) -> int:
    """F of `pooled_features`."""
    return sum(
        backbone.channels[depth] * _NUMBERS[statistic]
        for depth, statistic in (t.split(":") for t in taps)
    )


def check_taps(backbone: Backbone, taps: Sequence[str]) -> None:
    """Raise `InputError` unless every tap names a depth of `backbone` and a statistic."""
    for tap in taps:
        depth, _, statistic = tap.partition(":")
        if depth not in backbone.channels or statistic not in STATISTICS:
            raise InputError(
                f"tap {tap!r}: a tap is DEPTH:STATISTIC with a depth of "
                f"{', '.join(backbone.channels)} and a statistic of {', '.join(STATISTICS)}"
            )
    if not taps:
        raise InputError("no taps: the head needs at least one, for instance pool5:grid2")


def check_side(side: int, flag: str = "--size") -> None:
    """Raise `InputError` where pictures of `side` pixels are too small for the backbone."""
    if side < MIN_SIDE:
        raise InputError(
            f"{flag} {side}: VGG16 halves a picture five times, so it needs {MIN_SIDE} pixels or "
            "more"
        )
