"""Time the steps of the way against the network alone: extraction, finetune, start, memory.

    python -m benchmarks.speed --data data/tiny-imagenet-200.zip --weights data/vgg16-features.pth
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import facts
from benchmarks.measure import in_turn, timed
from tinynet import cli
from tinynet.data.batches import batches
from tinynet.data.download import find_data
from tinynet.data.packed import Packed, open_packed
from tinynet.device import Device, choose_device
from tinynet.files import write_json
from tinynet.fit.features import frozen_backbone, view_features
from tinynet.fit.inputs import epoch_batches
from tinynet.fit.loop import Training
from tinynet.fit.recipes import TUNED
from tinynet.jobs.plan import WEIGHTS
from tinynet.models.vgg import Classifier, load_backbone

BATCH = 64


def main() -> None:
    """The command."""
    parser = cli.Parser("benchmarks.speed", __doc__)
    parser.add_argument("--pictures", type=int, default=640, metavar="N", help="pictures a measurement (default: 640)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns (default: 5)")
    cli.add_common(parser, "data", "cache", "weights", "out", "device", "precision")
    asked = parser.parse_args()
    device = choose_device(asked.device, asked.precision)
    packed = open_packed(find_data(asked.data), asked.cache)
    backbone = load_backbone(asked.weights or WEIGHTS)
    memory = PeakMemory()
    memory.start()
    network = TUNED.network
    model = Classifier(backbone, network.taps, network.hidden, len(packed.wnids), network.dropout, network.standardise)
    rates = in_turn({
        "frozen forward alone": frozen_forward(model, packed, device, asked.pictures),
        "extraction": extraction(model, packed, device, asked.pictures),
        "train step alone": train_step(model, packed, device, asked.pictures // 4, resident=True),
        "finetune": train_step(model, packed, device, asked.pictures // 4, resident=False),
    }, asked.repeats)
    result = {
        "what": f"pictures/s at 64 px, batch {BATCH}, in turn, median and range of {asked.repeats}",
        "machine": facts(device), "rates": rates,
        "ratios": {"extraction / frozen forward alone": rates["extraction"]["ratio"],
                   "finetune / train step alone": rates["finetune"]["median"] / rates["train step alone"]["median"]},
        "seconds from packed data to first batch": first_batch(asked.data),
        "seconds of --help": help_seconds(),
        "peak resident memory without page cache, GB": memory.gigabytes,
    }
    print(cli_table(result))
    out = asked.out or "benchmarks/results/speed.json"
    write_json(out, result)
    print(out)


def frozen_forward(model: Classifier, packed: Packed, device: Device, count: int) -> Callable[[], float]:
    """The bare backbone on one batch that is already there."""
    frozen = frozen_backbone(model, packed, 64, device)
    pictures = torch.rand(BATCH, 64, 64, 3, device=device.device).permute(0, 3, 1, 2)

    def work() -> None:
        with torch.inference_mode():
            for _ in range(count // BATCH):
                frozen(pictures, ["pool5"])

    return lambda: timed(count, device, work)


def extraction(model: Classifier, packed: Packed, device: Device, count: int) -> Callable[[], float]:
    """Features of the tuned recipe from packed pictures to arrays on disk."""
    rows = np.random.RandomState(0).permutation(len(packed.train))[:count]

    def work() -> None:
        with tempfile.TemporaryDirectory() as cache:
            link = Path(cache) / packed.folder.name  # the same pictures beside an empty cache
            link.symlink_to(packed.folder.resolve())
            view_features(model, Packed(link), packed.train, np.sort(rows), lambda x: x, TUNED.base, device)

    return lambda: timed(count, device, work)


def train_step(model: Classifier, packed: Packed, device: Device, count: int, resident: bool) -> Callable[[], float]:
    """Steps of finetune: on one batch that is already there, or from packed pictures with augmentation."""
    stage = TUNED.finetune
    whole = Classifier(model.backbone, model.taps, **{k: v for k, v in model.shape.items() if k != "taps"})
    whole.to(device.device, memory_format=torch.channels_last).train_only(stage.learn)
    whole.train()
    count = max(1, count // BATCH) * BATCH
    training = Training(whole, {name: whole.parts[name] for name in stage.learn}, stage, 10**6, device)
    rows = np.arange(count)
    fixed = next(batches(packed.train, rows, size=BATCH, device=device.device))

    def work() -> None:
        stream = [fixed] * (count // BATCH) if resident else \
            epoch_batches(packed.train, rows, stage, 0, 0, device.device)
        for batch in stream:
            training.learn(batch.pictures, batch.labels)

    return lambda: timed(count, device, work)


def first_batch(data: str | None) -> float:
    """Seconds from packed data to the first batch, in a fresh process, imports left out."""
    program = ("import sys, time; from tinynet.data.packed import open_packed; "
               "from tinynet.data.batches import batches; from tinynet.data.download import find_data; "
               "started = time.perf_counter(); "
               "next(batches(open_packed(find_data(sys.argv[1] or None)).train)); print(time.perf_counter() - started)")
    return float(subprocess.run([sys.executable, "-c", program, data or ""], check=True, capture_output=True).stdout)


def help_seconds() -> dict[str, float]:
    """Wall seconds of `--help`, the median of five."""
    found = {}
    for command in ("train", "evaluate", "predict", "demo", "data"):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", f"tinynet.{command}", "--help"], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        found[command] = statistics.median(times)
    return found


class PeakMemory(threading.Thread):
    """Watches this process's resident memory without mapped files, which are page cache (Linux only)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gigabytes = 0.0

    def run(self) -> None:
        status = Path("/proc/self/status")
        while status.is_file():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            self.gigabytes = max(self.gigabytes, int(fields["RssAnon"].split()[0]) * 1024 / 1e9)
            time.sleep(0.2)


def cli_table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [f"{name:24}{r['median']:9.1f} pictures/s ({r['low']:.1f} .. {r['high']:.1f})"
             for name, r in result["rates"].items()]
    return "\n".join(lines + [f"{name}: {value}" for name, value in result.items() if name not in ("rates", "what")])


if __name__ == "__main__":
    cli.run(main)
