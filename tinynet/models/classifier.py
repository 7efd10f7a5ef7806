"""The classifier: pooled features of a backbone, a head, freezing, and batch norm statistics."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tinynet.errors import InputError
from tinynet.models.backbone import Backbone, collect

MAX_SIDE = 4096  # pixels: larger images would fill memory
# Number of images for batch norm statistics. With 1,024 images one network had 55.6 % top-1 on
# 1,667 hold-out images, with 4,096 it had 57.0 %.
BN_IMAGES = 6400

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: _max_pool(maps),
    "grid2": lambda maps: F.adaptive_avg_pool2d(maps, 2).flatten(1),
    "grid7": lambda maps: F.adaptive_avg_pool2d(maps, 7).flatten(1),
    "first": lambda tokens: tokens[:, :, 0, 0],
}
_VALUES_PER_CHANNEL = {"mean": 1, "max": 1, "grid2": 4, "grid7": 49, "first": 1}
_OF_MAPS, _OF_TOKENS = ("mean", "max", "grid2", "grid7"), ("mean", "max", "first")


def _max_pool(maps: Tensor) -> Tensor:
    """Global maximum: (N, C, H, W) -> (N, C)."""
    if not maps.requires_grad:
        return maps.amax((2, 3))  # faster than adaptive_max_pool2d
    # In compiled steps the gradient of amax is 0 / 0 (pytorch#186799).
    return F.adaptive_max_pool2d(maps, 1).flatten(1)


# Images and names of layers -> their outputs, as `Backbone.forward`
FrozenStart = Callable[[Tensor, Iterable[str]], dict[str, Tensor]]


class Head(nn.Sequential):
    """Classifier head: hidden blocks of Linear, ReLU, BatchNorm and Dropout, then a Linear layer.

    Weights are He-uniform, biases zero. `standardise` puts a BatchNorm without weights first,
    because features of different layers differ in scale.
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
    """A backbone, pooled features of its layers, and a head.

    `feature_names` are LAYER:POOLING, for instance `relu4_3:mean` or `last:mean` (`Backbone.node`).
    The poolings of maps are `mean`, `max`, `grid2` and `grid7` (average over a 2x2 or 7x7 grid), so
    the number of features does not depend on the image size. Those of tokens are `mean`, `max` and
    `first` (the class token, in most networks).

    Raises `InputError` if the backbone lacks a layer or the layer does not have the pooling.
    """

    def __init__(
        self,
        backbone: Backbone,
        feature_names: Sequence[str],
        hidden: Sequence[int],
        classes: int,
        dropout: float,
        standardise: bool,
    ):
        super().__init__()
        self.backbone = backbone
        self.feature_names = nodes_of_features(backbone, feature_names)
        self.shape: dict[str, Any] = dict(
            feature_names=list(self.feature_names),
            hidden=list(hidden),
            classes=classes,
            dropout=dropout,
            standardise=standardise,
        )
        self.head = Head(
            feature_count(backbone, self.feature_names), hidden, classes, dropout, standardise
        )
        self._start: tuple[FrozenStart, str] | None = None
        self.groups: dict[str, list[nn.Parameter]] = {
            **backbone.groups,
            "head": list(self.head.parameters()),
        }

    def features(self, images: Tensor) -> Tensor:
        """Compute features: images (N, 3, H, W) in [0, 1] -> (N, F) float32."""
        if self._start is None:
            return pooled_features(self.backbone, self.feature_names, images)
        start, last = self._start
        nodes = {feature.split(":")[0] for feature in self.feature_names}
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            maps = start(images, nodes | {last})
        later = collect(self.backbone.walk_on(maps[last], last), nodes - maps.keys())
        return pool_maps(maps | later, self.feature_names)

    def start_with(self, start: FrozenStart, last: str) -> None:
        """Replace the frozen first layers, up to `last`, by `start`, which computes them faster.

        It is not part of the network: it is neither saved nor used `for_inference`.
        """
        self._start = (start, last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: images (N, 3, H, W) in [0, 1] -> (N, classes)."""
        return self.head(self.features(images))

    def set_dropout(self, probability: float) -> None:
        """Set the dropout probability of the head's hidden layers."""
        self.shape["dropout"] = probability
        for module in self.head:
            if isinstance(module, nn.Dropout):
                module.p = probability

    def train_only(self, groups: Iterable[str]) -> int:
        """Make only `groups` trainable and return the number of trainable weights.

        `groups`: names of the backbone's groups, `head`, or `all`. Frozen layers get no gradient
        and stay in eval mode: batch norm keeps its running statistics, and dropout is off. Frozen
        groups that come before all trainable groups run without autograd.

        Raises `InputError` for an unknown group.
        """
        trainable = set(self.group_names(groups))
        for name, weights in self.groups.items():
            for weight in weights:
                weight.requires_grad_(name in trainable)
        self.train(self.training)
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def group_names(self, groups: Iterable[str]) -> list[str]:
        """Return the names of the groups that `groups` name; `all` names all of them.

        Raises `InputError` for an unknown group.
        """
        names = list(dict.fromkeys(groups))
        if "all" in names:
            return list(self.groups)
        if unknown := set(names) - set(self.groups):
            raise InputError(
                f"trainable: {self.backbone.arch} has no group {', '.join(sorted(unknown))}; use "
                f"one or more of {', '.join(self.groups)}, or all"
            )
        return names

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode; frozen layers stay in eval mode."""
        super().train(mode)
        for part in self.children():
            _keep_frozen_in_eval(part)
        return self

    @property
    def trains_backbone_norms(self) -> bool:
        """Whether training changes the statistics of batch norms in the backbone."""
        return any(
            is_norm(layer) and any(weight.requires_grad for weight in layer.parameters())
            for layer in self.backbone.modules()
        )

    def for_inference(self, device: torch.device, dtype: torch.dtype) -> "Classifier":
        """Return a frozen copy in eval mode on `device`, its backbone in `dtype`, channels last."""
        model = copy.deepcopy(self).eval().requires_grad_(False).to(device)
        model.backbone.body.to(dtype).to(memory_format=torch.channels_last)
        model._start = None
        return model


def _keep_frozen_in_eval(module: nn.Module) -> None:
    """Set the parts of `module` that have weights, and no trainable one, to eval mode."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.train(False)
        return
    for child in module.children():
        _keep_frozen_in_eval(child)


def pooled_features(backbone: nn.Module, feature_names: Sequence[str], images: Tensor) -> Tensor:
    """Run `backbone` on images (N, 3, H, W) in [0, 1] and pool its maps to (N, F) float32."""
    layers = {feature.split(":")[0] for feature in feature_names}
    return pool_maps(backbone(images, layers), feature_names)


def pool_maps(maps: dict[str, Tensor], feature_names: Sequence[str]) -> Tensor:
    """Pool feature maps (N, C, H, W), by layer, to (N, F) float32 in the order of the names."""
    return torch.cat(
        [POOLINGS[feature.split(":")[1]](maps[feature.split(":")[0]]) for feature in feature_names],
        1,
    ).float()


@torch.no_grad()
def update_bn(
    module: nn.Module,
    inputs: Iterable[Tensor],
    context: Callable[[], AbstractContextManager] = nullcontext,
    least: int = 2,
) -> None:
    """Recompute the running statistics of the batch norms of `module` from batches of inputs.

    Frozen layers of a `Classifier` keep their statistics. The statistics are cumulative means over
    the batches (Izmailov et al. 2018). Dropout is off, so the result is deterministic. The module
    is in eval mode afterwards. `context` surrounds each forward pass, but not the iteration over
    `inputs`. `least`: rows of a batch; smaller ones are left out, because a variance needs two.
    """
    norms = [layer for layer in module.train().modules() if is_norm(layer) and layer.training]
    module.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then keeps a cumulative mean
        norm.train()
    for batch in inputs:
        if len(batch) >= least:
            with context():
                module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def is_norm(layer: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a layer is a batch norm with running statistics."""
    return isinstance(layer, _BatchNorm) and layer.track_running_stats


class _HasChannels(Protocol):
    """A backbone, in floats or int8."""

    channels: dict[str, int]


def feature_count(backbone: _HasChannels, feature_names: Sequence[str]) -> int:
    """Return the number of features, F of `pooled_features`."""
    return sum(
        backbone.channels[layer] * _VALUES_PER_CHANNEL[pooling]
        for layer, pooling in (feature.split(":") for feature in feature_names)
    )


def nodes_of_features(backbone: Backbone, feature_names: Sequence[str]) -> tuple[str, ...]:
    """Return features with the names of their layers, where they are counted from the end.

    Raises `InputError` unless every name is LAYER:POOLING, and there is at least one.
    """
    if not feature_names:
        raise InputError("no features: the head needs at least one; use for instance 'last:mean'")
    return tuple(_node_and_pooling(backbone, feature) for feature in feature_names)


def _node_and_pooling(backbone: Backbone, feature: str) -> str:
    layer, _, pooling = feature.partition(":")
    try:
        node = backbone.node(layer)
    except InputError:
        node = ""
    is_map = not node or backbone.strides[node] > 0
    poolings = _OF_MAPS if is_map else _OF_TOKENS
    if not node or pooling not in poolings:
        raise InputError(
            f"feature {feature!r}: unknown layer or pooling; use LAYER:POOLING, with a layer of "
            f"{', '.join(backbone.channels)}, or last, last-1, ..., and a pooling of "
            f"{', '.join(poolings)}" + ("" if is_map else f", because {node} is not a map")
        )
    return f"{node}:{pooling}"
