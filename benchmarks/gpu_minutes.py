"""Plans of `train --minutes` for VGG16 on GPUs, by arithmetic.

    python -m benchmarks.gpu_minutes

The images per second are a share of the GPU's peak FLOP/s, divided by the FLOP of an image. The
shares are those of an H200 (`train --minutes 3`, in minutes.json); other GPUs may reach others.
"""

from pathlib import Path

import torch

from benchmarks.measure import flop
from tinynet.models.backbones import backbone_template
from tinynet.models.classifier import Head, feature_count
from tinynet.training.plans import TUNED_KINDS, Counts, Rates, choose, sizes_of
from tinynet.training.recipes import TUNED

# Dense half-precision FLOP/s by the data sheets: T4 in float16, A100 in bfloat16.
PEAKS = {"T4": 65e12, "A100": 312e12}
# Shares of the peak that an H200 (989e12) reached: features of the frozen network, as measured
# before the plan, and training steps with batches of 64 images.
FEATURES, STEPS = 0.22, 0.095
HEAD = 90_000.0  # images/s of training the head there; its layers are too small to use the peak
MINUTES = {"T4": (5, 10, 20, 30), "A100": (5, 10)}
SPENT = 60.0  # assumed seconds of reading, packing and measuring
COUNTS = Counts(95_000, 5_000)


def rates(peak: float) -> Rates:
    """Images per second at these shares of `peak` FLOP/s."""
    backbone, network = backbone_template(TUNED.network.arch), TUNED.network
    width = feature_count(backbone, network.features)
    head = 2 * sum(p.numel() for p in Head(width, network.hidden, 200, 0.2, True).parameters())

    def forward(size: int, last: str = "pool5") -> int:
        return flop(backbone, torch.empty(1, 3, size, size, device="meta"), [last])

    def step(size: int) -> int:
        """FLOP of training conv4, conv5 and the head; a backward pass is two forward passes."""
        return 3 * (forward(size) + head) - 2 * forward(size, "pool3")

    sizes, later = sizes_of(TUNED_KINDS, TUNED)
    frozen = {size: peak * FEATURES / forward(size) for size in {*sizes, *later}}
    steps = {size: peak * STEPS / step(size) for size in later}
    return Rates(frozen, frozen, steps, HEAD)


def table(_: Path | None = None) -> str:
    """The plans in Markdown."""
    lines = ["| GPU | minutes | plan | epochs | would take |", "| --- | --- | --- | --- | --- |"]
    for name, peak in PEAKS.items():
        machine = rates(peak)
        for minutes in MINUTES[name]:
            plan = choose(TUNED, TUNED_KINDS, machine, COUNTS, minutes, SPENT)
            cells = (name, f"{minutes}", plan.kind.name, f"{plan.epochs:.3g}")
            lines.append(f"| {' | '.join(cells)} | {plan.seconds / 60:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
