"""Lists of results that print as tables."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from tinynet.records import Json, ScoreRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinynet.evaluation.predict import Prediction

# Columns that a table has only where rows differ in them, and columns that it leaves to `to_json`.
_ORIGIN = ("run", "stage", "merge", "trained", "size", "precision", "method", "correction")
_DETAILS = ("loss", "forwards", "pictures_per_second")


class Rows(list[ScoreRow]):
    """A list of score rows that prints as a table; a notebook shows a table and a figure.

    The table has the columns that tell the rows apart; `to_json` has all.
    """

    def __repr__(self) -> str:
        from tinynet.report.tables import columns

        return columns(self._cells()) if self else "no rows"

    def _repr_html_(self) -> str:
        from tinynet.plotting import inline_svg

        if not self:
            return "no rows"
        return _html_table(self._cells()) + inline_svg(self.figure(), "top-1 with 95 % intervals")

    def _cells(self) -> list[list[str]]:
        from tinynet.report.tables import titled

        rows = self.to_json()
        keys = dict.fromkeys(key for row in rows for key in row)
        constant = [key for key in _ORIGIN if len({str(row.get(key)) for row in rows}) == 1]
        visible = [key for key in keys if key not in constant and key not in _DETAILS]
        titles, lines = titled(rows, [*visible, "interval", "gain_interval"])
        return [titles, *([text for text, _ in line] for line in lines)]

    def to_json(self) -> list[Json]:
        """Return the rows as JSON objects, with the keys of the result files."""
        return [row.to_json() for row in self]

    def figure(self) -> "Figure":
        """Plot the top-1 accuracy of every row with its 95 % interval."""
        from tinynet.report.rows import top1_with_intervals

        return top1_with_intervals(self)


class Predictions(list["Prediction"]):
    """A list of the most probable classes of images, which prints as a table."""

    def __repr__(self) -> str:
        from tinynet.report.tables import table

        return table([each.to_json() for each in self]) if self else "no images"

    def _repr_html_(self) -> str:
        from tinynet.report.tables import cells

        return _html_table(cells([each.to_json() for each in self])) if self else "no images"


def _html_table(lines: Sequence[Sequence[str]]) -> str:
    """A table for a page; the first line has the titles."""
    head, *others = lines
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in others
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
