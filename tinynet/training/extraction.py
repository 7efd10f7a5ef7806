"""Run a frozen backbone on images and write its features to disk, with resumption."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tinynet.compute import AutoBatch, Compute
from tinynet.console import advice, log, option, progress
from tinynet.data.batches import Batch, batches, fetch_async
from tinynet.data.packed import Packed, PackedPart
from tinynet.errors import InputError
from tinynet.files import map_array, new_array, read_json, write_json
from tinynet.models.backbone import Backbone
from tinynet.models.classifier import Classifier, feature_count, pooled_features
from tinynet.models.engines import OpenVinoBackbone
from tinynet.models.int8 import Int8Backbone
from tinynet.training.inputs import augment_images
from tinynet.training.recipes import Stage

SAVE_EVERY = 30.0  # seconds of extraction that an interruption may cost
_CALIBRATION = 64  # images that set the ranges of 8-bit integers; 256 give the same error


FrozenBackbone = Backbone | Int8Backbone | OpenVinoBackbone


@dataclass(frozen=True)
class Source:
    """The images to extract features of.

    `part`, `rows`: the images' part of the archive, and their rows (N,) in it. `epochs`: how many
    augmented versions of the images are extracted. `size`: their side in pixels. `dtype`: of the
    stored features. `batch_size`: images in a batch. `batches(epoch, start)`: the batches of one
    epoch, from batch `start` on.
    """

    part: PackedPart
    rows: np.ndarray
    epochs: int
    size: int
    dtype: str
    batch_size: int
    batches: Callable[[int, int], Iterator[Batch]]


def frozen_backbone(
    model: Classifier, packed: Packed, size: int, compute: Compute
) -> FrozenBackbone:
    """Return the fastest inference version of an ImageNet-trained, never fine-tuned backbone.

    `size`: side in pixels of the images. An int8 backbone is calibrated on images from all over
    train.
    """
    if compute.engine == "openvino":
        nodes = {feature.split(":")[0] for feature in model.feature_names}
        return OpenVinoBackbone(model.backbone, sorted(nodes), compute.for_frozen())
    if not compute.int8:
        return model.for_inference(compute.device, compute.for_frozen().dtype).backbone
    rows = np.linspace(0, len(packed.train) - 1, min(_CALIBRATION, len(packed.train))).astype(
        np.int64
    )
    batch = next(batches(packed.train, rows, batch_size=len(rows), device=compute.device))
    images = augment_images(batch.images, batch.rows, Stage(size=size))
    # Always from float32, so that int8 features are the same on every processor.
    return Int8Backbone(model.for_inference(compute.device, torch.float32).backbone, images)


def feature_file(folder: Path, feature: str, state: str = "") -> Path:
    """Return the file of one feature's array; `state`: `.partial` while it is incomplete."""
    return folder / f"{feature.replace(':', '-')}{state}.npy"


