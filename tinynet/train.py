"""Train the head on a frozen VGG16 (`base`), then all of it (`finetune`).

    python -m tinynet.train --stage base                    the tuned recipe, from the official archive
    python -m tinynet.train --stage finetune                goes on from the newest finished base
    python -m tinynet.train --recipe reference --stage all  the published system as written
    python -m tinynet.train --resume runs/...               continue where Ctrl-C stopped it, exactly

Every hyper-parameter of the recipe is a flag; with --stage all it applies to both stages.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tinynet import cli, runs
from tinynet.errors import InputError
from tinynet.fit.recipes import RECIPES, DataPlan, Network, Recipe, Stage
from tinynet.runs import STAGES, StageFolder
from tinynet.stages import Plan, train


def parser() -> cli.Parser:
    """The command's flags."""
    made = cli.Parser("tinynet.train", __doc__)
    made.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to train (default: all)")
    made.add_argument("--recipe", choices=tuple(RECIPES), help="default: tuned; for finetune, that of its base")
    made.add_argument("--resume", metavar="RUN", help="continue this run, all of its stages, with its own recipe")
    made.add_argument("--summary", action="store_true", help="print the network layer by layer and stop")
    cli.add_common(made, "data", "cache", "weights", "run", "out", "seed", "device", "precision", "json")
    for part in (DataPlan, Network, Stage):
        cli.add_fields(made.add_argument_group(f"{part.__name__}: {part.__doc__.splitlines()[0]}"), part)
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    asked = parser().parse_args(argv)
    if asked.resume:
        run = Path(asked.resume)
        plan = resumed_plan(run, asked)
    else:
        run, plan = planned(asked)
    from tinynet.device import choose_device

    device = choose_device(asked.device, asked.precision)
    cli.say(f"{run}: {plan.recipe.name}, {' and '.join(plan.stages)}, on {device}")
    rows = train(run, plan, device, resume=bool(asked.resume), summary=asked.summary)
    if rows:
        from tinynet.report.tables import show_scores

        show_scores(rows, asked.json)


def planned(asked: Any) -> tuple[Path, Plan]:
    """The folder and the plan of a new run, as the flags ask."""
    from tinynet.data.download import find_data

    stages = STAGES if asked.stage == "all" else (asked.stage,)
    given = {k: v for part in (DataPlan, Network, Stage) for k, v in cli.given_fields(asked, part).items()}
    if stages == ("finetune",):
        base = runs.find_run(asked.run, lambda run: _can_finetune(run, asked.out),
                             "train its first stage before: python -m tinynet.train --stage base")
        before = Plan.read(StageFolder(base, "base").read_recipe())
        recipe = _recipe_after(before, asked.recipe, given)
        run, weights = Path(asked.out or base), before.weights
        data, cache = asked.data or before.data, asked.cache or before.cache
        cli.say(f"finetune goes on from {base}")
    else:
        if asked.run:
            raise InputError("--run names the run that finetune goes on from; a new base is named with --out")
        recipe = RECIPES[asked.recipe or "tuned"].override(given, stages)
        base, run, weights = None, runs.new_run(asked.out, recipe.name), asked.weights
        data, cache = asked.data, asked.cache
    for stage in stages:
        if StageFolder(run, stage).started:
            raise InputError(f"{run}: holds a {stage} already; continue it with --resume {run}, "
                             "or name another folder with --out")
    data = str(find_data(data).resolve())
    cache = str(Path(cache).resolve()) if cache else None
    return run, Plan(recipe, data, stages, weights, asked.seed, cache, base and str(base))


def _can_finetune(run: Path, out: str | None) -> bool:
    return StageFolder(run, "base").finished and (out is not None or not StageFolder(run, "finetune").started)


def _recipe_after(before: Plan, name: str | None, given: dict[str, Any]) -> Recipe:
    """The recipe of a finetune: its stage, on the pictures and the network of its base."""
    fixed = sorted(set(given) & (set(DataPlan.__dataclass_fields__) | set(Network.__dataclass_fields__)))
    if fixed:
        raise InputError(f"{', '.join(map(cli.flag_name, fixed))}: fixed by the base that finetune goes on from; "
                         "train another base for another value")
    chosen = RECIPES[name or before.recipe.name]
    recipe = Recipe(name=chosen.name, data=before.recipe.data, network=before.recipe.network,
                    base=before.recipe.base, finetune=chosen.finetune)
    return recipe.override(given, ("finetune",))


def resumed_plan(run: Path, asked: Any) -> Plan:
    """The plan of the run to continue; flags of the recipe cannot change it."""
    given = sorted(k for part in (DataPlan, Network, Stage) for k in cli.given_fields(asked, part))
    if given:
        raise InputError(f"{', '.join(map(cli.flag_name, given))}: a resumed run keeps its recipe; "
                         "start another run for another value")
    started = [StageFolder(run, stage) for stage in STAGES if StageFolder(run, stage).started]
    if not started:
        raise InputError(f"--resume {run}: not a run (no base/recipe.json or finetune/recipe.json); "
                         "name a folder that tinynet.train wrote")
    plan = Plan.read(started[-1].read_recipe())
    changed = {"data": asked.data, "cache": asked.cache}
    return replace(plan, **{name: str(Path(path).resolve()) for name, path in changed.items() if path})


if __name__ == "__main__":
    cli.run(main)
