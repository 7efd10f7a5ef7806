"""Pretrained ImageNet classifiers from torchvision and timm, with their published metadata.

`resnet50` is torchvision's, `timm/resnet50` is timm's. Image size and resize come from the metadata
of the weights; torchvision's also have the accuracy. A file has no metadata, so those of the
library's default weights apply.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tinynet.compute import Compute
from tinynet.console import advice, log, option
from tinynet.errors import InputError
from tinynet.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.download import download
from tinynet.models.engines import OpenVinoModule, gains_by_openvino
from tinynet.models.state_dicts import check_numbers, read_file, unwrap
from tinynet.values import as_integer, brief

_TIMM = "timm/"


@dataclass(frozen=True)
class WeightsInfo:
    """Published metadata of a classifier's weights.

    `names`: class names, in the order of the outputs. `resize`: the shorter side before the crop;
    `size`: the side of the crop, both in pixels. `interpolation`: of the resize, by PIL's name.
    `accuracies`: published top-1 and top-5 as fractions, or None. `resize_mode`: `shorter`, or
    `squash` to resize both sides.
    """

    names: tuple[str, ...]
    resize: int
    size: int
    interpolation: str
    accuracies: tuple[float, float] | None
    resize_mode: str = "shorter"


@dataclass(frozen=True)
class Published:
    """A network as its library builds it, and the metadata of its weights.

    `mean`, `std`: per channel, of the images in [0, 1] that it is given. `classifier`: the prefixes
    of its classifier's tensors.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    classifier: tuple[str, ...]
    info: WeightsInfo


class Pretrained(nn.Module):
    """A classifier that normalises its input: images (N, 3, H, W) in [0, 1] to logits (N, C).

    `classes`: indices of the network's outputs to return, in this order; None returns all.
    """

    mean: Tensor
    std: Tensor
    classes: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.register_buffer("classes", None if classes is None else torch.tensor(classes))
        self._autocast: Callable[[], AbstractContextManager] = nullcontext

    def on(self, compute: Compute) -> "Pretrained":
        """Move to the device of `compute`, to run there in its precision and its engine.

        Networks that do not gain by OpenVINO stay in torch.
        """
        if compute.engine == "openvino" and gains_by_openvino(self):
            self.network = _InOpenVino(self.network, compute)
            return self
        self._autocast = compute.autocast
        return self.to(compute.device).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: images (N, 3, H, W) in [0, 1] -> (N, C) float32."""
        with self._autocast():
            logits = self.network((images - self.mean) / self.std).float()
        return logits if self.classes is None else logits[:, self.classes]


class _InOpenVino(nn.Module):
    """A classifier in OpenVINO: images (N, 3, H, W) -> logits."""

    def __init__(self, network: nn.Module, compute: Compute):
        super().__init__()
        self.module = OpenVinoModule(_Tuple(network), compute, type(network).__name__)

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)[0]


class _Tuple(nn.Module):
    """A network whose output is in a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def load_pretrained(
    arch: str, weights: str | Path = "DEFAULT", classes: Sequence[int] | None = None
) -> tuple[Pretrained, WeightsInfo]:
    """Load the network `arch`, in eval mode on the CPU, and the metadata of its weights.

    `arch`: a torchvision classifier, or `timm/NAME` for one of timm, where NAME may end in a tag
    that names its weights. `weights`: torchvision's name of the weights (`DEFAULT`: the library's
    default, or those of the tag), a state-dict file, or `none` (random). `classes`: indices of the
    outputs to return, in this order; None returns all. The network normalises its input: images
    (N, 3, H, W) in [0, 1] -> logits (N, C).

    Raises `InputError` for an unknown name, a file of another network, a failed download, and for
    classes that the network does not have.
    """
    published = load_published(arch, weights)
    if classes is not None:
        _check_classes(classes, len(published.info.names))
    network = Pretrained(published.network, published.mean, published.std, classes)
    return network.eval().requires_grad_(False), published.info


def load_published(
    arch: str, weights: str | Path = "DEFAULT", with_classifier: bool = True
) -> Published:
    """Load the network `arch` of torchvision or timm with `weights`, as `load_pretrained` does.

    `with_classifier`: whether a file of weights must have the classifier's too. Raises `InputError`
    like `load_pretrained`.
    """
    weights = str(weights) if isinstance(weights, Path) else weights
    for name, value in (("arch", arch), ("weights", weights)):
        if not isinstance(value, str) or not value:
            raise InputError(f"{option(name)} is {brief(value)}; it must be a name in a string")
    load = _timm if arch.startswith(_TIMM) else _torchvision
    published = load(arch, weights, with_classifier)
    for name, tensor in published.network.state_dict().items() if weights != "none" else ():
        check_numbers(tensor, f"{option('arch')} {arch}: {name}")
    return published


def _check_classes(classes: Sequence[int], count: int) -> None:
    if not isinstance(classes, Sequence) or not len(classes):
        raise InputError(f"classes is {brief(classes)}; it must be a list of class indices")
    for number in classes:
        if not 0 <= as_integer(number, "a class index") < count:
            raise InputError(f"class index {number}: out of range; use 0 to {count - 1}")


