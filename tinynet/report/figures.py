"""Rows of a run's log become matplotlib figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from tinynet.evaluation.predict import Explanation


def training_curves(rows: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Loss, held-out accuracy and learning rate of a stage, from the rows of its `log.jsonl`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    ends = [row["step"] for row in epochs]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, accuracy, rate = figure.subplots(1, 3)

    loss.plot(
        [r["step"] for r in steps],
        [r["loss"] for r in steps],
        color="0.8",
        linewidth=0.6,
        label="train, a step",
    )
    loss.plot(
        ends, [r["loss"] for r in epochs], "o-", markersize=4, label="train, mean of an epoch"
    )
    loss.plot(ends, [r["holdout"]["loss"] for r in epochs], "s-", markersize=4, label="hold-out")
    loss.set(xlabel="step", ylabel="cross-entropy (nats)", title="Loss")
    shown = [r["loss"] for r in steps] + [r["holdout"]["loss"] for r in epochs]
    loss.set_ylim(0, max(shown, default=1.0) * 1.05)
    loss.legend()

    numbers = range(1, len(epochs) + 1)
    for key, label, mark in (("top1", "top-1", "s-"), ("top5", "top-5", "^-")):
        accuracy.plot(numbers, [r["holdout"][key] for r in epochs], mark, markersize=4, label=label)
    accuracy.fill_between(
        numbers,
        [r["holdout"]["low"] for r in epochs],
        [r["holdout"]["high"] for r in epochs],
        alpha=0.2,
        label="95 % interval of top-1",
    )
    accuracy.set(xlabel="epoch", ylabel="hold-out", title="Accuracy")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy.grid(alpha=0.3)
    accuracy.legend()

    rate.plot([r["step"] for r in steps], [r["lr"] for r in steps], color="tab:green")
    rate.set(xlabel="step", ylabel="learning rate", title="Learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    return figure


def accuracy_against_cost(rows: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Top-1 against the cost of what `choosing.choose` found, a panel for each split."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    splits = list(dict.fromkeys(row["split"] for row in rows))
    figure = Figure(figsize=(6 * len(splits), 4), layout="constrained")
    figure.suptitle(title)
    for panel, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        mine = [row for row in rows if row["split"] == split]
        greedy = sorted(
            (r for r in mine if r["views"].startswith("greedy")), key=lambda r: r["cost"]
        )
        costs = [r["cost"] for r in greedy]
        panel.fill_between(
            costs,
            [r["low"] for r in greedy],
            [r["high"] for r in greedy],
            alpha=0.15,
            label="95 % interval",
        )
        panel.plot(
            costs, [r["top1"] for r in greedy], "o-", markersize=4, label="chosen greedily, mean"
        )
        for name, mark in (("ten", "s"), ("learned weights", "^")):
            for row in mine:
                if row["views"] == name:
                    panel.plot(row["cost"], row["top1"], mark, markersize=8, label=name)
        panel.set(
            xlabel="cost (forward passes of one picture at the training size)",
            ylabel="top-1",
            title=split,
        )
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def view_votes(explanation: "Explanation") -> "Figure":
    """The views of an image, each with its name, its vote and the probability of its vote."""
    from matplotlib.figure import Figure

    columns = min(5, len(explanation.views))
    rows = -(-len(explanation.views) // columns)
    figure = Figure(figsize=(max(2.4 * columns, 4), 2.9 * rows + 0.5), layout="constrained")
    figure.suptitle(explanation.title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    drawn = zip(panels, explanation.views, explanation.images, explanation.votes, strict=False)
    for panel, view, image, (name, share) in drawn:
        panel.imshow(image, interpolation="nearest")
        panel.set_title(view, fontsize=9)
        panel.set_xlabel(
            f"{name}\n{share:.0%}",
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
    """Pictures, (H, W, 3) arrays, in rows of eight, each with its title above and its box drawn.

    `boxes`: x0, y0, x1, y1 in pixels, inclusive, for each picture; negative where there is none.
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


def warmed(pixels: "np.ndarray", heat: "np.ndarray") -> "np.ndarray":
    """A picture (H, W, 3) uint8 with its heat (H, W) over it, as strong as it is warm; again
    uint8.
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


def reliability_diagram(curves: Sequence[tuple[str, Sequence[dict[str, Any]], float]]) -> "Figure":
    """Accuracy against confidence, a panel for each of `curves`: name, rows of
    `mistakes.reliability`, and the expected calibration error.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(3.6 * len(curves), 3.6), layout="constrained")
    for panel, (name, rows, error) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
    ):
        sure = [row["confidence"] for row in rows]
        panel.plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
        panel.errorbar(
            sure,
            [row["top1"] for row in rows],
            color="tab:blue",
            fmt="o-",
            markersize=4,
            capsize=2,
            yerr=[
                [row["top1"] - row["low"] for row in rows],
                [row["high"] - row["top1"] for row in rows],
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
    """Square roots of counts (C, C) as from `mistakes.confusion`, so that few show beside many;
    classes in `order`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    panel = figure.subplots()
    drawn = panel.imshow(counts[order][:, order] ** 0.5, cmap="magma")
    panel.set(
        xlabel="called",
        ylabel="class",
        title="Confusion, shades by square roots",
        xticks=[],
        yticks=[],
    )
    figure.colorbar(drawn, label="pictures", format=lambda root, _: f"{root**2:.0f}")
    return figure


def accuracy_by_object_size(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Top-1 of rows of `mistakes.by_object_size`, with intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    panel = figure.subplots()
    middle = [(row["least"] + row["greatest"]) / 2 for row in rows]
    panel.errorbar(
        middle,
        [row["top1"] for row in rows],
        fmt="o-",
        color="tab:blue",
        capsize=3,
        xerr=[(row["greatest"] - row["least"]) / 2 for row in rows],
        yerr=[
            [row["top1"] - row["low"] for row in rows],
            [row["high"] - row["top1"] for row in rows],
        ],
    )
    panel.set(xlabel="share of the picture inside the object's box", ylabel="top-1", xlim=(0, 1.02))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(alpha=0.3)
    return figure
