"""Checkpoints: tensors and plain values only, whole or not at all, with the class order inside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinynet.errors import InputError
from tinynet.files import atomic_file
from tinynet.interrupts import postponed
from tinynet.models.classifier import MAX_SIDE, Classifier
from tinynet.models.state_dicts import check_numbers, load
from tinynet.models.vgg import MIN_SIDE, Backbone

FORMAT = 1


def save_model(
    path: Path,
    model: Classifier,
    wnids: tuple[str, ...],
    size: int,
    head: nn.Module | None = None,
    origin: str = "",
) -> None:
    """Write a network with its class order and the side in pixels of the pictures it was trained
    on.

    `head`: one to write in place of the model's own, for instance a moving average of it. `origin`:
    a digest of what the training that it comes from was started with.
    """
    weights = model.state_dict()
    if head is not None:
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    _save(
        path,
        {
            "kind": "model",
            "network": _stored_shape(model.shape),
            "weights": weights,
            "size": size,
            "origin": origin,
        },
        wnids,
    )


def load_model(path: Path, wnids: tuple[str, ...], origin: str = "") -> tuple[Classifier, int]:
    """The network in `path`, in eval mode on the CPU, and the side of the pictures it was trained
    on.

    Raises `InputError` where the file is no checkpoint, its classes are not `wnids` in this order,
    or it comes from another training than the one called `origin`.
    """
    stored = _load(path, "model", wnids, origin)
    try:
        shape, weights, size = _read_shape(stored["network"]), stored["weights"], stored["size"]
        _check_shape(shape, wnids, size)
        _check_weights(shape, weights, path)
        model = Classifier(Backbone(), **shape)
        model.load_state_dict(weights)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a model checkpoint of tinynet ({' '.join(str(error).split())[:80]}); "
            "`python -m tinynet.train` writes one"
        ) from None
    return model.eval(), size


def _stored_shape(shape: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Classifier` as checkpoints have them, where features are called taps."""
    return {"taps" if name == "feature_names" else name: value for name, value in shape.items()}


def _read_shape(stored: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Classifier` that a checkpoint has."""
    return {"feature_names" if name == "taps" else name: value for name, value in stored.items()}


def _check_shape(shape: dict[str, Any], wnids: tuple[str, ...], size: Any) -> None:
    """Raise `ValueError` where these are not the numbers of a network for these classes."""
    if shape["classes"] != len(wnids):
        raise ValueError(f"{shape['classes']} outputs for {len(wnids)} classes")
    for number in (size, *shape["hidden"]):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"a size of {str(number)[:40]}")
    if not MIN_SIDE <= size <= MAX_SIDE:
        raise ValueError(f"images of {str(size)[:40]} pixels")
    if not 0 <= shape["dropout"] < 1:
        raise ValueError(f"a dropout of {shape['dropout']}")


def _check_weights(shape: dict[str, Any], weights: dict[str, Tensor], path: Path) -> None:
    """Raise what says that these are not the weights of a network of this shape, before it is
    built.
    """
    # neither memory nor a draw of torch's
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        wanted = Classifier(Backbone(), **shape).state_dict()
    wrong = [
        name
        for name in {**wanted, **weights}
        if name not in weights
        or name not in wanted
        or weights[name].shape != wanted[name].shape
        or weights[name].dtype != wanted[name].dtype
    ]
    if wrong:
        raise ValueError(f"{wrong[0]} is missing, unexpected or has the wrong shape")
    for name, tensor in weights.items():
        check_numbers(tensor, f"{path}: {name}")
        if name.endswith("running_var") and tensor.min() < 0:
            raise ValueError(f"{name} is below 0")
    if weights["backbone.std"].min() <= 0:
        raise ValueError("backbone.std must be positive")


def class_order(path: Path) -> tuple[str, ...]:
    """The wnids of a network's outputs; raises `InputError` where the file is no checkpoint."""
    return tuple(_classes(_read(path, "model"), path))


def save_training(
    path: Path, state: dict[str, Any], wnids: tuple[str, ...], origin: str = ""
) -> None:
    """Write the state of a training (`Training.state_dict()`); `origin` as in `save_model`."""
    _save(path, {"kind": "training", "state": state, "origin": origin}, wnids)


def load_training(path: Path, wnids: tuple[str, ...], origin: str = "") -> dict[str, Any]:
    """The state of a training; raises `InputError` as `load_model` does."""
    state = _load(path, "training", wnids, origin).get("state")
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
    """All tensors in nested dicts and lists, with their places in words."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (dict, list, tuple)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}")


def _save(path: Path, content: dict[str, Any], wnids: tuple[str, ...]) -> None:
    try:
        with postponed(), atomic_file(path) as stream:
            torch.save({"format": FORMAT, "wnids": list(wnids), **content}, stream)
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        cause = error.__context__  # torch hides a full disk behind an error of its own
        raise OSError(cause.errno, cause.strerror, str(path)) from None


def _read(path: Path, kind: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; `python -m tinynet.train` writes one")
    try:
        stored = load(path)
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(
            f"{path}: not a checkpoint of tinynet ({type(error).__name__}); "
            "`python -m tinynet.train` writes one"
        ) from None
    if not isinstance(stored, dict) or (stored.get("format"), stored.get("kind")) != (FORMAT, kind):
        raise InputError(
            f"{path}: not a {kind} checkpoint of tinynet, format {FORMAT}; "
            "`python -m tinynet.train` writes one"
        )
    return stored


def _load(path: Path, kind: str, wnids: tuple[str, ...], origin: str = "") -> dict[str, Any]:
    stored = _read(path, kind)
    if origin and stored.get("origin") and stored["origin"] != origin:  # those of before had none
        raise InputError(
            f"{path}: comes from another training (other data, seed, recipe or starting weights) "
            "than its folder; use the file that was trained there"
        )
    theirs = _classes(stored, path)
    if theirs != list(wnids):
        how = (
            "the same classes in another order"
            if sorted(theirs) == sorted(wnids)
            else f"other classes ({len(theirs)}, here {len(wnids)})"
        )
        raise InputError(
            f"{path}: was trained on {how}; scoring it on this data would be chance, "
            "so name the data it was trained on with --data"
        )
    return stored


def _classes(stored: dict[str, Any], path: Path) -> list[str]:
    wnids = stored.get("wnids")
    named = isinstance(wnids, list) and all(isinstance(wnid, str) for wnid in wnids)
    if not named or not wnids or len(set(wnids)) < len(wnids):
        raise InputError(
            f"{path}: has no list of classes; use a checkpoint that `python -m tinynet.train` wrote"
        )
    return wnids