def extract(
    backbone: FrozenBackbone, feature_names: Sequence[str], folder: Path, source: Source
) -> None:
    """Write one array (epochs, N, channels) for each feature; continue an interrupted extraction.

    The arrays get their final names when they are complete. Raises `InputError` if a feature is
    not finite or too large for the dtype, and `KeyboardInterrupt` after saving the progress.
    """
    widths = [feature_count(backbone, [feature]) for feature in feature_names]
    output = _Output(folder, feature_names, widths, source)
    pooled = AutoBatch(partial(pooled_features, backbone, feature_names))
    dtype = getattr(torch, source.dtype)
    total = source.epochs * len(source.rows)

    def results(epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        for batch in source.batches(epoch, start):
            features = pooled(batch.images)
            yield batch.rows, features.to(dtype), features.abs().max()

    first_epoch, first_batch, image_count = output.position
    with (
        progress(total=total, done=image_count, label="features", unit="images") as bar,
        torch.inference_mode(),
    ):
        try:
            for epoch in range(first_epoch, source.epochs):
                start = first_batch if epoch == first_epoch else 0
                for number, (rows, features, greatest) in enumerate(
                    fetch_async(results(epoch, start)), start
                ):
                    _check_range(greatest, dtype)
                    output.write(epoch, number, rows.numpy(), features.numpy())
                    bar.update(len(rows))
        except InputError:
            output.discard()  # the same command would fail in the same way
            raise
        except KeyboardInterrupt:
            output.save()
            log(
                f"\nsaved features of {output.position[2]:,} of {total:,} images; run the same "
                "command to continue"
            )
            raise
    output.finish()


def _check_range(greatest: Tensor, dtype: torch.dtype) -> None:
    """Raise `InputError` if the `greatest` absolute feature is not finite, or beyond `dtype`."""
    if not torch.isfinite(greatest):
        raise InputError(f"features overflowed ({greatest:g}); use {option('precision')} float32")
    if greatest > torch.finfo(dtype).max:
        raise InputError(
            f"features reach {greatest:.3g}, too large for {str(dtype).removeprefix('torch.')}; "
            + (
                advice(f"use {option('feature_dtype')} float32")
                or f"train a new run with {option('feature_dtype')} float32"
            )
        )


class _Output:
    """The incomplete arrays of an extraction.

    `position`: how far the extraction is: epoch, next batch of this epoch, images so far.
    """

    def __init__(
        self, folder: Path, feature_names: Sequence[str], widths: Sequence[int], source: Source
    ):
        self.folder, self.feature_names, self.source = folder, feature_names, source
        self._splits = np.cumsum(widths)[:-1]
        self._columns = np.full(int(source.rows.max()) + 1, -1)  # row of the part -> column
        self._columns[source.rows] = np.arange(len(source.rows))
        self.position = (0, 0, 0)
        self._arrays: list[np.memmap] = []
        shapes = [(source.epochs, len(source.rows), width) for width in widths]
        self._arrays = self._resume(shapes) or self._create(shapes)
        self._last_save = time.monotonic()

    def _resume(self, shapes: list[tuple[int, int, int]]) -> list[np.memmap]:
        """The arrays and position of an interrupted extraction; empty if they cannot be used."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            state = read_json(self.folder / "progress.json")
            epoch, batch, images = map(int, state["done"])
            # An interruption may fall between two renames, so some arrays of the interrupted
            # extraction may be complete.
            same_features = set(self.feature_names) <= set(state["taps"])
            if same_features and state.get("at_once") == self.source.batch_size:
                files = [self._partial_file(feature) for feature in self.feature_names]
                arrays = [cast(np.memmap, map_array(file, "r+")) for file in files]
                total = self.source.epochs * len(self.source.rows)
                if [array.shape for array in arrays] == shapes and 0 <= images <= total:
                    self.position = (epoch, batch, images)
                    return arrays
            log(
                f"features: discarded {images:,} images of an unfinished extraction (different "
                "layers or batch size)"
            )
        return []

    def _create(self, shapes: list[tuple[int, int, int]]) -> list[np.memmap]:
        self.discard()
        source, width = self.source, sum(shape[2] for shape in shapes)
        size = source.epochs * len(source.rows) * width * np.dtype(source.dtype).itemsize
        log(
            f"features: {source.epochs} x {len(source.rows):,} images, {width:,} values each: "
            f"{size / 1e6:,.0f} MB in {self.folder}"
        )
        try:
            return [
                new_array(self._partial_file(feature), shape, source.dtype)
                for feature, shape in zip(self.feature_names, shapes, strict=True)
            ]
        except OSError:
            self.discard()  # do not fill a disk that has room for some of the arrays only
            raise

    def _partial_file(self, feature: str) -> Path:
        return feature_file(self.folder, feature, ".partial")

    def write(self, epoch: int, batch: int, rows: np.ndarray, features: np.ndarray) -> None:
        """Write the features (n, F) of one batch; save the progress from time to time."""
        columns = self._columns[rows]
        for array, values in zip(self._arrays, np.split(features, self._splits, 1), strict=True):
            array[epoch, columns] = values
        self.position = (epoch, batch + 1, self.position[2] + len(rows))
        if time.monotonic() - self._last_save > SAVE_EVERY:
            self.save()
            self._last_save = time.monotonic()

    def save(self) -> None:
        """Save the arrays and the position, so that the extraction can continue from here."""
        self._flush()
        write_json(
            self.folder / "progress.json",
            {
                "taps": list(self.feature_names),
                "at_once": self.source.batch_size,
                "done": list(self.position),
            },
        )

    def finish(self) -> None:
        """Give the complete arrays their final names."""
        self._flush()
        self._arrays.clear()  # some systems cannot rename a file while it is mapped
        for feature in self.feature_names:
            self._partial_file(feature).replace(feature_file(self.folder, feature))
        (self.folder / "progress.json").unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the incomplete arrays and the saved position."""
        self._arrays.clear()
        for file in (self.folder / "progress.json", *self.folder.glob("*.partial.npy")):
            file.unlink(missing_ok=True)

    def _flush(self) -> None:
        for array in self._arrays:
            array.flush()
