"""One stage of a run after another: from a plan to a folder with weights, log, curves and score.

This ties the rooms together for whoever trains: the command `tinynet.train`, the demo, the
notebooks.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from tinynet import __version__, console, runs
from tinynet.compute import Compute, out_of_memory
from tinynet.data.batches import batches, fitting, seeded
from tinynet.data.packed import Packed
from tinynet.data.splits import Split
from tinynet.errors import InputError
from tinynet.files import clear_leftovers, locked, write_json
from tinynet.models.checkpoint import load_model, load_training, save_model, save_training
from tinynet.models.classifier import Classifier
from tinynet.models.digests import weights_digest
from tinynet.models.vgg import check_side
from tinynet.models.weights import load_backbone
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities, view_probabilities
from tinynet.score.views import resize
from tinynet.training import schedules
from tinynet.training.config import FORMAT, RunConfig, in_format_1, open_data, split_of
from tinynet.training.features import train_features, view_features
from tinynet.training.inputs import check_crops, epoch_batches, steps_per_epoch
from tinynet.training.loop import Stream, Training, fit
from tinynet.training.observers import Observer
from tinynet.training.recipes import Stage

_SAVE_EVERY = 600.0  # seconds of training that a crash may cost

# How what a run was trained with can be named, where it has moved.
_NAMED = {
    "data_digest": " (--data)",
    "split_digest": "",
    "start_digest": " (--weights, or --run for a later stage)",
}

EvalFn = Callable[[nn.Module], np.ndarray]  # log-probabilities (N, C) of the hold-out


@dataclass(frozen=True)
class _Options:
    """How a run is trained: `resume`, `restart` and `observers` as in `train`."""

    resume: bool = False
    restart: bool = False
    observers: tuple[Observer, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What one stage is trained from, and the `facts` of its `recipe.json`."""

    folder: StageFolder
    config: RunConfig
    packed: Packed
    split: Split
    model: Classifier
    compute: Compute
    facts: dict[str, Any]

    @property
    def stage(self) -> Stage:
        return self.config.recipe.stage(self.folder.stage)

    @property
    def origin(self) -> str:
        """A digest of all that decides this stage's weights but the number of epochs; its
        checkpoints carry it.
        """
        recipe = self.config.recipe
        keys = {name: self.facts[name] for name in ("data_digest", "split_digest", "start_digest")}
        stage = replace(self.stage, epochs=1)
        values = asdict(recipe.data), in_format_1(recipe.network), in_format_1(stage)
        parts = [self.folder.stage, self.config.seed, keys, *values]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train(
    run: Path,
    config: RunConfig,
    compute: Compute,
    *,
    resume: bool = False,
    restart: bool = False,
    observers: Sequence[Observer] = (),
) -> list[dict[str, Any]]:
    """Train the stages of `plan` that are not finished; returns the hold-out's score of each.

    `resume`: continue what the run holds already, which must come from the same plan. `restart`:
    start an unfinished stage over, without its last checkpoint. `observers`: told what happens.
    Raises `InputError` for unusable input, and `KeyboardInterrupt` after what was done is saved.
    """
    try:
        return _train(run, config, compute, _Options(resume, restart, tuple(observers)))
    except KeyboardInterrupt:
        if any(StageFolder(run, name).started for name in config.stages):
            command = console.shell_command("tinynet.train", "--resume", run)
            flags = [observer.flag for observer in observers if observer.flag]
            console.log(f"\nstopped and saved; continue with: {' '.join([command, *flags])}")
        raise


def _train(
    run: Path, config: RunConfig, compute: Compute, options: _Options
) -> list[dict[str, Any]]:
    for name in config.stages:
        check_side(config.recipe.stage(name).size)
    packed = open_data(None, None, config)
    for name in config.stages:
        check_crops(config.recipe.stage(name), packed.side)
    if options.restart and all(StageFolder(run, name).finished for name in config.stages):
        raise InputError(f"--restart: {run} is finished; remove --restart, or start a new run")
    rows = []
    for name in config.stages:
        folder = StageFolder(run, name)
        for place in (run, folder.path):
            clear_leftovers(place)
        if folder.finished:
            _check_config(folder, config)
            start = config.start(run, name)
            before = (
                {"start_digest": weights_digest(_start_model(start, config, packed))}
                if start
                else {}
            )
            _same(folder, {"data_digest": packed.contents, **before})
            _tell_of_epochs(folder, config)
        else:
            row = _train_stage(folder, config, packed, compute, options)
            for observer in options.observers:
                observer.finish(folder, f"{run.name}: {name}, {config.recipe.name}")
            runs.put_scores(folder.scores, [row])  # last: it says that the stage is finished
            console.log(f"{name} is finished: {folder.best}")
        rows += folder.read_scores()[:1]
    return rows


