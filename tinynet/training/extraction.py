"""Run a frozen backbone on images and write its features to disk, with resumption."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tinynet.distributed import Site
from tinynet.errors import InputError
from tinynet.files import map_array, new_array, read_json, write_json
from tinynet.models.backbone import Backbone
from tinynet.models.backbones import compute_for, runs_in_int8
from tinynet.models.classifier import Classifier, pooled_features
from tinynet.models.engines import OpenVinoBackbone
from tinynet.models.int8 import Int8Backbone
from tinynet.training.config import RunConfig
from tinynet.training.inputs import augment_images
from tinynet.training.recipes import Stage

SAVE_EVERY = 30.0  # seconds of extraction that an interruption may cost
_CALIBRATION = 64  # images that set the ranges of 8-bit integers; 256 give the same error


FrozenBackbone = Backbone | Int8Backbone | OpenVinoBackbone


@dataclass(frozen=True)
class FeatureSource:
    """The images to extract features of.

    `part`, `rows`: the images' part of the archive, and their rows (N,) in it. `epochs`: how many
    augmented versions of the images are extracted. `size`: their side in pixels. `dtype`: of the
    stored features. `batch_size`: images in a batch, unless an interrupted extraction has another.
    `load(epoch, number, batch_size)`: one batch.
    """

    part: PackedPart
    rows: np.ndarray
    epochs: int
    size: int
    dtype: str
    batch_size: int
    load: Callable[[int, int, int], Batch]


def evaluation_compute(config: RunConfig, stage: str, compute: Compute) -> Compute:
    """Return how the network of a finished stage is evaluated, on the device of `compute`.

    VGG16 runs in int8 where that is fastest, trained or not. Other trained networks stay in the
    floats that they were trained in. Raises `InputError` if the user named int8 for a network that
    cannot run in it.
    """
    arch = config.recipe.network.arch
    compute.check_network(runs_in_int8(arch))
    compute = compute_for(compute, arch)
    if config.trains_backbone(stage) and not compute.int8:
        return compute.for_training()
    return compute.for_frozen()


def frozen_backbone(
    model: Classifier, packed: Packed, size: int, compute: Compute
) -> FrozenBackbone:
    """Return the fastest inference version of a backbone that is not trained any more.

    `size`: side in pixels of the images.
    """
    if compute.engine == "openvino":
        nodes = {feature.split(":")[0] for feature in model.feature_names}
        return OpenVinoBackbone(model.backbone, sorted(nodes), compute.for_frozen())
    if not compute.int8:
        return model.for_inference(compute.device, compute.for_frozen().dtype).backbone
    return int8_backbone(model, packed, size, compute.device)


def inference_network(model: Classifier, packed: Packed, size: int, compute: Compute) -> Classifier:
    """Return the fastest inference version of a network for images of `size` pixels."""
    network = model.for_inference(compute.device, compute.dtype)
    if compute.int8 or compute.engine != "torch":
        backbone = frozen_backbone(model, packed, size, compute)
        network.backbone = cast(Backbone, backbone)  # all frozen backbones are called like one
    return network


def int8_backbone(
    model: Classifier, packed: Packed, size: int, device: torch.device, last: str | None = None
) -> Int8Backbone:
    """Return the backbone in int8, or its layers up to `last`, for images of `size` pixels.

    It is calibrated on images from all over train.
    """
    rows = np.linspace(0, len(packed.train) - 1, min(_CALIBRATION, len(packed.train))).astype(
        np.int64
    )
    batch = next(batches(packed.train, rows, batch_size=len(rows), device=device))
    images = augment_images(batch.images, batch.rows, Stage(size=size))
    # Always from float32, so that int8 features are the same on every processor.
    return Int8Backbone(model.for_inference(device, torch.float32).backbone, images, last)


def feature_file(folder: Path, feature: str, state: str = "") -> Path:
    """Return the file of one feature's array; `state`: `.partial` while it is incomplete."""
    return folder / f"{feature.replace(':', '-')}{state}.npy"


