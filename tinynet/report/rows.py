"""A figure of any rows of scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinynet.records import ScoreRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def top1_with_intervals(rows: Sequence[ScoreRow]) -> "Figure":
    """Top-1 of every row with its 95 % interval, the first row on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 0.32 * len(rows) + 1), layout="constrained")
    panel = figure.subplots()
    places = range(len(rows))
    values = [row.top1 for row in rows]
    panel.errorbar(
        values,
        places,
        xerr=[
            [row.top1 - row.low for row in rows],
            [row.high - row.top1 for row in rows],
        ],
        fmt="o",
        capsize=3,
    )
    panel.set_yticks(places, [_label(row) for row in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("top-1")
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(axis="x", alpha=0.3)
    return figure


def _label(row: ScoreRow) -> str:
    words = (row.stage, row.split, row.views, row.merge, row.size and f"{row.size} px")
    return ", ".join(str(word) for word in words if word)
