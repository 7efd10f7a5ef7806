"""Backbones of torchvision and timm: any of their classifiers, without its last layers.

Forward hooks record the outputs of layers, so the library's own forward pass runs unchanged. Shapes
come from a run on the meta device, which computes nothing: there is no table of architectures.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.models.backbone import POOLED, Backbone
from tinynet.models.digests import weights_digest
from tinynet.models.pretrained import Published, classifier_name

FINAL = "final"  # timm's node with the output of forward_features
# A part with more of the network's weights than this is opened, down to a network's stages.
_ALMOST_ALL = 0.9
# Their maps have a fixed number of cells, so they do not see small images as the others do.
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class ZooBackbone(Backbone):
    """A network of a library without its classifier.

    `image_size`: the publisher's, in pixels. Nodes and groups are the library's stages; `pooled` is
    the vector that the network's own classifier is given.
    """

    def __init__(self, arch: str, published: Published):
        super().__init__(arch, published.mean, published.std)
        self.network, self.image_size = published.network.eval(), published.info.size
        self.channels, self.strides = {}, {}
        self._recorder = _Recorder()
        self._handles: list[RemovableHandle] = []

    @property
    def body(self) -> nn.Module:
        """The layers, without the normalisation."""
        return self.network

    def forward(self, images: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Compute the outputs (N, C, h, w) of `nodes`; layers after the last node do not run.

        `images`: (N, 3, H, W) float in [0, 1].
        """
        names = set(nodes)
        outputs = self._outputs(self.normalised(images), names)
        return {name: outputs[name] for name in self.channels if name in names}

    def check_size(self, side: int, name: str = "") -> None:
        """Raise `InputError` if the network does not take images of `side` pixels."""
        super().check_size(side, name)
        if reason := self._refusal(side, side):
            raise InputError(
                f"{name or option('size')} {side}: {self.arch} does not take images of {side} "
                f"pixels ({reason}); use its published size, {self.image_size} pixels, or another "
                "network"
            )

    def digest(self) -> str:
        """Return 16 hex digits of a digest of the architecture, the weights and the normalisation.

        Networks of different architectures can have the same weights, for instance with another
        padding.
        """
        return weights_digest(self, self.arch)

    @abstractmethod
    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network on normalised images; return the outputs that no hook records."""

    def _outputs(self, images: Tensor, nodes: set[str]) -> dict[str, Tensor]:
        """Return the outputs of `nodes` for normalised images, as maps once layouts are known."""
        recorder = self._recorder
        recorder.start(nodes)
        try:
            results = self._run(images)
        except _LastNode:
            results = {}
        for name in nodes & results.keys():
            recorder.record(name, results[name])
        return recorder.finish()

    def _watch(self, modules: Mapping[str, nn.Module]) -> None:
        """Record the outputs of `modules`, by node, from now on and in copies of this network."""
        for handle in self._handles:
            handle.remove()
        self._handles = [
            module.register_forward_hook(partial(_record, self._recorder, name))
            for name, module in modules.items()
        ]
        self._recorder.order = tuple(modules)

    def _without_numbers(self, height: int, width: int, nodes: set[str]) -> dict[str, Tensor]:
        """Return the outputs of `nodes` for one image, on the meta device: shapes alone."""
        return _on_meta(self)._outputs(torch.empty(1, 3, height, width, device="meta"), nodes)

    def _refusal(self, height: int, width: int) -> str:
        """Why the network does not take images of these sides; empty if it does."""
        try:
            self._without_numbers(height, width, {POOLED})
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            return " ".join(str(error).split())[:100] or type(error).__name__
        return ""

    def _measure(self, nodes: Sequence[str]) -> None:
        """Set channels, strides and layouts of those `nodes` whose outputs can be features."""
        side = self.image_size
        # The sides of maps tell height and width from channels, if they differ.
        height, width = (
            (side, side * 3 // 2) if not self._refusal(side, side * 3 // 2) else (side,) * 2
        )
        outputs = self._without_numbers(height, width, set(nodes))
        for name in nodes:
            shape = getattr(outputs.get(name), "shape", torch.Size())  # some return no tensor
            if layout := _layout(shape, height, width):
                self._recorder.layouts[name] = layout
                self.channels[name] = shape[layout.index("C")]
                rows = shape[layout.index("H")] if "H" in layout else 1
                self.strides[name] = round(height / rows) if rows > 1 else 0
        self.min_size = max(self.strides.values()) or 1


class TorchvisionBackbone(ZooBackbone):
    """A classifier of torchvision without its last layers.

    A node is the last layer before the maps shrink, or a block of a transformer.
    """

    def __init__(self, arch: str, published: Published):
        super().__init__(arch, published)
        network = self.network
        setattr(network, classifier_name(network), nn.Identity())
        parts = _parts(network)
        self._watch(parts)
        self._measure([*parts, POOLED])
        stages = self._stages(parts)
        nodes = [names[-1] for names in stages]
        self._watch({name: parts[name] for name in nodes})
        self.channels, self.strides = (
            {name: record[name] for name in (*nodes, POOLED)}
            for record in (self.channels, self.strides)
        )
        numbers = {name: _stage_of(name, stages, parts) for name, _ in network.named_parameters()}
        self.groups = _named_groups(network, numbers)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        return {POOLED: self.network(images)}

    def _stages(self, parts: Mapping[str, nn.Module]) -> list[list[str]]:
        """Return the names of `parts` by stage: of one stride, or one block of a transformer."""
        stages: list[list[str]] = []
        stride = None
        for name, part in parts.items():
            tokens = self._recorder.layouts.get(name) == "NLC" and any(
                True for _ in part.parameters()
            )
            maps = self.strides.get(name) and not isinstance(part, _ADAPTIVE)
            if maps or tokens:
                if tokens or self.strides[name] != stride:
                    stages.append([])
                    stride = self.strides[name]
                stages[-1].append(name)
        return stages


class TimmBackbone(ZooBackbone):
    """A network of timm without its classifier.

    The nodes are timm's own (`feature_info`), and `final`, the output of `forward_features`. The
    groups are those of its `group_matcher`.
    """

    def __init__(self, arch: str, published: Published):
        super().__init__(arch, published)
        network: Any = self.network
        if not hasattr(network, "group_matcher"):
            raise InputError(
                f"{option('arch')} {arch}: timm defines no groups of layers for it, which "
                "tinynet needs; use another network"
            )
        network.reset_classifier(0)
        info = getattr(network, "feature_info", [])
        modules = dict(network.named_modules())
        names = [
            each["module"] for each in getattr(info, "info", info) if each["module"] in modules
        ]
        self._watch({name: modules[name] for name in names})
        self._measure([*names, *([] if self._ends_with(names) else [FINAL]), POOLED])
        from timm.models import group_parameters

        numbers = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
        self.groups = _named_groups(network, numbers)

    def _ends_with(self, names: Sequence[str]) -> bool:
        """Whether `forward_features` returns the output of the last of these layers."""
        side = self.image_size
        outputs = self._without_numbers(side, side, {*names[-1:], FINAL, POOLED})
        return bool(names) and outputs[FINAL] is outputs.get(names[-1])

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        network: Any = self.network
        final = network.forward_features(images)
        return {FINAL: final, POOLED: network.forward_head(final, pre_logits=True)}


class _Recorder:
    """The outputs that hooks record in one run.

    `order`: the nodes with a hook, in the order of the run. `layouts`: the axes of each node's
    output, such as NHWC, once they are known.
    """

    def __init__(self) -> None:
        self.order: tuple[str, ...] = ()
        self.layouts: dict[str, str] = {}
        self._nodes: set[str] = set()
        self._last: str | None = None
        self._outputs: dict[str, Tensor] = {}

    def start(self, nodes: set[str]) -> None:
        """Record `nodes` in the next run; stop after the last one if hooks record all of them."""
        self._nodes, self._outputs = nodes, {}
        within = [name for name in self.order if name in nodes]
        # The last layer's output may be changed in place by what follows, so the network goes on.
        stops = len(within) == len(nodes) and bool(within) and within[-1] != self.order[-1]
        self._last = within[-1] if stops else None

    def record(self, name: str, output: Any) -> Any:
        """Keep an output if it was asked for; end the run after the last.

        Returns what the next layer is to be given, so that it depends on what is kept: the same
        numbers, with a gradient.
        """
        if name not in self._nodes:
            return output
        layout = self.layouts.get(name, "")
        self._outputs[name] = _as_maps(output, layout)
        if name == self._last:
            raise _LastNode
        return _as_it_was(self._outputs[name], layout)

    def finish(self) -> dict[str, Tensor]:
        """Return the outputs, and forget them."""
        outputs, self._outputs, self._nodes = self._outputs, {}, set()
        return outputs


class _LastNode(Exception):
    """The last node has been recorded, so the rest of the network need not run."""


def _record(recorder: _Recorder, name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook."""
    return recorder.record(name, output)


