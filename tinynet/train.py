"""Train the head on a frozen VGG16 (`base`), then all of it (`finetune`); fit a run to a test size
(`fixres`).

    python -m tinynet.train --stage base    the tuned recipe, from the official archive
    python -m tinynet.train --stage finetune    goes on from the newest finished base
    python -m tinynet.train --recipe reference --stage all    the published system as written
    python -m tinynet.train --stage fixres --size 96    the newest run's head, at its test size
    python -m tinynet.train --resume runs/...    continue where Ctrl-C stopped it

Every hyper-parameter of the recipe is a flag; with --stage all it applies to both stages.
"""

from argparse import BooleanOptionalAction
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console, runs
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, add_fields, flag_name, run_command, user_path
from tinynet.runs import STAGES, WHOLE, StageFolder, stage_before
from tinynet.training.config import WEIGHTS, RunConfig
from tinynet.training.recipes import RECIPES, TUNED, Network, SplitConfig, Stage

if TYPE_CHECKING:
    from tinynet.training.observers import Observer


def parser() -> Parser:
    """The command's flags."""
    made = Parser("tinynet.train", __doc__)
    made.add_argument(
        "--stage",
        choices=(*STAGES, "all"),
        help="what to train (default: all, which is base and finetune)",
    )
    made.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="default: tuned; for a later stage, that of its run",
    )
    made.add_argument(
        "--resume",
        type=user_path,
        metavar="RUN",
        help="continue all stages of this run with its own recipe; if files have moved, give their "
        "new places with --data, --cache, --weights and --run",
    )
    made.add_argument(
        "--restart",
        action="store_true",
        help="with --resume: start an unfinished stage over, for instance if its last.pt is lost",
    )
    made.add_argument(
        "--summary", action="store_true", help="print the network layer by layer and stop"
    )
    made.add_argument(
        "--compile",
        action=BooleanOptionalAction,
        help="compile the steps of training, which takes a minute; for long training on a GPU",
    )
    made.add_argument(
        "--tensorboard",
        action="store_true",
        help="show what happens in TensorBoard too: tensorboard --logdir RUN",
    )
    add_common(
        made, "data", "cache", "weights", "run", "out", "seed", "device", "precision", "json"
    )
    made.set_defaults(floats=None, frozen=None)  # a resumed run's own
    tuned = [TUNED.stage(stage) for stage in STAGES]
    for kind, values in ((SplitConfig, [TUNED.data]), (Network, [TUNED.network]), (Stage, tuned)):
        text = kind.__doc__.splitlines()[0].removesuffix(".")
        group = made.add_argument_group(
            f"{kind.__name__}: {text}",
            "where the recipe has several values they are of " + " / ".join(STAGES)
            if kind is Stage
            else None,
        )
        add_fields(group, kind, "tuned", values)
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    argument_parser = parser()
    asked = argument_parser.parse_args(argv)
    if asked.restart and not asked.resume:
        argument_parser.error("--restart needs --resume RUN")
    named = asked.precision != "auto"
    run, config = _resumed(asked) if asked.resume else _planned(asked)
    from tinynet.compute import choose_compute
    from tinynet.report.tables import show
    from tinynet.training import stages

    if asked.summary:
        print(stages.summary(run, config))
        return
    before = asked.precision if asked.resume and not named else None
    try:
        compute = choose_compute(
            asked.device,
            asked.precision,
            compiled=bool(asked.compile),
            floats=asked.floats,
            frozen=asked.frozen,
        )
    except InputError as error:
        raise (
            InputError(f"{run}: was started with precision {before}; {error}") if before else error
        ) from None
    console.log(f"{run}: {config.recipe.name}, {' and '.join(config.stages)}, on {compute}")
    rows = stages.train(
        run,
        config,
        compute,
        resume=bool(asked.resume),
        restart=asked.restart,
        observers=_observers(asked.tensorboard),
    )
    show(rows, asked.format)


def _observers(tensorboard: bool) -> list["Observer"]:
    from tinynet.report.curves import Curves

    if not tensorboard:
        return [Curves()]
    from tinynet.report.tensorboard import TensorBoard

    return [Curves(), TensorBoard()]


