"""What the frozen backbone says of every picture: computed once, kept on disk, one array a tap.

View v of the cache is what live training would show in epoch v, batch for batch, so a head trained
on as many views as epochs learns what live training would teach it. With `alternating` flips and no
other change two views hold everything that any number of epochs shows.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinynet.compute import AutoBatch, Compute
from tinynet.console import advice, log, progress
from tinynet.data.batches import (
    Batch,
    batches,
    fetched,
    fitting,
    has_room,
    seeded,
    send,
    send_whole,
)
from tinynet.data.packed import Packed, PackedPart
from tinynet.errors import InputError
from tinynet.files import locked, map_array, new_array, read_json, write_json
from tinynet.models.classifier import Classifier, feature_count, pooled_features
from tinynet.models.int8 import Int8Backbone
from tinynet.models.vgg import Backbone
from tinynet.training.inputs import augment_images, epoch_batches, epoch_order
from tinynet.training.recipes import Stage

FORMAT = 1
_SAVE_EVERY = 30.0  # seconds of extraction that an interruption may cost
_CALIBRATION = 64  # pictures that set the ranges of 8-bit integers; 256 give the same error


@dataclass(frozen=True)
class Features:
    """Kept features: one array a tap, each (views, N, numbers of that tap); `labels`: (N,) int64,
    or None.
    """

    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    _sent: dict[torch.device, list[Tensor] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def gather(self, view: int, places: np.ndarray, device: torch.device) -> Tensor:
        """(n, F) float32 features of the pictures at `places` (positions, not rows of the
        archive).
        """
        if (there := self._resident(device)) is None:
            return send(
                np.concatenate([array[view, places] for array in self.arrays], 1), device
            ).float()
        at = send(places, device)
        return torch.cat([array[view, at] for array in there], 1).float()

    def _resident(self, device: torch.device) -> list[Tensor] | None:
        """The arrays on the device, sent once; None where they stay where they are."""
        if device not in self._sent:
            room = has_room(sum(array.nbytes for array in self.arrays), device)
            self._sent[device] = (
                [send_whole(array, device) for array in self.arrays] if room else None
            )
        return self._sent[device]

    def epoch(
        self, seed: int, epoch: int, batch: int, device: torch.device, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels in the order that live training has in `epoch`; `start`: first
        batch.
        """
        order = epoch_order(len(self.labels), seed, epoch, batch)
        view = epoch % len(self.arrays[0])
        for first in range(start * batch, len(order), batch):
            places = order[first : first + batch]
            yield self.gather(view, places, device), send(self.labels[places], device)

    def in_order(self, device: torch.device, batch: int = 1024) -> Iterator[Tensor]:
        """Features of the first view, in order, `batch` pictures at a time."""
        count = self.arrays[0].shape[1]
        for first in range(0, count, batch):
            yield self.gather(0, np.arange(first, min(first + batch, count)), device)


@dataclass(frozen=True)
class _Source:
    """Pictures to extract features of: `batches(view, start)` shows them, `at_once` at a time;
    `key` is what else they depend on.
    """

    part: PackedPart
    rows: np.ndarray
    views: int
    size: int
    dtype: str
    key: dict[str, Any]
    at_once: int
    batches: Callable[[int, int], Iterator[Batch]]


def train_features(
    model: Classifier, packed: Packed, rows: np.ndarray, stage: Stage, seed: int, compute: Compute
) -> Features:
    """The features of `stage.cached_epochs` views of the train pictures at `rows`, changed as
    the stage says.
    """
    key = dict(
        flip=stage.flip,
        crop_side=stage.crop_side,
        crop_area=stage.crop_area,
        saturation=stage.saturation,
        hue=stage.hue,
    )
    if stage.random:
        key |= dict(seed=seed, batch=stage.batch)
    at_once = stage.batch if stage.random else fitting(stage.size, compute.device)

    def views(view: int, start: int) -> Iterator[Batch]:
        if stage.random:
            return epoch_batches(
                packed.train, rows, stage, seed, view, compute.device, start, whole=True
            )
        # Without chance any order shows the same, and the archive's own reads and writes in one
        # sweep.
        return batches(
            packed.train,
            rows,
            batch_size=at_once,
            device=compute.device,
            start=start,
            augment=lambda images, at, number: augment_images(images, at, stage, view),
        )

    source = _Source(
        packed.train,
        rows,
        stage.cached_epochs,
        stage.size,
        stage.feature_dtype,
        key,
        at_once,
        views,
    )
    return _kept(model, packed, source, compute)


