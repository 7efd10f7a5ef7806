"""Time frozen networks at several batch sizes, in turn, beside the default batch size.

    python -m benchmarks.batch_sizes OUT.json --networks timm/tf_efficientnet_lite0 resnet50

Each network runs in the float precision and the engine that tinynet chooses on this CPU; int8 is
left out. `share` of a row: the rate at the default batch size as a fraction of the best rate. The
weights are random. Sizes that a network does not take are left out.
"""

import json
from functools import partial
from typing import Any

import torch

from benchmarks.machine import facts
from benchmarks.measure import LITE, in_turn, network_parser, sizes_taken
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import default_batch_size
from tinynet.files import write_json
from tinynet.flags import run_command
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import compute_for, make_backbone
from tinynet.models.engines import OpenVinoBackbone

BATCHES = (4, 8, 16, 32, 64, 128)
MOST_PIXELS = 64 * 224**2  # of a batch, and of all batches that are timed in a turn


def main() -> None:
    """Run the script."""
    parser = network_parser("benchmarks.batch_sizes", __doc__, [LITE, "vgg16"], [64, 128, 224])
    options = parser.parse_args()
    compute, rows = choose_compute("cpu", int8=False), []
    for arch in options.networks:
        torch.manual_seed(0)
        backbone = make_backbone(arch).eval().requires_grad_(False)
        for size in sizes_taken(backbone, options.sizes):
            settings = compute_for(compute, arch)
            rows.append(measure(backbone, size, settings, options.turns))
            print(json.dumps(rows[-1]), flush=True)
    result = {"machine": facts(compute), "turns": options.turns, "rows": rows}
    write_json(options.out, result)


@torch.inference_mode()
def measure(backbone: Backbone, size: int, compute: Compute, turns: int) -> dict[str, Any]:
    """Time one network on images of one size."""
    node = backbone.node("last")
    if compute.engine == "openvino":
        network = OpenVinoBackbone(backbone, [node], compute)
    else:
        network = backbone
        backbone.body.to(compute.dtype).to(memory_format=torch.channels_last)
    default = default_batch_size(size, compute)
    counts = [n for n in sorted({*BATCHES, default}) if n * size**2 <= MOST_PIXELS]
    images = {
        count: torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last)
        for count in counts
    }
    batches = {count: max(1, MOST_PIXELS // (count * size**2)) for count in counts}

    def run(count: int) -> None:
        for _ in range(batches[count]):
            network(images[count], [node])

    jobs = {str(count): partial(run, count) for count in counts}
    processed = {str(count): count * batches[count] for count in counts}
    rates = in_turn(jobs, processed, compute, turns)
    medians = {count: rates[str(count)]["median"] for count in counts}
    return {
        "network": backbone.arch,
        "size": size,
        "engine": compute.engine,
        "precision": compute.precision,
        "default": default,
        "images_per_second": medians,
        "share": medians[default] / max(medians.values()),
    }


if __name__ == "__main__":
    run_command(main)
