"""Features of a backbone, a head on them, freezing, and batch norm statistics."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinynet.errors import InputError
from tinynet.models.vgg import Backbone

MAX_SIDE = 4096  # pixels: larger images would fill memory
# Pictures that batch norms are measured on; with 1,024 one network had 55.6 % of 1,667 held-out
# ones, with 4,096 57.0.
FOR_STATISTICS = 6400

POOLINGS = {
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
        feature_names: Sequence[str],
        hidden: Sequence[int],
        classes: int,
        dropout: float,
        standardise: bool,
    ):
        super().__init__()
        check_feature_names(backbone, feature_names)
        self.backbone, self.feature_names = backbone, tuple(feature_names)
        self.shape = dict(
            feature_names=list(feature_names),
            hidden=list(hidden),
            classes=classes,
            dropout=dropout,
            standardise=standardise,
        )
        self.head = Head(
            feature_count(backbone, feature_names), hidden, classes, dropout, standardise
        )
        self.groups = {**backbone.groups, "head": [self.head]}

    def features(self, images: Tensor) -> Tensor:
        """(N, F) float32 features of pictures (N, 3, H, W) in [0, 1]."""
        return pooled_features(self.backbone, self.feature_names, images)

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes) logits of pictures (N, 3, H, W) in [0, 1]."""
        return self.head(self.features(images))

    def set_dropout(self, share: float) -> None:
        """Drop this share of the head's hidden activations from now on."""
        self.shape["dropout"] = share
        for module in self.head:
            if isinstance(module, nn.Dropout):
                module.p = share

    def train_only(self, groups: Iterable[str]) -> int:
        """Let only `groups` (of `conv1` ... `conv5`, `head`) learn; returns the number of weights
        that do.

        Frozen groups get no gradient, stay in eval mode (batch norm keeps its running statistics,
        dropout is off) and, where nothing before them learns, run without autograd.
        """
        chosen = set(groups)
        unknown = chosen - set(self.groups)
        if unknown:
            raise InputError(
                f"no part called {', '.join(sorted(unknown))}; the groups are "
                f"{', '.join(self.groups)}"
            )
        for name, modules in self.groups.items():
            for module in modules:
                module.requires_grad_(name in chosen)
        self.train(self.training)
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode; frozen groups stay in evaluation mode."""
        super().train(mode)
        for modules in self.groups.values():
            frozen = not any(p.requires_grad for module in modules for p in module.parameters())
            for module in modules if frozen else ():
                module.train(False)
        return self

    def for_inference(self, device: torch.device, dtype: torch.dtype) -> "Classifier":
        """A copy in eval mode on `device`, its backbone in `dtype`, channels last."""
        twin = copy.deepcopy(self).eval().requires_grad_(False).to(device)
        twin.backbone.features.to(dtype=dtype, memory_format=torch.channels_last)
        return twin


def pooled_features(backbone: nn.Module, feature_names: Sequence[str], images: Tensor) -> Tensor:
    """(N, F) float32: the statistics of the depths that `taps` name, side by side."""
    return statistics(
        backbone(images, {feature.split(":")[0] for feature in feature_names}),
        feature_names,
    )


def statistics(maps: dict[str, Tensor], feature_names: Sequence[str]) -> Tensor:
    """(N, F) float32: `pooled_features` of maps that are there already, by depth."""
    return torch.cat(
        [POOLINGS[feature.split(":")[1]](maps[feature.split(":")[0]]) for feature in feature_names],
        1,
    ).float()


@torch.no_grad()
def update_bn(
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


def feature_count(backbone: nn.Module, feature_names: Sequence[str]) -> int:
    """F of `pooled_features`."""
    return sum(
        backbone.channels[node] * _NUMBERS[statistic]
        for node, statistic in (t.split(":") for t in feature_names)
    )


def check_feature_names(backbone: Backbone, feature_names: Sequence[str]) -> None:
    """Raise `InputError` unless every tap names a depth of `backbone` and a statistic."""
    for feature in feature_names:
        node, _, statistic = feature.partition(":")
        if node not in backbone.channels or statistic not in POOLINGS:
            raise InputError(
                f"tap {feature!r}: a tap is DEPTH:STATISTIC with a depth of "
                f"{', '.join(backbone.channels)} and a statistic of {', '.join(POOLINGS)}"
            )
    if not feature_names:
        raise InputError("no taps: the head needs at least one, for instance pool5:grid2")
