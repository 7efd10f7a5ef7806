"""What the frozen backbone says of every picture: computed once, kept on disk, one array a tap.

View v of the cache is what live training would show in epoch v, batch for batch, so a head trained on
as many views as epochs learns what live training would teach it. With `alternating` flips and no other
change two views hold everything that any number of epochs shows.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinynet.cli import progress, say
from tinynet.data.batches import Batch, batches
from tinynet.data.packed import Packed, PackedPart
from tinynet.device import Device
from tinynet.errors import InputError
from tinynet.files import locked, new_array, write_json
from tinynet.fit.inputs import change_pictures, epoch_batches, epoch_order
from tinynet.fit.recipes import Stage
from tinynet.models.vgg import Classifier, describe, feature_count

FORMAT = 1
_SAVE_EVERY = 30.0  # seconds of extraction that an interruption may cost


@dataclass(frozen=True)
class Features:
    """Kept features: one array a tap, each (views, N, numbers of that tap); `labels`: (N,) int64, or None."""

    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray | None

    def gather(self, view: int, places: np.ndarray) -> Tensor:
        """(n, F) float32 features of the pictures at `places` (positions, not rows of the archive)."""
        return torch.cat([torch.from_numpy(a[view, places]) for a in self.arrays], 1).float()

    def epoch(self, seed: int, epoch: int, batch: int, device: torch.device,
              start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels in the order that live training has in `epoch`; `start`: first batch."""
        order = epoch_order(len(self.labels), seed, epoch, batch)
        view = epoch % len(self.arrays[0])
        for first in range(start * batch, len(order), batch):
            places = order[first:first + batch]
            yield self.gather(view, places).to(device), torch.from_numpy(self.labels[places]).to(device)

    def in_order(self, device: torch.device, batch: int = 1024) -> Iterator[Tensor]:
        """Features of the first view, in order, `batch` pictures at a time."""
        count = self.arrays[0].shape[1]
        for first in range(0, count, batch):
            yield self.gather(0, np.arange(first, min(first + batch, count))).to(device)


def train_features(model: Classifier, packed: Packed, rows: np.ndarray, stage: Stage, seed: int,
                   device: Device, cache: Path) -> Features:
    """The features of `stage.views` views of the train pictures at `rows`, changed as the stage says."""
    keyed = dict(flip=stage.flip, crop_side=stage.crop_side, crop_area=stage.crop_area,
                 saturation=stage.saturation, hue=stage.hue, views=stage.views)
    if stage.random:
        keyed |= dict(seed=seed, batch=stage.batch)
    unused = torch.Generator(device.device)

    def view_batches(view: int, start: int) -> Iterator[Batch]:
        if stage.random:
            return epoch_batches(packed.train, rows, stage, seed, view, device.device, start)
        # Without chance any order shows the same, and the archive's own reads and writes in one sweep.
        return batches(packed.train, rows, size=_FIXED_BATCH, device=device.device, start=start,
                       augment=lambda pictures, at, number: change_pictures(pictures, at, stage, view, unused))

    return _kept(model, packed, packed.train, rows, stage, device, cache, keyed, stage.views, view_batches)


def view_features(model: Classifier, packed: Packed, part: PackedPart, rows: np.ndarray, name: str,
                  view: Callable[[Tensor], Tensor], stage: Stage, device: Device, cache: Path) -> Features:
    """The features of one deterministic view of the pictures of `part` at `rows`.

    `view`: pictures (N, 3, H, W) -> (N, 3, size, size) at the stage's size; `name` stands for it in the cache.
    """

    def view_batches(_: int, start: int) -> Iterator[Batch]:
        return batches(part, rows, size=_FIXED_BATCH, device=device.device, start=start,
                       augment=lambda pictures, at, number: view(pictures))

    return _kept(model, packed, part, rows, stage, device, cache, dict(view=name), 1, view_batches)


_FIXED_BATCH = 64  # pictures: the fastest on CPUs; larger ones fall out of their caches


