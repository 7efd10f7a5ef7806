"""Measure the parts of a step of `finetune` on a GPU, and what a CUDA graph would save.

    PYTHONPATH=. python experiments/gpu_step.py OUT.json

The recipe is `tuned`, with random images and weights, because neither changes the time. The file
has milliseconds. "busy" is the time of all kernels in a step, by torch's profiler. "same losses":
whether 40 steps have the same losses with a graph. With dropout they differ, because a graph draws
other random numbers.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import facts
from tinynet.compute import Compute, choose_compute
from tinynet.data.packed import PackedPart
from tinynet.files import write_json
from tinynet.models.backbones import load_backbone
from tinynet.models.classifier import Classifier
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training, weight_groups
from tinynet.training.recipes import TUNED, Stage

SECONDS, STEPS = 1.2, 10  # of a measurement, and of the profile
LOSSES = 40
_IMAGES, _SIDE, _CLASSES = 2560, 64, 200


def inputs(compute: Compute) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches of random images and their labels, without end."""
    random = np.random.default_rng(0)
    part = PackedPart(
        "train",
        random.integers(0, 255, (_IMAGES, _SIDE, _SIDE, 3), dtype=np.uint8),
        random.integers(0, _CLASSES, _IMAGES),
        np.zeros((_IMAGES, 4), np.int16),
        Path(),
    )
    stream = TrainingImages(part, np.arange(_IMAGES), TUNED.finetune, 0)
    for epoch in itertools.count():
        for batch in stream.epoch(epoch, compute.device):
            assert batch.labels is not None
            yield batch.images, batch.labels


def training(stage: Stage, compute: Compute) -> Training:
    """A training of a stage, always with the same random weights."""
    torch.manual_seed(0)
    network, backbone = TUNED.network, load_backbone("vgg16", "none")
    model = Classifier(
        backbone, network.features, network.hidden, _CLASSES, stage.dropout, network.standardise
    )
    model.train_only(stage.trainable)
    model.to(compute.device).to(memory_format=torch.channels_last)
    return Training(model.train(), weight_groups(model, stage), stage, 10**5, compute)


class Autocast(nn.Module):
    """A network in mixed precision, without the cache of autocast, which a graph cannot have."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        with torch.autocast("cuda", self.dtype, cache_enabled=False):
            return self.module(images)


def record(one: Training, images: Tensor) -> None:
    """Let a training replay the forward and the backward pass as a graph, for this batch size."""
    state = copy.deepcopy(one.module.state_dict())
    module = Autocast(one.module, one.compute.dtype).train()
    sample = images.clone(memory_format=torch.preserve_format)
    graph = torch.cuda.make_graphed_callables(module, (sample,), allow_unused_input=True)
    one.module.load_state_dict(state)  # the passes before recording changed the statistics
    one._compiled = graph  # what a step calls on a whole batch


def milliseconds(step: Callable[[], Any]) -> float:
    """The time of a step; the GPU is waited for after every fifth one."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        count += 5
    return 1e3 * (time.perf_counter() - start) / count


def parts(compute: Compute) -> dict[str, float]:
    """Milliseconds of the parts of a step, and of other steps."""
    stage, stream = TUNED.finetune, inputs(compute)
    whole, (x, y) = training(stage, compute), next(stream)

    def forward() -> None:
        with compute.autocast():
            whole.module(x)

    def changed(x: Tensor, y: Tensor, **fields: Any) -> float:
        other = training(replace(stage, **fields), compute)
        return milliseconds(lambda: other.train_batch(x, y))

    limit = stage.max_grad_norm or 1.0
    weights = [weight for group in whole.optimizer.param_groups for weight in group["params"]]
    four_times = torch.cat([x] * 4).contiguous(memory_format=torch.channels_last)
    result = {
        "whole step": milliseconds(lambda: whole.train_batch(*next(stream))),
        "inputs": milliseconds(lambda: next(stream)),
        "step on the same inputs": milliseconds(lambda: whole.train_batch(x, y)),
        "forward pass": milliseconds(forward),
        "optimizer": milliseconds(whole.optimizer.step),
        "clip the gradient": milliseconds(lambda: nn.utils.clip_grad_norm_(weights, limit)),
        "step on the same inputs, head alone trained": changed(x, y, trainable=("head",)),
        "step on the same inputs, batch of 256": changed(four_times, torch.cat([y] * 4), batch=256),
    }
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
        for _ in range(STEPS):
            whole.train_batch(*next(stream))
        torch.cuda.synchronize()
    busy = sum(
        event.self_device_time_total
        for event in events.key_averages()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    return {**result, "busy": busy / STEPS / 1e3}


def graphs(compute: Compute, dropout: float) -> dict[str, Any]:
    """Milliseconds of a whole step with and without a graph, and whether the losses agree."""
    stage, losses, result = replace(TUNED.finetune, dropout=dropout), [], dict[str, Any]()
    for kind in ("as it is", "with a CUDA graph"):
        one, stream = training(stage, compute), inputs(compute)
        if kind != "as it is":
            record(one, next(inputs(compute))[0])
        first = [one.train_batch(*next(stream)) for _ in range(LOSSES)]
        losses.append(torch.stack(first).tolist())
        result[kind] = milliseconds(lambda one=one, stream=stream: one.train_batch(*next(stream)))
    return {**result, "same losses": np.allclose(*losses, atol=1e-4)}


def main() -> None:
    """Measure the parts of a step, then steps with graphs."""
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    compute = choose_compute("cuda").for_training(True)
    about = {"what": description, "machine": facts(choose_compute("cuda"))}
    dropouts = {f"dropout {value}": graphs(compute, value) for value in (0.0, 0.2)}
    write_json(out, {**about, "milliseconds": parts(compute), **dropouts})


if __name__ == "__main__":
    main()