def _on_meta(backbone: ZooBackbone) -> ZooBackbone:
    """Return a copy without numbers, which computes shapes only."""
    memo: dict[int, Any] = {}
    for weight in backbone.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(backbone, memo)


def _layout(shape: torch.Size, height: int, width: int) -> str:
    """Return the meaning of an output's axes for one image of these sides; empty if unknown."""
    if len(shape) == 4 and min(shape) > 0:
        errors = [
            abs(math.log(rows / columns * width / height))
            for rows, columns in (shape[2:4], shape[1:3])
        ]
        return "NCHW" if errors[0] <= errors[1] else "NHWC"
    return {2: "NC", 3: "NLC"}.get(len(shape), "")


def _as_maps(output: Any, layout: str) -> Any:
    """Bring an output to (N, C, h, w); tokens to (N, C, tokens, 1), vectors to (N, C, 1, 1)."""
    if layout == "NHWC":
        return output.permute(0, 3, 1, 2)
    if layout == "NLC":
        return output.transpose(1, 2)[..., None]
    return output[..., None, None] if layout == "NC" else output


def _as_it_was(maps: Any, layout: str) -> Any:
    """Undo `_as_maps`."""
    if layout == "NHWC":
        return maps.permute(0, 2, 3, 1)
    if layout == "NLC":
        return maps[..., 0].transpose(1, 2)
    return maps[..., 0, 0] if layout == "NC" else maps


