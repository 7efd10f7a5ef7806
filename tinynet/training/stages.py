"""Train the stages of a run in order, from a run configuration to finished stage folders."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tinynet import console, runs
from tinynet.compute import Compute, out_of_memory
from tinynet.data.packed import Packed
from tinynet.distributed import get_world, is_lost
from tinynet.errors import InputError
from tinynet.files import clear_leftovers, write_json
from tinynet.models.backbones import backbone_template, runs_in_int8, without_numbers
from tinynet.models.classifier import Classifier
from tinynet.models.digests import weights_digest
from tinynet.records import ScoreRow
from tinynet.runs import StageFolder
from tinynet.signs import LostRank
from tinynet.training.averages import save_average, trainings_of
from tinynet.training.best_size import with_test_size
from tinynet.training.config import RunConfig, open_data
from tinynet.training.inputs import check_crops
from tinynet.training.loop import weight_groups
from tinynet.training.observers import Observer
from tinynet.training.pace import Budget, Watch
from tinynet.training.plans import AVERAGE
from tinynet.training.recipes import Stage
from tinynet.training.resume import check_config, check_inputs, note_epochs, update_paths
from tinynet.training.single_stage import StageJob, train_stage
from tinynet.training.stage_start import claim_stage, lock_stage, make_job, start_model


@dataclass(frozen=True)
class _Options:
    """How `train` was called. `run`: the run that titles and messages name."""

    run: Path
    resume: bool = False
    restart: bool = False
    observers: tuple[Observer, ...] = ()
    watch: Watch | None = None


def train(
    run: Path,
    config: RunConfig,
    compute: Compute,
    *,
    resume: bool | Literal["restart"] = False,
    observers: Sequence[Observer] = (),
    budget: Budget | None = None,
) -> list[ScoreRow]:
    """Train the unfinished stages of `config`; return the hold-out score of every stage.

    `run`: the run's folder. `resume`: continue the stages in the folder, which must have the same
    recipe, seed and inputs; "restart": start an unfinished stage over, without its last
    checkpoint. `observers`: receive the events of the training. `budget`: the minutes of the run;
    None: the stages take the time that they need.

    Raises `InputError` for unusable input, and `KeyboardInterrupt` after saving what is trained.
    """
    try:
        restart = resume == "restart"
        watch = Watch(budget, run) if budget else None
        options = _Options(run, bool(resume), restart, tuple(observers), watch)
        return _train(run, config, compute, options)
    except KeyboardInterrupt:
        if any(StageFolder(run, name).started for name in config.stages):
            command = console.shell_command("tinynet.train", "--resume", run)
            flags = [observer.flag for observer in observers if observer.flag]
            console.log(f"\nstopped and saved; continue with: {' '.join([command, *flags])}")
        raise
    except LostRank as error:
        command = console.shell_command("tinynet.train", "--resume", run)
        way_on = "run the same command again to continue"
        if any(StageFolder(run, name).started for name in config.stages):
            way_on = (
                "the run is saved up to its last checkpoint; continue with any number of "
                f"processes: {command}"
            )
        raise InputError(f"{error}; {way_on}") from None
    finally:
        if budget and runs.started_stages(run):
            budget.leave(run)


def summary(run: Path, config: RunConfig) -> str:
    """Return torchinfo's table of the network in the first stage of `config`, layer by layer."""
    import torchinfo

    packed = open_data(None, None, config)
    name = config.stages[0]
    stage = config.recipe.stage(name)
    model = start_model(config.start(run, name), config, packed)
    model.train_only(stage.trainable)
    table = torchinfo.summary(
        model,
        (2, 3, stage.size, stage.size),
        verbose=0,
        depth=3,
        col_names=("output_size", "num_params", "mult_adds", "trainable"),
    )
    return str(table)


