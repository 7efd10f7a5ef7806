"""Train one stage: its data, the training loop, the log and the checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tinynet import console, runs
from tinynet.compute import Compute
from tinynet.data.batches import batches, default_batch_size
from tinynet.data.packed import Packed
from tinynet.data.splits import Split
from tinynet.distributed import World
from tinynet.files import write_json
from tinynet.models.checkpoint import State, save_model, save_training
from tinynet.models.classifier import Classifier
from tinynet.records import (
    EpochRow,
    Json,
    LogRow,
    Score,
    ScoreRow,
    StepRow,
    StopRow,
)
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities, view_probabilities
from tinynet.score.views import resize
from tinynet.training import schedules
from tinynet.training.config import RunConfig
from tinynet.training.extraction import int8_backbone
from tinynet.training.features import FeatureCache
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import EpochInputs, Training, fit, weight_groups
from tinynet.training.observers import Observer
from tinynet.training.order import Shuffle, steps_per_epoch
from tinynet.training.pace import Watch
from tinynet.training.recipes import Stage
from tinynet.training.resume import origin_digest, restore

SAVE_EVERY = 600.0  # seconds of training that a crash may cost

EvalFn = Callable[[nn.Module], np.ndarray]  # network -> log-probabilities (N, C) of the hold-out


@dataclass(frozen=True)
class StageJob:
    """Everything that one stage is trained with.

    `facts`: the contents of its `recipe.json`. `watch`: keeps the minutes of the run, if there are
    any.
    """

    folder: StageFolder
    config: RunConfig
    packed: Packed
    split: Split
    model: Classifier
    compute: Compute
    facts: Json
    world: World = World()
    watch: Watch | None = None

    @property
    def block(self) -> int:
        """As in `Shuffle`."""
        return int(self.facts.get("shuffle_block", 0))

    def view(self, images: Tensor) -> Tensor:
        """Images of the hold-out as the network sees them: resized, not augmented."""
        return resize(images, self.stage.size)

    @property
    def stage(self) -> Stage:
        """The stage's settings."""
        return self.config.stage(self.folder.stage, self.packed.side)

    @property
    def origin(self) -> str:
        """The digest of everything that decides this stage's weights, except its epochs."""
        return origin_digest(self.folder.stage, self.config, self.facts)

    @property
    def images(self) -> TrainingImages:
        """The training images of this stage."""
        return TrainingImages(
            self.packed.train,
            self.split.train,
            self.stage,
            self.config.seed,
            self.world,
            self.block,
        )

    @property
    def holdout_labels(self) -> np.ndarray:
        """The labels (N,) of the held-out images."""
        return self.packed.train.required_labels[self.split.holdout]


def frozen_start(model: Classifier, config: RunConfig, stage: str) -> str:
    """Return the last of the first layers that stay frozen in `stage`; '' if there are none.

    Layers that an earlier stage has trained do not count, and neither do those of a stage that is
    trained on cached features.
    """
    if config.recipe.stage(stage).cached_epochs:
        return ""
    return model.backbone.frozen_start(model.group_names(config.trained_groups(stage)))


def train_stage(job: StageJob, state: State | None, observers: Sequence[Observer]) -> ScoreRow:
    """Train one stage and return its row of `scores.jsonl`: the hold-out score of its best epoch.

    `state`: the training state to continue from; None: start from the beginning. Raises
    `KeyboardInterrupt` after saving a checkpoint.
    """
    training, stream, eval_fn = _prepare(job)
    if state is not None:
        restore(training, state, job.folder)
        console.log(
            f"resumed at epoch {training.epoch + 1}, step {training.step} of {training.epoch_steps}"
        )
    with console.stop_on_interrupt() as stop, ExitStack() as stack:
        for observer in observers:
            observer.start(job.folder, training.total_steps)
            stack.callback(observer.close)
        if state is None and job.world.main:
            # Only now, so that a run that cannot start leaves no files. The checkpoint comes
            # first: the recipe marks the stage as started.
            save_training(job.folder.last, training.state_dict(), job.packed.wnids, job.origin)
            write_json(job.folder.recipe, job.facts)
            if job.watch:
                job.watch.save()
        viewers = [observer for observer in observers if observer.wants_images]
        if viewers and not training.total_steps:
            images = next(job.images.epoch(0, torch.device("cpu"))).images
            for observer in viewers:
                observer.images(images)
        check = _check_fn(eval_fn, job.holdout_labels, training, observers)
        _run(job, training, fit(training, stream, check, stop), observers)
    assert training.best is not None  # a stage has at least one epoch
    return holdout_row(job, training.best.holdout)


