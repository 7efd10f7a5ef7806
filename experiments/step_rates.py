"""Images per second of a training step in `finetune` of VGG16, on random images of 64 and 96 px.

    python experiments/step_rates.py IMAGENET1K_V1 experiments/step-rates.json

Three variants are compared: all layers are trained, or conv1 to conv3 are frozen in floats, or
frozen in int8. They are measured in turn, three times. The first argument names the weights, or a
file of them. This needs a CPU with int8 instructions; run nothing else beside it.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from tinynet.compute import Compute, choose_compute
from tinynet.files import write_json
from tinynet.models.backbones import load_backbone
from tinynet.models.classifier import Classifier
from tinynet.models.int8 import Int8Backbone
from tinynet.training.recipes import TUNED

BATCH, STEPS, TURNS = 64, 4, 3
LATE, LAST = ("conv4", "conv5", "head"), "pool3"


def step(
    weights: str, size: int, compute: Compute, trainable: tuple[str, ...], int8: bool
) -> Callable[[], None]:
    """Return a function that takes one training step on random images of `size` pixels."""
    network = TUNED.network
    backbone = load_backbone("vgg16", weights)
    model = Classifier(backbone, network.features, network.hidden, 200, 0.2, True)
    model.train().to(memory_format=torch.channels_last)
    model.train_only(trainable)
    images = torch.rand(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH)
    if int8:
        model.start_with(Int8Backbone(backbone, images, LAST), LAST)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5, fused=True)

    def take() -> None:
        with compute.autocast():
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return take


def rate(take: Callable[[], None]) -> float:
    """Images per second of a few steps."""
    take()
    start = time.perf_counter()
    for _ in range(STEPS):
        take()
    return BATCH * STEPS / (time.perf_counter() - start)


def main(weights: str, path: str) -> None:
    """Measure, print and write the rates."""
    compute = choose_compute("cpu")
    rates: dict[str, dict[str, list[float]]] = {}
    for size in (64, 96):
        variants = {
            "all layers": step(weights, size, compute, ("all",), False),
            "conv1 to conv3 frozen": step(weights, size, compute, LATE, False),
            "conv1 to conv3 frozen, in int8": step(weights, size, compute, LATE, True),
        }
        turns = [{name: rate(take) for name, take in variants.items()} for _ in range(TURNS)]
        rates[f"{size} px"] = {name: [round(turn[name], 1) for turn in turns] for name in variants}
        print(size, rates[f"{size} px"])
    write_json(path, {"images/s": rates, "batch": BATCH, "device": compute.facts()})


if __name__ == "__main__":
    main(*sys.argv[1:])
