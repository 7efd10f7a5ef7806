"""Rates, fastest matrix products and memory.

Jobs are interleaved (A B A B ...), so that the ratios of their rates hold on a noisy machine.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinynet.compute import Compute
from tinynet.console import progress
from tinynet.errors import InputError
from tinynet.flags import Parser, user_path
from tinynet.models.backbone import Backbone

LITE = "timm/tf_efficientnet_lite0"


def network_parser(
    module: str, description: str | None, networks: Sequence[str], sizes: Sequence[int]
) -> Parser:
    """Flags of a script that times networks at several sizes, and their defaults."""
    parser = Parser(module, description)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--sizes", nargs="+", type=int, default=sizes)
    parser.add_argument("--turns", type=int, default=3)
    return parser


def sizes_taken(backbone: Backbone, sizes: Sequence[int]) -> list[int]:
    """Those of the sizes in pixels that a network takes; a line about each of the others."""
    taken = []
    for size in sizes:
        try:
            backbone.check_size(size)
        except InputError as error:
            print(error, flush=True)
        else:
            taken.append(size)
    return taken


def in_turn(
    jobs: dict[str, Callable[[], Any]], counts: dict[str, int] | int, compute: Compute, repeats: int
) -> dict[str, dict[str, Any]]:
    """Images per second of each job: `median`, `low`, `high` and the `turns`.

    `counts`: the images that a job processes, one number for all jobs or one each. The first turn
    is a warm-up and not counted. `ratio`: to the first job, the median over turns of the ratio
    within a turn. `memory`: the largest growth of this process in GB during the job, without page
    cache and worker processes. A temporary folder that a job returns is removed afterwards.
    """
    job_rates: dict[str, list[float]] = {name: [] for name in jobs}
    peaks = dict.fromkeys(jobs, 0.0)
    with progress(total=(repeats + 1) * len(jobs), label="measuring", unit="jobs") as bar:
        for turn in range(repeats + 1):
            for name, job in jobs.items():
                count = counts if isinstance(counts, int) else counts[name]
                with PeakMemory(compute) as memory:
                    seconds = _seconds(job, compute)
                peaks[name] = max(peaks[name], memory.gigabytes)
                if turn:
                    job_rates[name].append(count / seconds)
                bar.update()
    first = next(iter(job_rates.values()), [])
    return {
        name: {
            "median": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "turns": rates,
            "ratio": statistics.median(r / f for r, f in zip(rates, first, strict=True)),
            "memory": peaks[name],
        }
        for name, rates in job_rates.items()
    }


def _seconds(job: Callable[[], Any], compute: Compute) -> float:
    started = time.perf_counter()
    result = job()
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if isinstance(result, tempfile.TemporaryDirectory):
        result.cleanup()
    return seconds


def ceiling(
    compute: Compute, dtype: torch.dtype, sides: tuple[int, ...] = (1024, 2048, 4096)
) -> float:
    """FLOP/s of the fastest of several square matrix products; int8 is accumulated in int32.

    A multiplication and an addition count as two operations.
    """
    best, product = 0.0, torch._int_mm if dtype == torch.int8 else torch.mm
    for side in sides:
        # Numbers up to 100: as integers, numbers below 1 would all be 0, and some processors
        # multiply zeros faster.
        a, b = ((100 * torch.rand(side, side, device=compute.device)).to(dtype) for _ in range(2))
        for _ in range(4):
            best = max(best, 2 * side**3 / _seconds(lambda a=a, b=b: product(a, b), compute))
    return best


def flop(network: nn.Module, *inputs: Any) -> int:
    """FLOP of one forward pass; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


class PeakMemory(threading.Thread):
    """Measure the growth of this process in GB: the GPU's memory, else the resident memory (Linux).

    Mapped files are not counted.
    """

    def __init__(self, compute: Compute) -> None:
        super().__init__(daemon=True)
        self.compute, self.gigabytes, self._over = compute, 0.0, threading.Event()

    def __enter__(self) -> "PeakMemory":
        self._before = _resident()
        if self.compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 1e9
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self.join()
        if self.compute.device.type == "cuda":
            self.gigabytes = torch.cuda.max_memory_allocated() / 1e9 - self._before

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.gigabytes = max(self.gigabytes, _resident() - self._before)


def _resident() -> float:
    """Resident memory in GB without page cache; 0 if the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024 / 1e9