def _kept(model: Classifier, packed: Packed, part: PackedPart, rows: np.ndarray, stage: Stage, device: Device,
          cache: Path, keyed: dict[str, Any], views: int,
          view_batches: Callable[[int, int], Iterator[Batch]]) -> Features:
    """Features from the cache; what is missing there is extracted first."""
    fingerprint = json.loads(json.dumps(dict(
        format=FORMAT, data=packed.digest, part=part.name, size=stage.size, dtype=stage.feature_dtype,
        rows=hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16],
        backbone=model.backbone.digest(), precision=device.precision, **keyed)))
    key = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"features-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "manifest.json", {"kind": "features", **fingerprint})
    with locked(folder / "lock"):
        missing = [tap for tap in model.taps if not _file(folder, tap).exists()]
        if missing:
            _extract(model, missing, folder, (views, len(rows)), stage, device, view_batches, rows)
    arrays = tuple(np.load(_file(folder, tap), mmap_mode="r") for tap in model.taps)
    return Features(arrays, None if part.labels is None else part.labels[rows])


def _file(folder: Path, tap: str, state: str = "") -> Path:
    return folder / f"{tap.replace(':', '-')}{state}.npy"


def _extract(model: Classifier, taps: Sequence[str], folder: Path, shape: tuple[int, int], stage: Stage,
             device: Device, view_batches: Callable[[int, int], Iterator[Batch]], rows: np.ndarray) -> None:
    """Fill one array a tap; an interruption costs half a minute, and the arrays get their names when whole."""
    backbone = model.for_inference(device.device, device.dtype).backbone
    widths = [feature_count(backbone, [tap]) for tap in taps]
    arrays, done = _open_partial(folder, taps, widths, shape, stage)
    saved = time.monotonic()
    place = np.full(int(rows.max()) + 1, -1)  # row of the archive -> position in the arrays
    place[rows] = np.arange(len(rows))

    def save() -> None:
        for array in arrays:
            array.flush()
        write_json(folder / "progress.json", {"taps": list(taps), "done": done})

    first, start, seen = done
    with progress(total=shape[0] * shape[1], done=seen, label="features", unit="pictures") as bar, \
            torch.inference_mode():
        try:
            for view in range(first, shape[0]):
                for batch in view_batches(view, start):
                    found = describe(backbone, taps, batch.pictures).split(widths, 1)
                    at = place[batch.rows.cpu().numpy()]
                    for array, values in zip(arrays, found, strict=True):
                        array[view, at] = _checked(values.cpu().numpy(), array.dtype)
                    start += 1
                    seen += len(at)
                    done = [view, start, seen]
                    bar.update(len(at))
                    if time.monotonic() - saved > _SAVE_EVERY:
                        save()
                        saved = time.monotonic()
                start = 0
        except KeyboardInterrupt:
            save()
            say(f"\nthe features of {seen:,} of {shape[0] * shape[1]:,} pictures are kept")
            raise
    for tap, array in zip(taps, arrays, strict=True):
        array.flush()
        _file(folder, tap, ".partial").replace(_file(folder, tap))
    (folder / "progress.json").unlink(missing_ok=True)


def _open_partial(folder: Path, taps: Sequence[str], widths: Sequence[int], shape: tuple[int, int],
                  stage: Stage) -> tuple[list[np.ndarray], list[int]]:
    """Arrays to fill, and where an interrupted extraction of the same taps stopped: view, batch, pictures."""
    try:
        left = json.loads((folder / "progress.json").read_text())
        if left["taps"] == list(taps):
            return [np.load(_file(folder, tap, ".partial"), mmap_mode="r+") for tap in taps], left["done"]
    except (OSError, ValueError):
        pass  # nothing usable was left behind: start from the beginning
    bytes_each = np.dtype(stage.feature_dtype).itemsize
    total = shape[0] * shape[1] * sum(widths) * bytes_each
    say(f"features: {shape[0]} view(s) of {shape[1]:,} pictures, {sum(widths):,} numbers each: "
        f"{total / 1e9:.2f} GB in {folder}")
    (folder / "progress.json").unlink(missing_ok=True)
    for partial in folder.glob("*.partial.npy"):
        partial.unlink()  # of other taps, interrupted before
    try:
        arrays = [new_array(_file(folder, tap, ".partial"), (*shape, width), stage.feature_dtype)
                  for tap, width in zip(taps, widths, strict=True)]
    except OSError:
        for partial in folder.glob("*.partial.npy"):
            partial.unlink()  # a disk with room for some of the taps is not left full
        raise
    return arrays, [0, 0, 0]


def _checked(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    if not np.isfinite(kept).all():
        raise InputError(f"features of up to {np.abs(values).max():.3g} do not fit {dtype}; "
                         "use --feature-dtype float32")
    return kept