def _tell_of_epochs(folder: StageFolder, config: RunConfig) -> None:
    """Say where a finished stage was trained for fewer epochs than its recipe says now."""
    stage, rows = config.recipe.stage(folder.stage), runs.read_rows(folder.log)
    epochs = sum(row.get("kind") == "epoch" for row in rows)
    if rows and not stage.patience and epochs != stage.epochs:
        console.log(
            f"note: {folder.path} is finished after {epochs} epochs, though its recipe.json says "
            f"{stage.epochs}"
        )


def summary(run: Path, config: RunConfig) -> str:
    """The network of the plan's first stage, layer by layer, as torchinfo draws it."""
    import torchinfo

    packed = open_data(None, None, config)
    name = config.stages[0]
    stage = config.recipe.stage(name)
    model = _start_model(config.start(run, name), config, packed)
    model.train_only(stage.trainable)
    drawn = torchinfo.summary(
        model,
        (2, 3, stage.size, stage.size),
        verbose=0,
        depth=3,
        col_names=("output_size", "num_params", "mult_adds", "trainable"),
    )
    return str(drawn)


def _refuse(folder: StageFolder) -> None:
    raise InputError(
        f"{folder.path}: another process is training it; wait for it"
        + console.advice(", or use another folder with --out")
    )


def _train_stage(
    folder: StageFolder, config: RunConfig, packed: Packed, compute: Compute, options: _Options
) -> dict[str, Any]:
    """Train one stage to its end; returns the score of its best epoch."""
    split = split_of(config, packed)
    torch.manual_seed(seeded("cpu", config.seed, folder.stage).initial_seed())
    compute = compute.for_training() if config.trains_backbone(folder.stage) else compute
    start = config.start(folder.run, folder.stage)
    model = _start_model(start, config, packed)
    facts = _facts(folder, config, packed, split, compute)
    facts["start_digest"] = weights_digest(model if start else model.backbone)  # base's head is new
    if start:
        _same(start, {key: facts[key] for key in ("data_digest", "split_digest")})
    job = _Job(folder, config, packed, split, model, compute, facts)
    facts["origin"] = job.origin
    begun = options.resume and folder.started
    if begun:
        _same(folder, {key: facts[key] for key in (*_NAMED, "device", "versions")})
        _check_config(folder, config)
    folder.make()
    with locked(folder.path, lambda: _refuse(folder)):
        if not begun and not options.restart:
            _refuse_lost_recipe(folder)
        state = _last_state(job) if begun and not options.restart else None
        if begun:
            _move(folder, config)
        try:
            return _learn(job, state, options.observers)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = console.advice("start another run with a smaller --batch or --size, or ")
            raise InputError(
                f"out of memory in a training step ({job.stage.batch} images of {job.stage.size} "
                f"px); {smaller}continue on a machine with more memory: "
                f"{console.shell_command('tinynet.train', '--resume', folder.run)}"
            ) from None


def _refuse_lost_recipe(folder: StageFolder) -> None:
    """Raise `InputError` where a stage has been trained and `recipe.json` is lost: its weights
    would be replaced.
    """
    if folder.best.is_file() or runs.read_rows(folder.log):
        raise InputError(
            f"{folder.recipe}: is missing, though {folder.stage} has been trained there; restore "
            f"the file, or move {folder.path} away"
        )


def _start_over(folder: StageFolder) -> str:
    """The way out where a stage cannot be resumed."""
    command = console.shell_command("tinynet.train", "--resume", folder.run, "--restart")
    return f"start the stage over: {command}"


def _last_state(job: _Job) -> dict[str, Any]:
    """What the last checkpoint of a stage holds, its other files looked at.

    A stage has its first checkpoint before it has a recipe, so one that is missing is lost. Raises
    `InputError` where a file is missing or is not what it must be, before anything is written.
    """
    folder, wnids = job.folder, job.packed.wnids
    again = _start_over(folder)
    if not folder.last.is_file():
        raise InputError(
            f"{folder.last}: is missing, so {folder.stage} cannot be resumed; restore the file, or "
            f"{again}"
        )
    try:
        state = load_training(folder.last, wnids, job.origin)
        if state.get("best") is not None:
            load_model(folder.best, wnids, job.origin)
    except InputError as error:
        raise InputError(f"{error}; restore the file, or {again}") from None
    logged = max((row["step"] for row in runs.read_rows(folder.log, {"step": int})), default=0)
    epoch = state.get("epoch")
    if isinstance(epoch, int) and logged < epoch:  # steps are more than epochs
        console.log(f"note: {folder.log} is incomplete; the curves start at epoch {epoch + 1}")
    return state