def _parts(network: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a network by their paths, after opening those with most weights."""
    parts = dict(network.named_children())
    while True:
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        largest = max(sizes, key=sizes.__getitem__)
        children = dict(parts[largest].named_children())
        if sizes[largest] < _ALMOST_ALL * sum(sizes.values()) or len(children) < 2:
            return parts
        parts = {
            path: module
            for name, part in parts.items()
            for path, module in (
                {f"{name}.{child}": each for child, each in children.items()}
                if name == largest
                else {name: part}
            ).items()
        }


def _stage_of(name: str, stages: Sequence[Sequence[str]], parts: Iterable[str]) -> int:
    """Return the number of the stage that a weight belongs to.

    A weight outside all parts, such as a class token, belongs to the first stage; one of a part
    that is no stage belongs to the last.
    """
    pieces = name.split(".")
    paths = {".".join(pieces[:length]) for length in range(1, len(pieces))}
    owners = [number for number, names in enumerate(stages) if paths.intersection(names)]
    return (owners or [len(stages) - 1 if paths.intersection(parts) else 0])[0]


def _named_groups(network: nn.Module, numbers: Mapping[str, int]) -> dict[str, list[nn.Parameter]]:
    """Return the weights of a network by group, from the number of each weight's group.

    A group is called by the shortest path that its first weight shares with no other group.
    """
    weights = dict(network.named_parameters())
    members: dict[int, list[str]] = {}
    for name in weights:
        members.setdefault(numbers[name], []).append(name)
    named = {}
    for number in sorted(members):
        others = [name for name in weights if numbers[name] != number]
        named[_own_path(members[number][0], others)] = [weights[name] for name in members[number]]
    return named


def _own_path(name: str, others: Sequence[str]) -> str:
    pieces = name.split(".")
    paths = (".".join(pieces[:length]) for length in range(1, len(pieces)))
    # The classifier's own head and all groups have these names.
    free = (path for path in paths if path not in ("head", "all"))
    return next(
        (path for path in free if not any(other.startswith(f"{path}.") for other in others)), name
    )
