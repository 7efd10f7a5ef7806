"""Train a head on a frozen network (`base`), then late layers (`finetune`), the head (`fixres`).

    python -m tinynet.train --minutes 60              the longest plan that fits in an hour here
    python -m tinynet.train --stage base              VGG16, on the official archive
    python -m tinynet.train --stage base --arch NAME  another network of torchvision, or timm/NAME
    python -m tinynet.train --data DIR --arch NAME    your own images, a folder for each class
    python -m tinynet.train --stage finetune          starts from the newest finished base
    python -m tinynet.train --stage fixres --size 96  adapts the newest run to a test size
    python -m tinynet.train --resume runs/...         continues a run that was stopped

Every field of the recipe is a flag too, for instance --epochs 4 or --lr 0.001; see --help-recipe.
"""

import time
from argparse import ArgumentTypeError, BooleanOptionalAction
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console, runs
from tinynet.distributed import get_world, join, launched_size, was_restarted
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, add_fields, flag_name, run_command, user_path
from tinynet.runs import STAGES, stage_before
from tinynet.training.config import RunConfig
from tinynet.training.plan import (
    Device,
    Settings,
    plan_later,
    plan_new,
    recipe_fields,
    refuse_started,
    whole_run,
    with_found_data,
    with_new_places,
)
from tinynet.training.plans import DECIDED, contradiction
from tinynet.training.recipes import (
    FIRST,
    RECIPES,
    REFERENCE,
    TUNED,
    Network,
    Recipe,
    SplitConfig,
    Stage,
    recipe_for,
)
from tinynet.values import is_positive

if TYPE_CHECKING:
    from tinynet.compute import Compute
    from tinynet.training.observers import Observer
    from tinynet.training.pace import Budget


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.train", __doc__)
    parser.add_argument(
        "--help-recipe", action="store_true", help="list the fields of the recipe and exit"
    )
    parser.add_argument(
        "--stage",
        choices=(*STAGES, "all"),
        help="what to train (default: all)",
    )
    parser.add_argument(
        "--minutes",
        type=_minutes,
        metavar="N",
        help="train the longest plan that fits in N minutes on this machine",
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="tuned (VGG16), general (others), first (VGG16 at 64 px) or reference (the published "
        "baseline)",
    )
    parser.add_argument(
        "--resume",
        type=user_path,
        metavar="RUN",
        help="continue this run; --data, --labels, --cache, --weights and --run name new "
        "places of files that have moved",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="with --resume: start an unfinished stage over",
    )
    parser.add_argument(
        "--summary", action="store_true", help="print the network layer by layer and exit"
    )
    parser.add_argument(
        "--compile",
        action=BooleanOptionalAction,
        help="compile the steps (for long training on a GPU)",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write events for TensorBoard: tensorboard --logdir RUN",
    )
    run = "the run that finetune or fixres starts from (default: the newest suitable one)"
    out = "folder of the run (default: one below runs/; for finetune and fixres, that of --run)"
    add_common(parser, "data", "labels", "pack-size", "cache", "weights")
    add_common(parser, "run", "out", "seed", run=run, out=out)
    add_common(parser, "device", "precision", "json")
    parser.set_defaults(floats=None, frozen=None)  # those of a resumed run
    _add_recipe(parser, TUNED, hidden=True)
    return parser


def _add_recipe(parser: Parser, recipe: Recipe, hidden: bool) -> None:
    """Add a flag for each field, with the values of `recipe`; hidden ones are not in the help."""
    stages = [recipe.stage(stage) for stage in STAGES]
    titles: dict[type, tuple[str, list[Any]]] = {
        SplitConfig: ("split (the same in all stages)", [recipe.data]),
        Network: ("network (the same in all stages)", [recipe.network]),
        Stage: (f"stage (values: {' / '.join(STAGES)})", stages),
    }
    for kind, (title, values) in titles.items():
        group = parser if hidden else parser.add_argument_group(title)
        add_fields(group, kind, recipe.name, values, hidden)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    if args.help_recipe:
        name = args.recipe or recipe_for(getattr(args, "arch", None) or TUNED.network.arch).name
        fields = Parser("tinynet.train", f"Fields of the recipe, with the values of `{name}`.")
        _add_recipe(fields, RECIPES[name], hidden=False)
        fields.print_help()
        return
    if args.restart and not args.resume:
        flags.error("--restart needs --resume RUN")
    if args.minutes is not None:
        _refuse_beside_minutes(flags, args)
    precision = args.precision
    # A resumed run changes `args`, on rank 0.
    run, config, args = join().from_main(
        lambda: (*(_resumed(args) if args.resume else _new(args)), args)
    )
    if args.summary:
        from tinynet.training import stages

        print(stages.summary(run, config))
        return
    args.since = time.monotonic()
    _train(args, run, config, started_with=args.precision if precision == "auto" else None)


def _train(args: Any, run: Path, config: RunConfig, started_with: str | None) -> None:
    """Train; `started_with`: the precision of a resumed run, if the user names no other."""
    from tinynet.compute import choose_compute
    from tinynet.evaluation.use import end_run
    from tinynet.models.backbones import compute_for
    from tinynet.report.tables import show
    from tinynet.training import stages

    try:
        compute = choose_compute(
            args.device,
            args.precision,
            compiled=bool(args.compile),
            floats=args.floats,
            frozen=args.frozen,
        )
    except InputError as error:
        if args.resume and started_with:
            raise InputError(f"{run}: was started with precision {started_with}; {error}") from None
        raise
    recipe = config.recipe
    frozen = compute_for(compute, recipe.network.arch)
    names = ", ".join(config.stages)
    doing = "measuring this machine" if args.minutes is not None else names
    console.log(f"{run}: {recipe.name}, {doing}, on {frozen}")
    config, budget = _with_budget(args, run, config, compute)
    resume = bool(args.resume) or was_restarted()
    rows = stages.train(
        run,
        config,
        compute,
        resume="restart" if args.restart and not was_restarted() else resume,
        observers=_observers(args.tensorboard) if get_world().main else [],
        budget=budget,
    )
    if "fixres" in config.stages[1:] or budget:
        end_run(run, config, compute, budget)
    show(rows, args.format)


