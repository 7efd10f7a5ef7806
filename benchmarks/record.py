"""Save the scores of runs as result files, and write the tables and figures of docs/ from them.

    python -m benchmarks.record runs/a runs/b --label "tuned, base" --name base-64    a run per seed
    python -m benchmarks.record --story runs/a/base/sizes --name resolution-64        from fixres
    python -m benchmarks.record --table                          the tables and figures of docs/

`--table` replaces the tables between the marks in docs/results.md, docs/speed.md and
docs/minutes.md; a test compares the pages with the result files. `speed.py` writes the tables of
speed, `minutes.py` that of `train --minutes`, and `frontier.py` plots accuracy against time.
"""

import itertools
import json
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import frontier, gpu_minutes, minutes, speed
from tinynet import runs
from tinynet.errors import InputError
from tinynet.files import write_json, write_text
from tinynet.flags import Parser, run_command
from tinynet.plotting import save_figure
from tinynet.runs import finished_stage

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
COST, ACCURACY = DOCS / "cost.png", DOCS / "accuracy.png"
SCORES = [(split, views) for split in ("holdout", "val") for views in ("none", "flip")]
# The only figures measured by others: derwind 2024, on its own hold-out.
PUBLISHED = (
    "| published baseline, both stages | | 52.2% (its own hold-out) | | | | 76.8% (plain) "
    "| 45 min of a T4 | |"
)


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks.record", __doc__)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="evaluated runs of one recipe, one per seed"
    )
    parser.add_argument("--label", help="name of these runs in the table")
    parser.add_argument("--name", help="name of the file in benchmarks/results")
    parser.add_argument(
        "--story", metavar="DIR", help="instead of runs: a folder that tinynet fixres wrote"
    )
    parser.add_argument(
        "--table", action="store_true", help="write the tables and figures of docs/"
    )
    arguments = parser.parse_args()
    if arguments.runs or arguments.story:
        if not arguments.name or (arguments.runs and not arguments.label):
            parser.error("runs need --label and --name, --story needs --name")
        path = RESULTS / f"{arguments.name}.json"
        write_json(
            path,
            story(Path(arguments.story))
            if arguments.story
            else record(arguments.runs, arguments.label),
        )
        print(path)
    if arguments.table:
        for page, names in PAGES.items():
            path = DOCS / page
            write_text(path, with_tables(path.read_text(encoding="utf-8"), names))
            print(path)
        if figure := speed.cost_figure(RESULTS):
            save_figure(figure, COST, speed.cost(RESULTS))
            print(COST)
        save_figure(frontier.figure(RESULTS), ACCURACY, frontier.description(RESULTS))
        print(ACCURACY)


def record(names: list[str], label: str) -> dict[str, Any]:
    """Settings and scores of each run's last finished stage: one view and horizontal flip."""
    folders = [finished_stage(name, None) for name in names]
    recipes = [folder.read_recipe() for folder in folders]
    stage = folders[0].stage
    size = recipes[0]["recipe"][stage]["size"]
    same = ("recipe", "data_digest", "split_digest", "versions", "device")
    rows = []
    for folder, recipe in zip(folders, recipes, strict=True):
        if (folder.stage, *(recipe[key] for key in same)) != (
            stage,
            *(recipes[0][key] for key in same),
        ):
            raise InputError(
                f"{folder.path}: recipe, data, split, version or device differs from "
                f"{folders[0].path}; record it separately"
            )
        scores = minutes.plain_scores(
            runs.read_rows(folder.scores), size, recipe["device"]["precision"]
        )
        for split, views in SCORES:
            if (split, views) not in scores:
                raise InputError(
                    f"{folder.path}: has no scores; run python -m tinynet.evaluate --run "
                    f"{folder.run} --tta flip"
                )
            rows.append({**scores[split, views], "run": folder.run.name, "seed": recipe["seed"]})
    seconds = [
        sum(row["seconds"] for row in runs.read_rows(folder.log) if row["kind"] == "epoch")
        for folder in folders
    ]
    return {
        "label": label,
        "stage": stage,
        "size": size,
        "command": without_paths(recipes[0]["command"]),
        **{key: recipes[0][key] for key in same[1:]},
        "settings": {key: recipes[0]["recipe"][key] for key in ("data", "network", stage)},
        "seconds of training": seconds,
        "rows": rows,
    }


def story(folder: Path) -> dict[str, Any]:
    """The results of `tinynet fixres`, with names of runs, without paths and points of curves."""
    results = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    for row in results["activations"]:
        del row["curve"]
    for row in itertools.chain(*(results[name] for name in ("rows", "beside", "methods", "costs"))):
        row["run"] = Path(row["run"]).name
    return {**results, "command": without_paths(results["command"], keep=("--run",))}


def without_paths(words: list[str], keep: tuple[str, ...] = ()) -> str:
    """The command without paths, which are those of one machine."""
    paths = {"--data", "--cache", "--weights", "--run", "--out", "--seed"} - set(keep)
    return shlex.join(
        word
        for before, word in zip(["", *words], words, strict=False)
        if not {before, word} & paths
    )


def accuracies(folder: Path) -> str:
    """The table of all files with a label, by size: a line per seed, and the mean."""
    lines = [
        "| recipe and stage | seed | hold-out top-1 | with flip | val top-1 | with flip | val "
        "top-5, with flip | training | result file |",
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    files = [json.loads(path.read_text()) | {"file": path.name} for path in folder.glob("*.json")]
    results = [result for result in files if "label" in result]
    for result in sorted(results, key=lambda result: (result["size"], result["file"])):
        lines += _lines(result)
    return "\n".join([*lines, PUBLISHED]) + "\n"


def _lines(result: dict[str, Any]) -> list[str]:
    """The table's lines of one result file."""
    lines = []
    seeds = list(dict.fromkeys(row["seed"] for row in result["rows"]))
    for number, seed in enumerate(seeds):
        scores = {
            (row["split"], row["views"]): row for row in result["rows"] if row["seed"] == seed
        }
        link = f"[{result['file']}](../benchmarks/results/{result['file']}) "
        cells = [
            f"| {result['label'] if number == 0 else ''}",
            str(seed),
            *(minutes.interval(scores[key]) for key in SCORES),
            f"{scores['val', 'flip']['top5']:.1%}",
            f"{result['seconds of training'][number] / 60:.0f} min",
            f"{link if number == 0 else ''}|",
        ]
        lines.append(" | ".join(cells))
    if len(seeds) > 1:
        means = [
            statistics.mean(
                row["top1"] for row in result["rows"] if (row["split"], row["views"]) == key
            )
            for key in SCORES
        ]
        lines.append(f"| | mean | {' | '.join(f'**{mean:.1%}**' for mean in means)} | | | |")
    return lines


# Each table: the function that makes it, and the folder of results that it reads.
TABLES = {
    "results": (accuracies, ""),
    "speed": (speed.table, ""),
    "speed in bfloat16": (speed.table, "bfloat16"),
    "speed on a GPU": (speed.table, "h200"),
    "cost": (speed.cost, ""),
    "minutes": (minutes.table, ""),
    "gpu minutes": (gpu_minutes.table, ""),
}
PAGES = {
    "results.md": ("results",),
    "speed.md": ("speed", "speed in bfloat16", "speed on a GPU", "cost"),
    "minutes.md": ("minutes", "gpu minutes"),
}


def with_tables(text: str, names: Iterable[str]) -> str:
    """The text of a page with these tables between their marks, from the result files."""
    for name in names:
        make, folder = TABLES[name]
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(start)
        text = before + start + make(RESULTS / folder) + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    run_command(main)
