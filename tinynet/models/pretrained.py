"""Pretrained ImageNet classifiers from torchvision and timm, with what their publishers say of
them.

`resnet50` is torchvision's, `timm/resnet50` timm's. The network normalises its own input; size,
resize and documented accuracy come from the weights' metadata.
"""

import difflib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from tinynet.compute import Compute
from tinynet.console import log
from tinynet.errors import InputError
from tinynet.models.state_dicts import check_numbers, read_file, unwrap
from tinynet.models.vgg import IMAGENET_MEAN, IMAGENET_STD
from tinynet.models.weights import download

_TIMM = "timm/"


@dataclass(frozen=True)
class Published:
    """What is published of a network: class names, preprocessing, accuracies.

    `resize`: shorter side before the crop, `size`: the crop's side, both in pixels.
    `interpolation`: of the resize, by PIL's name. `resize_mode`: `shorter`, or `squash` where both
    sides are resized. `documented`: top-1 and top-5 as fractions, or None.
    """

    names: tuple[str, ...]
    resize: int
    size: int
    interpolation: str
    documented: tuple[float, float] | None
    resize_mode: str = "shorter"


class Pretrained(nn.Module):
    """A classifier that takes pictures (N, 3, H, W) in [0, 1] and gives logits (N, C).

    `classes`: indices of the outputs to keep, in order (default: all): the head restricted to some
    classes.
    """

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
        self._autocast = nullcontext

    def on(self, compute: Compute) -> "Pretrained":
        """The same, moved to `device`, where it runs in its precision, channels last."""
        self._autocast = compute.autocast
        return self.to(compute.device).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images in [0, 1] -> (N, C) float32 logits."""
        with self._autocast():
            logits = self.network((images - self.mean) / self.std).float()
        return logits if self.classes is None else logits[:, self.classes]


def load_pretrained(
    arch: str, weights: str = "DEFAULT", classes: Sequence[int] | None = None
) -> tuple[Pretrained, Published]:
    """The network called `arch`, in eval mode on the CPU, and what is published of it.

    `weights`: a name of the publisher's (`DEFAULT`: its newest), a state-dict file, or `none`
    (random). Raises `InputError` for an unknown name, a file of another network, or a download that
    fails.
    """
    network, mean, std, published = (_timm if arch.startswith(_TIMM) else _torchvision)(
        arch, weights
    )
    for name, tensor in network.state_dict().items():
        check_numbers(tensor, f"--arch {arch}: {name}")
    return Pretrained(network, mean, std, classes).eval().requires_grad_(False), published


def _torchvision(
    arch: str, weights: str
) -> tuple[nn.Module, Sequence[float], Sequence[float], Published]:
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        near = difflib.get_close_matches(arch, known, 5) or known[:5]
        raise InputError(
            f"--arch {arch}: torchvision has no such classifier; near it are {', '.join(near)}, "
            f"and timm's are called {_TIMM}NAME"
        )
    members = torchvision.models.get_model_weights(arch)
    by_file = {member.url.rsplit("/", 1)[1]: member for member in members}
    chosen = members.__members__.get(weights) or by_file.get(Path(weights).name)
    if chosen is None and weights != "none" and not Path(weights).is_file():
        raise InputError(
            f"--weights {weights}: no such file, and {arch} has {', '.join(members.__members__)}, "
            "none"
        )
    described = chosen or members.DEFAULT
    if "categories" not in described.meta or described.meta["categories"] is None:
        raise InputError(
            f"--weights {weights}: weights without a classifier, which names nothing; take one of "
            f"{', '.join(m.name for m in members if m.meta.get('categories'))}"
        )
    how = described.transforms()
    named = chosen.meta["_metrics"].get("ImageNet-1K") if chosen else None
    published = Published(
        tuple(described.meta["categories"]),
        how.resize_size[0],
        how.crop_size[0],
        how.interpolation.value,
        (named["acc@1"] / 100, named["acc@5"] / 100) if named else None,
    )
    network = torchvision.models.get_model(arch, weights=None, **_as_published(arch, described))
    if chosen and not Path(weights).is_file():
        _fill(network, download(chosen), weights)
    elif weights != "none":
        _fill(network, read_file(weights), weights)
    return network, how.mean, how.std, published


def _as_published(arch: str, weights: Any) -> dict[str, Any]:
    """What torchvision sets besides when it builds a network for published weights."""
    if arch in ("inception_v3", "googlenet"):
        return {"transform_input": True, "init_weights": False}
    return {"image_size": weights.meta["min_size"][0]} if arch.startswith("vit_") else {}


def _timm(arch: str, weights: str) -> tuple[nn.Module, Sequence[float], Sequence[float], Published]:
    try:
        import timm
        from timm.data import ImageNetInfo, resolve_model_data_config
    except ImportError:
        raise InputError(
            f"--arch {arch}: timm is not installed; pip install 'tinynet[timm]'"
        ) from None
    name = arch.removeprefix(_TIMM)
    known = timm.list_models(pretrained=False)
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, 5) or known[:5]
        raise InputError(f"--arch {arch}: timm has no such network; near it are {', '.join(near)}")
    try:
        network = timm.create_model(name, pretrained=weights == "DEFAULT")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--arch {arch}: its weights could not be fetched "
            f"({' '.join(str(error).split())[:200]}); bring a state dict by hand and name it with "
            "--weights"
        ) from None
    if not network.num_classes:
        raise InputError(
            f"--arch {arch}: has no classifier, so it names nothing; choose a network with one"
        )
    if weights not in ("DEFAULT", "none"):
        _fill(network, read_file(weights), weights)
    how = resolve_model_data_config(network)
    classes = network.num_classes
    info = ImageNetInfo() if classes == 1000 else None
    names = tuple(info.index_to_description(i) if info else str(i) for i in range(classes))
    size, mode = how["input_size"][-1], how["crop_mode"]
    if mode == "border":
        raise InputError(
            f"--arch {arch}: its publisher pads pictures to a border, which is not offered here; "
            "say how to prepare them with --resize, --resize-mode and --size, with --weights FILE"
        )
    published = Published(
        names,
        math.floor(size / how["crop_pct"]),
        size,
        how["interpolation"],
        None,
        "squash" if mode == "squash" else "shorter",
    )
    return network, how["mean"] or IMAGENET_MEAN, how["std"] or IMAGENET_STD, published


def _fill(network: nn.Module, content: Any, source: str) -> None:
    """Load what a file or a publisher holds; what had to be taken off is said."""
    wanted = network.state_dict()
    state = unwrap(content, wanted, source)
    if state.removed:
        log(f"note: {source}: {state.removed}")
    # older files do not count batches, which is of no use here
    network.load_state_dict({**wanted, **state.tensors})