def holdout_row(job: StageJob, holdout: Score) -> ScoreRow:
    """Return the row of `scores.jsonl` for a stage's network and its score."""
    return ScoreRow(
        run=str(job.folder.run),
        stage=job.folder.stage,
        split="holdout",
        views="none",
        merge="mean",
        size=job.stage.size,
        precision=job.compute.for_frozen().precision,
    ).with_score(holdout, job.packed.titles)


def holdout_score(job: StageJob, network: Classifier) -> Score:
    """Evaluate a whole network on the hold-out as a training evaluates its own."""
    _, _, evaluate = _image_inputs(job)
    return score(evaluate(network), job.holdout_labels)


def _prepare(job: StageJob) -> tuple[Training, EpochInputs, EvalFn]:
    """Freeze and place the network, then build the training, its inputs and its evaluation."""
    model, stage, train_count = job.model, job.stage, len(job.split.train)
    model.set_dropout(stage.dropout)
    model.to(job.compute.device).to(memory_format=torch.channels_last)
    trainable = model.train_only(stage.trainable)
    console.log(
        f"{job.folder.stage}: training {trainable:,} weights on {train_count:,} images "
        f"({len(job.split.holdout):,} held out)"
    )
    if stage.batch > train_count:
        console.log(
            f"note: the batch size ({stage.batch:,}) exceeds the {train_count:,} training "
            "images, so each epoch is one step"
            + console.advice(f"; use a smaller {console.option('batch')}")
        )
    steps = steps_per_epoch(train_count, stage.batch)
    if warning := schedules.warning(stage, steps):
        console.log(f"note: {warning}")
    if job.compute.int8_start:
        last = frozen_start(model, job.config, job.folder.stage)
        start = int8_backbone(model, job.packed, stage.size, job.compute.device, last)
        model.start_with(start, last)
    module, stream, eval_fn = _feature_inputs(job) if stage.cached_epochs else _image_inputs(job)
    return Training(module, weight_groups(model, stage), stage, steps, job.compute), stream, eval_fn


