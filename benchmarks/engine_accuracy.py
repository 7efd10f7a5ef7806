"""Compare the accuracy of a pretrained network in torch and OpenVINO on the hold-out, in pairs.

    python -m benchmarks.engine_accuracy OUT.json --weights lite0.pth

The network is used without training, by its own ImageNet head (`tinynet zero-shot`), in float32 and
bfloat16 in both engines. Each is compared with float32 in torch on the same images (McNemar's exact
paired test). `images_per_second` is not a measurement of speed. 8-bit integers:
OpenVINO, quantised after training by NNCF with ranges of 256 training images; left out if NNCF is
not installed.
"""

import copy
import json
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.engines import quantised
from benchmarks.machine import facts
from benchmarks.measure import LITE
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import batches
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.packed import Packed
from tinynet.data.splits import split_train
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, positive_int, run_command, user_path
from tinynet.models.pretrained import Pretrained, load_pretrained
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import View, resize

RANGES = 256  # training images


def main() -> None:
    """Run the script."""
    parser = Parser("benchmarks.engine_accuracy", __doc__)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--arch", default=LITE)
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--size", type=positive_int, help="pixels (default: the published size)")
    add_common(parser, "data", "cache")
    options = parser.parse_args()
    packed = open_packed(find_data(options.data), options.cache)
    model, size = zero_shot_network(options.arch, options.weights, packed)
    size = options.size or size
    rows, reference = [], None
    for name, network in engines(model, packed, size).items():
        network(torch.zeros(16, 3, size, size))  # compiles
        start = time.perf_counter()
        values, labels = predictions(network, packed, partial(resize, size=size))
        seconds = time.perf_counter() - start
        hits = values.argmax(1) == labels
        reference = hits if reference is None else reference
        row = {"engine": name, **score(values, labels).to_json()}
        row |= mcnemar(hits, reference).to_json() | {"images_per_second": len(labels) / seconds}
        rows.append(row | {"differ": int((hits != reference).sum())})
        print(json.dumps(rows[-1]), flush=True)
    machine = facts(Compute(torch.device("cpu"), torch.float32))
    what = {"arch": options.arch, "weights": Path(options.weights).name, "size": size}
    write_json(options.out, {**what, "machine": machine, "rows": rows})


def zero_shot_network(arch: str, weights: str, packed: Packed) -> tuple[Pretrained, int]:
    """A network with the outputs of the data's classes, and its published size."""
    wnids = imagenet_wnids()
    classes = [wnids.index(wnid) for wnid in packed.wnids]
    model, published = load_pretrained(arch, weights, classes)
    return model, published.size


def predictions(network: nn.Module, packed: Packed, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (N, C) of a view of the hold-out's images, and their labels (N,)."""
    labels = packed.train.required_labels
    rows = split_train(labels).holdout
    images = batches(packed.train, rows, batch_size=16)
    return view_probabilities(network, images, view), labels[rows]


def engines(model: Pretrained, packed: Packed, size: int) -> dict[str, nn.Module]:
    """The network in each engine, the reference first."""
    networks: dict[str, nn.Module] = {}
    for precision in ("float32", "bfloat16"):
        compute = choose_compute("cpu", precision, int8=False)
        networks[f"torch {precision}"] = copy.deepcopy(model).on(compute)
        engine = compute.for_network(runs_in_int8=False)
        networks[f"openvino {precision}"] = copy.deepcopy(model).on(engine)
    if find_spec("nncf"):
        train = split_train(packed.train.required_labels).train
        rows = train[np.linspace(0, len(train) - 1, RANGES).astype(np.int64)]
        images = resize(next(batches(packed.train, rows, batch_size=RANGES)).images, size)
        networks["openvino int8"] = Quantised(model, images)
    return networks


class Quantised(nn.Module):
    """A network in 8-bit integers; `images`: to measure the ranges of."""

    def __init__(self, model: Pretrained, images: Tensor):
        super().__init__()
        self._run = quantised(model, images)

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)


if __name__ == "__main__":
    run_command(main)