def extract(
    backbone: Callable[[], FrozenBackbone],
    widths: Mapping[str, int],
    folder: Path,
    source: FeatureSource,
    site: Site,
) -> None:
    """Write one array (epochs, N, channels) for each feature; continue an interrupted extraction.

    `backbone`: builds the backbone. `widths`: the channels of each feature; none if the folder has
    them all. Every rank of `site` extracts other batches. The arrays get their final names when
    they are complete. Raises `InputError` if a feature is not finite or too large for the dtype,
    and `KeyboardInterrupt` after saving the progress.
    """
    output = _Output(folder, widths, source)
    output.open(site)
    if output.missing:
        _fill(output, backbone(), site)
    output.finish(site)


def _fill(output: "_Output", backbone: FrozenBackbone, site: Site) -> None:
    """Extract this rank's share of the missing batches."""
    source = output.source
    pooled = AutoBatch(partial(pooled_features, backbone, output.feature_names))
    dtype = getattr(torch, source.dtype)

    def results() -> Iterator[tuple[Tensor, ...]]:
        for epoch, number in output.missing:
            batch = source.load(epoch, number, output.batch_size)
            features = pooled(batch.images)
            where = torch.tensor([epoch, number])
            yield where, batch.rows, features.to(dtype), features.abs().max()

    total = source.epochs * len(source.rows)
    with (
        progress(total=total, done=output.image_count, label="features", unit="images") as bar,
        torch.inference_mode(),
    ):
        try:
            for where, rows, features, greatest in fetch_async(results()):
                _check_range(greatest, dtype)
                epoch, number = where.tolist()
                output.write(epoch, number, rows.numpy(), features.numpy())
                bar.update(len(rows) * len(site.ranks))
                site.world.check()
        except InputError:
            output.discard()  # the same command would fail in the same way
            raise
        except KeyboardInterrupt:
            output.save()
            log(
                f"\nsaved features of {output.image_count:,} of {total:,} images; run the same "
                "command to continue"
            )
            raise


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
    """The incomplete arrays of an extraction, which all ranks of a site write.

    `widths`: the channels of each feature. `batch_size`: images in a batch. `missing`: the batches
    that this rank extracts, each an epoch and a number in it. `image_count`: how many images are
    extracted.
    """

    missing: Sequence[tuple[int, int]] = ()

    def __init__(self, folder: Path, widths: Mapping[str, int], source: FeatureSource):
        self.folder, self.feature_names, self.source = folder, list(widths), source
        self.batch_size = source.batch_size
        self._splits = np.cumsum(list(widths.values()))[:-1]
        self._columns = np.full(int(source.rows.max()) + 1, -1)  # row of the part -> column
        self._columns[source.rows] = np.arange(len(source.rows))
        self._shapes = [(source.epochs, len(source.rows), width) for width in widths.values()]
        self._arrays: list[np.memmap] = []
        self._written: list[tuple[int, int]] = []  # batches since the last save
        self._last_save = time.monotonic()

    def open(self, site: Site) -> None:
        """Open the arrays of an interrupted extraction, or create them on the site's main rank."""

        def prepare() -> tuple[int, list[tuple[int, int]]]:
            """The batch size, and what is missing before any rank goes on."""
            if not self.feature_names:
                return self.batch_size, []
            if not self._is_interrupted():
                self._create()
            done = map_array(self._done_file)
            return self.batch_size, [(int(e), int(n)) for e, n in np.argwhere(done == 0)]

        self.batch_size, missing = site.from_main(prepare)
        self.missing = site.share(missing)
        if self.feature_names and site.world.rank in site.ranks:
            files = [self._partial_file(feature) for feature in self.feature_names]
            self._arrays = [cast(np.memmap, map_array(file, "r+")) for file in files]
            self._done = map_array(self._done_file, "r+")

    @property
    def image_count(self) -> int:
        sizes = np.full(self._done.shape[1], self.batch_size)
        sizes[-1] = len(self.source.rows) - sizes[:-1].sum()
        return int((self._done * sizes).sum())

    def _is_interrupted(self) -> bool:
        """Whether there is an interrupted extraction that can be continued, with its batch size."""
        file = self.folder / "progress.json"
        if not file.exists():
            return False
        with suppress(OSError, ValueError, TypeError, KeyError):
            state = read_json(file)
            # An interruption may fall between two renames, so some arrays of the interrupted
            # extraction may be complete.
            same_features = set(self.feature_names) <= set(state["taps"])
            if same_features:
                self.batch_size = int(state["at_once"])
                files = [self._partial_file(feature) for feature in self.feature_names]
                shapes = [map_array(file).shape for file in files]
                if shapes == self._shapes and map_array(self._done_file).shape == self._batches:
                    return True
        self.batch_size = self.source.batch_size
        log(
            "features: discarded an unfinished extraction (different layers, or of an earlier "
            "version)"
        )
        return False

    @property
    def _batches(self) -> tuple[int, int]:
        """The number of epochs, and of batches in an epoch."""
        return self.source.epochs, math.ceil(len(self.source.rows) / self.batch_size)

    def _create(self) -> None:
        self.discard()
        source, width = self.source, sum(shape[2] for shape in self._shapes)
        size = source.epochs * len(source.rows) * width * np.dtype(source.dtype).itemsize
        log(
            f"features: {source.epochs} x {len(source.rows):,} images, {width:,} values each: "
            f"{size / 1e6:,.0f} MB in {self.folder}"
        )
        try:
            for feature, shape in zip(self.feature_names, self._shapes, strict=True):
                new_array(self._partial_file(feature), shape, source.dtype)
            new_array(self._done_file, self._batches, "uint8")
        except OSError:
            self.discard()  # do not fill a disk that has room for some of the arrays only
            raise
        state = {"taps": list(self.feature_names), "at_once": source.batch_size}
        write_json(self.folder / "progress.json", state)

    def _partial_file(self, feature: str) -> Path:
        return feature_file(self.folder, feature, ".partial")

    @property
    def _done_file(self) -> Path:
        return self.folder / "done.partial.npy"

    def write(self, epoch: int, number: int, rows: np.ndarray, features: np.ndarray) -> None:
        """Write the features (n, F) of one batch; save the progress from time to time."""
        columns = self._columns[rows]
        for array, values in zip(self._arrays, np.split(features, self._splits, 1), strict=True):
            array[epoch, columns] = values
        self._written.append((epoch, number))
        if time.monotonic() - self._last_save > SAVE_EVERY:
            self.save()
            self._last_save = time.monotonic()

    def save(self) -> None:
        """Save the arrays and then which batches are done, so that the extraction can continue."""
        self._flush()
        for epoch, number in self._written:
            self._done[epoch, number] = 1
        self._written.clear()
        cast(np.memmap, self._done).flush()

    def finish(self, site: Site) -> None:
        """Give the complete arrays their final names."""
        if self._arrays:
            self.save()
            self._arrays.clear()  # some systems cannot rename a file while it is mapped
            del self._done
        site.world.barrier()
        if site.main and self.feature_names:
            assert map_array(self._done_file).all()
            for feature in self.feature_names:
                self._partial_file(feature).replace(feature_file(self.folder, feature))
            self._remove_progress()
        site.world.barrier()

    def discard(self) -> None:
        """Delete the incomplete arrays and the saved progress."""
        self._arrays.clear()
        self._remove_progress()
        for file in self.folder.glob("*.partial.npy"):
            file.unlink(missing_ok=True)

    def _remove_progress(self) -> None:
        (self.folder / "progress.json").unlink(missing_ok=True)
        self._done_file.unlink(missing_ok=True)

    def _flush(self) -> None:
        for array in self._arrays:
            array.flush()