def _planned(asked: Any) -> tuple[Path, RunConfig]:
    """The folder and the plan of a new run, as the flags ask."""
    from tinynet.data.download import find_data

    given = _given(asked)
    if asked.stage in ("finetune", "fixres"):
        run, config = _later(asked, given)
    else:
        if asked.run:
            raise InputError(
                "--run names the run that finetune or fixres goes on from; a new base is named "
                "with --out"
            )
        stages = ("base",) if asked.stage == "base" else WHOLE
        recipe = RECIPES[asked.recipe or "tuned"].override(given, stages)
        weights = _weights(asked.weights or WEIGHTS)
        run = runs.new_run(asked.out, recipe.name)
        config = RunConfig(recipe, asked.data or "", stages, weights, asked.seed or 0, asked.cache)
    for stage in config.stages:
        if StageFolder(run, stage).started:
            raise InputError(
                f"{run}: already contains {stage}; continue it with "
                f"{console.shell_command('tinynet.train', '--resume', run)}, or use another folder "
                "with --out"
            )
        if later := [
            s
            for s in STAGES[STAGES.index(stage) + 1 :]
            if StageFolder(run, s).started and s not in WHOLE
        ]:
            raise InputError(f"{run}: already contains {later[0]}; use another folder with --out")
    data = str(find_data(config.data or None).resolve())
    return run, replace(config, data=data, cache=config.cache and str(Path(config.cache).resolve()))


def _later(asked: Any, given: dict[str, Any]) -> tuple[Path, RunConfig]:
    """The folder and the plan of a stage that goes on from a run, on its pictures and with its
    network.
    """
    stage = asked.stage
    start = runs.find_run(
        asked.run,
        lambda run: stage_before(run, stage) is not None,
        "train its first stage before: python -m tinynet.train --stage base",
    )
    last = stage_before(start, stage)
    before = RunConfig.of(last)
    fixed = [flag_name(name) for name in sorted(set(given) & set(_fields(SplitConfig, Network)))]
    if fixed or asked.weights:
        raise InputError(
            f"{', '.join(fixed or ['--weights'])}: fixed by the base that {stage} goes on from; "
            "train another base for another value"
        )
    chosen = RECIPES[asked.recipe or before.recipe.name].override(given, (stage,))
    recipe = replace(before.recipe, name=chosen.name, **{stage: chosen.stage(stage)})
    run = Path(asked.out) if asked.out else start
    console.log(f"{stage} goes on from {last.path}")
    sizes = before.recipe.stage(last.stage).size, recipe.stage(stage).size
    if sizes[0] != sizes[1]:
        console.log(f"note: {last.stage} was trained at {sizes[0]} px, {stage} at {sizes[1]}")
    elsewhere = None if run.resolve() == start.resolve() else str(start.resolve())
    return run, RunConfig(
        recipe,
        asked.data or before.data,
        (stage,),
        before.weights,
        before.seed if asked.seed is None else asked.seed,
        asked.cache or before.cache,
        elsewhere,
        last.stage,
    )


def _resumed(asked: Any) -> tuple[Path, RunConfig]:
    """The folder and the plan of the run to continue; only where it finds what it was started with
    can be told anew.

    Device, precision and compiled steps are those it was started with, unless others are named.
    """
    flags = [
        f"--{name}"
        for name in ("stage", "recipe", "seed", "out")
        if getattr(asked, name) is not None
    ]
    flags += [flag_name(name) for name in sorted(_given(asked))]
    if flags:
        raise InputError(
            f"{', '.join(flags)}: a resumed run keeps what it was started with; "
            "start another run for another value"
        )
    console.set_flags((console.command_flags() or frozenset()) - {"--out"})
    run = Path(asked.resume)
    started = runs.started(run)
    if not started:
        raise InputError(
            f"--resume {run}: {runs.NOT_A_RUN}; name a folder that tinynet.train wrote"
        )
    # The last one, unless that is finished and one before it is not.
    folder = ([folder for folder in started if not folder.finished] or started)[-1]
    stored = folder.read_recipe()
    config = RunConfig.of(folder)
    if asked.device == "auto":
        asked.device = stored["device"]["type"]
    if asked.device == stored["device"]["type"]:
        if asked.precision == "auto":
            asked.precision = stored["device"]["precision"]
            asked.floats, asked.frozen = (
                stored["device"].get("floats"),
                stored["device"].get("frozen"),
            )
        if asked.compile is None:
            asked.compile = stored["device"].get("compiled", False)
    elsewhere = {
        name: str(Path(getattr(asked, name)).resolve())
        for name in ("data", "cache")
        if getattr(asked, name)
    }
    if asked.weights:
        elsewhere["weights"] = _weights(asked.weights)
    if asked.run:
        if config.start_run is None:
            raise InputError(f"--run {asked.run}: {run} uses its own base stage; remove --run")
        elsewhere["start_run"] = str(Path(asked.run).resolve())
    return run, replace(config, **elsewhere)


def _weights(named: str) -> str:
    """Weights as a plan keeps them: a file by its whole path, else a name."""
    return str(Path(named).resolve()) if Path(named).is_file() else named


def _given(asked: Any) -> dict[str, Any]:
    """The recipe's fields that were given as flags."""
    known = set(_fields(SplitConfig, Network, Stage))
    return {name: value for name, value in vars(asked).items() if name in known}


def _fields(*kinds: type) -> list[str]:
    return [name for kind in kinds for name in kind.__dataclass_fields__]


if __name__ == "__main__":
    run_command(main)
