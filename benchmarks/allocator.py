"""Time VGG16 with freed memory kept by glibc or returned to the kernel (its default), in turn.

    python -m benchmarks.allocator OUT.json

Each turn is a process of its own: images per second of a frozen VGG16 (in 8-bit integers and in
floats) and of a training step, at 64 px, and the peak of resident memory in GB. Weights and images
are random.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.machine import facts
from tinynet import compute as settings
from tinynet.compute import choose_compute
from tinynet.files import write_json
from tinynet.flags import Parser, positive_int, run_command, user_path
from tinynet.models.backbones import make_backbone
from tinynet.models.classifier import Classifier, pooled_features
from tinynet.models.int8 import Int8Backbone
from tinynet.training.loop import Training, weight_groups
from tinynet.training.recipes import FIRST

SIZE, BATCH = 64, 64
MEMORY = ("kept", "returned")


def main() -> None:
    """Run the script."""
    parser = Parser("benchmarks.allocator", __doc__)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--turns", type=positive_int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each job in a turn")
    parser.add_argument("--one", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.seconds)))
        return
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in MEMORY}
    for _ in range(options.turns):
        for name in MEMORY:
            command = [sys.executable, "-m", "benchmarks.allocator", options.out, "--one", name]
            command += ["--seconds", str(options.seconds)]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            turns[name].append(json.loads(ran.stdout))
            print(name, turns[name][-1], flush=True)
    pairs = list(zip(*(turns[name] for name in MEMORY), strict=True))
    ratios = {
        job: statistics.median(turn[job] / default[job] for turn, default in pairs)
        for job in pairs[0][0]
    }
    machine = facts(choose_compute("cpu"))
    write_json(options.out, {"machine": machine, "turns": turns, "ratios": ratios})
    print(ratios)


def measure(memory: str, seconds: float) -> dict[str, float]:
    """Time all jobs in this process."""
    if memory == "returned":
        settings.keep_freed_memory = lambda: False
    compute, stage = choose_compute("cpu"), FIRST.finetune
    torch.manual_seed(0)
    network = FIRST.network
    model = Classifier(make_backbone("vgg16"), network.features, network.hidden, 200, 0.5, True)
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    floats = model.for_inference(compute.device, compute.dtype).backbone
    int8 = Int8Backbone(model.for_inference(compute.device, torch.float32).backbone, images)
    jobs: dict[str, Callable[[], Any]] = {
        f"frozen {name}": torch.inference_mode()(
            partial(pooled_features, backbone, network.features, images)
        )
        for name, backbone in (("int8", int8), (compute.floats, floats))
    }
    rates = {name: rate(job, seconds) for name, job in jobs.items()}
    model.to(memory_format=torch.channels_last).train_only(stage.trainable)
    model.train()
    training = Training(model, weight_groups(model, stage), stage, 1000, compute.for_training())
    labels = torch.randint(200, (BATCH,))
    rates["finetune step"] = rate(lambda: training.train_batch(images, labels), seconds)
    rates["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return rates


def rate(job: Callable[[], Any], seconds: float) -> float:
    """Images per second of a job that processes one batch."""
    for _ in range(3):
        job()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        job()
        count += BATCH
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    run_command(main)
