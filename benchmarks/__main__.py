"""Measure the speed of tinynet and its peers on the same images, interleaved (A B A B ...).

    python -m benchmarks --what data base evaluate whole --data data/tiny-imagenet-200.zip
    python -m benchmarks --what finetune --peers "as written" --images 128

Peers: the published loop as written, the same loop with its best settings, timm's loader and
optimizer, and ttach for views; see `benchmarks/peers.py`. All run in one process. Times of hours
are computed from measured rates; the result says so.
"""

import functools
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours
from benchmarks.machine import facts
from benchmarks.measure import ceiling, flop, in_turn
from benchmarks.peers import KINDS, Peer, unpack
from tinynet import console
from tinynet.compute import Compute, choose_compute
from tinynet.data.batches import default_batch_size
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.data.tiny_imagenet import locate
from tinynet.errors import InputError
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, positive_int, run_command
from tinynet.models.weights import load_vgg16
from tinynet.report.tables import columns
from tinynet.training.config import WEIGHTS
from tinynet.training.recipes import FIRST, REFERENCE

SIZE, ALL = 64, 95_000  # pixels, and training images without the hold-out
SIZES = (64, 96, 128, 160, 224)
# Accuracy of the published system on its own hold-out, and the stages that it was trained for.
PUBLISHED = {0.4706: ("base",), 0.5218: ("base", "finetune")}
COMMANDS = ("train", "evaluate", "predict", "fixres", "report", "demo", "data")


