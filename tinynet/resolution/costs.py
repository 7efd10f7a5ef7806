"""The cost of a run at each test size: seconds per image of a forward pass."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from tinynet.compute import AutoBatch
from tinynet.data.batches import Batch, batches, default_batch_size
from tinynet.evaluation.predictor import Predictor
from tinynet.records import MISSING, ScoreRow
from tinynet.resolution.study import AS_IS, CONTROL, FITTED
from tinynet.training.extraction import inference_network
from tinynet.training.inputs import augment_images
from tinynet.training.recipes import Stage

# (run, side in pixels) -> seconds of one forward pass of an image
Cost = dict[tuple[str, int], float]


@dataclass(frozen=True)
class SavedScore:
    """A score that a run has saved, and the sides in pixels of the views it was scored over."""

    predictor: Predictor
    row: ScoreRow
    sides: list[int]


def costs(
    predictors: Sequence[Predictor], sizes: Sequence[int], saved: Sequence[SavedScore]
) -> Cost:
    """Seconds per image at every side that the runs are scored at, in this study or earlier."""
    cost = {}
    for predictor in predictors:
        sides = {side for score in saved if score.predictor is predictor for side in score.sides}
        for side, seconds in seconds_per_image(predictor, sorted({*sizes, *sides})).items():
            cost[str(predictor.folder.run), side] = seconds
    return cost


def seconds_per_image(
    predictor: Predictor, sides: Sequence[int], turns: int = 3
) -> dict[int, float]:
    """Time one forward pass of an image at each side in pixels: the median of `turns`.

    The sides are timed in turn, so that all are affected by other load alike.
    """
    work = {side: _work(predictor, side) for side in sides}
    times: dict[int, list[float]] = {side: [] for side in sides}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for side, (classify, images) in work.items():
                start = time.perf_counter()
                classify(images).tolist()  # a list waits for the device
                if turn:  # the first turn warms up, and finds the batch size that fits in memory
                    times[side].append((time.perf_counter() - start) / len(images))
    return {side: statistics.median(values) for side, values in times.items()}


def _work(predictor: Predictor, side: int) -> tuple[AutoBatch, Tensor]:
    """The network at a side, and a batch of images for it."""
    model, compute = predictor.model, predictor.compute
    network = inference_network(model, predictor.packed, side, compute)
    stage = Stage(size=side)

    def augment(images: Tensor, rows: Tensor, _: int) -> Tensor:
        return augment_images(images, rows, stage)

    batch: Batch = next(
        batches(
            predictor.packed.train,
            predictor.images("holdout")[1],
            batch_size=default_batch_size(side, compute),
            device=compute.device,
            augment=augment,
        )
    )
    return AutoBatch(partial(_classes, network)), batch.images


def _classes(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).argmax(1)


def saved_scores(predictor: Predictor) -> list[SavedScore]:
    """The saved scores of the run over any views, in the present precision."""
    return [
        SavedScore(predictor, row, _sides(row, predictor))
        for row in predictor.folder.read_scores()
        if row.precision == predictor.compute.precision
        and row.merge == "mean"
        and row.temperature is MISSING
    ]


def _sides(row: ScoreRow, predictor: Predictor) -> list[int]:
    """The side in pixels of every view that a row was scored over."""
    probe = torch.zeros(1, 3, predictor.packed.side, predictor.packed.side)
    assert row.views is not None
    (views,) = predictor.sets([row.views], row.size)
    return [min(image.shape[-2:]) for image in views(probe).values()]


def cost_rows(
    rows: Sequence[ScoreRow], saved: Sequence[SavedScore], cost: Cost
) -> Iterator[ScoreRow]:
    """Yield accuracy and seconds per image of every size, correction and set of views.

    The time that a correction adds to a forward pass is too short to measure. Controls are left
    out.
    """
    for row in rows:
        at_own_size = (row.correction, row.size) == (FITTED, row.trained)
        if row.correction != CONTROL and not at_own_size:
            seconds = cost[row.run, row.size]
            yield _cost_row(row, views="none", correction=row.correction, seconds=seconds)
    for score in saved:
        if score.row.views != "none":
            row = replace(score.row, run=str(score.predictor.folder.run))
            seconds = sum(cost[row.run, side] for side in score.sides)
            yield _cost_row(row, views=row.views, correction=AS_IS, seconds=seconds)


def _cost_row(row: ScoreRow, views: str | None, correction: str, seconds: float) -> ScoreRow:
    return ScoreRow(
        run=row.run,
        split=row.split,
        size=row.size,
        n=row.n,
        top1=row.top1,
        low=row.low,
        high=row.high,
        views=views,
        correction=correction,
        seconds=seconds,
    )