def _move(folder: StageFolder, config: RunConfig) -> None:
    """Keep in a stage's recipe where its data, weights and base run are now, where they have
    moved.
    """
    stored = folder.read_recipe()
    places = {name: getattr(config, name) for name in ("data", "cache", "weights", "start_run")}
    if any(stored.get(name) != place for name, place in places.items()):
        write_json(folder.recipe, stored | places)


def _learn(
    job: _Job, state: dict[str, Any] | None, observers: Sequence[Observer]
) -> dict[str, Any]:
    """Train the network, from `state` where there is one; returns the score of its best epoch."""
    folder, packed, split, model, stage = job.folder, job.packed, job.split, job.model, job.stage
    model.set_dropout(stage.dropout)
    learning = model.to(job.compute.device, memory_format=torch.channels_last).train_only(
        stage.trainable
    )
    console.log(
        f"{folder.stage}: {learning:,} weights learn from {len(split.train):,} pictures, "
        f"{len(split.holdout):,} held out"
    )
    if stage.batch > len(split.train):
        console.log(
            f"note: the batch size ({stage.batch:,}) exceeds the {len(split.train):,} training "
            "images, so each epoch is one step" + console.advice("; use a smaller --batch")
        )
    steps = steps_per_epoch(len(split.train), stage.batch)
    if warning := schedules.warning(stage, steps):
        console.log(f"note: {warning}")
    module, stream, eval_fn = _inputs(job)
    training = Training(
        module, {name: model.groups[name] for name in stage.trainable}, stage, steps, job.compute
    )
    if state is not None:
        _continue(training, state, folder)
        console.log(
            f"resumed at epoch {training.epoch + 1}, step {training.step} of {training.steps}"
        )
    with console.stop_on_interrupt() as stop, ExitStack() as stack:
        for observer in observers:
            observer.start(folder, training.total_steps)
            stack.callback(observer.close)
        if state is None:
            # Only now, so that a run that cannot begin leaves none behind; the checkpoint before
            # what says it is there.
            save_training(folder.last, training.state_dict(), packed.wnids, job.origin)
            write_json(folder.recipe, job.facts)
        if observers and not training.total_steps:
            seed = job.config.seed
            first = epoch_batches(packed.train, split.train, stage, seed, 0, torch.device("cpu"))
            images = next(first).images
            for observer in observers:
                observer.images(images)
        check = _check(eval_fn, packed.train.labels[split.holdout], training, observers)
        _run(job, training, fit(training, stream, check, stop), observers)
    return {
        "run": str(folder.run),
        "stage": folder.stage,
        "split": "holdout",
        "views": "none",
        "merge": "mean",
        "size": stage.size,
        **training.best["holdout"],
        "precision": job.compute.for_frozen().precision,
    }


def _continue(training: Training, state: dict[str, Any], folder: StageFolder) -> None:
    """Bring a training to a saved state; raises `InputError` where that is another training's."""
    try:
        training.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise InputError(
            f"{folder.last}: does not belong to {folder.stage} of this run "
            f"({' '.join(str(error).split())[:100]}); restore the right file, or "
            f"{_start_over(folder)}"
        ) from None


def _start_model(start: StageFolder | None, config: RunConfig, packed: Packed) -> Classifier:
    if start:
        return load_model(start.best, packed.wnids, start.origin)[0]
    network = config.recipe.network
    return Classifier(
        load_backbone(config.weights),
        network.features,
        network.hidden,
        len(packed.wnids),
        config.recipe.base.dropout,
        network.standardise,
    )


