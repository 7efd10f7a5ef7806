"""Results that runs have kept become a file of this folder, and the files become the README's
tables.

    python -m benchmarks.record runs/a runs/b --label "tuned, base" --name base-64    one run a seed
    python -m benchmarks.record --story runs/a/base/sizes --name resolution-64    of tinynet.fixres
    python -m benchmarks.record --table    the tables and docs/cost.png, from all

The README holds what `--table` writes between marks; a test compares. What is fast is in
`speed.py`.
"""

import itertools
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from benchmarks import speed
from tinynet import runs
from tinynet.errors import InputError
from tinynet.files import write_json, write_text
from tinynet.flags import Parser, run_command
from tinynet.plotting import save_figure
from tinynet.runs import finished_stage

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
FIGURE = HERE.parent / "docs" / "cost.png"
SHOWN = [(split, views) for split in ("holdout", "val") for views in ("none", "flip")]
# The one figure that is not ours: derwind 2024, on its own hold-out, with its own labels.
PUBLISHED = (
    "| published system, both stages | | 52.2% (its own hold-out) | | | | 76.8% (plain) "
    "| 45 min of a T4 | |"
)


def main() -> None:
    """The command."""
    parser = Parser("benchmarks.record", __doc__)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="finished and evaluated runs of one recipe"
    )
    parser.add_argument("--label", help="what the table calls them")
    parser.add_argument("--name", help="of the file in benchmarks/results")
    parser.add_argument(
        "--story", metavar="DIR", help="a folder that tinynet.fixres wrote, in place of runs"
    )
    parser.add_argument("--table", action="store_true", help="write the README's tables anew")
    asked = parser.parse_args()
    if asked.runs or asked.story:
        if not asked.name or (asked.runs and not asked.label):
            parser.error("runs take --label and --name, --story takes --name")
        path = HERE / "results" / f"{asked.name}.json"
        write_json(
            path, story(Path(asked.story)) if asked.story else record(asked.runs, asked.label)
        )
        print(path)
    if asked.table:
        write_text(README, with_tables(README.read_text(encoding="utf-8")))
        print(README)
        if figure := speed.cost_figure(HERE / "results"):
            save_figure(figure, FIGURE, speed.cost(HERE / "results"))
            print(FIGURE)


def record(names: list[str], label: str) -> dict[str, Any]:
    """What the last finished stage of each run was and scored, at its own size, plain and with its
    mirror image.
    """
    folders = [finished_stage(name, None) for name in names]
    recipes = [folder.read_recipe() for folder in folders]
    stage = folders[0].stage
    size = recipes[0]["recipe"][stage]["size"]
    same = ("recipe", "data_digest", "split_digest", "versions", "device")
    rows = []
    for folder, stored in zip(folders, recipes, strict=True):
        if (folder.stage, *(stored[key] for key in same)) != (
            stage,
            *(recipes[0][key] for key in same),
        ):
            raise InputError(
                f"{folder.path}: has another recipe, data, split, version or device than "
                f"{folders[0].path}; record it by itself"
            )
        kept = {
            (row["split"], row["views"]): row
            for row in runs.read_rows(folder.scores)
            if (row["merge"], row["size"]) == ("mean", size)
            and "temperature" not in row
            and row.get("precision", stored["device"]["precision"]) == stored["device"]["precision"]
        }
        for split, views in SHOWN:
            if (split, views) not in kept:
                raise InputError(
                    f"{folder.path}: was not scored; python -m tinynet.evaluate --run {folder.run} "
                    "--tta flip"
                )
            rows.append({**kept[split, views], "run": folder.run.name, "seed": stored["seed"]})
    seconds = [
        sum(row["seconds"] for row in runs.read_rows(folder.log) if row["kind"] == "epoch")
        for folder in folders
    ]
    return {
        "label": label,
        "stage": stage,
        "size": size,
        "command": _command(recipes[0]["command"]),
        **{key: recipes[0][key] for key in same[1:]},
        "settings": {key: recipes[0]["recipe"][key] for key in ("data", "network", stage)},
        "seconds of training": seconds,
        "rows": rows,
    }


def story(folder: Path) -> dict[str, Any]:
    """What `tinynet.fixres` found, runs by their names, without the points of its curves."""
    found = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    for row in found["activations"]:
        del row["curve"]
    for row in itertools.chain(*(found[name] for name in ("rows", "beside", "methods", "costs"))):
        row["run"] = Path(row["run"]).name
    return {**found, "command": _command(found["command"], keep=("--run",))}


def _command(given: list[str], keep: tuple[str, ...] = ()) -> str:
    """The command without places, which are of one machine alone."""
    places = {"--data", "--cache", "--weights", "--run", "--out", "--seed"} - set(keep)
    return shlex.join(
        word
        for before, word in zip(["", *given], given, strict=False)
        if not {before, word} & places
    )


def accuracies(folder: Path) -> str:
    """The table of all files that have a label, smallest size first: a line a seed, and their
    mean.
    """
    found = [json.loads(path.read_text()) | {"file": path.name} for path in folder.glob("*.json")]
    lines = [
        "| recipe and stage | seed | hold-out top-1 | + mirror | val top-1 | + mirror | val top-5, "
        "+ mirror | training | result file |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    for one in sorted(
        (one for one in found if "label" in one), key=lambda one: (one["size"], one["file"])
    ):
        seeds = list(dict.fromkeys(row["seed"] for row in one["rows"]))
        for number, seed in enumerate(seeds):
            mine = {(row["split"], row["views"]): row for row in one["rows"] if row["seed"] == seed}
            lines.append(
                " | ".join(
                    [
                        f"| {one['label'] if number == 0 else ''}",
                        str(seed),
                        *(_cell(mine[key]) for key in SHOWN),
                        f"{mine['val', 'flip']['top5']:.1%}",
                        f"{one['seconds of training'][number] / 60:.0f} min",
                        f"[{one['file']}](benchmarks/results/{one['file']}) |"
                        if number == 0
                        else "|",
                    ]
                )
            )
        if len(seeds) > 1:
            means = [
                statistics.mean(
                    row["top1"] for row in one["rows"] if (row["split"], row["views"]) == key
                )
                for key in SHOWN
            ]
            lines.append(f"| | mean | {' | '.join(f'**{mean:.1%}**' for mean in means)} | | | |")
    return "\n".join([*lines, PUBLISHED]) + "\n"


def _cell(row: dict[str, Any]) -> str:
    return f"{row['top1']:.1%} ({100 * row['low']:.1f} .. {100 * row['high']:.1f})"


# What writes the table, and the folder of results that it reads.
TABLES = {
    "results": (accuracies, ""),
    "speed": (speed.table, ""),
    "speed in bfloat16": (speed.table, "bfloat16"),
    "cost": (speed.cost, ""),
}


def with_tables(text: str) -> str:
    """The same text, each table between its marks as the result files have it."""
    for name, (made, folder) in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(start)
        text = before + start + made(HERE / "results" / folder) + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    run_command(main)