def view_features(
    model: Classifier,
    packed: Packed,
    part: PackedPart,
    rows: np.ndarray,
    view: Callable[[Tensor], Tensor],
    stage: Stage,
    compute: Compute,
) -> Features:
    """The features of one deterministic view of the pictures of `part` at `rows`.

    `view`: pictures (N, 3, H, W) -> (N, 3, size, size) at the stage's size.
    """

    at_once = fitting(stage.size, compute.device)

    def views(_: int, start: int) -> Iterator[Batch]:
        return batches(
            part,
            rows,
            batch_size=at_once,
            device=compute.device,
            start=start,
            augment=lambda images, at, number: view(images),
        )

    key = dict(view=effect(view, packed.side))
    source = _Source(part, rows, 1, stage.size, stage.feature_dtype, key, at_once, views)
    return _kept(model, packed, source, compute)


def effect(view: Callable[[Tensor], Tensor], side: int) -> str:
    """What a view does to one fixed picture of noise: a name could stand for another function
    tomorrow.
    """
    probe = torch.rand(1, 3, side, side, generator=seeded("cpu", "probe"))
    seen = (view(probe) * 255).round().to(torch.uint8).contiguous()
    return hashlib.sha256(str(tuple(seen.shape)).encode() + seen.numpy().tobytes()).hexdigest()[:16]


def _kept(model: Classifier, packed: Packed, source: _Source, compute: Compute) -> Features:
    """Features from the cache; what is missing there is extracted first."""
    manifest = json.loads(
        json.dumps(
            {
                "kind": "features",
                "format": FORMAT,
                "data": packed.contents,
                "part": source.part.name,
                "rows": hashlib.sha256(source.rows.astype("<i8").tobytes()).hexdigest()[:16],
                "views": source.views,
                "size": source.size,
                "dtype": source.dtype,
                "backbone": model.backbone.digest(),
                "device": compute.device.type,
                "precision": compute.for_frozen().precision,
                **source.key,
            }
        )
    )
    key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    folder = packed.cache / f"features-{key}"
    labels = None if source.part.labels is None else source.part.labels[source.rows]
    shapes = {
        feature: (
            source.views,
            len(source.rows),
            feature_count(model.backbone, [feature]),
        )
        for feature in model.feature_names
    }
    if arrays := _first_of_more_views(packed.cache, manifest, shapes):
        return Features(arrays, labels)

    def missing() -> list[str]:
        return [feature for feature in model.feature_names if not _file(folder, feature).exists()]

    if missing():
        with locked(folder, lambda: log(f"waiting: another process is extracting {folder}")):
            if feature_names := missing():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "manifest.json", manifest)
                _extract(
                    frozen_backbone(model, packed, source.size, compute),
                    feature_names,
                    folder,
                    source,
                )
    return Features(
        tuple(
            _read(_file(folder, feature), shape, source.dtype) for feature, shape in shapes.items()
        ),
        labels,
    )


