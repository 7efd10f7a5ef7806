"""Pretrained ImageNet classifiers from torchvision and timm, with their published metadata.

`resnet50` is torchvision's, `timm/resnet50` is timm's. Image size, resize and accuracy come from
the metadata of the weights.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tinynet.compute import Compute
from tinynet.console import advice, log, option
from tinynet.errors import InputError
from tinynet.models.state_dicts import check_numbers, read_file, unwrap
from tinynet.models.vgg import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.weights import download
from tinynet.values import as_integer, brief

_TIMM = "timm/"
_Normalised = tuple[nn.Module, Sequence[float], Sequence[float]]  # network, mean, std


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
        """Move to the device of `compute`, to run there in its precision, channels last."""
        self._autocast = compute.autocast
        return self.to(compute.device).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: images (N, 3, H, W) in [0, 1] -> (N, C) float32."""
        with self._autocast():
            logits = self.network((images - self.mean) / self.std).float()
        return logits if self.classes is None else logits[:, self.classes]


def load_pretrained(
    arch: str, weights: str | Path = "DEFAULT", classes: Sequence[int] | None = None
) -> tuple[Pretrained, WeightsInfo]:
    """Load the network `arch`, in eval mode on the CPU, and the metadata of its weights.

    `arch`: a torchvision classifier, or `timm/NAME` for one of timm. `weights`: the publisher's
    name of the weights (`DEFAULT`: its newest), a state-dict file, or `none` (random). `classes`:
    indices of the outputs to return, in this order; None returns all. The network normalises its
    input: images (N, 3, H, W) in [0, 1] -> logits (N, C).

    Raises `InputError` for an unknown name, a file of another network, a failed download, and for
    classes that the network does not have.
    """
    weights = str(weights) if isinstance(weights, Path) else weights
    for name, value in (("arch", arch), ("weights", weights)):
        if not isinstance(value, str) or not value:
            raise InputError(f"{option(name)} is {brief(value)}; it must be a name in a string")
    (network, mean, std), info = (_timm if arch.startswith(_TIMM) else _torchvision)(arch, weights)
    if classes is not None:
        _check_classes(classes, len(info.names))
    for name, tensor in network.state_dict().items():
        check_numbers(tensor, f"{option('arch')} {arch}: {name}")
    return Pretrained(network, mean, std, classes).eval().requires_grad_(False), info


def _check_classes(classes: Sequence[int], count: int) -> None:
    if not isinstance(classes, Sequence) or not len(classes):
        raise InputError(f"classes is {brief(classes)}; it must be a list of class indices")
    for number in classes:
        if not 0 <= as_integer(number, "a class index") < count:
            raise InputError(f"class index {number}: out of range; use 0 to {count - 1}")


def _torchvision(arch: str, weights: str) -> tuple[_Normalised, WeightsInfo]:
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
    if member and not Path(weights).is_file():
        _load_into(network, download(member), weights)
    elif weights != "none":
        _load_into(network, read_file(weights), weights)
    return (network, transforms.mean, transforms.std), info


def _similar(name: str, names: Sequence[str]) -> Sequence[str]:
    """Suggest up to five of `names` for a misspelt one."""
    return difflib.get_close_matches(name, names, 5) or names[:5]


def _model_options(arch: str, member: Any) -> dict[str, Any]:
    """Return the arguments that torchvision itself passes to build a network for its weights."""
    if arch in ("inception_v3", "googlenet"):
        return {"transform_input": True, "init_weights": False}
    return {"image_size": member.meta["min_size"][0]} if arch.startswith("vit_") else {}


def _timm(arch: str, weights: str) -> tuple[_Normalised, WeightsInfo]:
    network = _timm_network(arch, weights)
    from timm.data import ImageNetInfo, resolve_model_data_config

    config = resolve_model_data_config(network)
    classes: int = network.num_classes
    imagenet = ImageNetInfo() if classes == 1000 else None
    names = tuple(imagenet.index_to_description(i) if imagenet else str(i) for i in range(classes))
    size, mode = config["input_size"][-1], config["crop_mode"]
    if mode == "border":
        raise InputError(
            f"{option('arch')} {arch}: its publisher pads images to a border, which is not "
            f"supported; set {option('resize')}, {option('resize_mode')} and {option('size')}, "
            f"with {option('weights')} FILE"
        )
    info = WeightsInfo(
        names,
        math.floor(size / config["crop_pct"]),
        size,
        config["interpolation"],
        None,
        "squash" if mode == "squash" else "shorter",
    )
    return (network, config["mean"] or IMAGENET_MEAN, config["std"] or IMAGENET_STD), info


def _timm_network(arch: str, weights: str) -> Any:
    """Build timm's network `arch` and load `weights`."""
    try:
        import timm
    except ImportError:
        raise InputError(
            f"{option('arch')} {arch}: timm is not installed; run pip install 'tinynet[timm]'"
        ) from None
    name = arch.removeprefix(_TIMM)
    names = timm.list_models(pretrained=False)
    if name.split(".")[0] not in names:
        raise InputError(
            f"{option('arch')} {arch}: timm has no such network; use one like "
            f"{', '.join(_similar(name, names))}"
        )
    try:
        network = timm.create_model(name, pretrained=weights == "DEFAULT")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{option('arch')} {arch}: its weights could not be downloaded "
            f"({' '.join(str(error).split())[:200]}); download a state dict by hand and name it"
            + (advice(" with --weights") or " as weights")
        ) from None
    if not network.num_classes:
        raise InputError(f"{option('arch')} {arch}: has no classifier; use a network with one")
    if weights not in ("DEFAULT", "none"):
        _load_into(network, read_file(weights), weights)
    return network


def _load_into(network: nn.Module, content: Any, source: str) -> None:
    """Load the content of a file or of a download, and report how it was adapted."""
    template = network.state_dict()
    state = unwrap(content, template, source)
    if state.changes:
        log(f"note: {source}: {state.changes}")
    # older files lack num_batches_tracked, which inference does not need
    network.load_state_dict({**template, **state.tensors})
