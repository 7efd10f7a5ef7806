"""Figures of a run at several test sizes: accuracy, features, cost, and training against test
size.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def accuracy_against_size(rows: Sequence[Row], title: str) -> "Figure":
    """Top-1 against test size, a line for each correction, a panel for each split."""
    from matplotlib.ticker import PercentFormatter

    splits = list(dict.fromkeys(row["split"] for row in rows))
    figure, panels = _panels(1, len(splits), (6, 4.2), title)
    for panel, split in zip(panels, splits, strict=True):
        for name, marker in zip(
            dict.fromkeys(row["correction"] for row in rows), cycle("osD^vPX*")
        ):
            mine = sorted(
                (r for r in rows if (r["split"], r["correction"]) == (split, name)),
                key=lambda r: r["size"],
            )
            sizes = [r["size"] for r in mine]
            line = panel.plot(
                sizes, [r["top1"] for r in mine], f"{marker}-", markersize=5, label=name
            )
            if name == "as is":
                panel.fill_between(
                    sizes,
                    [r["low"] for r in mine],
                    [r["high"] for r in mine],
                    alpha=0.15,
                    color=line[0].get_color(),
                    label="95 % interval",
                )
        panel.axvline(rows[0]["trained"], color="0.6", linestyle=":", label="training size")
        panel.set(xlabel="test size (pixels)", ylabel="top-1", title=split)
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure


def cumulative_curves(activations: Sequence[Row], trained: int, title: str) -> "Figure":
    """The cumulative curves of the pooled features at every size, a panel for each tap."""
    from matplotlib.ticker import PercentFormatter

    feature_names = list(dict.fromkeys(row["tap"] for row in activations))
    columns = min(4, len(feature_names))
    figure, panels = _panels(-(-len(feature_names) // columns), columns, (3.4, 2.9), title)
    sizes = sorted({row["size"] for row in activations})
    colours = dict(zip(sizes, _shades(len(sizes)), strict=True))
    dashes = dict(zip(sizes, cycle(("-", ":", "-."))))
    for panel, feature in zip(panels, feature_names, strict=False):
        for row in sorted((r for r in activations if r["tap"] == feature), key=lambda r: r["size"]):
            own = row["size"] == trained
            panel.plot(
                row["curve"],
                np.linspace(0, 1, len(row["curve"])),
                color=colours[row["size"]],
                linewidth=2.2 if own else 1.2,
                linestyle="--" if own else dashes[row["size"]],
                label=f"{row['size']} px{' (trained)' if own else ''}, {row['zeros']:.0%} zeros",
            )
        panel.set(
            xlim=(0, max(r["q0.99"] for r in activations if r["tap"] == feature)),
            ylim=(0, 1),
            title=feature,
            xlabel="value of a feature",
            ylabel="share of values below",
        )
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in panels[len(feature_names) :]:
        panel.set_axis_off()
    return figure


def shares_seen(shares: Sequence[tuple[str, np.ndarray, float]], title: str) -> "Figure":
    """How much of a picture's area is seen: crops of training as histograms, the test crop as a
    line.

    `shares`: for each policy its name, the drawn shares of training (N,), and the share seen in
    testing.
    """
    from matplotlib.ticker import PercentFormatter

    figure, panels = _panels(1, len(shares), (4.2, 3.4), title)
    for panel, (name, drawn, tested) in zip(panels, shares, strict=True):
        panel.hist(
            drawn,
            bins=np.linspace(0, 1, 51),
            weights=np.full(len(drawn), 1 / len(drawn)),
            alpha=0.6,
            label="training",
        )
        panel.axvline(tested, color="tab:red", label="testing")
        panel.set(
            xlabel="share of the picture's area",
            ylabel="share of crops",
            title=name,
            xlim=(0, 1.02),
        )
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.legend(fontsize=8)
    return figure


def accuracy_against_seconds(rows: Sequence[Row], title: str) -> "Figure":
    """Top-1 against milliseconds a picture, a colour for each run; the line joins what nothing
    cheaper beats, numbered.

    `rows`: with `seconds`, the set of `views`, and the `correction`, which is "as is" where there
    are views.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    splits = list(dict.fromkeys(row["split"] for row in rows))
    named = list(dict.fromkeys(row["run"] for row in rows))
    figure, panels = _panels(1, len(splits), (7.5, 5), title)
    for panel, split in zip(panels, splits, strict=True):
        mine = sorted(
            ({**r, "ms": r["seconds"] * 1000} for r in rows if r["split"] == split),
            key=lambda r: (r["ms"], -r["top1"]),
        )
        for number, run in enumerate(named):
            some = [r for r in mine if r["run"] == run]
            panel.plot(
                [r["ms"] for r in some],
                [r["top1"] for r in some],
                "o",
                color=f"C{number}",
                markersize=4,
                label=run,
            )
        front = [
            r
            for number, r in enumerate(mine)
            if all(r["top1"] > before["top1"] for before in mine[:number])
        ]
        panel.step(
            [r["ms"] for r in front],
            [r["top1"] for r in front],
            color="0.5",
            where="post",
            zorder=0,
        )
        for number, row in enumerate(front, 1):
            what = row["views"] if row["correction"] == "as is" else row["correction"]
            panel.annotate(
                str(number),
                (row["ms"], row["top1"]),
                fontsize=7,
                xytext=(-2, 5),
                textcoords="offset points",
            )
            panel.plot(
                [],
                [],
                marker=f"${number}$",
                linestyle="none",
                color=f"C{named.index(row['run'])}",
                label=f"{what}, {row['size']} px",
            )
        panel.set(xscale="log", xlabel="milliseconds a picture", ylabel="top-1", title=split)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=7)
    return figure


def heat_map(rows: Sequence[Row], title: str) -> "Figure":
    """Top-1 of runs, by the size they were trained at, against test size; where the two are equal
    it is framed.
    """
    from matplotlib.patches import Rectangle

    splits = list(dict.fromkeys(row["split"] for row in rows))
    runs = sorted({(row["trained"], row["run"]) for row in rows})
    tested = sorted({row["size"] for row in rows})
    names = [f"{trained} px, {run.rsplit('/', 1)[-1]}" for trained, run in runs]
    figure, panels = _panels(
        1, len(splits), (2.2 + 0.8 * len(tested), 1.6 + 0.6 * len(runs)), title
    )
    for panel, split in zip(panels, splits, strict=True):
        grid = np.full((len(runs), len(tested)), np.nan)
        for row in rows:
            if row["split"] == split:
                grid[runs.index((row["trained"], row["run"])), tested.index(row["size"])] = row[
                    "top1"
                ]
        panel.imshow(grid, cmap="viridis", aspect="auto")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (down, right), value in np.ndenumerate(grid):
            if not np.isnan(value):
                panel.text(
                    right,
                    down,
                    f"{value:.1%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value < middle else "black",
                )
            if runs[down][0] == tested[right]:
                panel.add_patch(
                    Rectangle(
                        (right - 0.5, down - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2
                    )
                )
        panel.set(
            xticks=range(len(tested)),
            xticklabels=tested,
            yticks=range(len(runs)),
            yticklabels=names,
            xlabel="test size (pixels)",
            ylabel="trained at",
            title=split,
        )
    return figure


def _panels(rows: int, columns: int, each: tuple[float, float], title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(each[0] * columns, each[1] * rows), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0, 0.92, count)]