def _torchvision(arch: str, weights: str, with_classifier: bool) -> Published:
    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        raise InputError(
            f"{option('arch')} {arch}: torchvision has no such classifier; use one like "
            f"{', '.join(_similar(arch, names))}, or {_TIMM}NAME for timm's"
        )
    members = torchvision.models.get_model_weights(arch)
    by_file = {member.url.rsplit("/", 1)[1]: member for member in members}
    member = members.__members__.get(weights) or by_file.get(Path(weights).name)
    if member is None and weights != "none" and not Path(weights).is_file():
        raise InputError(
            f"{option('weights')} {weights}: no such file, and not a name of {arch}; use a file or "
            f"{', '.join(members.__members__)}, none"
        )
    source = member or members.DEFAULT  # a file of other weights has no metadata of its own
    if not source.meta.get("categories"):
        raise InputError(
            f"{option('weights')} {weights}: these weights have no classifier; use one of "
            f"{', '.join(m.name for m in members if m.meta.get('categories'))}"
        )
    transforms = source.transforms()
    metrics = member.meta["_metrics"].get("ImageNet-1K") if member else None
    info = WeightsInfo(
        tuple(source.meta["categories"]),
        transforms.resize_size[0],
        transforms.crop_size[0],
        transforms.interpolation.value,
        (metrics["acc@1"] / 100, metrics["acc@5"] / 100) if metrics else None,
    )
    network = torchvision.models.get_model(arch, weights=None, **_model_options(arch, source))
    classifier = (classifier_name(network),)
    optional = () if with_classifier else classifier
    if member and not Path(weights).is_file():
        _load_into(network, download(member), weights, optional)
    elif weights != "none":
        _load_into(network, read_file(weights), weights, optional)
    return Published(network, transforms.mean, transforms.std, classifier, info)


def classifier_name(network: nn.Module) -> str:
    """Return the name of the classifier in a network of torchvision: the last part with weights."""
    return [
        name for name, child in network.named_children() if any(True for _ in child.parameters())
    ][-1]


def _similar(name: str, names: Sequence[str]) -> Sequence[str]:
    """Suggest up to five of `names` for a misspelt one."""
    return difflib.get_close_matches(name, names, 5) or names[:5]


def _model_options(arch: str, member: Any) -> dict[str, Any]:
    """Return the arguments that torchvision itself passes to build a network for its weights."""
    if arch in ("inception_v3", "googlenet"):
        return {"transform_input": True, "init_weights": False}
    return {"image_size": member.meta["min_size"][0]} if arch.startswith("vit_") else {}


def _timm(arch: str, weights: str, with_classifier: bool) -> Published:
    network = _timm_network(arch, weights)
    names = network.pretrained_cfg.get("classifier") or ()
    classifier = (names,) if isinstance(names, str) else tuple(names)
    if weights not in ("DEFAULT", "none"):
        _load_into(network, read_file(weights), weights, () if with_classifier else classifier)
    from timm.data import ImageNetInfo, resolve_model_data_config

    config = resolve_model_data_config(network)
    classes: int = network.num_classes
    imagenet = ImageNetInfo() if classes == 1000 else None
    class_names = tuple(
        imagenet.index_to_description(i) if imagenet else str(i) for i in range(classes)
    )
    size, mode = config["input_size"][-1], config["crop_mode"]
    if mode == "border":
        raise InputError(
            f"{option('arch')} {arch}: its publisher pads images to a border, which tinynet does "
            "not support; use another network"
        )
    info = WeightsInfo(
        class_names,
        math.floor(size / config["crop_pct"]),
        size,
        config["interpolation"],
        None,
        "squash" if mode == "squash" else "shorter",
    )
    mean, std = config["mean"] or IMAGENET_MEAN, config["std"] or IMAGENET_STD
    return Published(network, mean, std, classifier, info)


def _timm_network(arch: str, weights: str) -> Any:
    """Build timm's network `arch` and load `weights`."""
    try:
        import timm
    except ImportError:
        raise InputError(
            f"{option('arch')} {arch}: timm is not installed; run pip install 'tinynet[timm]'"
        ) from None
    name = arch.removeprefix(_TIMM)
    network_name, _, tag = name.partition(".")
    names = timm.list_models(pretrained=False)
    if network_name not in names:
        raise InputError(
            f"{option('arch')} {arch}: timm has no such network; use one like "
            f"{', '.join(_similar(name, names))}"
        )
    downloads = weights == "DEFAULT"
    # Without a download, a tag names the metadata alone.
    tagged = timm.list_models(f"{network_name}.*", pretrained=downloads, include_tags=True)
    if "." in name and name not in tagged:
        raise InputError(
            f"{option('arch')} {arch}: timm has no weights {tag!r} for {network_name}; use "
            f"{', '.join(_TIMM + each for each in (*tagged, network_name))}"
        )
    try:
        network = _any_size(partial(timm.create_model, name, pretrained=downloads))
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{option('arch')} {arch}: its weights could not be downloaded ({reason}); download a "
            f"state dict by hand and name it{advice(' with --weights') or ' as weights'}"
            if downloads
            else f"{option('arch')} {arch}: timm cannot build it ({reason}); use another network"
        ) from None
    if not network.num_classes:
        raise InputError(f"{option('arch')} {arch}: has no classifier; use a network with one")
    return network


def _any_size(create: Callable[..., Any]) -> Any:
    """Create a network of timm that takes images of other sizes than its own, where it can."""
    for flags in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        # what one transformer takes is an unknown argument to other networks
        with suppress(TypeError):
            return create(**flags)
    return create()


def _load_into(network: nn.Module, content: Any, source: str, optional: tuple[str, ...]) -> None:
    """Load the content of a file or of a download, and report how it was adapted.

    `optional`: the parts of the network that the content need not have.
    """
    template = network.state_dict()
    prefixes = tuple(f"{name}." for name in optional)
    needed = {name: value for name, value in template.items() if not name.startswith(prefixes)}
    state = unwrap(content, needed if prefixes else template, source, ignored=prefixes)
    if state.changes:
        log(f"note: {source}: {state.changes}")
    # older files lack num_batches_tracked, which inference does not need
    network.load_state_dict({**template, **state.tensors})