def _with_budget(
    args: Any, run: Path, config: RunConfig, compute: "Compute"
) -> tuple[RunConfig, "Budget | None"]:
    """The configuration with a plan for `--minutes`, and the budget of the run, if it has one."""
    from tinynet.evaluation.use import clear_stale
    from tinynet.training.minutes import budget_of, plan_minutes

    if args.resume:
        return config, budget_of(run, config) if get_world().size == 1 else None
    if get_world().main and "base" in config.stages and not was_restarted():
        clear_stale(run)
    if args.minutes is not None:
        return plan_minutes(args.minutes, config, compute, args.since, time.monotonic)
    return config, None


def _minutes(text: str) -> float:
    """A number of minutes, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0  # is refused
    if not is_positive(number):
        raise ArgumentTypeError(f"{text!r} is not a number greater than 0; use for instance 60")
    return number


def _refuse_beside_minutes(flags: Parser, args: Any) -> None:
    """Exit with status 2 for flags that contradict `--minutes`, which decides what they name."""
    names = ["stage"] if args.stage else []
    names += [name for name in _fields(args) if name in DECIDED]
    if names:
        flags.error(str(contradiction([*map(flag_name, names)])))
    if args.resume:
        flags.error("--minutes is for a new run; a resumed run keeps its own; remove --minutes")
    if args.run:
        flags.error("--minutes starts a new run; remove --run, and name its folder with --out")
    if args.summary:
        flags.error("--summary trains nothing; remove --minutes, or remove --summary")
    if args.recipe in (FIRST.name, REFERENCE.name):
        flags.error(
            f"--minutes has no plan for --recipe {args.recipe}; use --recipe tuned or general, or "
            "remove --minutes"
        )
    if launched_size() > 1 or was_restarted():
        flags.error("--minutes works in one process; start it without torchrun")


def _observers(tensorboard: bool) -> list["Observer"]:
    from tinynet.report.curves import Curves

    if not tensorboard:
        return [Curves()]
    from tinynet.report.tensorboard import TensorBoard

    return [Curves(), TensorBoard()]


def _new(args: Any) -> tuple[Path, RunConfig]:
    """The folder and the configuration of a new run, or of a new stage of a run."""
    settings = Settings(
        args.recipe,
        _fields(args),
        args.data,
        args.weights,
        args.seed,
        args.cache,
        args.labels,
        args.pack_size,
    )
    if args.stage in ("finetune", "fixres"):
        start = runs.find_run(
            args.run,
            lambda run: stage_before(run, args.stage) is not None,
            f"a finished stage before {args.stage}",
            "train its first stage: python -m tinynet.train --stage base",
        )
        run = Path(args.out) if args.out else start
        config = plan_later(settings, args.stage, start, run)
    else:
        if args.run:
            raise InputError(
                f"--run {args.run}: names the run that finetune or fixres starts from; name a new "
                "base with --out"
            )
        config = plan_new(settings, ("base",) if args.stage == "base" else whole_run(args.recipe))
        if args.minutes is not None:
            from tinynet.training.minutes import with_pack_size

            config = with_pack_size(config, settings)
        run = runs.new_run(args.out, config.recipe.name)
    resume = console.shell_command("tinynet.train", "--resume", run)
    way_out = f"continue it with {resume}, or use another folder with --out"
    if not was_restarted():
        refuse_started(run, config.stages, way_out)
    return run, with_found_data(config)


def _resumed(args: Any) -> tuple[Path, RunConfig]:
    """The folder and the configuration of the run to continue.

    Only the places of its files can be changed. Device, precision and compiled steps are those it
    was started with, unless others are named; they are set in `args`.
    """
    fixed = ("stage", "recipe", "seed", "out", "pack_size")
    names = [name for name in fixed if getattr(args, name) is not None]
    if flags := [flag_name(name) for name in [*names, *sorted(_fields(args))]]:
        raise InputError(
            f"{', '.join(flags)}: cannot be changed when a run is resumed; start another run for "
            "another value"
        )
    console.set_flags((console.command_flags() or frozenset()) - {"--out"})
    run = Path(args.resume)
    folder = runs.stage_to_continue(run)
    if folder is None:
        raise InputError(f"--resume {run}: {runs.NOT_A_RUN}; name the folder of a run")
    config = RunConfig.of(folder)
    device = Device(args.device, args.precision, args.compile).as_started(folder)
    args.device, args.precision, args.compile = device.device, device.precision, device.compiled
    args.floats, args.frozen = device.floats, device.frozen
    settings = Settings(data=args.data, weights=args.weights, cache=args.cache, labels=args.labels)
    config = with_new_places(config, settings)
    if args.run:
        if config.start_run is None:
            raise InputError(f"--run {args.run}: {run} uses its own base stage; remove --run")
        config = replace(config, start_run=str(Path(args.run).resolve()))
    return run, config


def _fields(args: Any) -> dict[str, Any]:
    """The recipe's fields that were given as flags."""
    names = set(recipe_fields())
    return {name: value for name, value in vars(args).items() if name in names}


if __name__ == "__main__":
    run_command(main)
