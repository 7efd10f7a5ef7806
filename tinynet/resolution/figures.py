"""Figures of a run at several test sizes: accuracy, features, cost, training against test size."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from tinynet.records import ScoreRow
from tinynet.resolution.activations import FeatureRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_against_size(rows: Sequence[ScoreRow], title: str) -> "Figure":
    """Plot top-1 against test size: a line for each correction, a panel for each split."""
    from matplotlib.ticker import PercentFormatter

    splits = list(dict.fromkeys(row.split for row in rows))
    figure, panels = _panels(1, len(splits), (6, 4.2), title)
    for panel, split in zip(panels, splits, strict=True):
        for name, marker in zip(dict.fromkeys(row.correction for row in rows), cycle("osD^vPX*")):
            points = sorted(
                (row for row in rows if (row.split, row.correction) == (split, name)),
                key=lambda row: row.size,
            )
            sizes = [row.size for row in points]
            top1 = [row.top1 for row in points]
            line = panel.plot(sizes, top1, f"{marker}-", markersize=5, label=name)
            if name == "as is":
                panel.fill_between(
                    sizes,
                    [row.low for row in points],
                    [row.high for row in points],
                    alpha=0.15,
                    color=line[0].get_color(),
                    label="95 % interval",
                )
        panel.axvline(rows[0].trained, color="0.6", linestyle=":", label="training size")
        panel.set(xlabel="test size (pixels)", ylabel="top-1", title=split)
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure


def cumulative_curves(activations: Sequence[FeatureRow], trained: int, title: str) -> "Figure":
    """Plot the cumulative curves of the features at every size, a panel for each feature.

    `activations`: rows of `Study.activations`. `trained`: the training size in pixels.
    """
    from matplotlib.ticker import PercentFormatter

    feature_names = list(dict.fromkeys(row.feature for row in activations))
    columns = min(4, len(feature_names))
    figure, panels = _panels(-(-len(feature_names) // columns), columns, (3.4, 2.9), title)
    sizes = sorted({row.size for row in activations})
    colours = dict(zip(sizes, _shades(len(sizes)), strict=True))
    dashes = dict(zip(sizes, cycle(("-", ":", "-."))))
    for panel, feature in zip(panels, feature_names, strict=False):
        rows = [row for row in activations if row.feature == feature]
        for row in sorted(rows, key=lambda row: row.size):
            own, zeros = row.size == trained, row.distribution.zeros
            panel.plot(
                row.curve,
                np.linspace(0, 1, len(row.curve)),
                color=colours[row.size],
                linewidth=2.2 if own else 1.2,
                linestyle="--" if own else dashes[row.size],
                label=f"{row.size} px{' (trained)' if own else ''}, {zeros:.0%} zeros",
            )
        panel.set(
            xlim=(0, max(row.distribution.quantiles[0.99] for row in rows)),
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


def crop_shares(shares: Sequence[tuple[str, np.ndarray, float]], title: str) -> "Figure":
    """Plot the share of the image's area in crops: of training as histograms, of testing as lines.

    `shares`: for each policy its name, the shares of training crops (N,) and of the test crop.
    """
    from matplotlib.ticker import PercentFormatter

    figure, panels = _panels(1, len(shares), (4.2, 3.4), title)
    for panel, (name, training, testing) in zip(panels, shares, strict=True):
        panel.hist(
            training,
            bins=np.linspace(0, 1, 51),
            weights=np.full(len(training), 1 / len(training)),
            alpha=0.6,
            label="training",
        )
        panel.axvline(testing, color="tab:red", label="testing")
        panel.set(
            xlabel="share of the image's area",
            ylabel="share of crops",
            title=name,
            xlim=(0, 1.02),
        )
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.legend(fontsize=8)
    return figure


def accuracy_against_seconds(rows: Sequence[ScoreRow], title: str) -> "Figure":
    """Plot top-1 against milliseconds per image: a colour for each run, a panel for each split.

    The grey line joins the numbered points that no cheaper point beats. `rows`: with `seconds`, the
    set of `views`, and the `correction` ("as is" for test-time views).
    """
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    splits = list(dict.fromkeys(row.split for row in rows))
    runs = list(dict.fromkeys(row.run for row in rows))
    figure, panels = _panels(1, len(splits), (7.5, 5), title)
    for panel, split in zip(panels, splits, strict=True):
        points = sorted(
            (row for row in rows if row.split == split),
            key=lambda row: (row.seconds, -row.top1),
        )
        for number, run in enumerate(runs):
            of_run = [row for row in points if row.run == run]
            panel.plot(*_times(of_run), "o", color=f"C{number}", markersize=4, label=run)
        front = [
            row
            for number, row in enumerate(points)
            if all(row.top1 > cheaper.top1 for cheaper in points[:number])
        ]
        panel.step(*_times(front), color="0.5", where="post", zorder=0)
        _number_points(panel, front, runs)
        panel.set(xscale="log", xlabel="milliseconds an image", ylabel="top-1", title=split)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=7)
    return figure


def _times(rows: Sequence[ScoreRow]) -> tuple[list[float], list[float]]:
    """Milliseconds per image, and top-1."""
    return [row.seconds * 1000 for row in rows], [row.top1 for row in rows]


def _number_points(panel: Any, rows: Sequence[ScoreRow], runs: Sequence[str]) -> None:
    """Write a number next to each point, and its meaning in the legend."""
    for number, row in enumerate(rows, 1):
        label = row.views if row.correction == "as is" else row.correction
        panel.annotate(
            str(number),
            (row.seconds * 1000, row.top1),
            fontsize=7,
            xytext=(-2, 5),
            textcoords="offset points",
        )
        panel.plot(
            [],
            [],
            marker=f"${number}$",
            linestyle="none",
            color=f"C{runs.index(row.run)}",
            label=f"{label}, {row.size} px",
        )


def heat_map(rows: Sequence[ScoreRow], title: str) -> "Figure":
    """Plot top-1 by training size of the runs and test size; equal sizes have a red frame."""
    from matplotlib.patches import Rectangle

    splits = list(dict.fromkeys(row.split for row in rows))
    runs = sorted({(row.trained, row.run) for row in rows})
    test_sizes = sorted({row.size for row in rows})
    names = [f"{trained} px, {run.rsplit('/', 1)[-1]}" for trained, run in runs]
    figure, panels = _panels(
        1, len(splits), (2.2 + 0.8 * len(test_sizes), 1.6 + 0.6 * len(runs)), title
    )
    for panel, split in zip(panels, splits, strict=True):
        grid = np.full((len(runs), len(test_sizes)), np.nan)
        for row in rows:
            if row.split == split:
                grid[runs.index((row.trained, row.run)), test_sizes.index(row.size)] = row.top1
        panel.imshow(grid, cmap="viridis", aspect="auto")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (line, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                panel.text(
                    column,
                    line,
                    f"{value:.1%}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value < middle else "black",
                )
            if runs[line][0] == test_sizes[column]:
                panel.add_patch(
                    Rectangle(
                        (column - 0.5, line - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2
                    )
                )
        panel.set(
            xticks=range(len(test_sizes)),
            xticklabels=test_sizes,
            yticks=range(len(runs)),
            yticklabels=names,
            xlabel="test size (pixels)",
            ylabel="trained at",
            title=split,
        )
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](position) for position in np.linspace(0, 0.92, count)]