def _train(run: Path, config: RunConfig, compute: Compute, options: _Options) -> list[ScoreRow]:
    compute.check_network(runs_in_int8(config.recipe.network.arch))
    world = get_world()
    config = world.from_main(lambda: _with_started_fixres(run, config))
    chooses_size = world.from_main(lambda: _chooses_size(run, config))
    _check_network(config, chooses_size)
    packed = open_data(None, None, config)
    for name in config.stages:
        check_crops(config.stage(name, packed.side), packed.side)
        if not world.from_main(lambda: StageFolder(run, name).finished):  # noqa: B023
            _check_processes(config.recipe.stage(name), world.size)
    if options.restart and all(StageFolder(run, name).finished for name in config.stages):
        restart = console.option("restart")
        raise InputError(f"{restart}: {run} is finished; remove {restart}, or start a new run")
    rows = []
    for name in config.stages:
        folder = StageFolder(run, name)
        if world.main:
            for path in (run, folder.path):
                clear_leftovers(path)
        if world.from_main(lambda: folder.finished):  # noqa: B023  called at once
            world.from_main(lambda: _check_finished(folder, config, packed))  # noqa: B023
        else:
            if options.watch and not options.watch.budget.begin(name, folder.started):
                later = console.shell_command("tinynet.train", "--stage", name, "--run", run)
                console.log(f"note: {name} is left out, because its time is used; later: {later}")
                break
            if chooses_size and name == "fixres":
                start = StageFolder(run, config.stages[-2])
                config = with_test_size(config, start, packed, compute)
            if config.recipe.stage(name).soup > 1:
                row = _train_soup(folder, config, packed, compute, options)
            else:
                row = _train_one(folder, config, packed, compute, options)
            if world.main:
                # Last, because it marks the stage as finished.
                runs.put_scores(folder.scores, [row])
            console.log(f"{name} is finished: {folder.best}")
            if options.watch:
                options.watch.budget.leave(run)
            config = world.from_main(lambda: _with_epochs(config, folder))  # noqa: B023
        rows += world.from_main(folder.read_scores)[:1]
    return rows


def _ends_in_fixres(config: RunConfig) -> bool:
    """Whether fixres follows another stage, so that the hold-out chooses its test size."""
    return "fixres" in config.stages[1:]


def _chooses_size(run: Path, config: RunConfig) -> bool:
    """Whether the test size of fixres is chosen once the stage before it is finished."""
    return _ends_in_fixres(config) and not StageFolder(run, "fixres").started


def _with_started_fixres(run: Path, config: RunConfig) -> RunConfig:
    """The configuration with the size that a started fixres of a whole run has."""
    folder = StageFolder(run, "fixres")
    if not _ends_in_fixres(config) or not folder.started:
        return config
    saved = RunConfig.of(folder)
    recipe = config.recipe.with_stage("fixres", saved.recipe.fixres)
    return replace(config, recipe=recipe, start_stage=saved.start_stage)


def _with_epochs(config: RunConfig, folder: StageFolder) -> RunConfig:
    """The configuration with the epochs in a stage's recipe, which minutes may have changed."""
    epochs = RunConfig.of(folder).recipe.stage(folder.stage).epochs
    return replace(config, recipe=config.recipe.override({"epochs": epochs}, (folder.stage,)))


def _check_network(config: RunConfig, chooses_size: bool) -> None:
    """Raise `InputError` unless the network has the layers and groups of the recipe's stages.

    `chooses_size`: whether the size of fixres is not known yet.
    """
    network = config.recipe.network
    backbone = backbone_template(network.arch)
    with without_numbers():
        model = Classifier(backbone, network.features, network.hidden, 1, 0.0, network.standardise)
    for name in config.stages:
        stage = config.recipe.stage(name)
        if name != "fixres" or not chooses_size:
            backbone.check_size(stage.size)
        weight_groups(model, stage)


def _check_finished(folder: StageFolder, config: RunConfig, packed: Packed) -> None:
    """Raise `InputError` if a finished stage does not belong to this configuration and data."""
    check_config(folder, config)
    facts = {"data_digest": packed.contents}
    if start := config.start(folder.run, folder.stage):
        facts["start_digest"] = weights_digest(start_model(start, config, packed))
    check_inputs(folder, facts)
    note_epochs(folder, config)


