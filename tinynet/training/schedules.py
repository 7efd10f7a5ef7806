"""The schedule of the learning rate: torch's own schedulers, built from a stage."""

import math
from collections.abc import Sequence

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR

from tinynet.training.recipes import Stage


def moves(stage: Stage, steps: int) -> int:
    """Return how often the schedule advances in the stage; `steps`: batches in an epoch."""
    return stage.total_steps(steps) if stage.schedule_every == "step" else math.ceil(stage.epochs)


def half_cycles(stage: Stage, steps: int) -> tuple[int, int]:
    """Return the number of advances in which the cyclic rate rises, and in which it falls."""
    if stage.step_size_up is not None:
        return stage.step_size_up, stage.step_size_up
    cycle = max(2, round(moves(stage, steps) / stage.cycles))
    up = min(max(1, round(cycle * stage.pct_start)), cycle - 1)
    return up, cycle - up


def warning(stage: Stage, steps: int) -> str | None:
    """Return a warning if the stage is shorter than one cycle of the cyclic rate, else None."""
    if stage.schedule != "cyclic":
        return None
    cycle, total = sum(half_cycles(stage, steps)), moves(stage, steps)
    if total >= cycle:
        return None
    return (
        f"the schedule advances {total:,} times (once per {stage.schedule_every}) and a cycle "
        f"takes {cycle:,}; the learning rate will cover {total / cycle:.1%} of one cycle"
    )


def make_schedule(optimizer: Optimizer, stage: Stage, steps: int) -> LRScheduler:
    """Build the scheduler of `stage`; each group of the optimizer has a `factor` of the rates.

    `steps`: batches in an epoch. `cyclic` is triangular2 (Smith 2015): the height of the triangle
    halves from cycle to cycle.
    """
    factors = [group["factor"] for group in optimizer.param_groups]
    peaks, floors = [stage.lr * f for f in factors], [stage.min_lr * f for f in factors]
    total, floor = moves(stage, steps), stage.min_lr / stage.lr
    if stage.schedule == "cyclic":
        up, down = half_cycles(stage, steps)
        # The default cycle_momentum=True would change Adam's beta1 too (pytorch#73910).
        return CyclicLR(
            optimizer, floors, peaks, up, down, mode="triangular2", cycle_momentum=False
        )
    if stage.schedule == "onecycle":
        # Torch divides by zero if the rise takes exactly one advance, for instance a tenth of ten
        # epochs.
        pct_start = min(stage.pct_start * (1 + 1e-9), 1.0)
        return OneCycleLR(
            optimizer, peaks, total_steps=total, pct_start=pct_start, cycle_momentum=False
        )
    if stage.schedule == "cosine":
        return LambdaLR(
            optimizer, lambda move: floor + (1 - floor) * (1 + math.cos(math.pi * move / total)) / 2
        )
    return LambdaLR(optimizer, lambda move: 1.0)


# (step, learning rate as a fraction of the maximum), in the order of the steps
Corner = tuple[int, float]


def one_cycle(stage: Stage, steps: int) -> list[Corner]:
    """Return the corners of a cyclic schedule of one cycle; `steps`: batches in an epoch."""
    floor = stage.min_lr / stage.lr
    up, down = half_cycles(stage, steps)
    return [(0, floor), (up, 1.0), (up + down, floor)]


def with_end(corners: Sequence[Corner], step: int, end: int) -> list[Corner]:
    """Return the corners of a schedule that is at `step` and now ends at the step `end`.

    The rate goes on rising to its maximum as planned, if that is before `end`, and then falls.
    """
    first, peak, (_, floor) = corners[0], corners[1], corners[-1]
    if step <= peak[0] < end:
        return [first, peak, (end, floor)]
    now = (step, rate_at(corners, step))
    return [first, *([peak] if peak[0] < step else []), now, (end, floor)]


def rate_at(corners: Sequence[Corner], step: int) -> float:
    """Return the rate at a step, as a fraction of the maximum: linear between the corners."""
    steps, rates = zip(*corners, strict=True)
    return float(np.interp(step, steps, rates))


def linear(optimizer: Optimizer, stage: Stage, corners: Sequence[Corner], step: int) -> LRScheduler:
    """Build the scheduler of these `corners`, at a `step` of the stage."""
    for group in optimizer.param_groups:
        group["initial_lr"] = stage.lr * group["factor"]
    # A new scheduler takes a step, from the one before `step`.
    return LambdaLR(optimizer, lambda move: rate_at(corners, move), last_epoch=step - 1)
