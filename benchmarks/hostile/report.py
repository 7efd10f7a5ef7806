"""A table of the verdicts, and the verdicts as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.hostile.right import REFUSED, RIGHT, WRONG
from benchmarks.hostile.session import Verdict
from tinynet.report.tables import columns


def table(verdicts: Sequence[Verdict]) -> str:
    """Counts of outcomes by kind, as text; wrong outcomes have columns of their own if there are
    any.
    """
    counts = Counter((verdict.case.kind, verdict.outcome) for verdict in verdicts)
    kinds = list(dict.fromkeys(verdict.case.kind for verdict in verdicts))
    wrong = [outcome for outcome in WRONG if any(counts[kind, outcome] for kind in kinds)]
    outcomes = [RIGHT, REFUSED, *wrong]
    lines = [["kind", "cases", RIGHT, REFUSED, *(f"WRONG: {outcome}" for outcome in wrong)]]
    for kind in kinds:
        row = [counts[kind, outcome] for outcome in outcomes]
        lines.append([kind, f"{sum(row):,}", *(f"{number:,}" if number else "" for number in row)])
    totals = [sum(counts[kind, outcome] for kind in kinds) for outcome in outcomes]
    lines.append(["all", f"{sum(totals):,}", *(f"{number:,}" for number in totals)])
    return columns(lines)


def results(verdicts: Sequence[Verdict], options: dict[str, Any]) -> dict[str, Any]:
    """Every case with its command line and outcome."""
    return {
        "what": "hostile files, and the outcome of the tinynet command that reads each",
        "cases": options["cases"],
        "seed": options["seed"],
        "wrong": sum(verdict.wrong for verdict in verdicts),
        "rows": [
            {
                "kind": verdict.case.kind,
                "case": verdict.case.name,
                "command": verdict.case.line,
                "outcome": verdict.outcome,
                "wrong": verdict.wrong,
                "reason": verdict.reason,
                "seconds": round(verdict.seconds, 3),
                "MB": round(verdict.memory / 1e6),
            }
            for verdict in verdicts
        ],
    }
