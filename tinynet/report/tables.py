"""Rows of scores become a table for a terminal, or JSON for a program."""

import json
from collections.abc import Sequence
from typing import Any


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row: what was scored, top-1 with its 95 % interval, top-5 and loss."""
    head = ("run", "stage", "split", "views", "size", "n", "top-1", "95 % interval", "top-5", "loss")
    lines = [head] + [
        (r["run"], r["stage"], r["split"], r["views"], str(r["size"]), f"{r['n']:,}", f"{r['top1']:.2%}",
         f"{r['low']:.2%} .. {r['high']:.2%}", f"{r['top5']:.2%}", f"{r['loss']:.3f}")
        for r in rows]
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, one column under another."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def show_scores(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print the rows on standard output, as a table or as one JSON array."""
    print(json.dumps(list(rows), indent=2) if as_json else score_table(rows))
