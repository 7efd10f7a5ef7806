"""`fit` trains the stages of a run that are not finished yet."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import runs
from tinynet.distributed import launched_size
from tinynet.errors import InputError
from tinynet.library.arguments import as_texts
from tinynet.library.run import Run
from tinynet.runs import STAGES, WHOLE, StageFolder
from tinynet.training.config import RunConfig
from tinynet.training.plan import (
    Device,
    Settings,
    plan_later,
    plan_new,
    recipe_fields,
    whole_run,
    with_found_data,
    with_new_places,
)
from tinynet.training.plans import DECIDED, contradiction
from tinynet.training.recipes import RECIPES, Network, Recipe, SplitConfig, Stage
from tinynet.values import as_minutes, as_path

if TYPE_CHECKING:
    from tinynet.compute import Compute
    from tinynet.training.observers import Observer
    from tinynet.training.pace import Budget


def fit(
    run: str | Path,
    data: str | Path | None = None,
    stages: str | Sequence[str] = "all",
    recipe: str | Recipe | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> Run:
    """Train the stages of a run that are not finished yet, and return the run.

    The returned run evaluates and predicts with the last stage that was trained.

    A stopped run continues where it stopped. On a CPU the result is bit-identical to that of a run
    that was not stopped, except with `minutes`.

    `run`: the folder of the run. `data`: the archive, or a folder of images with a folder for each
    class (default: the official archive, downloaded if needed). `stages`: one or more of base,
    finetune, fixres; "all" means these three, with fixres at the test size that the hold-out
    chooses. `recipe`: tuned, general, first, reference (default:
    the one for the network), or a `Recipe`. `minutes`: train the longest plan that fits. The plan
    decides the stages, sizes and epochs: `stages` must be "all", and fields such as `epochs` and
    `size` are refused. A run that continues has the minutes that are left.

    `settings`: `weights` (a name of torchvision, a file, or "none"), `seed`, `cache`, `labels` (a
    file of labels for images without class folders), `pack_size` (pixels), `device`, `precision`,
    `tensorboard`, and any field of the recipe, for instance `epochs=4`. A field applies to every
    stage that is trained; with "all", it does not apply to fixres. `soup` applies to finetune
    alone.

    Raises `InputError` for invalid input. After Ctrl-C it saves the run and raises
    `KeyboardInterrupt`.

    Examples:
        >>> run = tinynet.fit("runs/first", data="data/tiny-imagenet-200.zip", epochs=4)
        >>> run = tinynet.fit("runs/hour", data="data/tiny-imagenet-200.zip", minutes=60)
    """
    from tinynet.evaluation.use import clear_stale, end_run
    from tinynet.report.curves import Curves
    from tinynet.training.stages import train

    if launched_size() > 1:
        raise InputError(
            "`tinynet.fit` does not run under torchrun; start it without torchrun, or start the "
            "command: torchrun -m tinynet.train"
        )
    path = as_path(run, "run")
    whole = stages == "all"
    if minutes is not None:
        minutes = as_minutes(minutes, "minutes")
    budget = _budget(path) if whole else None
    timed = minutes is not None or budget is not None
    if timed:
        _refuse_beside_minutes(whole, recipe, settings)
    names = _whole(path, recipe) if whole else _stage_names(stages)
    if "soup" in settings and "finetune" not in names:
        raise InputError(
            f"soup={settings['soup']!r}: is for finetune, but the stages are {', '.join(names)}; "
            "remove soup, or add finetune to stages"
        )
    device = Device(settings.pop("device", "auto"), settings.pop("precision", "auto"))
    observers: list[Observer] = [Curves()]
    if settings.pop("tensorboard", False):
        from tinynet.report.tensorboard import TensorBoard

        observers.append(TensorBoard())
    request = _settings(data, recipe, settings)
    if not StageFolder(path, "base").started:
        clear_stale(path)
    if timed:
        return _fit_within(path, minutes, budget, request, device, observers)
    for config in _configs(path, names, request, whole):
        folder = StageFolder(path, config.stages[0])
        compute = _compute(device.as_started(folder) if folder.started else device)
        train(path, config, compute, resume=True, observers=observers)
    if whole and "fixres" in names:
        end_run(path, config, compute)
    return Run(path, names[-1])


def _compute(device: Device) -> "Compute":
    from tinynet.compute import choose_compute

    return choose_compute(
        device.device,
        device.precision,
        compiled=bool(device.compiled),
        floats=device.floats,
        frozen=device.frozen,
    )


def _refuse_beside_minutes(
    whole: bool, recipe: str | Recipe | None, settings: dict[str, Any]
) -> None:
    """Raise `InputError` for values that contradict the minutes."""
    names = [*([] if whole else ["stages"]), *(name for name in settings if name in DECIDED)]
    if isinstance(recipe, Recipe) and recipe.name in RECIPES:
        usual = RECIPES[recipe.name]
        names += [
            f"{name} of the recipe"
            for name in sorted(DECIDED)
            if any(
                getattr(recipe.stage(stage), name) != getattr(usual.stage(stage), name)
                for stage in WHOLE
            )
        ]
    if names:
        raise contradiction(names)


def _budget(run: Path) -> "Budget | None":
    """The budget of a run that is continued by its plan; None if it has none."""
    from tinynet.training.minutes import budget_of

    folder = runs.stage_to_continue(run)
    return budget_of(run, RunConfig.of(folder)) if folder else None


def _fit_within(
    run: Path,
    minutes: float | None,
    budget: "Budget | None",
    settings: Settings,
    device: Device,
    observers: Sequence["Observer"],
) -> Run:
    """Train a new run within `minutes`, or continue one that has a `budget`."""
    from tinynet.evaluation.use import end_run
    from tinynet.training.minutes import plan_minutes, with_pack_size
    from tinynet.training.stages import train

    if folder := runs.stage_to_continue(run):
        _refuse_other_run(folder, minutes, budget.minutes if budget else None, settings)
        config = with_new_places(RunConfig.of(folder), settings)
        compute = _compute(device.as_started(folder))
    else:
        assert minutes is not None, "a run without minutes is not started here"
        config = plan_new(settings, whole_run(settings.recipe))
        config = with_found_data(with_pack_size(config, settings))
        since = time.monotonic()
        compute = _compute(device)
        config, budget = plan_minutes(minutes, config, compute, since, time.monotonic)
    train(run, config, compute, resume=True, observers=observers, budget=budget)
    end_run(run, config, compute, budget)
    return Run(run, runs.finished_stage(str(run), None).stage)


def _refuse_other_run(
    folder: StageFolder, minutes: float | None, before: float | None, settings: Settings
) -> None:
    """Raise `InputError` if a run was started with other minutes (`before`) or settings.

    `folder`: the stage that continues the run.
    """
    run = folder.run
    if before is None:
        raise InputError(
            f"{run}: has no minutes, or a stage was trained after its plan; remove minutes to "
            "continue it, or use another folder"
        )
    if minutes not in (None, before):
        raise InputError(
            f"{run}: was started with minutes={before:g}, not {minutes:g}; remove minutes to "
            "continue it, or use another folder for another value"
        )
    # The recipe of a stage that has not started is in that of a stage that has.
    folders = dict.fromkeys(RunConfig.of(folder).stages, folder)
    folders |= {started.stage: started for started in runs.started_stages(run)}
    for stage, own in folders.items():
        values = _whole_values(settings, stage)
        planned = {name: value for name, value in values.items() if name not in DECIDED}
        _refuse_changes(own, settings, planned, stage)


def _whole_values(settings: Settings, stage: str) -> dict[str, Any]:
    """The fields that the user asks for, of a stage of a whole run."""
    if stage != "fixres":
        return settings.values(stage)
    if not isinstance(settings.recipe, Recipe):
        return settings.of_network()  # other fields that are named do not apply to fixres
    fixres = plan_new(settings, STAGES).recipe.fixres
    # The hold-out chooses the size.
    return {each.name: getattr(fixres, each.name) for each in fields(Stage) if each.name != "size"}


def _whole(run: Path, recipe: str | Recipe | None) -> tuple[str, ...]:
    """The stages of a whole run of this recipe, or of the one that the run was started with."""
    base = StageFolder(run, "base")
    return whole_run(RunConfig.of(base).recipe if recipe is None and base.started else recipe)


def _stage_names(stages: str | Sequence[str]) -> tuple[str, ...]:
    names = as_texts(stages, "stages")
    if not names:
        raise InputError(f"stages is empty; use {', '.join(STAGES)} or all")
    if unknown := [name for name in names if name not in STAGES]:
        raise InputError(f"stage {unknown[0]!r}: unknown; use {', '.join(STAGES)} or all")
    return tuple(sorted(names, key=STAGES.index))


def _settings(
    data: str | Path | None, recipe: str | Recipe | None, settings: dict[str, Any]
) -> Settings:
    names = ("weights", "seed", "cache", "labels", "pack_size")
    others = {name: settings.pop(name, None) for name in names}
    if unknown := sorted(set(settings) - set(recipe_fields())):
        raise InputError(
            f"{unknown[0]}: not a setting; choose from {', '.join(names)}, device, precision, "
            f"tensorboard, {', '.join(recipe_fields())}"
        )
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return Settings(
        recipe,
        fields,
        _place(data, "data"),
        _place(others["weights"], "weights"),
        others["seed"],
        _place(others["cache"], "cache"),
        _place(others["labels"], "labels"),
        others["pack_size"],
    )


def _place(value: Any, name: str) -> str | None:
    return None if value is None else str(as_path(value, name))


def _configs(
    run: Path, stages: Sequence[str], settings: Settings, whole: bool
) -> Iterable[RunConfig]:
    """Yield the configuration of each stage: a new one, or the saved one of a started stage.

    `whole`: whether fixres has a test size that the hold-out chooses.
    """
    for stage in stages:
        folder = StageFolder(run, stage)
        ends_whole = whole and stage == "fixres"
        if folder.started:
            values = _whole_values(settings, stage) if whole else settings.values(stage)
            _refuse_changes(folder, settings, values)
            config = with_new_places(RunConfig.of(folder), settings)
            yield replace(config, stages=(stage,))
        elif stage == "base":  # with finetune, so that both are checked before either is trained
            new = tuple(name for name in stages if name in WHOLE or whole)
            yield with_found_data(plan_new(settings, new))
        else:
            before = runs.stage_before(run, stage)
            if before is None:
                raise InputError(f"{run}: has no finished base for {stage}; add base to stages")
            values = settings.of_network() if ends_whole else settings.values(stage)
            names = {each.name for part in (SplitConfig, Network) for each in fields(part)}
            shared = {name: values[name] for name in values.keys() & names}
            _refuse_changes(before, Settings(weights=settings.weights), shared)
            own = {name: values[name] for name in settings.fields.keys() & values.keys() - names}
            later = replace(settings, fields=own, weights=None)
            config = with_found_data(plan_later(later, stage, run, run))
            if whole and stage == "finetune":  # `train --resume` then goes on to fixres
                config = replace(config, stages=tuple(stages)[1:])
            if ends_whole:  # the crops are those of the stage before
                crops_for = RunConfig.of(before).crops_for
                config = replace(config, stages=(before.stage, stage), crops_for=crops_for)
            yield config


def _refuse_changes(
    folder: StageFolder, settings: Settings, values: dict[str, Any], stage: str | None = None
) -> None:
    """Raise `InputError` if a run was started with other settings or other fields of a stage.

    `folder`: a stage whose recipe is compared. `values`: the fields of `stage` (default: its own).
    """
    config, stage = RunConfig.of(folder), stage or folder.stage
    parts = (config.recipe.stage(stage), config.recipe.network, config.recipe.data)
    pairs = {
        name: (next(getattr(part, name) for part in parts if hasattr(part, name)), value)
        for name, value in values.items()
    }
    if isinstance(settings.recipe, str):
        pairs["recipe"] = config.recipe.name, settings.recipe
    if settings.seed is not None:
        pairs["seed"] = config.seed, settings.seed
    if settings.pack_size is not None:
        pairs["pack_size"] = config.pack_size, settings.pack_size
    if settings.weights is not None and not Path(settings.weights).is_file():
        pairs["weights"] = config.weights, settings.weights  # files are compared by their digest
    for name, (before, value) in pairs.items():
        if before != value:
            raise InputError(
                f"{folder.run}: was started with {name}={before!r} for {stage}, not {value!r}; use "
                "another folder for another value"
            )