def _facts(
    folder: StageFolder, config: RunConfig, packed: Packed, split: Split, compute: Compute
) -> dict[str, Any]:
    """What `recipe.json` says of a stage: all that is needed to understand and repeat it."""
    return {
        "format": FORMAT,
        "stage": folder.stage,
        **asdict(config),
        "data_digest": packed.contents,
        "split_digest": split.digest,
        "pictures": {"train": len(split.train), "holdout": len(split.holdout)},
        "device": compute.facts(),
        "versions": {
            "tinynet": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "command": console.current_command(),
        "classes": dict(zip(packed.wnids, packed.names, strict=True)),
    }


def _same(folder: StageFolder, facts: dict[str, Any]) -> None:
    """Raise `InputError` where `folder` was trained on other data, another split, or from other
    weights.
    """
    before = folder.read_recipe()
    ours, theirs = (facts.get("versions", {}).get("torch"), before["versions"].get("torch"))
    if ours and ours != theirs:
        console.log(
            f"note: {folder.path} was started with torch {theirs}; results may differ slightly "
            f"with torch {ours}"
        )
    names = {"data_digest": "data", "split_digest": "split", "start_digest": "starting weights"}
    for key, what in names.items():
        if key in facts and before[key] != facts[key]:
            raise InputError(
                f"{folder.path}: the {what} changed ({before[key][:12]} at its start, now "
                f"{facts[key][:12]}); use the original {what}" + console.advice(_NAMED[key])
            )
    if "device" in facts and before["device"] != facts["device"]:
        console.log(
            f"note: {folder.path} was trained on {before['device'].get('name', 'another device')}; "
            f"on {facts['device']['name']} the same steps give other numbers"
        )


def _check_config(folder: StageFolder, config: RunConfig) -> None:
    """Raise `InputError` where `folder` comes from another recipe or seed."""
    before = RunConfig.read(folder.read_recipe())
    theirs, ours = (
        (p.seed, p.recipe.data, p.recipe.network, p.recipe.stage(folder.stage))
        for p in (before, config)
    )
    if theirs != ours:
        raise InputError(
            f"{folder.path}: holds a run of another recipe or seed; name another folder with --out"
        )


def _inputs(job: _Job) -> tuple[nn.Module, Stream, EvalFn]:
    """What is trained, what it learns from and what judges it: on kept features, or on pictures."""
    model, packed, split, stage, compute, seed = (
        job.model,
        job.packed,
        job.split,
        job.stage,
        job.compute,
        job.config.seed,
    )

    def plain(images):
        return resize(images, stage.size)

    if stage.cached_epochs:
        features = train_features(model, packed, split.train, stage, seed, compute)
        held = view_features(model, packed, packed.train, split.holdout, plain, stage, compute)

        def kept_epoch(epoch, start):
            return features.epoch(seed, epoch, stage.batch, compute.device, start)

        def evaluate_head(head):
            return head_probabilities(head.eval(), held.in_order(compute.device))

        return model.head, kept_epoch, evaluate_head

    def stream(epoch, start):
        for batch in epoch_batches(
            packed.train, split.train, stage, seed, epoch, compute.device, start
        ):
            yield batch.images, batch.labels

    def evaluate_model(whole):
        images = batches(
            packed.train,
            split.holdout,
            batch_size=fitting(stage.size, compute.device),
            device=compute.device,
        )
        return view_probabilities(
            whole.for_inference(compute.device, compute.for_frozen().dtype), images, plain
        )

    return model, stream, evaluate_model


def _check(
    eval_fn: EvalFn, labels: np.ndarray, training: Training, observers: Sequence[Observer]
) -> Callable[[nn.Module], dict[str, Any]]:
    def check(module):
        log_probabilities = eval_fn(module)
        for observer in observers:
            observer.holdout(log_probabilities, labels, training.total_steps)
        return score(log_probabilities, labels)

    return check


def _run(
    job: _Job, training: Training, rows: Iterator[dict[str, Any]], observers: Sequence[Observer]
) -> None:
    """The loop (`rows` of `fit`) with everything around it: log, progress, checkpoints."""
    folder, wnids = job.folder, job.packed.wnids
    runs.cut_log(folder.log, training.total_steps)
    saved = time.monotonic()
    # rows come some at a time, and the log is opened once for all of them
    waiting: list[dict[str, Any]] = []
    total = training.stage.epochs * training.steps
    with console.progress(
        total=total, done=training.total_steps, label=folder.stage, unit="steps"
    ) as bar:
        for row in rows:
            waiting.append(row)
            for observer in observers:
                observer.row(row)
            if row["kind"] == "step":
                bar.update(row["step"] - bar.n)
                bar.set_postfix(epoch=row["epoch"] + 1, loss=f"{row['loss']:.3f}", refresh=False)
            if row["kind"] == "epoch":
                if row["improved"]:
                    head = None if isinstance(training.result, Classifier) else training.result
                    save_model(
                        folder.best,
                        job.model if head else training.result,
                        wnids,
                        training.stage.size,
                        head,
                        job.origin,
                    )
                console.log(_epoch_line(row, training.stage))
            if row["kind"] != "step" or row["step"] == training.total_steps:
                runs.append_rows(folder.log, waiting)
                waiting.clear()
            # Rows come some at a time: a checkpoint must not be ahead of the log, nor lack its
            # epoch's row alone.
            within = row["step"] == training.total_steps and training.step < training.steps
            if row["kind"] != "step" or (within and time.monotonic() - saved > _SAVE_EVERY):
                save_training(folder.last, training.state_dict(), wnids, job.origin)
                saved = time.monotonic()
            if row["kind"] == "stopped":
                raise KeyboardInterrupt


def _epoch_line(row: dict[str, Any], stage: Stage) -> str:
    held = row["holdout"]
    return (
        f"epoch {row['epoch'] + 1}/{stage.epochs}: loss {row['loss']:.3f}, hold-out top-1 "
        f"{held['top1']:.2%} (95 %: {held['low']:.2%} .. {held['high']:.2%}), top-5 "
        f"{held['top5']:.2%}, {row['pictures_per_second']:,.0f} "
        f"pictures/s{', best so far' if row['improved'] else ''}"
    )
