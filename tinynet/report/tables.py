"""Rows become a table for a terminal or a page, or JSON and CSV for a program."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinynet.console import printable


def _p(value: float) -> str:
    return f"{value:.2g}" if value else "< 1e-300"  # the least that a float can say


# Key of a row -> title and how it is written; a table has those columns that one of its rows has.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
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
    "seen": ("seen in testing", "{:.1%}".format),
    "documented": ("documented", "{:.2%}".format),
    "apart": ("apart", "{:+.2f} half-widths".format),
    "top5": ("top-5", "{:.2%}".format),
    "loss": ("loss", "{:.3f}".format),
    "ece": ("calibration error", "{:.2%}".format),
    "temperature": ("temperature", "{:.3f}".format),
    "taken": ("views taken", ", ".join),
    "forwards": ("forwards", str),
    "cost": ("cost", "{:.1f}".format),
    "pictures_per_second": ("pictures/s", "{:,.0f}".format),
    "taken_for": ("taken for", str),
    "share": ("share", "{:.0%}".format),
    "file": ("file", str),
    "rank": ("rank", str),
    "class": ("class", str),
    "id": ("id", str),
    "probability": ("probability", "{:.2%}".format),
}
_SORTED_BY = {"interval": "low", "gain_interval": "gain_low"}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row, with its 95 % interval where it has one."""
    return columns(cells(rows))


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The titles of the columns, then the cells of each row, as text."""
    titles, lines = titled(rows)
    return [titles, *([text for text, _ in line] for line in lines)]


def titled(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[tuple[str, Any]]]]:
    """The titles of the columns; of each row every cell, as text and as what it is sorted by."""
    shown = [{**row, **_intervals(row)} for row in rows]
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in shown)]
    return [_COLUMNS[key][0] for key in keys], [
        [
            ("", "")
            if row.get(key) is None
            else (_COLUMNS[key][1](row[key]), row[_SORTED_BY.get(key, key)])
            for key in keys
        ]
        for row in shown
    ]


def _intervals(row: dict[str, Any]) -> dict[str, str]:
    found = {"interval": f"{row['low']:.2%} .. {row['high']:.2%}"} if "low" in row else {}
    if row.get("gain_low") is not None:
        found["gain_interval"] = f"{row['gain_low']:+.2%} .. {row['gain_high']:+.2%}"
    return found


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, one column under another."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def show(rows: Sequence[dict[str, Any]], form: str = "table") -> None:
    """Print the rows on standard output as `table`, `markdown`, `csv` or `json`; the last two have
    every key, unrounded. Where there are no rows only JSON has something to say.
    """
    if rows or form == "json":
        print(
            {
                "table": table,
                "markdown": _markdown,
                "csv": _csv,
                "json": lambda found: json.dumps(list(found), indent=2),
            }[form](rows)
        )


def show_paths(paths: Sequence[str | Path], form: str = "table") -> None:
    """Print what was written on standard output: a line each, or one JSON array of rows with a
    `path`.
    """
    print(
        json.dumps([{"path": str(path)} for path in paths], indent=2)
        if form == "json"
        else "\n".join(map(str, paths))
    )


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    head, *lines = cells(rows)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, ["---"] * len(head), *lines)
    )


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")
