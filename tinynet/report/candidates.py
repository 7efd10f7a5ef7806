"""The figure of networks and sizes that were compared within a budget of time."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from tinynet.evaluation.pick import PickRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


def front(rows: Sequence[PickRow]) -> list[PickRow]:
    """Return the Pareto front: rows that no faster row reaches in accuracy, the fastest first."""
    best: list[PickRow] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -row.score.top1)):
        if not best or row.score.top1 > best[-1].score.top1:
            best.append(row)
    return best


def accuracy_against_time(rows: Sequence[PickRow]) -> "Figure":
    """Plot the hold-out accuracy of each candidate against the time of one image.

    A line connects the Pareto front of the candidates with the most images. Candidates that were
    dropped have heads on fewer images, so they are drawn hollow.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    panel = figure.subplots()
    most = max(row.images for row in rows)
    networks = list(dict.fromkeys(row.candidate.arch for row in rows))
    for number, network in enumerate(networks):
        for row in (row for row in rows if row.candidate.arch == network):
            score, complete = row.score, row.images == most
            panel.errorbar(
                1000 * row.seconds,
                score.top1,
                [[score.top1 - score.low], [score.high - score.top1]],
                fmt="os^Dv<>p"[number % 8],
                color=f"C{number % 10}",
                markerfacecolor=f"C{number % 10}" if complete else "white",
                capsize=2,
            )
        panel.plot([], [], "os^Dv<>p"[number % 8], color=f"C{number % 10}", label=network)
    line = front([row for row in rows if row.images == most])
    panel.plot(
        [1000 * row.seconds for row in line],
        [row.score.top1 for row in line],
        color="0.5",
        linewidth=1,
        zorder=0,
        label="Pareto front",
    )
    panel.plot(
        [], [], "o", color="0.5", markerfacecolor="white", label="dropped: head on fewer images"
    )
    panel.set(
        xscale="log",
        xlabel="milliseconds per image",
        ylabel="hold-out top-1 with 95 % interval",
        title="Heads on frozen features",
    )
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=8)
    _label_sizes(figure, panel, rows)
    return figure


def _label_sizes(figure: "Figure", panel: "Axes", rows: Sequence[PickRow]) -> None:
    """Write the size beside each point, where the text overlaps no other text if possible."""
    figure.draw_without_rendering()  # the layout sets where the points are
    places = list(product((7, -7), (4, -4, 12, -12)))  # points across and up
    boxes: list[Bbox] = []
    for row in rows:
        label = panel.annotate(
            f"{row.candidate.size} px",
            (1000 * row.seconds, row.score.top1),
            xytext=places[0],
            textcoords="offset points",
            fontsize=8,
            verticalalignment="center",
        )
        for across, up in (*places, places[0]):  # the first again, if all overlap
            label.set_position((across, up))
            label.set_horizontalalignment("left" if across > 0 else "right")
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in boxes):
                break
        boxes.append(box)
