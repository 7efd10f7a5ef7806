"""Time frozen networks at several batch sizes, in turn, beside the default batch size.

    python -m benchmarks.batch_sizes OUT.json --networks timm/tf_efficientnet_lite0 resnet50

Each network runs in the float precision and the engine that tinynet chooses on this CPU; int8 is
left out. `share` of a row: the rate at the default batch size as a fraction of the best rate. The
weights are random, which does not change the speed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import default_batch_size
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import make_backbone, runs_in_int8
from tinynet.models.engines import OpenVinoBackbone

BATCHES = (4, 8, 16, 32, 64, 128)
MOST_PIXELS = 64 * 224**2  # of a batch


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch_sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--networks", nargs="+", default=["timm/tf_efficientnet_lite0", "vgg16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 224])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each batch size in a turn")
    options = parser.parse_args()
    compute, rows = choose_compute("cpu", int8=False), []
    for arch in options.networks:
        torch.manual_seed(0)
        backbone = make_backbone(arch).eval().requires_grad_(False)
        for size in options.sizes:
            rows.append(measure(backbone, size, compute.for_network(runs_in_int8(arch)), options))
            print(json.dumps(rows[-1]), flush=True)
    result = {"machine": facts(compute), "turns": options.turns, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1))


@torch.inference_mode()
def measure(backbone: Backbone, size: int, compute: Compute, options: Any) -> dict[str, Any]:
    """Time one network on images of one size."""
    node = backbone.node("last")
    if compute.engine == "openvino":
        network = OpenVinoBackbone(backbone, [node], compute)
    else:
        network = backbone
        backbone.body.to(compute.dtype).to(memory_format=torch.channels_last)
    default = default_batch_size(size, compute.device, compute.least_batch)
    counts = [n for n in sorted({*BATCHES, default}) if n * size**2 <= MOST_PIXELS]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.turns):
        for count in counts:
            images = torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last)
            network(images, [node])
            start, batches = time.perf_counter(), 0
            while time.perf_counter() - start < options.seconds:
                network(images, [node])
                batches += 1
            rates[count].append(batches * count / (time.perf_counter() - start))
    medians = {count: statistics.median(values) for count, values in rates.items()}
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
    main()
