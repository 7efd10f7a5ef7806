"""Changes of a checkpoint: the tables of cases, and the functions that make the changes."""

from collections.abc import Callable
from typing import Any

import torch

Change = Callable[[dict[str, Any]], Any]


def _set(*path: str, to: Any) -> Change:
    """Replace a value somewhere inside."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = to(holder[path[-1]]) if callable(to) else to
        return content

    return change


def _without(*path: str) -> Change:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        return content

    return change


def _tensor(name: str, change: Callable[[torch.Tensor], Any]) -> Change:
    return _set("weights", name, to=change)


def _each(name: str, *path: str, values: dict[str, Any]) -> dict[str, Change]:
    return {f"{name}-{title}": _set(*path, to=value) for title, value in values.items()}


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[0] = float("nan")
    return tensor


_TYPES = {"none": None, "text": "x", "list": [1], "dict": {"a": 1}, "float": 0.5}
_LAYER, _CONVOLUTION = "head.1.weight", "backbone.features.0.weight"
BEST: dict[str, Change] = {
    **{
        f"without-{name}": _without(name)
        for name in ("format", "kind", "wnids", "network", "weights", "size")
    },
    **{
        f"without-{name}": _without("network", name)
        for name in ("taps", "hidden", "classes", "dropout", "standardise")
    },
    **_each("format", "format", values={"2": 2, "text": "1", "none": None, "list": [1]}),
    **_each("kind", "kind", values={"training": "training", "none": None, "list": ["model"]}),
    **_each(
        "size",
        "size",
        values={
            **_TYPES,
            "0": 0,
            "negative": -32,
            "31": 31,
            "huge": 10**9,
            "beyond": 10**30,
            "nan": float("nan"),
            "tensor": torch.tensor([1, 2]),
        },
    ),
    **_each(
        "wnids",
        "wnids",
        values={
            "none": None,
            "text": "n1",
            "empty": [],
            "numbers": [1, 2, 3, 4],
            "dict": {"a": 1},
            "lists": [["a"], ["b"], ["c"], ["d"]],
            "twice": lambda wnids: [wnids[0]] * 4,
            "fewer": lambda wnids: wnids[:3],
            "more": lambda wnids: [*wnids, "n1"],
        },
    ),
    **_each("network", "network", values={**_TYPES, "empty": {}}),
    **_each(
        "taps",
        "network",
        "taps",
        values={
            **_TYPES,
            "empty": [],
            "unknown": ["relu9:mean"],
            "no-colon": ["relu5_3"],
            "statistic": ["relu5_3:median"],
            "fewer": ["relu5_3:mean"],
            "many": ["relu5_3:grid7"] * 10_000,
            "numbers": [1, 2],
        },
    ),
    **_each(
        "hidden",
        "network",
        "hidden",
        values={
            **_TYPES,
            "empty": [],
            "other": [17],
            "negative": [-1],
            "zero": [0],
            "huge": [10**9],
            "beyond": [10**30],
            "words": ["x"],
            "many": [16] * 10_000,
        },
    ),
    **_each(
        "classes",
        "network",
        "classes",
        values={**_TYPES, "more": 5, "fewer": 3, "zero": 0, "negative": -4, "huge": 10**9},
    ),
    **_each("standardise", "network", "standardise", values={"off": False, "text": ""}),
    **_each(
        "dropout", "network", "dropout", values={"2": 2.0, "text": "x", "none": None, "list": []}
    ),
    "network-one-more": lambda content: {**content, "network": {**content["network"], "more": 1}},
    **_each("weights", "weights", values={**_TYPES, "empty": {}, "numbers": {1: 2}}),
    "tensor-missing": _without("weights", _LAYER),
    "tensor-more": lambda content: {
        **content,
        "weights": {**content["weights"], "more": torch.zeros(1)},
    },
    "tensor-nan": _tensor(_LAYER, _nan),
    "tensor-nan-in-backbone": _tensor(_CONVOLUTION, _nan),
    "tensor-inf": _tensor(_LAYER, lambda tensor: tensor / 0),
    "tensor-shape": _tensor(_LAYER, lambda tensor: tensor[:-1]),
    "tensor-nan-in-norm": _tensor("head.0.running_var", _nan),
    "tensor-negative-variance": _tensor("head.0.running_var", lambda tensor: -tensor - 1),
    "tensor-text": _tensor(_LAYER, lambda tensor: "x"),
    "tensor-none": _tensor(_LAYER, lambda tensor: None),
    "tensor-huge": _tensor(_LAYER, lambda tensor: torch.zeros(1).expand(10**6, 10**6)),
    "tensor-sparse": _tensor(_LAYER, lambda tensor: tensor.to_sparse()),
    "tensor-meta": _tensor(_LAYER, lambda tensor: tensor.to("meta")),
    "tensor-complex": _tensor(_LAYER, lambda tensor: tensor.to(torch.complex64)),
    "std-zero": _tensor("backbone.std", lambda tensor: tensor * 0),
    "a-list": lambda content: [content],
    "nothing": lambda content: {},
    "a-training": lambda content: {
        "format": 1,
        "kind": "training",
        "wnids": content["wnids"],
        "state": {},
    },
}
OTHERS = _set("wnids", to=["a", "b", "c", "d"])
# A prediction may have other class names: it takes the classes of the checkpoint.
BEST_DOUBTFUL = {
    "one-more-key": lambda content: {**content, "more": 3},
    "tensor-float64": _tensor(_LAYER, lambda tensor: tensor.double()),
    "tensor-strided": _tensor(_LAYER, lambda tensor: tensor.t().contiguous().t()),
    "dropout-nan": _set("network", "dropout", to=float("nan")),
    "standardise-number": _set("network", "standardise", to=1),
}

_PLAIN = ("epoch", "step", "stale", "seen", "loss_sum", "seconds", "best")
_PARTS = ("module", "optimizer", "schedule", "scaler", "rng")


def _state(*path: Any, to: Any) -> Change:
    return _set("state", *path, to=to)


def _moments(change: Callable[[torch.Tensor], Any]) -> Change:
    """Change the optimizer's moments of the first weights."""

    def changed(content: dict[str, Any]) -> dict[str, Any]:
        states = content["state"]["optimizer"]["state"]
        first = next(iter(states))
        states[first] = {**states[first], "exp_avg": change(states[first]["exp_avg"])}
        return content

    return changed


