"""Rates, measured in turn (A B A B ...), so that their ratios hold on a noisy machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from tinynet.device import Device


def in_turn(jobs: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, Any]]:
    """Rates of each job in every turn, after one turn that is not counted; `ratio` is to the first job, by turns."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            rate = job()
            if turn:
                found[name].append(rate)
    first = next(iter(found.values()))
    return {name: {"median": statistics.median(rates), "low": min(rates), "high": max(rates),
                   "ratio": statistics.median(r / f for r, f in zip(rates, first, strict=True))}
            for name, rates in found.items()}


def timed(count: int, device: Device, work: Callable[[], None]) -> float:
    """Pictures a second."""
    started = time.perf_counter()
    work()
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)
