"""Measure how many images a second this machine extracts features of, and trains on."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tinynet.compute import AutoBatch, Compute
from tinynet.data.batches import default_batch_size
from tinynet.data.packed import Packed
from tinynet.models.backbones import compute_for
from tinynet.models.classifier import Classifier, feature_count, pooled_features
from tinynet.training.config import RunConfig
from tinynet.training.extraction import frozen_backbone, int8_backbone
from tinynet.training.features import Features
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training, weight_groups
from tinynet.training.new_network import new_network
from tinynet.training.plans import Kind, Rates, sizes_of
from tinynet.training.recipes import Stage

SECONDS = 4.0  # the longest measurement of one rate, after a first batch
_SECONDS_PER_MINUTE = 0.5  # of this measurement, for each minute of the run
_QUEUED = 8  # batches between two waits for a GPU: more would queue for seconds on a slow one
_FEATURES = 8192  # rows of features that the head is trained on


def measure_rates(
    config: RunConfig, kinds: Sequence[Kind], packed: Packed, compute: Compute, minutes: float
) -> Rates:
    """Measure the rates that plans of these `kinds` need.

    Each is measured for a few seconds, fewer if the run has few `minutes`.
    """
    seconds = min(SECONDS, _SECONDS_PER_MINUTE * minutes)
    compute = compute_for(compute, config.recipe.network.arch)
    model = new_network(config, len(packed.wnids))
    base, later = sizes_of(kinds, config.recipe)

    def frozen_at(size: int, device: Compute) -> float:
        return frozen_rate(model, packed, size, device, seconds)

    frozen = {size: frozen_at(size, compute.for_frozen()) for size in base}
    if compute.engine == "torch":
        missing, trained = set(later) - frozen.keys(), compute.for_frozen()
    else:  # a trained network does not run in another engine
        missing, trained = set(later), compute.for_training()
    after = frozen | {size: frozen_at(size, trained) for size in sorted(missing)}
    head = _head_rate(model, config.recipe.base, compute, seconds)
    step: dict[int, float] = {}
    for kind in kinds:
        if "finetune" in kind.values:
            planned = replace(config, recipe=kind.recipe(config.recipe, 1))
            stage = planned.stage("finetune", packed.side)
            if stage.size not in step:
                step[stage.size] = _step_rate(model, packed, stage, compute, seconds)
    return Rates(frozen, after, step, head)


def frozen_rate(
    model: Classifier, packed: Packed, size: int, compute: Compute, seconds: float
) -> float:
    """Measure the images per second of a frozen network's features at `size` pixels.

    Random images are loaded and resized, too. `seconds`: how long it is measured,
    after a first batch.
    """
    backbone = frozen_backbone(model, packed, size, compute)
    forward = AutoBatch(partial(pooled_features, backbone, model.feature_names))
    stage = Stage(size=size, batch=max(2, default_batch_size(size, compute)))
    images = _training_images(packed, stage, compute)

    def take() -> tuple[int, Tensor]:
        batch, _ = next(images)
        return len(batch), forward(batch).sum()

    with torch.inference_mode():
        return _per_second(take, seconds)


def _head_rate(model: Classifier, stage: Stage, compute: Compute, seconds: float) -> float:
    """Images per second of training the head on cached features."""
    model.train_only(["head"])
    head, width = model.head.to(compute.device), feature_count(model.backbone, model.feature_names)
    count = max(_FEATURES, stage.batch)
    values = np.random.default_rng(0).random((1, count, width), np.float32)
    values = values.astype(stage.feature_dtype)
    features = Features((values,), np.arange(count) % model.shape["classes"])

    def inputs() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            yield from features.epoch(0, epoch, stage.batch, compute.device)

    return _training_rate(head, model, stage, compute, inputs(), seconds)


def _step_rate(
    model: Classifier, packed: Packed, stage: Stage, compute: Compute, seconds: float
) -> float:
    """Images per second of a training step on images, with frozen first layers as in training.

    `compute`: of this network.
    """
    groups = model.group_names(stage.trainable)
    last = model.backbone.frozen_start(groups)
    compute = compute.for_training(bool(last))
    model.train_only(stage.trainable)
    model.to(compute.device).to(memory_format=torch.channels_last)
    if compute.int8_start:
        start = int8_backbone(model, packed, stage.size, compute.device, last)
        model.start_with(start, last)
    images = _training_images(packed, stage, compute)
    return _training_rate(model, model, stage, compute, images, seconds)


def _training_images(
    packed: Packed, stage: Stage, compute: Compute
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of train and their labels, without end."""
    images = TrainingImages(packed.train, np.arange(len(packed.train)), stage, 0)
    for epoch in itertools.count():
        for batch in images.epoch(epoch, compute.device):
            assert batch.labels is not None  # train has labels
            yield batch.images, batch.labels


def _training_rate(
    module: torch.nn.Module,
    model: Classifier,
    stage: Stage,
    compute: Compute,
    inputs: Iterator[tuple[Tensor, Tensor]],
    seconds: float,
) -> float:
    """Images per second of the training loop's own steps."""
    training = Training(module.train(), weight_groups(model, stage), stage, 1, compute)

    def take() -> tuple[int, Tensor]:
        batch, labels = next(inputs)
        return len(labels), training.train_batch(batch, labels)

    return _per_second(take, seconds)


def _per_second(take: Callable[[], tuple[int, Tensor]], seconds: float) -> float:
    """Images per second of `take`, which returns their number and a scalar, after a first batch.

    As in training, the CPU does not wait for a GPU after each batch.
    """
    take()[1].item()
    start, images, queued = time.perf_counter(), 0, 0
    while not images or time.perf_counter() - start < seconds:
        count, result = take()
        images, queued = images + count, queued + 1
        if queued % _QUEUED == 0:
            result.item()
    result.item()
    return images / (time.perf_counter() - start)
