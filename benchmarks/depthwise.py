"""Time training steps with and without the faster gradients of depthwise convolutions, in turn.

    python -m benchmarks.depthwise OUT.json --networks timm/tf_efficientnet_lite0 --sizes 160

Images per second of forward and backward passes of all layers in bfloat16 and float32 on this CPU.
`difference`: of all gradients in bfloat16, relative to torch's own. `ratio`: the time with the
faster gradients over the time of torch's own. Weights and images are random, which does not change
the speed.
"""

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import facts
from tinynet.compute import Compute, choose_compute
from tinynet.models.backbones import make_backbone
from tinynet.models.classifier import Classifier
from tinynet.models.depthwise import FastDepthwise

CLASSES = 200


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.depthwise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--networks", nargs="+", default=["timm/tf_efficientnet_lite0"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 160])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    options = parser.parse_args()
    compute, rows = choose_compute("cpu", "bfloat16", int8=False), []
    for arch in options.networks:
        torch.manual_seed(0)
        model = Classifier(make_backbone(arch), ["last:mean"], (), CLASSES, 0.0, True)
        model.to(memory_format=torch.channels_last).train_only(["all"])
        for size in options.sizes:
            rows.append({"network": arch, **measure(model.train(), size, compute, options)})
            print(json.dumps(rows[-1]), flush=True)
    result = {"machine": facts(compute), "batch": options.batch, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1))


def measure(model: Classifier, size: int, compute: Compute, options: Any) -> dict[str, Any]:
    """Time one network on images of one size."""
    images = torch.rand(options.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch,))

    def step(*contexts: AbstractContextManager) -> None:
        model.zero_grad()
        with contexts[0], contexts[1]:
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    kinds = {
        "torch": lambda: step(compute.autocast(), nullcontext()),
        "faster": lambda: step(compute.autocast(), FastDepthwise()),
        "float32": lambda: step(nullcontext(), nullcontext()),
    }
    gradients = {}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(options.turns):
        for name, run in kinds.items():
            torch.manual_seed(0)
            run()
            gradients[name] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
            start = time.perf_counter()
            for _ in range(options.steps):
                run()
            rates[name].append(options.steps * options.batch / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    apart = (gradients["faster"] - gradients["torch"]).norm() / gradients["torch"].norm()
    return {
        "size": size,
        "images_per_second": medians,
        "ratio": medians["torch"] / medians["faster"],
        "difference": float(apart),
    }


if __name__ == "__main__":
    main()
