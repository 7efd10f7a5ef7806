"""Print rows as a table for a terminal, as Markdown, as JSON or as CSV."""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from tinynet.console import printable
from tinynet.records import Json

# The titles of the columns, and the cells of each row: the text, and the value to sort by.
Titled = tuple[list[str], list[list[tuple[str, Any]]]]


class Row(Protocol):
    """A row of results that is not a JSON object yet: a `ScoreRow`, for instance."""

    def to_json(self) -> Json:
        """Return the row as a JSON object."""


def _p(value: float) -> str:
    return f"{value:.2g}" if value else "< 1e-300"  # smaller than any float


# Key of a row -> title and format. A table has the columns that at least one of its rows has; with
# equal classes `balanced` would only repeat `top1`.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "arch": ("network", str),
    "run": ("run", str),
    "stage": ("stage", str),
    "split": ("split", str),
    "views": ("views", str),
    "merge": ("merge", str),
    "policy": ("policy", str),
    "trained": ("trained", str),
    "resize": ("resize", str),
    "size": ("size", str),
    "precision": ("precision", str),
    "method": ("method", str),
    "correction": ("correction", str),
    "epoch": ("epoch", str),
    "train_loss": ("train loss", "{:.3f}".format),
    "least": ("least", "{:.1%}".format),
    "greatest": ("greatest", "{:.1%}".format),
    "name": ("class", str),
    "images": ("trained on", "{:,}".format),
    "checked": ("checked on", "{:,}".format),
    "n": ("n", "{:,}".format),
    "top1": ("top-1", "{:.2%}".format),
    "interval": ("95 % interval", str),
    "gain": ("gain", "{:+.2%}".format),
    "gain_interval": ("its 95 %", str),
    "p": ("p", _p),
    "gain_over_own": ("over own size", "{:+.2%}".format),
    "p_over_own": ("p", _p),
    "gain_over_control": ("over control", "{:+.2%}".format),
    "p_over_control": ("p", _p),
    "gain_over_ten": ("over ten-crop", "{:+.2%}".format),
    "p_over_ten": ("p", _p),
    "F": ("F", "{:.5f}".format),
    "object_ratio": ("test / train", "{:.5f}".format),
    "cure": ("cure", "{:.4f}".format),
    "test_at": ("resize to", str),
    "seen": ("area tested", "{:.1%}".format),
    "documented": ("documented", "{:.2%}".format),
    "apart": ("apart", "{:+.2f} half-widths".format),
    "top5": ("top-5", "{:.2%}".format),
    "balanced": ("balanced accuracy", "{:.2%}".format),
    "loss": ("loss", "{:.3f}".format),
    "ece": ("calibration error", "{:.2%}".format),
    "temperature": ("temperature", "{:.3f}".format),
    "taken": ("selected views", ", ".join),
    "forwards": ("forwards", str),
    "cost": ("cost", "{:.1f}".format),
    "worst_class": ("worst class", str),
    "pictures_per_second": ("images/s", "{:,.0f}".format),
    "milliseconds": ("ms per image", "{:.2f}".format),
    "minutes": ("minutes of extraction", "{:.0f}".format),
    "taken_for": ("confused with", str),
    "share": ("share", "{:.0%}".format),
    "file": ("file", str),
    "megabytes": ("MB", "{:.1f}".format),
    "difference": ("greatest difference", "{:.1e}".format),
    "same": ("same top-1", "{:,}".format),
    "rank": ("rank", str),
    "class": ("class", str),
    "id": ("id", str),
    "probability": ("probability", "{:.2%}".format),
}
_SORTED_BY = {"interval": "low", "gain_interval": "gain_low", "worst_class": "worst"}
_WNID = re.compile(r"^n\d{8} ")
_MAX_NAME = 24  # characters of a class name; longer ones would push other columns off the screen


def table(rows: Sequence[Json]) -> str:
    """Format rows as a table of one line each, with 95 % intervals."""
    return columns(cells(rows))


def cells(rows: Sequence[Json]) -> list[list[str]]:
    """Return the titles of the columns, then the cells of each row, as text."""
    titles, lines = titled(rows)
    return [titles, *([text for text, _ in line] for line in lines)]


def titled(rows: Sequence[Json], columns: Collection[str] | None = None) -> Titled:
    """Return the titles and the cells of a table; `columns`: the keys to show (default: all)."""
    rows = [{**row, **_texts(row)} for row in rows]
    keys = [
        key
        for key in _COLUMNS
        if (columns is None or key in columns) and any(_informs(row, key) for row in rows)
    ]
    return [_COLUMNS[key][0] for key in keys], [[_cell(row, key) for key in keys] for row in rows]


def _cell(row: Json, key: str) -> tuple[str, Any]:
    if row.get(key) is None:
        return "", ""
    return _COLUMNS[key][1](row[key]), row[_SORTED_BY.get(key, key)]


def _informs(row: Json, key: str) -> bool:
    """Whether the value of a row is worth a column."""
    if row.get(key) is None:
        return False
    return key != "balanced" or abs(row["balanced"] - row["top1"]) > 1e-9


def _texts(row: Json) -> dict[str, str]:
    """The cells that are made of several values: the intervals and the worst class."""
    texts = {}
    if "low" in row:
        texts["interval"] = f"{row['low']:.2%} .. {row['high']:.2%}"
    if row.get("gain_low") is not None:
        texts["gain_interval"] = f"{row['gain_low']:+.2%} .. {row['gain_high']:+.2%}"
    if row.get("worst_class") is not None:
        texts["worst_class"] = f"{row['worst']:.1%} {_short(row['worst_class'])}"
    return texts


def _short(name: str) -> str:
    """The first synonym of a WordNet class, without its wnid; other names as they are, but cut."""
    if _WNID.match(name):
        name = _WNID.sub("", name, count=1).split(",")[0]
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3].rstrip()}..."


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Align lines of cells in columns."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def show(rows: Sequence[Json] | Sequence[Row], form: str = "table") -> None:
    """Print rows on standard output as `table`, `markdown`, `csv` or `json`.

    CSV and JSON have every key, unrounded. Without rows only JSON prints something: an empty list.
    """
    objects = [row if isinstance(row, dict) else row.to_json() for row in rows]
    if objects or form == "json":
        writers = {"table": table, "markdown": _markdown, "csv": _csv, "json": _json}
        print(writers[form](objects), flush=True)  # in a log file, before later messages


def show_paths(paths: Sequence[str | Path], form: str = "table") -> None:
    """Print paths on standard output: one a line, or a JSON array of objects with a `path`."""
    print(
        json.dumps([{"path": str(path)} for path in paths], indent=2)
        if form == "json"
        else "\n".join(map(str, paths))
    )


def _markdown(rows: Sequence[Json]) -> str:
    head, *lines = cells(rows)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, ["---"] * len(head), *lines)
    )


def _csv(rows: Sequence[Json]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def _json(rows: Sequence[Json]) -> str:
    return json.dumps(list(rows), indent=2)