def _feature_inputs(job: StageJob) -> tuple[nn.Module, EpochInputs, EvalFn]:
    """The head, with cached features to train and evaluate it on."""
    stage, device, seed = job.stage, job.compute.device, job.config.seed
    shuffle = Shuffle(stage.balanced, job.block)
    cache = FeatureCache(job.model, job.packed, job.compute)
    features = cache.train_features(job.split.train, stage, seed)
    holdout = cache.view_features(job.packed.train, job.split.holdout, job.view, stage)

    def stream(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return features.epoch(seed, epoch, stage.batch, device, start, shuffle)

    def evaluate(head: nn.Module) -> np.ndarray:
        share = job.world.share(len(job.split.holdout))
        values = head_probabilities(head.eval(), holdout.in_order(device, share=share))
        return job.world.gather(values)

    return job.model.head, stream, evaluate


def _image_inputs(job: StageJob) -> tuple[nn.Module, EpochInputs, EvalFn]:
    """The whole network, with images to train and evaluate it on."""
    stage, compute = job.stage, job.compute

    def stream(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in job.images.epoch(epoch, compute.device, start):
            assert batch.labels is not None  # train has labels
            yield batch.images, batch.labels

    def evaluate(network: nn.Module) -> np.ndarray:
        assert isinstance(network, Classifier)
        holdout = batches(
            job.packed.train,
            job.split.holdout[job.world.share(len(job.split.holdout))],
            batch_size=default_batch_size(stage.size, compute),
            device=compute.device,
        )
        network = network.for_inference(compute.device, compute.for_frozen().dtype)
        return job.world.gather(view_probabilities(network, holdout, job.view))

    return job.model, stream, evaluate


def _check_fn(
    eval_fn: EvalFn, labels: np.ndarray, training: Training, observers: Sequence[Observer]
) -> Callable[[nn.Module], Score]:
    """A function that evaluates a network on the hold-out and informs the observers."""

    def check(module: nn.Module) -> Score:
        log_probabilities = eval_fn(module)
        for observer in observers:
            observer.holdout(log_probabilities, labels, training.total_steps)
        return score(log_probabilities, labels)

    return check


def _run(
    job: StageJob, training: Training, rows: Iterator[LogRow], observers: Sequence[Observer]
) -> None:
    """Consume the `rows` of `fit`: write the log, the checkpoints and the progress bar."""
    folder = job.folder
    if not job.world.main:
        for row in rows:  # rank 0 writes
            if isinstance(row, StopRow):
                job.world.barrier()  # until it has
                raise KeyboardInterrupt
        return
    runs.cut_log(folder.log, training.total_steps)
    last_save = time.monotonic()
    pace = job.watch.pace(folder.stage) if job.watch else None
    # Rows arrive in bursts: collect them, and open the log once a burst.
    pending: list[LogRow] = []
    with console.progress(
        total=training.total, done=training.total_steps, label=folder.stage, unit="steps"
    ) as bar:
        for row in rows:
            pending.append(row)
            for observer in observers:
                observer.row(row)
            if isinstance(row, StepRow):
                bar.total = training.total
                bar.update(row.step - bar.n)
                bar.set_postfix(epoch=row.epoch + 1, loss=f"{row.loss:.3f}", refresh=False)
            if isinstance(row, EpochRow):
                if row.improved:
                    _save_best(job, training.result)
                console.log(_epoch_line(row, training))
                if pace:
                    pace.epoch_ended(training)
            ends = not isinstance(row, StepRow)  # the epoch or the training
            if ends or row.step == training.total_steps:
                runs.append_rows(folder.log, pending)
                pending.clear()
                if pace and not ends:
                    pace.follow(training)
            # A checkpoint must not be ahead of the log, so it waits for the last row of a burst.
            # At the end of an epoch it waits for the epoch's row too.
            within = row.step == training.total_steps and training.step < training.epoch_steps
            if ends or (within and time.monotonic() - last_save > SAVE_EVERY):
                save_training(folder.last, training.state_dict(), job.packed.wnids, job.origin)
                if job.watch:
                    job.watch.save()
                last_save = time.monotonic()
            if isinstance(row, StopRow):
                job.world.barrier()
                raise KeyboardInterrupt
    if training.corners is not None:
        # The end has changed.
        save_epochs(job.folder, training.total / training.steps)


def save_epochs(folder: StageFolder, epochs: float) -> None:
    """Write the number of epochs that were trained into a stage's recipe."""
    recipe = folder.read_recipe()
    recipe["recipe"][folder.stage]["epochs"] = epochs
    write_json(folder.recipe, recipe)


def _save_best(job: StageJob, result: nn.Module) -> None:
    """Save the best network so far; `result` is the whole network, or its head alone."""
    model, head = (result, None) if isinstance(result, Classifier) else (job.model, result)
    save_model(job.folder.best, model, job.packed.wnids, job.stage.size, head, job.origin)


def _epoch_line(row: EpochRow, training: Training) -> str:
    score, epochs = row.holdout, math.ceil(training.total / training.steps)
    return (
        f"epoch {row.epoch + 1}/{epochs}: loss {row.loss:.3f}, hold-out top-1 "
        f"{score.top1:.2%} (95 %: {score.low:.2%} .. {score.high:.2%}), top-5 {score.top5:.2%}, "
        f"{row.images_per_second:,.0f} images/s{', best so far' if row.improved else ''}"
    )
