"""Tables and a figure of speed and cost, from the files that `python -m benchmarks` wrote."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
# Peers by the first words of their names; precision or "compiled" may follow.
WRITTEN, BEST, OTHERS = ("as written",), ("best flags",), ("timm", "ttach")

Result = dict[str, Any]


def table(folder: Path) -> str:
    """How many times faster tinynet is than each peer, from the files that exist."""
    lines = [
        "| what | tinynet | vs. the published loop | vs. the loop, tuned "
        "| vs. timm or ttach | result file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in (
        ("base", _base),
        ("finetune", _finetune),
        ("evaluate", _evaluate),
        ("tta", _tta),
        ("data", _data),
        ("whole", _whole),
    ):
        if (path := folder / f"{name}.json").is_file():
            for work, ours, faster in rows(json.loads(path.read_text())):
                cells = [
                    work,
                    ours,
                    *(_times(faster, peers) for peers in (WRITTEN, BEST, OTHERS)),
                    f"[{path.name}](../{path.relative_to(ROOT).as_posix()})",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost(folder: Path) -> str:
    """How time and memory grow with the number of images and with their size."""
    lines = []
    if (path := folder / "whole.json").is_file():
        lines += [
            "| short base (one cached epoch, four epochs), images | packing | features and head | "
            "memory |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['pictures']:,} | {row['packing']:.0f} s | {row['rest']:.0f} s | "
            f"{row['memory']:.1f} GB |"
            for row in json.loads(path.read_text())["runs"]
        ]
    if (path := folder / "sizes.json").is_file():
        rates = json.loads(path.read_text())["rates"]
        sizes = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in rates))
        lines += [
            "",
            "| images/s (GB) at | " + " | ".join(sizes) + " |",
            "| --- " * (len(sizes) + 1) + "|",
        ]
        for work in dict.fromkeys(name.rsplit(", ", 1)[0] for name in rates):
            row = (rates[f"{work}, {size}"] for size in sizes)
            cells = (f"{_short(rate['median'], 3)} ({rate['memory']:.1f})" for rate in row)
            lines.append(f"| {work} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if lines else ""


def cost_figure(folder: Path) -> Figure | None:
    """The figure of `cost`: time against the number of images, rate and memory against their size.

    Returns None if one of its two files is missing.
    """
    if not all((folder / name).is_file() for name in ("whole.json", "sizes.json")):
        return None
    runs = json.loads((folder / "whole.json").read_text())["runs"]
    rates = json.loads((folder / "sizes.json").read_text())["rates"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    time, rate, memory = figure.subplots(1, 3)
    for work, key in (
        ("packing (always the whole archive)", "packing"),
        ("features and head", "rest"),
    ):
        time.loglog(
            [run["pictures"] for run in runs],
            [run[key] for run in runs],
            "o-",
            markersize=4,
            label=work,
        )
    time.set(
        xlabel="images, hold-out included",
        ylabel="seconds",
        ylim=(1, None),
        title="Short base: one cached epoch, four epochs",
    )
    for work in dict.fromkeys(name.rsplit(", ", 1)[0] for name in rates):
        sizes = {int(name.split()[-2]): row for name, row in rates.items() if name.startswith(work)}
        rate.loglog(
            list(sizes), [row["median"] for row in sizes.values()], "o-", markersize=4, label=work
        )
        memory.plot(
            list(sizes), [row["memory"] for row in sizes.values()], "o-", markersize=4, label=work
        )
    rate.set(ylabel="images/s", title="Rate", ylim=(1, None))
    memory.set(ylabel="GB", title="Memory, batches of 64", ylim=(0, None))
    for panel in (rate, memory):
        panel.set_xlabel("size (pixels)")
        panel.set_xticks(list(sizes), labels=[str(size) for size in sizes])
        panel.minorticks_off()
    for panel in (time, rate, memory):
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def _base(result: Result) -> Iterator[tuple[str, str, Result]]:
    seconds = result["seconds of the whole stage, from the rates"]
    for work, run in (
        ("base, first run", "first run"),
        ("base again, features cached", "warm"),
    ):
        yield work, f"{seconds[f'tinynet, {run}'] / 60:.1f} min", result[f"times faster, {run}"]


def _finetune(result: Result) -> Iterator[tuple[str, str, Result]]:
    yield "finetune, training", *_beside(result["rates"], "tinynet, tuned")


def _evaluate(result: Result, work: str = "val, one view") -> Iterator[tuple[str, str, Result]]:
    for name in result["rates"]:
        if name.startswith("tinynet"):
            yield work, *_beside(result["rates"], name)


def _tta(result: Result) -> Iterator[tuple[str, str, Result]]:
    yield from _evaluate(result, "val, ten-crop")


def _data(result: Result) -> Iterator[tuple[str, str, Result]]:
    rates = {name.removesuffix(", loader"): rate for name, rate in result["rates"].items()}
    yield "loading for training", *_beside(rates, "tinynet")
    share = _ratio(rates["tinynet, packing"], rates["decoding alone, all cores"])
    yield (
        "packing the zip",
        f"{rates['tinynet, packing']['median']:,.0f} images/s, {share:.0%} of decoding alone",
        {},
    )


def _whole(result: Result) -> Iterator[tuple[str, str, Result]]:
    for share, row in result["seconds from the zip to a share of the hold-out"].items():
        if isinstance(row, dict):
            yield (
                f"from the zip to {share} of the hold-out",
                f"{row['tinynet'] / 60:.1f} min",
                row["times faster"],
            )


def _beside(rates: Result, name: str) -> tuple[str, Result]:
    """The rate of a job, and its ratio to the rate of each other job."""
    return f"{rates[name]['median']:,.1f} images/s ({name.removeprefix('tinynet, ')})", {
        other: _ratio(rates[name], rate) for other, rate in rates.items()
    }


def _ratio(one: Result, other: Result) -> float:
    """The median over turns of the ratio in the same turn."""
    return statistics.median(a / b for a, b in zip(one["turns"], other["turns"], strict=True))


def _times(faster: Result, peers: Sequence[str]) -> str:
    """How many times faster than the fastest of these peers; empty if none was measured."""
    ratios = [ratio for name, ratio in faster.items() if name.partition(",")[0] in peers]
    return f"{_short(min(ratios))}x" if ratios else ""


def _short(number: float, digits: int = 2) -> str:
    """At least so many significant digits, and every digit before the point."""
    return f"{number:,.0f}" if number >= 10**digits else f"{number:.{digits}g}"
