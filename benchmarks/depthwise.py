"""Time training steps with and without the faster gradients of depthwise convolutions, in turn.

    python -m benchmarks.depthwise OUT.json --networks timm/tf_efficientnet_lite0 --sizes 160

Images per second of forward and backward passes of all layers in bfloat16 and float32 on this CPU.
`difference`: of all gradients in bfloat16, relative to torch's own. `ratio`: the time with the
faster gradients over the time of torch's own. Weights and images are random, which does not change
the speed.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import facts
from benchmarks.measure import LITE, in_turn, network_parser
from tinynet.compute import Compute, choose_compute
from tinynet.files import write_json
from tinynet.flags import run_command
from tinynet.models.backbones import make_backbone
from tinynet.models.classifier import Classifier
from tinynet.models.depthwise import FastDepthwise

CLASSES = 200


def main() -> None:
    """Run the script."""
    parser = network_parser("benchmarks.depthwise", __doc__, [LITE], [64, 160])
    parser.add_argument("--batch", type=int, default=64)
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
    write_json(options.out, result)


def measure(model: Classifier, size: int, compute: Compute, options: Any) -> dict[str, Any]:
    """Time one network on images of one size."""
    images = torch.rand(options.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch,))

    gradients = {}

    def train(name: str, autocast: AbstractContextManager, mode: AbstractContextManager) -> None:
        torch.manual_seed(0)
        for _ in range(options.steps):
            model.zero_grad()
            with autocast, mode:
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
        gradients[name] = torch.cat([weight.grad.flatten() for weight in model.parameters()])

    jobs = {
        "torch": lambda: train("torch", compute.autocast(), nullcontext()),
        "faster": lambda: train("faster", compute.autocast(), FastDepthwise()),
        "float32": lambda: train("float32", nullcontext(), nullcontext()),
    }
    rates = in_turn(jobs, options.steps * options.batch, compute, options.turns)
    apart = (gradients["faster"] - gradients["torch"]).norm() / gradients["torch"].norm()
    return {
        "size": size,
        "images_per_second": {name: rate["median"] for name, rate in rates.items()},
        "ratio": 1 / rates["faster"]["ratio"],
        "difference": float(apart),
    }


if __name__ == "__main__":
    run_command(main)
