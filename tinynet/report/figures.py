"""Matplotlib figures of training, views, errors and calibration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinynet.records import EpochRow, LogRow, ScoreRow, StepRow
from tinynet.score.confusions import ObjectSizeBin, ReliabilityBin

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from tinynet.evaluation.predict import Explanation


def training_curves(rows: Sequence[LogRow], title: str) -> "Figure":
    """Plot loss, hold-out accuracy and learning rate of a stage; `rows`: of its log."""
    from matplotlib.figure import Figure

    steps = [row for row in rows if isinstance(row, StepRow)]
    epochs = [row for row in rows if isinstance(row, EpochRow)]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, accuracy, rate = figure.subplots(1, 3)
    _plot_loss(loss, steps, epochs)
    _plot_accuracy(accuracy, epochs)
    rate.plot([row.step for row in steps], [row.lr for row in steps], color="tab:green")
    rate.set(xlabel="step", ylabel="learning rate", title="Learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    return figure


def _plot_loss(panel: Any, steps: Sequence[StepRow], epochs: Sequence[EpochRow]) -> None:
    ends = [row.step for row in epochs]
    step_losses = [row.loss for row in steps]
    holdout_losses = [row.holdout.loss for row in epochs]
    panel.plot(
        [row.step for row in steps],
        step_losses,
        color="0.8",
        linewidth=0.6,
        label="train, each step",
    )
    panel.plot(
        ends, [row.loss for row in epochs], "o-", markersize=4, label="train, mean of an epoch"
    )
    panel.plot(ends, holdout_losses, "s-", markersize=4, label="hold-out")
    panel.set(xlabel="step", ylabel="cross-entropy (nats)", title="Loss")
    panel.set_ylim(0, max(step_losses + holdout_losses, default=1.0) * 1.05)
    panel.legend()


def _plot_accuracy(panel: Any, epochs: Sequence[EpochRow]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    numbers = range(1, len(epochs) + 1)
    scores = [row.holdout for row in epochs]
    panel.plot(numbers, [score.top1 for score in scores], "s-", markersize=4, label="top-1")
    panel.plot(numbers, [score.top5 for score in scores], "^-", markersize=4, label="top-5")
    panel.fill_between(
        numbers,
        [score.low for score in scores],
        [score.high for score in scores],
        alpha=0.2,
        label="95 % interval of top-1",
    )
    panel.set(xlabel="epoch", ylabel="hold-out", title="Accuracy")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(alpha=0.3)
    panel.legend()


def accuracy_against_cost(rows: Sequence[ScoreRow], title: str) -> "Figure":
    """Plot top-1 against the cost of rows of `select_views`: a panel for each split."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    splits = list(dict.fromkeys(row.split for row in rows))
    figure = Figure(figsize=(6 * len(splits), 4), layout="constrained")
    figure.suptitle(title)
    for panel, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        of_split = [row for row in rows if row.split == split]
        greedy = sorted(
            (row for row in of_split if str(row.views).startswith("greedy")),
            key=lambda row: row.cost,
        )
        costs = [row.cost for row in greedy]
        panel.fill_between(
            costs,
            [row.low for row in greedy],
            [row.high for row in greedy],
            alpha=0.15,
            label="95 % interval",
        )
        panel.plot(
            costs,
            [row.top1 for row in greedy],
            "o-",
            markersize=4,
            label="selected greedily, mean",
        )
        for name, mark in (("ten", "s"), ("learned weights", "^")):
            for row in of_split:
                if row.views == name:
                    panel.plot(row.cost, row.top1, mark, markersize=8, label=name)
        panel.set(
            xlabel="cost (forward passes of one image at the training size)",
            ylabel="top-1",
            title=split,
        )
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def view_votes(explanation: "Explanation") -> "Figure":
    """Show the views of an image, each with its name, its vote and the vote's probability."""
    from matplotlib.figure import Figure

    columns = min(5, len(explanation.views))
    rows = -(-len(explanation.views) // columns)
    figure = Figure(figsize=(max(2.4 * columns, 4), 2.9 * rows + 0.5), layout="constrained")
    figure.suptitle(explanation.title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    views = zip(panels, explanation.views, explanation.images, explanation.votes, strict=False)
    for panel, view, image, (name, probability) in views:
        panel.imshow(image, interpolation="nearest")
        panel.set_title(view, fontsize=9)
        panel.set_xlabel(
            f"{name}\n{probability:.0%}",
            fontsize=9,
            parse_math=False,
            color="tab:green" if name == explanation.winner else "tab:red",
        )
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(explanation.views) :]:
        panel.set_axis_off()
    return figure


def contact_sheet(
    images: Sequence[Any], titles: Sequence[str], boxes: Sequence[Any] | None = None
) -> "Figure":
    """Show images (H, W, 3) in rows of eight, each below its title and with its box.

    `boxes`: x0, y0, x1, y1 in pixels, inclusive, for each image; negative for no box.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(8, len(images))
    figure = Figure(figsize=(1.5 * columns, 1.7 * -(-len(images) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(images) // columns), columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, title in zip(panels, images, titles, strict=False):
        panel.imshow(image, interpolation="nearest")
        lines = (line if len(line) <= 18 else line[:17] + "…" for line in title.split("\n"))
        panel.set_title("\n".join(lines), fontsize=8)
    for panel, (x0, y0, x1, y1) in zip(panels, boxes if boxes is not None else (), strict=False):
        if x0 >= 0:
            # Pixel centres are whole numbers and the box includes its last row and column.
            panel.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0 + 1, y1 - y0 + 1, fill=False, color="yellow"
                )
            )
    return figure


def overlay_heat(pixels: "np.ndarray", heat: "np.ndarray") -> "np.ndarray":
    """Draw a heat map (H, W) over an image (H, W, 3) uint8; returns uint8.

    The opacity is proportional to the heat.
    """
    from matplotlib import colormaps

    strength = (heat / max(heat.max(), 1e-12))[..., None]
    colours = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    return (
        (pixels * (1 - 0.6 * strength) + colours * 0.6 * strength)
        .round()
        .clip(0, 255)
        .astype("uint8")
    )


def reliability_diagram(curves: Sequence[tuple[str, Sequence[ReliabilityBin], float]]) -> "Figure":
    """Plot accuracy against confidence, a panel for each curve.

    `curves`: name, bins as from `confusions.reliability`, and expected calibration error.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(3.6 * len(curves), 3.6), layout="constrained")
    for panel, (name, bins, error) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
    ):
        confidences = [each.confidence for each in bins]
        panel.plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
        panel.errorbar(
            confidences,
            [each.top1 for each in bins],
            color="tab:blue",
            fmt="o-",
            markersize=4,
            capsize=2,
            yerr=[
                [each.top1 - each.low for each in bins],
                [each.high - each.top1 for each in bins],
            ],
            label="measured, 95 % interval",
        )
        panel.set(
            xlabel="confidence",
            ylabel="top-1",
            title=f"{name}: error {error:.1%}",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.legend(fontsize=7)
    return figure


def confusion_matrix(counts: "np.ndarray", order: "np.ndarray") -> "Figure":
    """Plot a confusion matrix (C, C), with the classes in `order`.

    Shades are proportional to the square roots of the counts, so that small counts are visible.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(counts[order][:, order] ** 0.5, cmap="magma")
    panel.set(
        xlabel="prediction",
        ylabel="class",
        title="Confusion, shades by square roots",
        xticks=[],
        yticks=[],
    )
    figure.colorbar(image, label="images", format=lambda root, _: f"{root**2:.0f}")
    return figure


def accuracy_by_object_size(bins: Sequence[ObjectSizeBin]) -> "Figure":
    """Plot top-1 with intervals by object size; `bins`: as from `confusions.by_object_size`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    panel = figure.subplots()
    middle = [(each.least + each.greatest) / 2 for each in bins]
    panel.errorbar(
        middle,
        [each.top1 for each in bins],
        fmt="o-",
        color="tab:blue",
        capsize=3,
        xerr=[(each.greatest - each.least) / 2 for each in bins],
        yerr=[
            [each.top1 - each.low for each in bins],
            [each.high - each.top1 for each in bins],
        ],
    )
    panel.set(xlabel="share of the image inside the object's box", ylabel="top-1", xlim=(0, 1.02))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(alpha=0.3)
    return figure