class Bench:
    """What all measurements share: packed images and image files, weights, devices, peers."""

    def __init__(self, options: Any, folder: Path):
        self.options, self.folder = options, folder
        # whole batches: timm's loader drops the rest
        self.count = -(-options.images // ours.BATCH) * ours.BATCH
        self.compute = choose_compute(options.device, options.precision)
        # The peers' precision, and tinynet's default; often the same.
        floats = replace(self.compute, int8=False)
        self.devices = {device.precision: device for device in (floats, self.compute)}
        self.source = locate(find_data(options.data))
        self.packed = open_packed(self.source, options.cache)
        self.classes = len(self.packed.wnids)
        self.backbone = functools.partial(load_vgg16, options.weights or WEIGHTS)

    @functools.cached_property
    def frozen(self) -> Any:
        return ours.classifier(self.backbone(), FIRST.network, self.classes)

    def peers(self, part: str) -> dict[str, Peer]:
        rows = ours.spread(len(self.packed.part(part)), self.count)
        folder = unpack(self.source, part, rows, self.folder)
        return {
            kind: Peer(kind, folder, self.backbone(), self.classes, self.compute)
            for kind in self.options.peers
            if self.compiles or "compiled" not in kind
        }

    @functools.cached_property
    def compiles(self) -> bool:
        """Whether this machine can compile networks."""
        try:
            choose_compute(self.options.device, self.options.precision, compiled=True)
        except InputError as error:
            console.log(f"skipped the compiled networks: {error}")
            return False
        return True

    def network(self, compute: Compute) -> Any:
        """The tuned network in its fastest form on a device."""
        network = self.frozen.for_inference(compute.device, compute.dtype)
        network.backbone = ours.frozen_backbone(self.frozen, self.packed, SIZE, compute)
        return network

    def rates(
        self, jobs: dict[str, Callable[[], Any]], counts: dict[str, int] | int | None = None
    ) -> dict[str, Any]:
        return in_turn(jobs, counts or self.count, self.compute, self.options.repeats)


def data(bench: Bench) -> dict[str, Any]:
    """Images into memory: decoding alone, packing, and the loaders' training batches."""
    pack, whole = ours.packing(bench.source)
    jobs = {"decoding alone, all cores": ours.decoding(bench.source), "tinynet, packing": pack}
    counts = dict.fromkeys(jobs, whole)
    jobs |= {f"{kind}, loader": peer.load for kind, peer in bench.peers("train").items()}
    jobs["tinynet, loader"] = ours.load(bench.packed, FIRST.finetune, bench.compute, bench.count)
    counts |= {name: bench.count for name in jobs if name not in counts}
    return {"rates": bench.rates(jobs, counts)}


def base(bench: Bench) -> dict[str, Any]:
    """Train the head alone: peers run the whole network in every epoch, tinynet once."""
    stage, views = FIRST.base, FIRST.base.cached_epochs
    head = ours.classifier(bench.backbone(), FIRST.network, bench.classes)
    peers = bench.peers("train")
    jobs = {kind: peer.train(all_of_it=False) for kind, peer in peers.items()}
    many = 10 * bench.count
    counts = dict.fromkeys(jobs, bench.count) | {
        "tinynet, frozen forward alone": many,
        "tinynet, extraction": 4 * many,
        "tinynet, extraction of a quarter": many,
        "tinynet, head": many,
    }
    jobs["tinynet, frozen forward alone"] = ours.frozen_forward(
        bench.frozen, bench.packed, SIZE, bench.compute, many
    )
    for name in ("tinynet, extraction", "tinynet, extraction of a quarter"):
        jobs[name] = ours.extraction(bench.frozen, bench.packed, stage, bench.compute, counts[name])
    jobs["tinynet, head"] = ours.head_epoch(head, bench.packed, stage, bench.compute, many)
    rates = bench.rates(jobs, counts)
    extraction = _fixed_cost(rates, counts)
    warm = stage.epochs * ALL / rates["tinynet, head"]["median"]
    first = warm + extraction["seconds once"] + views * ALL / extraction["pictures/s after that"]
    durations = {kind: REFERENCE.base.epochs * ALL / rates[kind]["median"] for kind in peers}
    return {
        "rates": rates,
        "extraction": extraction,
        "seconds of the whole stage, from the rates": {
            **durations,
            "tinynet, first run": first,
            "tinynet, warm": warm,
        },
        "times faster, first run": {kind: time / first for kind, time in durations.items()},
        "times faster, warm": {kind: time / warm for kind, time in durations.items()},
    }


def _fixed_cost(rates: dict[str, Any], counts: dict[str, int]) -> dict[str, float]:
    """The seconds that extraction takes once (such as calibrating int8), and its rate after that.

    Each number is the median of the turns, like the ratios.
    """
    names = (
        "tinynet, extraction",
        "tinynet, extraction of a quarter",
        "tinynet, frozen forward alone",
    )
    values = []
    for whole, quarter, bare in zip(*(rates[name]["turns"] for name in names), strict=True):
        seconds = counts[names[0]] / whole
        rate = (counts[names[0]] - counts[names[1]]) / (seconds - counts[names[1]] / quarter)
        values.append((seconds - counts[names[0]] / rate, rate, rate / bare))
    once, rate, share = (statistics.median(column) for column in zip(*values, strict=True))
    return {
        "seconds once": once,
        "pictures/s after that": rate,
        "share of the frozen forward": share,
    }


def finetune(bench: Bench) -> dict[str, Any]:
    """Train the whole network; `reference` is the peers' network, `tuned` has a smaller head."""
    jobs = {kind: peer.train(all_of_it=True) for kind, peer in bench.peers("train").items()}
    for name, recipe in (("reference", REFERENCE), ("tuned", FIRST)):
        model = ours.classifier(bench.backbone(), recipe.network, bench.classes)
        jobs[f"tinynet, {name}"] = ours.train_step(
            model, bench.packed, recipe.finetune, bench.compute, bench.count
        )
    compiled = (
        [("compiled", replace(bench.compute, compiled=True), False)] if bench.compiles else []
    )
    for name, device, resident in (*compiled, ("one resident batch", bench.compute, True)):
        model = ours.classifier(bench.backbone(), FIRST.network, bench.classes)
        jobs[f"tinynet, tuned, {name}"] = ours.train_step(
            model, bench.packed, FIRST.finetune, device, bench.count, resident
        )
    return {"rates": bench.rates(jobs)}


def evaluate(bench: Bench) -> dict[str, Any]:
    """One view of val."""
    jobs = {kind: peer.evaluate for kind, peer in bench.peers("val").items()}
    for name, device in bench.devices.items():
        jobs[f"tinynet, {name}"] = ours.one_view(
            bench.network(device), bench.packed, device, bench.count
        )
    return {"rates": bench.rates(jobs)}


def tta(bench: Bench) -> dict[str, Any]:
    """Ten-crop of val: ttach and tinynet in the same precision, then tinynet in int8.

    The result has the greatest difference between their probabilities.
    """
    probabilities: dict[str, torch.Tensor] = {}

    def keeping(name: str, work: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: probabilities.__setitem__(name, work())

    works = {
        f"ttach, {name}": (ours.ten_crop_of_ttach, device)
        for name, device in bench.devices.items()
        if not device.int8
    }
    works |= {f"tinynet, {name}": (ours.ten_crop, device) for name, device in bench.devices.items()}
    jobs = {
        name: keeping(name, work(bench.network(device), bench.packed, SIZE, device, bench.count))
        for name, (work, device) in works.items()
    }
    rates = bench.rates(jobs)
    return {
        "rates": rates,
        "greatest difference of a probability to ttach's": {
            name: (values - next(iter(probabilities.values()))).abs().max().item()
            for name, values in probabilities.items()
        },
    }


def whole(bench: Bench) -> dict[str, Any]:
    """From the zip, with an empty cache, to a trained head: one cached epoch, four epochs in all.

    With 1 %, 10 % and all images. The peers need all epochs of the published system to reach its
    accuracy; their time is computed from their rates.
    """
    peers = bench.peers("train")
    jobs = {
        f"{kind}, {stage}": peer.train(all_of_it=stage == "finetune")
        for kind, peer in peers.items()
        for stage in ("base", "finetune")
    }
    rates = bench.rates(jobs)
    rows = [
        ours.from_the_zip(bench.source, bench.options.weights or WEIGHTS, each, bench.compute)
        for each in (5, 50, None)
    ]
    reached, seconds = rows[-1]["holdout"], rows[-1]["packing"] + rows[-1]["rest"]
    targets = {}
    for share, stages in PUBLISHED.items():
        durations = {
            kind: sum(
                REFERENCE.stage(stage).epochs * ALL / rates[f"{kind}, {stage}"]["median"]
                for stage in stages
            )
            for kind in peers
        }
        targets[f"{share:.2%}"] = (
            {
                "tinynet": seconds,
                "peers, computed from their rates": durations,
                "times faster": {kind: time / seconds for kind, time in durations.items()},
            }
            if reached >= share
            else "not reached"
        )
    return {
        "rates": rates,
        "runs": rows,
        "seconds from the zip to a share of the hold-out": targets,
    }


def sizes(bench: Bench) -> dict[str, Any]:
    """How cost grows with the image size: the frozen forward pass, and a step of finetune."""
    jobs, counts = {}, {}
    for size in SIZES:
        name = f"frozen forward, {size} px"
        counts[name] = max(
            2 * default_batch_size(size, bench.compute), 4 * bench.count * SIZE**2 // size**2
        )
        jobs[name] = ours.frozen_forward(
            bench.frozen, bench.packed, size, bench.compute, counts[name]
        )
        model = ours.classifier(bench.backbone(), FIRST.network, bench.classes)
        name = f"finetune, {size} px"
        counts[name] = ours.BATCH
        jobs[name] = ours.train_step(
            model, bench.packed, replace(FIRST.finetune, size=size), bench.compute, ours.BATCH
        )
    return {"rates": bench.rates(jobs, counts)}


def start(bench: Bench) -> dict[str, Any]:
    """Seconds of `--help` (median of five), and from packed data to the first batch.

    The latter are without imports.
    """
    program = (
        "import sys, time; from tinynet.data.copies import open_packed; "
        "from tinynet.data.batches import batches; started = time.perf_counter(); "
        "next(batches(open_packed(sys.argv[1], sys.argv[2] or None).train)); "
        "print(time.perf_counter() - started)"
    )
    words = [sys.executable, "-c", program, str(bench.source), bench.options.cache or ""]
    return {
        "rates": {},
        "seconds from packed data to the first batch": float(
            subprocess.run(words, check=True, capture_output=True).stdout
        ),
        "seconds of --help": {
            command: statistics.median(_help_seconds(command) for _ in range(5))
            for command in COMMANDS
        },
    }


def _help_seconds(command: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"tinynet.{command}", "--help"], check=True, capture_output=True
    )
    return time.perf_counter() - started


WHAT = {work.__name__: work for work in (data, base, finetune, evaluate, tta, start, whole, sizes)}
# Forward passes per image; a training step costs three.
_PASSES = {"base": 1, "finetune": 3, "evaluate": 1, "tta": 10}


def main() -> None:
    """Run the command."""
    parser = Parser("benchmarks", __doc__)
    parser.add_argument(
        "--what",
        nargs="+",
        choices=tuple(WHAT),
        default=list(WHAT),
        metavar="NAME",
        help=f"measurements: {', '.join(WHAT)} (default: all)",
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=320,
        metavar="N",
        help="images that each job processes in one turn (default: 320)",
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=3, metavar="N", help="number of turns (default: 3)"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=KINDS,
        default=list(KINDS),
        metavar="NAME",
        help=f"peers: {'; '.join(map(repr, KINDS))} (default: all)",
    )
    out = "folder for the result files (default: benchmarks/results)"
    add_common(parser, "data", "cache", "weights", "out", "device", "precision", out=out)
    options = parser.parse_args()
    for name, required in (("timm", "timm" in options.peers), ("ttach", "tta" in options.what)):
        if required and importlib.util.find_spec(name) is None:
            raise InputError(
                f"{name} is not installed, but tinynet is compared with it; run pip install -e "
                '".[bench]"'
            )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        one = bench.frozen.backbone.to(bench.compute.device)
        cost = flop(one, torch.zeros(1, 3, SIZE, SIZE, device=bench.compute.device), ["pool5"])
        dtypes = {torch.float32, bench.compute.dtype} | (
            {torch.int8} if bench.compute.int8 else set()
        )
        best = {dtype: ceiling(bench.compute, dtype) for dtype in dtypes}
        for what in options.what:
            title = (WHAT[what].__doc__ or "").split("\n")[0]
            console.log(f"{what}: {title}")
            measured = WHAT[what](bench)
            _share(
                measured["rates"],
                cost * _PASSES.get(what, 0),
                best,
                what == "base" and bench.compute.int8,
            )
            sides = "" if what == "sizes" else f" at {SIZE} px"
            result = {
                "what": f"{what}: images/s{sides}, batch {ours.BATCH}, interleaved; {title}",
                "machine": facts(bench.compute),
                "images": bench.count,
                "repeats": options.repeats,
                "FLOP of a forward pass": cost,
                "FLOP/s of the fastest matrix product": {
                    str(dtype): rate for dtype, rate in best.items()
                },
                **measured,
            }
            out = Path(options.out or "benchmarks/results") / f"{what}.json"
            write_json(out, result)
            print(_table(result), f"-> {out}\n", sep="\n")


def _share(
    rates: dict[str, Any], cost: int, best: dict[torch.dtype, float], integers: bool
) -> None:
    """Add FLOP/s to the rates of network passes, and their share of the fastest matrix product.

    `integers`: whether tinynet runs in int8 in the jobs whose names do not give the precision.
    """
    floats = max(rate for dtype, rate in best.items() if dtype.is_floating_point)
    for name, rate in rates.items():
        if cost and "head" not in name:
            rate["flops"] = rate["median"] * cost
            in_integers = "int8" in name or (integers and name.startswith("tinynet"))
            rate["share"] = rate["flops"] / (best[torch.int8] if in_integers else floats)


def _table(result: dict[str, Any]) -> str:
    head = [
        "",
        "images/s",
        "range",
        "GFLOP/s",
        "of the fastest product",
        "memory, GB",
        "ratio to the first",
    ]
    lines = [
        [
            name,
            f"{r['median']:.1f}",
            f"{r['low']:.1f} .. {r['high']:.1f}",
            f"{r['flops'] / 1e9:.0f}" if "flops" in r else "",
            f"{r['share']:.0%}" if "share" in r else "",
            f"{r['memory']:.2f}",
            f"{r['ratio']:.2f}",
        ]
        for name, r in result["rates"].items()
    ]
    rest = [
        f"{name}: {value}"
        for name, value in result.items()
        if name not in ("rates", "what", "images", "repeats", "FLOP of a forward pass")
    ]
    return "\n".join(([columns([head, *lines])] if lines else []) + rest)


if __name__ == "__main__":
    run_command(main)
