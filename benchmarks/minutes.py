"""Save what runs of `train --minutes` reached, for docs/minutes.md and docs/accuracy.png.

    python -m tinynet.train --minutes 20 --cache EMPTY --out m20    EMPTY: a new folder
    python -m tinynet.evaluate --run m20
    python -m benchmarks.minutes m20       adds the run to benchmarks/results/minutes.json
    python -m benchmarks.record --table    writes the table and the figure

A run replaces an earlier one with the same machine, network, minutes and seed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinynet import runs
from tinynet.errors import InputError
from tinynet.evaluation.use import has_use, use_file
from tinynet.files import read_json, write_json
from tinynet.flags import Parser, run_command
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig
from tinynet.training.pace import Budget, plan_file
from tinynet.values import counted

NAME = "minutes.json"


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks.minutes", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="evaluated runs of train --minutes")
    path = Path(__file__).parent / "results" / NAME
    results = {_key(row): row for row in (entries(path.parent) if path.is_file() else [])}
    for name in parser.parse_args().runs:
        row = entry(Path(name))
        results[_key(row)] = row
    what = "train --minutes, from the zip with an empty cache"
    write_json(path, {"what": what, "runs": [results[key] for key in sorted(results)]})
    print(path)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """A later run replaces one with the same key."""
    device = row["device"]
    machine_key = device["type"], device["processor"], device["name"]
    return *machine_key, row["arch"], row["minutes"], row["seed"]


def machine(row: dict[str, Any]) -> str:
    """The name of a run's GPU, or of its processor, whether that has AMX, and its threads."""
    device = row["device"]
    name, *more = device["name"].split(", ")
    if device["type"] != "cpu":
        return str(name)
    processor = device["processor"].split(", ")[0].replace("(R)", "").replace(" Processor", "")
    amx = " with AMX" if "amx_tile" in device["processor"] else ""
    return f"{processor}{amx}, {more[0]}"


def entry(run: Path) -> dict[str, Any]:
    """What one run was planned to take, what it took, and what it reached.

    Raises `InputError` for a run without minutes, chosen views, or scores on val.
    """
    if Budget.read(run) is None:
        raise InputError(f"{run}: was not trained with --minutes; name a run that was")
    last = runs.finished_stage(str(run), None)
    if not has_use(last):
        raise InputError(
            f"{run}: no views are chosen for {last.stage}; run python -m tinynet.train --resume "
            f"{run}"
        )
    recipe, use, plan = last.read_recipe(), read_json(use_file(run)), read_json(plan_file(run))
    stages = [StageFolder(run, name) for name in runs.STAGES if StageFolder(run, name).finished]
    return {
        "minutes": plan["minutes"],
        "seconds": plan["spent"],
        "seconds of stages": plan["actual"],
        "planned": plan["parts"],
        "trained": ", then ".join(_trained(folder) for folder in stages),
        "arch": recipe["recipe"]["network"]["arch"],
        "seed": recipe["seed"],
        "use": use,
        "rows": _scores(last, use),
        **{key: recipe[key] for key in ("device", "data_digest", "split_digest", "versions")},
    }


def _trained(folder: StageFolder) -> str:
    stage = RunConfig.of(folder).recipe.stage(folder.stage)
    if folder.stage == "fixres":
        return f"fixres at {stage.size} px"
    layers = "base" if folder.stage == "base" else ", ".join(stage.trainable)
    times = f"{stage.soup} times " if stage.soup > 1 else ""
    return f"{layers} at {stage.size} px ({times}{counted(f'{stage.epochs:.3g}', 'epoch')})"


def _scores(folder: StageFolder, use: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of one view and of the chosen views, in the precision of val."""
    rows = runs.read_rows(folder.scores)
    precision = next((row["precision"] for row in rows if row["split"] == "val"), "")
    scores = plain_scores(rows, use["size"], precision)
    names = dict.fromkeys(("none", use["views"]))
    keys = [(split, name) for split in ("holdout", "val") for name in names]
    if missing := [key for key in keys if key not in scores]:
        raise InputError(
            f"{folder.path}: has no score of {' with the views '.join(missing[0])}; run python -m "
            f"tinynet.evaluate --run {folder.run}"
        )
    return [{**scores[key], "run": folder.run.name} for key in keys]


def plain_scores(
    rows: Iterable[dict[str, Any]], size: int, precision: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """The scores of means over views at one size and precision, by split and views."""
    return {
        (row["split"], row["views"]): row
        for row in rows
        if (row["merge"], row["size"]) == ("mean", size)
        and "temperature" not in row
        and row.get("precision", precision) == precision
    }


def entries(folder: Path) -> list[dict[str, Any]]:
    """The runs in the result file of `folder`, by machine, network, minutes and seed."""
    return sorted(read_json(folder / NAME)["runs"], key=_key)


def score(row: dict[str, Any], split: str, chosen: bool) -> dict[str, Any]:
    """The score of one view, or of the views that the hold-out chose."""
    views = row["use"]["views"] if chosen else "none"
    scores: list[dict[str, Any]] = row["rows"]
    return next(each for each in scores if (each["split"], each["views"]) == (split, views))


def table(folder: Path) -> str:
    """What was trained in which minutes, and its accuracy."""
    lines = [
        "| machine | minutes | took | trained | seed | hold-out, one view | hold-out, chosen views "
        "| val, one view | val, chosen views |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    for row in entries(folder):
        arch = "" if row["arch"] == "vgg16" else f"{row['arch']}: "
        cells = [
            machine(row),
            f"{row['minutes']:g}",
            f"{row['seconds'] / 60:.1f}",
            arch + row["trained"],
            str(row["seed"]),
            *(
                _cell(row, split, chosen)
                for split in ("holdout", "val")
                for chosen in (False, True)
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], split: str, chosen: bool) -> str:
    value = score(row, split, chosen)
    views = f", {value['views']}" if chosen and split == "holdout" else ""
    return f"{interval(value)}{views}"


def interval(row: dict[str, Any]) -> str:
    """Top-1 of a score with its 95 % interval."""
    return f"{row['top1']:.1%} ({100 * row['low']:.1f} .. {100 * row['high']:.1f})"


if __name__ == "__main__":
    run_command(main)
