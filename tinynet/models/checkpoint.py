"""Checkpoints: tensors and plain values only, written atomically, with the class ids inside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinynet.console import advice
from tinynet.errors import InputError
from tinynet.files import atomic_file
from tinynet.interrupts import postponed
from tinynet.models.backbones import VGG, backbone_template, make_backbone, without_numbers
from tinynet.models.classifier import MAX_SIDE, Classifier
from tinynet.models.state_dicts import check_numbers, load

State = dict[str, Any]  # plain values and tensors of a checkpoint
FORMAT = 1


def save_model(
    path: Path,
    model: Classifier,
    class_ids: tuple[str, ...],
    size: int,
    head: nn.Module | None = None,
    origin: str = "",
) -> None:
    """Write a classifier, the class ids of its outputs and its training image size in pixels.

    `head` replaces the model's own head, for instance by its moving average. `origin` is a digest
    of the inputs of the training: data, seed, recipe and starting weights.
    """
    weights = model.state_dict()
    if head is not None:
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    _save(
        path,
        {
            "kind": "model",
            "network": _to_file_keys(model.shape),
            "arch": model.backbone.arch,
            "weights": weights,
            "size": size,
            "origin": origin,
        },
        class_ids,
    )


def load_model(path: Path, class_ids: tuple[str, ...], origin: str = "") -> tuple[Classifier, int]:
    """Read a classifier, in eval mode on the CPU, and its training image size in pixels.

    Raises `InputError` if the file is not a model checkpoint, its classes are not `class_ids` in
    this order, or both it and the caller have an `origin` and the two differ.
    """
    content = _load(path, "model", class_ids, origin)
    try:
        shape = _from_file_keys(content["network"])
        weights, size = content["weights"], content["size"]
        arch = content.get("arch", VGG)  # checkpoints of the first edition name none
        _check_shape(shape, class_ids, size)
        _check_weights(arch, shape, weights, path)
        model = Classifier(make_backbone(arch), **shape)
        if size < model.backbone.min_size:
            raise ValueError(f"images of {size} pixels")
        model.load_state_dict(weights)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a model checkpoint of tinynet ({' '.join(str(error).split())[:80]}); "
            "`python -m tinynet.train` writes one"
        ) from None
    return model.eval(), size


def _to_file_keys(shape: State) -> State:
    """Rename the arguments of `Classifier` to the keys of format 1, where features are taps."""
    return {"taps" if name == "feature_names" else name: value for name, value in shape.items()}


def _from_file_keys(network: State) -> State:
    """Invert `_to_file_keys`."""
    return {"feature_names" if name == "taps" else name: value for name, value in network.items()}


def _check_shape(shape: State, class_ids: tuple[str, ...], size: Any) -> None:
    """Raise `ValueError` if the arguments cannot be those of a classifier of these classes."""
    if shape["classes"] != len(class_ids):
        raise ValueError(f"{shape['classes']} outputs for {len(class_ids)} classes")
    for number in (size, *shape["hidden"]):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"a size of {str(number)[:40]}")
    if size > MAX_SIDE:
        raise ValueError(f"images of {str(size)[:40]} pixels")
    if not 0 <= shape["dropout"] < 1:
        raise ValueError(f"a dropout of {shape['dropout']}")


def _check_weights(arch: str, shape: State, weights: dict[str, Tensor], path: Path) -> None:
    """Raise `ValueError` or `InputError` if the weights do not fit, before memory is allocated."""
    backbone = backbone_template(arch)
    with without_numbers():
        template = Classifier(backbone, **shape).state_dict()
    misfits = [
        name
        for name in {**template, **weights}
        if name not in weights
        or name not in template
        or weights[name].shape != template[name].shape
        or weights[name].dtype != template[name].dtype
    ]
    if misfits:
        raise ValueError(f"{misfits[0]} is missing, unexpected or has the wrong shape")
    for name, tensor in weights.items():
        check_numbers(tensor, f"{path}: {name}")
        if name.endswith("running_var") and tensor.min() < 0:
            raise ValueError(f"{name} is below 0")
    if weights["backbone.std"].min() <= 0:
        raise ValueError("backbone.std must be positive")


def class_order(path: Path) -> tuple[str, ...]:
    """Read the class ids of a model's outputs; raise `InputError` if it is not a checkpoint."""
    return tuple(_class_ids(_read(path, "model"), path))


def save_training(path: Path, state: State, class_ids: tuple[str, ...], origin: str = "") -> None:
    """Write a training state (`Training.state_dict()`); `origin` as in `save_model`."""
    _save(path, {"kind": "training", "state": state, "origin": origin}, class_ids)


def load_training(path: Path, class_ids: tuple[str, ...], origin: str = "") -> State:
    """Read a training state; raise `InputError` as `load_model` does."""
    state = _load(path, "training", class_ids, origin).get("state")
    if not isinstance(state, dict):
        raise InputError(f"{path}: has no training state; `python -m tinynet.train` writes one")
    try:
        for name, tensor in _tensors(state, "state"):
            check_numbers(tensor, f"{path}: {name}")
    except RecursionError:
        raise InputError(
            f"{path}: not a checkpoint of tinynet; `python -m tinynet.train` writes one"
        ) from None
    return state


def _tensors(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, lists and tuples, with dotted names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (dict, list, tuple)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}")


def _save(path: Path, content: State, class_ids: tuple[str, ...]) -> None:
    try:
        with postponed(), atomic_file(path) as stream:
            torch.save({"format": FORMAT, "wnids": list(class_ids), **content}, stream)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        cause = error.__context__  # torch hides a full disk behind a RuntimeError
        raise OSError(cause.errno, cause.strerror, str(path)) from None


def _read(path: Path, kind: str) -> State:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; `python -m tinynet.train` writes one")
    try:
        content = load(path)
    except Exception as error:  # a broken or foreign file can raise nearly any exception
        raise InputError(
            f"{path}: not a checkpoint of tinynet ({type(error).__name__}); "
            "`python -m tinynet.train` writes one"
        ) from None
    header = (content.get("format"), content.get("kind")) if isinstance(content, dict) else None
    if header != (FORMAT, kind):
        raise InputError(
            f"{path}: not a {kind} checkpoint of tinynet, format {FORMAT}; "
            "`python -m tinynet.train` writes one"
        )
    return content


def _load(path: Path, kind: str, class_ids: tuple[str, ...], origin: str = "") -> State:
    content = _read(path, kind)
    # checkpoints of early versions have no origin
    if origin and content.get("origin") and content["origin"] != origin:
        raise InputError(
            f"{path}: comes from another training (other data, seed, recipe or starting weights) "
            "than its folder; use the file that this folder's training wrote"
        )
    outputs = _class_ids(content, path)
    if outputs != list(class_ids):
        difference = (
            "the same classes in another order"
            if sorted(outputs) == sorted(class_ids)
            else f"other classes ({len(outputs)}, here {len(class_ids)})"
        )
        raise InputError(
            f"{path}: was trained on {difference}, so its accuracy here would be chance; "
            "name its training data" + advice(" with --data")
        )
    return content


def _class_ids(content: State, path: Path) -> list[str]:
    class_ids = content.get("wnids")
    if (
        not isinstance(class_ids, list)
        or not all(isinstance(class_id, str) for class_id in class_ids)
        or not class_ids
        or len(set(class_ids)) < len(class_ids)
    ):
        raise InputError(
            f"{path}: has no list of classes; use a checkpoint that `python -m tinynet.train` wrote"
        )
    return class_ids
