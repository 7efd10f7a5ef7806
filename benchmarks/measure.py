"""Rates, measured in turn (A B A B ...), so that their ratios hold on a noisy machine; ceilings;
memory.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinynet.compute import Compute
from tinynet.console import progress


def in_turn(
    jobs: dict[str, Callable[[], Any]], counts: dict[str, int] | int, compute: Compute, repeats: int
) -> dict[str, dict[str, Any]]:
    """Pictures a second of each job, after one turn that is not counted: median, least, greatest,
    and each turn.

    `counts`: pictures that a job does, one number for all or one each. `ratio`: to the first job,
    the median over turns of the ratio within a turn. `memory`: GB by which this process grew at
    most while the job ran, page cache and worker processes aside. A temporary folder that a job
    returns is removed when its time is taken.
    """
    found: dict[str, list[float]] = {name: [] for name in jobs}
    held = dict.fromkeys(jobs, 0.0)
    with progress(total=(repeats + 1) * len(jobs), label="measuring", unit="jobs") as bar:
        for turn in range(repeats + 1):
            for name, job in jobs.items():
                count = counts if isinstance(counts, int) else counts[name]
                with PeakMemory(compute) as memory:
                    seconds = _seconds(job, compute)
                held[name] = max(held[name], memory.gigabytes)
                if turn:
                    found[name].append(count / seconds)
                bar.update()
    first = next(iter(found.values()), [])
    return {
        name: {
            "median": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "turns": rates,
            "ratio": statistics.median(r / f for r, f in zip(rates, first, strict=True)),
            "memory": held[name],
        }
        for name, rates in found.items()
    }


def _seconds(job: Callable[[], Any], compute: Compute) -> float:
    started = time.perf_counter()
    made = job()
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if isinstance(made, tempfile.TemporaryDirectory):
        made.cleanup()
    return seconds


def ceiling(
    compute: Compute, dtype: torch.dtype, sides: tuple[int, ...] = (1024, 2048, 4096)
) -> float:
    """FLOP/s of the fastest of several square matrix products, multiply and add counted as two;
    int8: into int32.
    """
    best, product = 0.0, torch._int_mm if dtype == torch.int8 else torch.mm
    for side in sides:
        # Up to 100, for as integers numbers below 1 would all be 0, which some chips multiply
        # faster.
        a, b = ((100 * torch.rand(side, side, device=compute.device)).to(dtype) for _ in range(2))
        for _ in range(4):
            best = max(best, 2 * side**3 / _seconds(lambda a=a, b=b: product(a, b), compute))
    return best


def flop(network: nn.Module, *inputs: Any) -> int:
    """FLOP of one forward pass, multiply and add counted as two."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(*inputs)
    return counted.get_total_flops()


class PeakMemory(threading.Thread):
    """Watches by how much this process grows: on a GPU there, else what is resident, mapped files
    aside (Linux).
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
    """GB of memory that is no page cache; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024 / 1e9
