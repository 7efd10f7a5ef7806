"""A figure of accuracy against time on two CPU cores, from the result files."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# derwind 2024: top-1 on its own hold-out of 5,000 images, and minutes on an NVIDIA T4.
PUBLISHED, T4_MINUTES = 0.5218, 45


@dataclass(frozen=True)
class Point:
    """A recipe: minutes from the packed images, and hold-out top-1 with Wilson's 95 % interval.

    `flip`: the same with `--tta flip`. Where there are several seeds, each number is their mean.
    """

    name: str
    minutes: float
    none: tuple[float, float, float]
    flip: tuple[float, float, float]


def points(folder: Path) -> list[Point]:
    """tinynet's points, all from one machine; minutes are computed from the measured rates."""
    base = _read(folder, "base")["seconds of the whole stage, from the rates"]
    first = base["tinynet, first run"] / 60
    settings = _read(folder, "finetune-64")["settings"]
    rate = _read(folder, "finetune")["rates"]["tinynet, tuned"]["median"]
    images = 100_000 * (1 - settings["data"]["holdout"])
    both = first + images * settings["finetune"]["epochs"] / rate / 60
    return [
        Point(name, minutes, *(_score(_read(folder, file), views) for views in ("none", "flip")))
        for name, minutes, file in (
            ("base", first, "base-64"),
            ("base, then finetune", both, "finetune-64"),
            ("finetune, fixres 96 px", both, "finetune-norms-96"),
        )
    ]


def published_minutes(folder: Path) -> float:
    """Minutes of the published code on tinynet's machine, computed from its measured rates."""
    shares = _read(folder, "whole")["seconds from the zip to a share of the hold-out"]
    return shares[f"{PUBLISHED:.2%}"]["peers, computed from their rates"]["as written"] / 60


def description(folder: Path) -> str:
    """The numbers of the figure as text, which is stored in the PNG."""
    lines = [
        f"{point.name}: {point.minutes:.1f} min, {point.none[0]:.2%}, with flip {point.flip[0]:.2%}"
        for point in points(folder)
    ]
    published = f"published: {T4_MINUTES} min of a T4, {published_minutes(folder):.0f} min here"
    return "\n".join([*lines, f"{published}, {PUBLISHED:.2%}"])


def figure(folder: Path) -> Figure:
    """Hold-out top-1 against minutes (log scale): one view, horizontal flip, and the baseline."""
    drawing = Figure(figsize=(7.6, 4), layout="constrained")
    axes = drawing.subplots()
    rows = points(folder)
    for views, label, marker in (
        ("none", "tinynet, one view", "o"),
        ("flip", "tinynet, horizontal flip averaged", "^"),
    ):
        scores = [getattr(point, views) for point in rows]
        axes.errorbar(
            # side by side: the last two take the same time
            [point.minutes * (1 if views == "none" else 1.04) for point in rows],
            [100 * top1 for top1, _, _ in scores],
            yerr=[
                [100 * (top1 - low) for top1, low, _ in scores],
                [100 * (high - top1) for top1, _, high in scores],
            ],
            fmt=marker,
            capsize=3,
            label=label,
        )
    here = published_minutes(folder)
    axes.plot([T4_MINUTES, here], [100 * PUBLISHED] * 2, ":", color="gray", linewidth=1)
    axes.plot(here, 100 * PUBLISHED, "s", color="dimgray", label="published code, same two cores")
    axes.plot(
        T4_MINUTES,
        100 * PUBLISHED,
        "s",
        color="dimgray",
        markerfacecolor="white",
        label="published code, NVIDIA T4",
    )
    for point, offset, side in zip(
        rows, ((10, 0), (-10, -4), (-10, 4)), ("left", "right", "right"), strict=True
    ):
        axes.annotate(
            point.name,
            (point.minutes, 100 * point.none[0]),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            va="center",
        )
    axes.set_xscale("log")
    ticks = (10, 20, 45, 100, 250, 600)
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlim=(9, 900),
        ylim=(50, 70),
        xlabel="minutes on two cores of a Xeon without bfloat16 (hollow: on an NVIDIA T4)",
        ylabel="hold-out top-1 (%)",
        title="VGG16 on Tiny ImageNet, 5,000 held-out images",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return drawing


def _score(result: dict[str, Any], views: str) -> tuple[float, float, float]:
    rows = [row for row in result["rows"] if (row["split"], row["views"]) == ("holdout", views)]
    top1, low, high = (statistics.mean(row[key] for row in rows) for key in ("top1", "low", "high"))
    return top1, low, high


def _read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content