def _read(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Features of a cache; raises `InputError` where they are not what they must be."""
    try:
        array = map_array(path)
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"{array.dtype} of shape {array.shape}")
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:80]}); delete "
            f"{path.parent} and run the command again to rebuild it"
        ) from None
    return array


def _first_of_more_views(
    cache: Path, manifest: dict[str, Any], shapes: dict[str, tuple[int, int, int]]
) -> tuple[np.ndarray, ...] | None:
    """The first views of more that are kept of the same, if there are: no view depends on how many
    there are.
    """
    views = manifest["views"]
    for file in cache.glob("features-*/manifest.json"):
        try:
            other = read_json(file)
        except (OSError, ValueError):  # being written or removed
            continue
        more = other.get("views") if isinstance(other, dict) else None
        if not isinstance(more, int) or more <= views or {**other, "views": views} != manifest:
            continue
        files = {feature: _file(file.parent, feature) for feature in shapes}
        if all(place.exists() for place in files.values()):  # else it is not whole yet
            return tuple(
                _read(files[feature], (more, *shape[1:]), manifest["dtype"])[:views]
                for feature, shape in shapes.items()
            )
    return None


def _file(folder: Path, feature: str, state: str = "") -> Path:
    return folder / f"{feature.replace(':', '-')}{state}.npy"


def frozen_backbone(
    model: Classifier, packed: Packed, size: int, compute: Compute
) -> Backbone | Int8Backbone:
    """The backbone as it runs fastest, for pictures of `size` pixels; it must not have learnt.

    In 8-bit integers its ranges come from pictures of all over train.
    """
    if not compute.int8:
        return model.for_inference(compute.device, compute.for_frozen().dtype).backbone
    rows = np.linspace(0, len(packed.train) - 1, min(_CALIBRATION, len(packed.train))).astype(
        np.int64
    )
    shown = next(batches(packed.train, rows, batch_size=len(rows), device=compute.device))
    plain = augment_images(shown.images, shown.rows, Stage(size=size))
    # From float32 whatever the other floats are: features in integers are the same on every
    # processor's choice.
    return Int8Backbone(model.for_inference(compute.device, torch.float32).backbone, plain)


def _extract(
    backbone: Backbone | Int8Backbone, feature_names: Sequence[str], folder: Path, source: _Source
) -> None:
    """Fill one array a tap; an interruption costs half a minute, and the arrays get their names
    when whole.
    """
    widths = [feature_count(backbone, [feature]) for feature in feature_names]
    arrays, done = _open_partial(folder, feature_names, widths, source)
    saved = time.monotonic()
    total = source.views * len(source.rows)
    place = np.full(int(source.rows.max()) + 1, -1)  # row of the archive -> position in the arrays
    place[source.rows] = np.arange(len(source.rows))

    def save() -> None:
        for array in arrays:
            array.flush()
        write_json(
            folder / "progress.json",
            {"taps": list(feature_names), "at_once": source.at_once, "done": done},
        )

    first, start, seen = done
    pooled, dtype = (
        AutoBatch(partial(pooled_features, backbone, feature_names)),
        getattr(torch, source.dtype),
    )

    def computed(view: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        for batch in source.batches(view, start):
            features = pooled(batch.images)
            yield batch.rows, features.to(dtype), features.abs().max()

    with (
        progress(total=total, done=seen, label="features", unit="pictures") as bar,
        torch.inference_mode(),
    ):
        try:
            for view in range(first, source.views):
                for rows, found, greatest in fetched(computed(view, start)):
                    _refuse_beyond(greatest, dtype)
                    at = place[rows.numpy()]
                    for array, values in zip(
                        arrays, np.split(found.numpy(), np.cumsum(widths)[:-1], 1), strict=True
                    ):
                        array[view, at] = values
                    start += 1
                    seen += len(at)
                    done = [view, start, seen]
                    bar.update(len(at))
                    if time.monotonic() - saved > _SAVE_EVERY:
                        save()
                        saved = time.monotonic()
                start = 0
        except InputError:
            arrays.clear()
            _drop_partial(folder)  # the same command would end the same way
            raise
        except KeyboardInterrupt:
            save()
            log(
                f"\nthe features of {seen:,} of {total:,} pictures are kept; the same command goes "
                "on from there"
            )
            raise
    for array in arrays:
        array.flush()
    del array
    arrays.clear()  # some systems do not rename a file that is mapped
    for feature in feature_names:
        _file(folder, feature, ".partial").replace(_file(folder, feature))
    (folder / "progress.json").unlink(missing_ok=True)


def _refuse_beyond(greatest: Tensor, dtype: torch.dtype) -> None:
    """Raise `InputError` where features of up to `greatest` are no numbers, or none that the cache
    can hold.
    """
    if not torch.isfinite(greatest):
        raise InputError("features overflowed (inf or NaN); use --precision float32")
    if greatest > torch.finfo(dtype).max:
        raise InputError(
            f"features reach {greatest:.3g}, too large for {str(dtype).removeprefix('torch.')}; "
            + (
                advice("use --feature-dtype float32")
                or "train a new run with --feature-dtype float32"
            )
        )


def _open_partial(
    folder: Path, feature_names: Sequence[str], widths: Sequence[int], source: _Source
) -> tuple[list[np.ndarray], list[int]]:
    """Arrays to fill, and where an interrupted extraction of these taps stopped: view, batch,
    pictures.
    """
    shapes = [(source.views, len(source.rows), width) for width in widths]
    # where nothing usable was left it starts anew
    with suppress(OSError, ValueError, TypeError, KeyError):
        left = read_json(folder / "progress.json")
        view, start, seen = map(int, left["done"])
        # Of taps that were whole together some may have their names already.
        if set(feature_names) <= set(left["taps"]) and left.get("at_once") == source.at_once:
            arrays = [
                map_array(_file(folder, feature, ".partial"), "r+") for feature in feature_names
            ]
            if [array.shape for array in arrays] == shapes and 0 <= seen <= source.views * len(
                source.rows
            ):
                return arrays, [view, start, seen]
        log(
            f"features: discarded {seen:,} images of an unfinished extraction (different layers or "
            "batch size)"
        )
    _drop_partial(folder)
    bytes_each = np.dtype(source.dtype).itemsize
    total = source.views * len(source.rows) * sum(widths) * bytes_each
    log(
        f"features: {source.views} x {len(source.rows):,} pictures, {sum(widths):,} numbers each: "
        f"{total / 1e6:,.0f} MB in {folder}"
    )
    try:
        return [
            new_array(_file(folder, feature, ".partial"), shape, source.dtype)
            for feature, shape in zip(feature_names, shapes, strict=True)
        ], [0, 0, 0]
    except OSError:
        _drop_partial(folder)  # a disk with room for some of the taps is not left full
        raise


def _drop_partial(folder: Path) -> None:
    for file in (folder / "progress.json", *folder.glob("*.partial.npy")):
        file.unlink(missing_ok=True)