LAST: dict[str, Change] = {
    **{f"without-{name}": _without("state", name) for name in (*_PLAIN, *_PARTS)},
    **{f"without-{name}": _without(name) for name in ("format", "kind", "wnids", "state")},
    **{
        f"{name}-{title}": _state(name, to=value)
        for name in _PARTS
        for title, value in {"none": None, "text": "x", "list": [1], "number": 3}.items()
        if name != "scaler"
    },
    **{
        f"{name}-{title}": _state(name, to=value)
        for name in ("epoch", "step")
        for title, value in {
            "none": None,
            "text": "x",
            "list": [1],
            "negative": -1,
            "half": 0.5,
            "nan": float("nan"),
        }.items()
    },
    **{
        f"best-{title}": _state("best", to=value)
        for title, value in {
            "text": "x",
            "list": [1],
            "empty": {},
            "number": 1,
            "holdout-none": {"holdout": None},
            "holdout-empty": {"holdout": {}},
            "top1-text": {"holdout": {"top1": "x"}},
        }.items()
    },
    "stale-text": _state("stale", to="x"),
    "state-none": _set("state", to=None),
    "state-list": _set("state", to=[1]),
    "state-empty": _set("state", to={}),
    "wnids-others": _set("wnids", to=["a", "b", "c", "d"]),
    "wnids-none": _set("wnids", to=None),
    "module-nan": _state("module", "1.weight", to=_nan),
    "module-shape": _state("module", "1.weight", to=lambda t: t[:-1]),
    "module-missing": _without("state", "module", "1.weight"),
    "module-empty": _state("module", to={}),
    "moments-shape": _moments(lambda tensor: tensor[:-1]),
    "moments-flat": _moments(torch.flatten),
    "moments-one": _moments(lambda tensor: torch.zeros(1)),
    "moments-larger": _moments(lambda tensor: torch.cat([tensor, tensor])),
    "moments-nan": _moments(_nan),
    "moments-text": _moments(lambda tensor: "x"),
    "moments-none": _moments(lambda tensor: None),
    "moments-huge": _moments(lambda tensor: torch.zeros(1).expand(10**6, 10**6)),
    "groups-none": _state("optimizer", "param_groups", to=None),
    "groups-fewer": _state("optimizer", "param_groups", to=lambda groups: groups[:1]),
    "groups-empty": _state("optimizer", "param_groups", to=[]),
    "rate-text": _state(
        "optimizer", "param_groups", to=lambda groups: [{**group, "lr": "x"} for group in groups]
    ),
    "rate-nan": _state(
        "optimizer",
        "param_groups",
        to=lambda groups: [{**group, "lr": float("nan")} for group in groups],
    ),
    "rng-short": _state("rng", to=lambda state: state[:10]),
    "rng-floats": _state("rng", to=lambda state: state.float()),
    "rng-empty": _state("rng", to=torch.zeros(0, dtype=torch.uint8)),
}
LAST_DOUBTFUL: dict[str, Change] = {
    **{
        f"scaler-{title}": _state("scaler", to=value)
        for title, value in {"none": None, "text": "x", "list": [1], "number": 3}.items()
    },
    # an epoch sets these to 0
    **{f"{name}-text": _state(name, to="x") for name in ("seen", "loss_sum", "seconds")},
    "best-none": _state("best", to=None),
    "epoch-huge": _state("epoch", to=10**9),
    "step-huge": _state("step", to=10**9),
    "epoch-beyond": _state("epoch", to=10**30),
    "stale-negative": _state("stale", to=-1),
    "seen-huge": _state("seen", to=10**30),
    "loss-nan": _state("loss_sum", to=float("nan")),
    "seconds-nan": _state("seconds", to=float("nan")),
    "moments-float64": _moments(torch.Tensor.double),
    "moments-empty": _state("optimizer", "state", to={}),
    "one-more": lambda content: {**content, "more": 1},
    "device-rng-text": lambda content: {
        **content,
        "state": {**content["state"], "device_rng": "x"},
    },
    "groups-one-more-key": _state(
        "optimizer", "param_groups", to=lambda groups: [{**group, "more": 1} for group in groups]
    ),
    "schedule-empty": _state("schedule", to={}),
    "schedule-huge": _state("schedule", to=lambda state: {**state, "last_epoch": 10**12}),
    "schedule-count-text": _state("schedule", to=lambda state: {**state, "last_epoch": "x"}),
    "fused-off": _state(
        "optimizer",
        "param_groups",
        to=lambda groups: [{**group, "fused": False, "foreach": True} for group in groups],
    ),
}
