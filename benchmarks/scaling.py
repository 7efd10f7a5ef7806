"""Time one process against several that torchrun starts, on the CPUs of this machine, in turn.

    python -m benchmarks.scaling OUT.json

Each turn starts one process with a thread for each core, one with a single thread, and as many
processes of a single thread as there are cores. Rates are images per second of all processes
together: frozen (`extract`), training steps with the same whole batch (`strong`) or with the same
batch for each process (`weak`), and steps of a head on stored features (`head`). Weights and images
are random. Sizes of what a step adds over all processes come with it, and from them the efficiency
to expect on GPUs (`expected`), which is arithmetic with the constants of this file.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import facts
from tinynet.compute import Compute, choose_compute
from tinynet.distributed import World, join
from tinynet.files import write_json
from tinynet.flags import Parser, positive_int, run_command, user_path
from tinynet.models.backbones import make_backbone
from tinynet.models.classifier import Classifier, feature_count, pooled_features
from tinynet.training.loop import Training, weight_groups
from tinynet.training.recipes import Stage, recipe_for

# Network -> side in pixels, forward GFLOP of an image, TFLOP/s of a GPU, and the milliseconds below
# which it cannot launch the kernels of a step: half the peak of an A100 for large convolutions, and
# a twentieth for depthwise ones, which wait for memory.
NETWORKS = {
    "vgg16": (64, 2.5, 150.0, 2.0),
    "timm/tf_efficientnet_lite0": (160, 0.4, 15.0, 15.0),
}
BATCH = 64
# GPUs, bytes per second of an all-reduce between them, and seconds of a small one.
LINKS = {"8 GPUs, NVLink": (8, 200e9, 20e-6), "64 GPUs, 100 Gbit/s": (64, 10e9, 60e-6)}


def main() -> None:
    """Run the script; the processes that it starts measure."""
    if sys.argv[1:2] == ["--rank"]:
        measure(sys.argv[2], float(sys.argv[3]))
        return
    parser = Parser("benchmarks.scaling", __doc__)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--turns", type=positive_int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each job in a turn")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    kinds = {
        f"1 process, {cores} threads": (1, cores),
        "1 process, 1 thread": (1, 1),
        f"{cores} processes, 1 thread each": (cores, 1),
    }
    turns: dict[str, dict[str, list[Any]]] = {
        arch: {kind: [] for kind in kinds} for arch in NETWORKS
    }
    for _ in range(options.turns):
        for arch, rows in turns.items():
            for kind, (processes, threads) in kinds.items():
                rows[kind].append(_launch(processes, threads, arch, options.seconds))
                print(arch, kind, rows[kind][-1], flush=True)
    names = list(kinds)
    result = {
        "machine": facts(choose_compute("cpu")),
        "turns": turns,
        "processes over threads": {a: _ratios(t[names[2]], t[names[0]]) for a, t in turns.items()},
        "processes over one": {a: _ratios(t[names[2]], t[names[1]]) for a, t in turns.items()},
        "expected": {arch: expected(arch, rows[names[2]][0]) for arch, rows in turns.items()},
    }
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in list(result)[2:]}, indent=1))


def _launch(processes: int, threads: int, arch: str, seconds: float) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    ran = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.scaling", "--", "--rank", arch, str(seconds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        # 1 means to tinynet: as many threads as there are cores for each process.
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    return dict(json.loads(ran.stdout))


def _ratios(rates: list[Any], others: list[Any]) -> dict[str, float]:
    """For each job, the median of the ratios of turns."""
    return {
        job: round(
            statistics.median(a[job] / b[job] for a, b in zip(rates, others, strict=True)), 2
        )
        for job in ("extract", "strong", "weak", "head")
    }


# --- in the processes ---


def measure(arch: str, seconds: float) -> None:
    """Time all jobs; rank 0 prints the rates of all ranks together."""
    world = join()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recipe, size, compute = recipe_for(arch), NETWORKS[arch][0], choose_compute("cpu")
    torch.manual_seed(0)
    network = recipe.network
    model = Classifier(make_backbone(arch), network.features, network.hidden, 200, 0.5, True)
    features = model.feature_names
    backbone = model.for_inference(compute.device, compute.for_frozen().dtype).backbone
    extract = torch.inference_mode()(
        partial(pooled_features, backbone, features, _images(BATCH, size))
    )
    results = {"extract": world.size * _rate(extract, BATCH, seconds, world)}
    model.to(memory_format=torch.channels_last)
    for name, batch in (("strong", BATCH), ("weak", BATCH * world.size)):
        training = _training(model, model, replace(recipe.finetune, batch=batch), compute)
        share = _images(batch, size)[world.share(batch)]
        results[name] = _steps(training, share, seconds)
        if name == "strong":
            results |= _sums(training, share)
    training = _training(model, model.head, replace(recipe.base, batch=BATCH), compute)
    inputs = torch.rand(BATCH, feature_count(model.backbone, features))
    results["head"] = _steps(training, inputs[world.share(BATCH)], seconds)
    if world.main:
        print(json.dumps(results))


def _images(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last)


def _training(model: Classifier, module: nn.Module, stage: Stage, compute: Compute) -> Training:
    """The training of the whole network, or of its head."""
    model.train_only(stage.trainable)
    groups = weight_groups(model, stage)
    return Training(module.train(), groups, stage, 10**6, compute.for_training())


def _steps(training: Training, inputs: Tensor, seconds: float) -> float:
    """Images per second of training steps on this rank's share of a batch."""
    labels = torch.randint(200, (len(inputs),))
    step = partial(training.train_batch, inputs, labels)
    return _rate(step, training.stage.batch, seconds, training.world)