def _train_soup(
    folder: StageFolder, config: RunConfig, packed: Packed, compute: Compute, options: _Options
) -> ScoreRow:
    """Train a stage with several seeds and average the weights; return the score of the average."""
    job = make_job(folder, config, packed, compute)
    with ExitStack() as stack:
        _claim_soup(stack, job, options)
        trainings = trainings_of(folder, config)
        for number, (one, own) in enumerate(trainings, 1):
            for path in (one.run, one.path):
                clear_leftovers(path)
            if one.started:
                own = _with_epochs(own, one)
            if one.finished:
                _check_finished(one, own, packed)
                continue
            console.log(f"training {number} of {len(trainings)}, seed {own.seed}: {one.path}")
            watch = options.watch and replace(options.watch, paced=number == len(trainings))
            again = replace(options, resume=True, restart=False, watch=watch)
            try:
                row = _train_one(one, own, packed, compute, again)
            except InputError as error:
                command = console.shell_command("tinynet.train", "--resume", folder.run)
                raise InputError(f"{error}; then continue the run: {command}") from None
            runs.put_scores(one.scores, [row])
        if options.watch:
            options.watch.budget.leave(folder.run)
            options.watch.budget.begin(AVERAGE)
        return save_average(job, [one for one, _ in trainings])


def _claim_soup(stack: ExitStack, job: StageJob, options: _Options) -> None:
    """Lock the folder of a stage until `stack` ends, and mark the stage as started.

    With `restart`, its trainings are deleted.
    """
    folder = job.folder
    resumed = lock_stage(stack, job, resume=options.resume, restart=options.restart)
    if options.restart:
        for one, _ in trainings_of(folder, job.config):
            # First, so that what a kill leaves is not taken for a training.
            for file in (one.scores, one.best, one.log):
                file.unlink(missing_ok=True)
            if one.run.exists():
                shutil.rmtree(one.run)
    if resumed:
        update_paths(folder, job.config)
    else:
        write_json(folder.recipe, job.facts)
    if options.watch:
        options.watch.save()


def _train_one(
    folder: StageFolder, config: RunConfig, packed: Packed, compute: Compute, options: _Options
) -> ScoreRow:
    """Train one stage with one seed, as `_train_locked`, and inform the observers of its end."""
    row = _train_locked(folder, config, packed, compute, options)
    if get_world().main:
        seed = "" if folder.run == options.run else f", seed {config.seed}"
        title = f"{options.run.name}: {folder.stage}, {config.recipe.name}{seed}"
        for observer in options.observers:
            observer.finish(folder, title)
    return row


def _train_locked(
    folder: StageFolder, config: RunConfig, packed: Packed, compute: Compute, options: _Options
) -> ScoreRow:
    """Train one stage to its end while holding its lock; return the score of its best epoch."""
    job = make_job(folder, config, packed, compute, options.watch)
    with ExitStack() as stack:
        state = job.world.from_main(
            lambda: claim_stage(stack, job, resume=options.resume, restart=options.restart)
        )
        try:
            return train_stage(job, state, options.observers)
        except LostRank:
            raise
        except RuntimeError as error:
            if job.world.size > 1 and is_lost(error):
                raise job.world.lost(error) from None
            if not out_of_memory(error):
                raise
            smaller = console.advice(
                f"start another run with a smaller {console.option('batch')} or "
                f"{console.option('size')}, or "
            )
            raise InputError(
                f"out of memory in a training step ({job.stage.batch} images of {job.stage.size} "
                f"px); {smaller}continue on a machine with more memory: "
                f"{console.shell_command('tinynet.train', '--resume', folder.run)}"
            ) from None


def _check_processes(stage: Stage, ranks: int) -> None:
    """Raise `InputError` for an average, and for ranks that would have no image of a batch."""
    if stage.soup > 1 and ranks > 1:
        raise InputError(
            f"{console.option('soup')} {stage.soup}: works in one process; start it without "
            "torchrun"
        )
    if stage.batch < ranks:
        raise InputError(
            f"{console.option('batch')} {stage.batch}: is less than one image for each of {ranks} "
            "processes; use a larger batch, or fewer processes"
        )
