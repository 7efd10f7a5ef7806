"""A figure of accuracy against time on two CPU cores and a GPU, from the result files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import minutes
from tinynet.training.recipes import FIRST

# derwind 2024: top-1 on its own hold-out of 5,000 images after base and after finetune, with ten
# and five epochs; and minutes on an NVIDIA T4.
PUBLISHED, EPOCHS, T4_MINUTES = (0.4706, 0.5218), (10, 5), 45
IMAGES = 95_000  # of an epoch
PEERS = {"as written": "s", "best flags": "D"}  # and their markers


@dataclass(frozen=True)
class Point:
    """A run: its machine, minutes from the zip, and hold-out top-1 with Wilson's 95 % interval.

    `chosen_views`: the same with the views that the hold-out chose.
    """

    name: str
    machine: str
    minutes: float
    one_view: tuple[float, float, float]
    chosen_views: tuple[float, float, float]


@dataclass(frozen=True)
class Peer:
    """A peer's minutes, computed from its rates on the same machine.

    `published`: after base and after finetune of the published recipe. `first_recipe`: after base
    and finetune of tinynet's recipe `first`, which trains all layers at 64 px.
    """

    name: str
    published: tuple[float, float]
    first_recipe: float


def points(folder: Path, gpu: bool = False) -> list[Point]:
    """VGG16's runs of `train --minutes` on the machine of `peers`, those with few minutes first.

    `gpu`: runs on GPUs instead.
    """
    processor = _read(folder / "amx", "finetune")["machine"]["processor"]

    def is_asked(device: dict[str, Any]) -> bool:
        on_gpu = device["type"] == "cuda"
        return on_gpu if gpu else not on_gpu and device["processor"] == processor

    return [
        Point(
            row["trained"],
            minutes.machine(row),
            row["seconds"] / 60,
            *(_interval(minutes.score(row, "holdout", chosen)) for chosen in (False, True)),
        )
        for row in minutes.entries(folder)
        if row["arch"] == "vgg16" and is_asked(row["device"])
    ]


def peers(folder: Path) -> list[Peer]:
    """The published loop as written and with its best flags."""
    base, finetune = (_read(folder / "amx", name)["rates"] for name in ("base", "finetune"))

    def after(kind: str, epochs: tuple[float, float]) -> tuple[float, float]:
        head = epochs[0] * IMAGES / base[kind]["median"] / 60
        return head, head + epochs[1] * IMAGES / finetune[kind]["median"] / 60

    first = FIRST.base.epochs, FIRST.finetune.epochs
    return [Peer(kind, after(kind, EPOCHS), after(kind, first)[1]) for kind in PEERS]


def description(folder: Path) -> str:
    """The numbers of the figure as text, which is stored in the PNG."""
    lines = [
        f"{point.machine}, {point.name}: {point.minutes:.1f} min, {point.one_view[0]:.2%}, with "
        f"the chosen views {point.chosen_views[0]:.2%}"
        for point in [*points(folder), *points(folder, gpu=True)]
    ]
    for peer in peers(folder):
        lines += [
            f"published baseline, {peer.name}: {after:.0f} min, {top1:.2%}"
            for after, top1 in zip(peer.published, PUBLISHED, strict=True)
        ]
        lines.append(
            f"published baseline, {peer.name}, recipe first: {peer.first_recipe:.0f} min, "
            f"{_first_accuracy(folder):.2%}"
        )
    return "\n".join([*lines, f"published: {T4_MINUTES} min of a T4, {PUBLISHED[1]:.2%}"])


def figure(folder: Path) -> Figure:
    """Hold-out top-1 against minutes (log scale): runs of `train --minutes`, the published loop as
    written and with its best flags, and the published result.
    """
    drawing = Figure(figsize=(7.6, 5), layout="constrained")
    axes = drawing.subplots()
    runs, loops = points(folder), peers(folder)
    for name, label, marker, shift in (
        ("chosen_views", "tinynet --minutes, views chosen on the hold-out", "^-", 1.03),
        ("one_view", "tinynet --minutes, one view", "o-", 1.0),
    ):
        _draw_runs(axes, runs, name, shift, fmt=marker, label=label)
    for point in points(folder, gpu=True):
        label = f"tinynet --minutes on an {point.machine}, chosen views"
        _draw_runs(axes, [point], "chosen_views", 1.0, fmt="*", ms=10, color="C0", label=label)
    _draw_peers(axes, loops, _first_accuracy(folder))
    axes.set_xscale("log")
    longest = max(peer.first_recipe for peer in loops)
    ticks = [tick for tick in (3, 5, 10, 20, 45, 100, 200, 400, 800) if tick < 1.5 * longest]
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlim=(2.5, 1.3 * longest),
        ylim=(45, 75),
        xlabel="minutes on two cores of a Xeon with AMX (stars: on a GPU)",
        ylabel="hold-out top-1 (%)",
        title="VGG16 on Tiny ImageNet, 5,000 held-out images",
    )
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside lower center", ncols=2, fontsize=8)
    return drawing


def _draw_runs(axes: Axes, runs: list[Point], name: str, shift: float, **style: Any) -> None:
    """Draw the scores `name` of runs, with intervals, `shift` times as far right."""
    scores = [getattr(point, name) for point in runs]
    axes.errorbar(
        [point.minutes * shift for point in runs],  # side by side
        [100 * top1 for top1, _, _ in scores],
        yerr=[
            [100 * (top1 - low) for top1, low, _ in scores],
            [100 * (high - top1) for top1, _, high in scores],
        ],
        capsize=3,
        **style,
    )


def _draw_peers(axes: Axes, loops: list[Peer], first_accuracy: float) -> None:
    color = "dimgray"
    for peer in loops:
        marker, label = PEERS[peer.name], f"published baseline, {peer.name}"
        axes.plot(
            peer.published,
            [100 * top1 for top1 in PUBLISHED],
            f"{marker}-",
            color=color,
            label=label,
        )
        axes.plot(
            [peer.published[1], peer.first_recipe],
            [100 * PUBLISHED[1], 100 * first_accuracy],
            f"{marker}:",
            color=color,
            markerfacecolor="white",
            markevery=[1],
            label=f"{label}, extrapolated to recipe first",
        )
    axes.plot(
        T4_MINUTES,
        100 * PUBLISHED[1],
        "*",
        markersize=10,
        color=color,
        markerfacecolor="white",
        label="published baseline on an NVIDIA T4",
    )


def _first_accuracy(folder: Path) -> float:
    """Hold-out top-1 that tinynet reached with its recipe `first` at 64 px, one view."""
    rows = _read(folder, "finetune-64")["rows"]
    return next(row["top1"] for row in rows if (row["split"], row["views"]) == ("holdout", "none"))


def _interval(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["top1"], row["low"], row["high"]


def _read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content