def _rate(job: Callable[[], Any], count: int, seconds: float, world: World) -> float:
    """Images per second of a job that processes `count` images; all ranks repeat it as often."""
    start = time.perf_counter()
    for _ in range(3):
        job()
    times = world.from_main(lambda: max(3, round(3 * seconds / (time.perf_counter() - start))))
    world.barrier()
    start = time.perf_counter()
    for _ in range(times):
        job()
    world.barrier()
    return times * count / (time.perf_counter() - start)


def _sums(training: Training, share: Tensor) -> dict[str, float]:
    """What a step adds over all ranks: bytes of gradients, and the number of small sums.

    Then the seconds of an all-reduce of as many bytes.
    """
    world = training.world
    weights = [w for group in training.optimizer.param_groups for w in group["params"]]
    size = sum(weight.numel() for weight in weights)
    before = world.collectives
    training.train_batch(share, torch.randint(200, (len(share),)))
    small, gradients = world.collectives - before, torch.rand(size)
    rate = _rate(lambda: world.sum(gradients), 1, 2.0, world)
    return {"gradient bytes": 4 * size, "small sums": small, "seconds of the gradients": 1 / rate}


# --- arithmetic ---


def expected(arch: str, measured: dict[str, float]) -> dict[str, Any]:
    """The efficiency to expect of a training step on GPUs: the rate of N over N times that of one.

    Two thirds of the computation, the backward pass, hide the sum of the gradients. Small sums, of
    batch norms, hide behind nothing.
    """
    _, flop, speed, launching = NETWORKS[arch]
    rows: dict[str, Any] = {}
    for link, (count, bandwidth, latency) in LINKS.items():
        for batch in (64, 4096):
            alone, shared = (
                max(3 * flop * images / speed / 1e3, launching / 1e3)
                for images in (batch, batch / count)
            )
            gradients = 2 * (count - 1) / count * measured["gradient bytes"] / bandwidth
            exposed = max(0.0, gradients - 2 / 3 * shared)
            small = measured["small sums"] * latency
            parts = {"compute": shared, "gradients": exposed, "small sums": small}
            step = sum(parts.values())
            rows[f"{link}, batch {batch}"] = {
                "efficiency": round(alone / count / step, 2),
                "milliseconds": {name: round(1e3 * part, 2) for name, part in parts.items()},
            }
    return rows


if __name__ == "__main__":
    run_command(main)
