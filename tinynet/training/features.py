"""Features of a frozen backbone, computed once and cached on disk, one array for each feature.

The cached features of an epoch are exactly those that training on images would compute in this
epoch, batch by batch. So with as many cached epochs as epochs, training on features equals training
on images. With `alternating` flips and no other augmentation, two cached epochs reproduce any
number of epochs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinynet.compute import Compute
from tinynet.console import log
from tinynet.data.batches import (
    Batch,
    ImageLoader,
    default_batch_size,
    has_room,
    seeded_generator,
    send,
    send_whole,
)
from tinynet.data.own_folders import FEATURES
from tinynet.data.packed import Packed, PackedPart
from tinynet.distributed import get_world
from tinynet.errors import InputError
from tinynet.files import locked, map_array, read_json, write_json
from tinynet.models.classifier import Classifier, feature_count
from tinynet.records import Json
from tinynet.training.extraction import FeatureSource, extract, feature_file, frozen_backbone
from tinynet.training.inputs import Draws, TrainingImages, augment_images
from tinynet.training.order import Shuffle
from tinynet.training.recipes import Stage

FORMAT = 1  # of the cache
_PLAIN = Shuffle()


@dataclass(frozen=True)
class Features:
    """Cached features of N images.

    `arrays`: one for each feature, (epochs, N, channels) float16 or float32, mapped from disk.
    `labels`: (N,) int64, or None for images without labels.
    """

    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    _sent: dict[torch.device, list[Tensor] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def gather(self, epoch: int, positions: np.ndarray, device: torch.device) -> Tensor:
        """Return the (n, F) float32 features of the images at `positions` (0 ... N - 1)."""
        resident = self._resident(device)
        if resident is None:
            return send(
                np.concatenate([array[epoch, positions] for array in self.arrays], 1), device
            ).float()
        indices = send(positions, device)
        return torch.cat([tensor[epoch, indices] for tensor in resident], 1).float()

    def _resident(self, device: torch.device) -> list[Tensor] | None:
        """The arrays on the device, sent once; None if they do not fit into its memory."""
        if device not in self._sent:
            room = has_room(sum(array.nbytes for array in self.arrays), device)
            self._sent[device] = (
                [send_whole(array, device) for array in self.arrays] if room else None
            )
        return self._sent[device]

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch: int,
        device: torch.device,
        start: int = 0,
        shuffle: Shuffle = _PLAIN,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (n, F) and labels (n,) in the order of training on images.

        `batch`: the batch size. `start`: the number of the first batch to yield. Each rank gets its
        share of every batch.
        """
        assert self.labels is not None  # an image without a label cannot be trained on
        order = shuffle.epoch(self.labels, seed, epoch, batch)
        cached_epoch = epoch % len(self.arrays[0])
        for first in range(start * batch, len(order), batch):
            positions = order[first : first + batch]
            positions = positions[get_world().share(len(positions))]
            labels = send(self.labels[positions], device)
            yield self.gather(cached_epoch, positions, device), labels

    def in_order(
        self, device: torch.device, batch: int = 1024, share: slice = slice(None)
    ) -> Iterator[Tensor]:
        """Yield the features (n, F) of the first cached epoch, in the order of the rows.

        `share`: of which positions.
        """
        positions = np.arange(self.arrays[0].shape[1])[share]
        for first in range(0, len(positions), batch):
            yield self.gather(0, positions[first : first + batch], device)


@dataclass(frozen=True)
class FeatureCache:
    """The cached features of one network and one packed archive; missing ones are extracted.

    `model`: its backbone must be frozen. `compute`: device and precision of the extraction. The
    files are in `packed.cache`.
    """

    model: Classifier
    packed: Packed
    compute: Compute

    def train_features(self, rows: np.ndarray, stage: Stage, seed: int) -> Features:
        """Return the features of the training images in `rows`, augmented for `stage`.

        They have `stage.cached_epochs` epochs.
        """
        train, device = self.packed.train, self.compute.device
        settings: Json = dict(
            flip=stage.flip,
            crop_side=stage.crop_side,
            crop_area=stage.crop_area,
            saturation=stage.saturation,
            hue=stage.hue,
        )
        if stage.random:
            settings |= dict(seed=seed, batch=stage.batch)
        # In a balanced order some images would have no features.
        images = TrainingImages(train, rows, replace(stage, balanced=False), seed)
        loader = ImageLoader(train, device)

        def load(epoch: int, number: int, batch_size: int) -> Batch:
            if stage.random:
                return images.batch(loader, epoch, number)
            # Without randomness the order does not matter, and the archive's own order reads and
            # writes in one sweep.
            draws = Draws(epoch=epoch)
            return loader.load(
                rows[number * batch_size : (number + 1) * batch_size],
                lambda images, rows: augment_images(images, rows, stage, draws),
            )

        source = FeatureSource(
            part=train,
            rows=rows,
            epochs=stage.cached_epochs,
            size=stage.size,
            dtype=stage.feature_dtype,
            batch_size=stage.batch if stage.random else self._batch_size(stage.size),
            load=load,
        )
        return self._features(source, settings)

    def view_features(
        self, part: PackedPart, rows: np.ndarray, view: Callable[[Tensor], Tensor], stage: Stage
    ) -> Features:
        """Return the features of one deterministic view of the images in `rows` of `part`.

        `view`: images (N, 3, H, W) -> (N, 3, size, size) with the size of `stage`. The result has
        one epoch.
        """
        loader = ImageLoader(part, self.compute.device)

        def load(_: int, number: int, batch_size: int) -> Batch:
            return loader.load(
                rows[number * batch_size : (number + 1) * batch_size],
                lambda images, rows: view(images),
            )

        source = FeatureSource(
            part=part,
            rows=rows,
            epochs=1,
            size=stage.size,
            dtype=stage.feature_dtype,
            batch_size=self._batch_size(stage.size),
            load=load,
        )
        return self._features(source, dict(view=effect(view, self.packed.side)))

    def _batch_size(self, size: int) -> int:
        """The batch size for extraction at `size` pixels."""
        return default_batch_size(size, self.compute)

    def _features(self, source: FeatureSource, settings: Json) -> Features:
        """Read features from the cache, after extracting those that are missing.

        `settings`: everything else that they depend on.
        """
        manifest = self._manifest(source, settings)
        key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.packed.cache / f"{FEATURES}{key}"
        labels = None if source.part.labels is None else source.part.labels[source.rows]
        shapes = {
            name: (source.epochs, len(source.rows), feature_count(self.model.backbone, [name]))
            for name in self.model.feature_names
        }
        site, cache = get_world().site(self.packed.cache), self.packed.cache
        longer = site.from_main(lambda: _longer_cache(cache, manifest, list(shapes)))

        def missing() -> list[str]:
            names = () if longer else shapes
            return [name for name in names if not feature_file(folder, name).exists()]

        # If any copy of the cache lacks features, all ranks meet in the extraction.
        if site.world.agree(bool(site.from_main(missing)))[0]:
            waiting = lambda: log(f"waiting: another process is extracting {folder}")  # noqa: E731
            with locked(folder, waiting) if site.main else nullcontext():
                names = site.from_main(missing)
                if names and site.main:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_json(folder / "manifest.json", manifest)
                extract(
                    lambda: frozen_backbone(self.model, self.packed, source.size, self.compute),
                    {name: shapes[name][2] for name in names},
                    folder,
                    source,
                    site,
                )
        epochs, files = longer or (source.epochs, {})
        arrays = tuple(
            _read(files.get(name, feature_file(folder, name)), (epochs, *shape[1:]), source.dtype)
            for name, shape in shapes.items()
        )
        return Features(tuple(array[: source.epochs] for array in arrays), labels)

    def _manifest(self, source: FeatureSource, settings: Json) -> Json:
        """Everything that the features depend on, as plain JSON values."""
        manifest = {
            "kind": "features",
            "format": FORMAT,
            "data": self.packed.contents,
            "part": source.part.name,
            "rows": hashlib.sha256(source.rows.astype("<i8").tobytes()).hexdigest()[:16],
            "views": source.epochs,
            "size": source.size,
            "dtype": source.dtype,
            "backbone": self.model.backbone.digest(),
            "device": self.compute.device.type,
            "precision": self.compute.for_frozen().precision,
            **({"engine": engine} if (engine := self.compute.engine) != "torch" else {}),
            **settings,
        }
        return json.loads(json.dumps(manifest))


def effect(view: Callable[[Tensor], Tensor], side: int) -> str:
    """Return a digest of what a view does to one fixed noise image of `side` pixels.

    Unlike the view's name, it changes when the function behind the name changes.
    """
    noise = torch.rand(1, 3, side, side, generator=seeded_generator("cpu", "probe"))
    image = (view(noise) * 255).round().to(torch.uint8).contiguous()
    shape = str(tuple(image.shape)).encode()
    return hashlib.sha256(shape + image.numpy().tobytes()).hexdigest()[:16]


def _read(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Map one cached array; raises `InputError` if its shape or dtype is wrong."""
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


def _longer_cache(
    cache: Path, manifest: Json, names: Sequence[str]
) -> tuple[int, dict[str, Path]] | None:
    """The epochs and the files of a cache that has more epochs and is otherwise the same.

    An epoch does not depend on the number of epochs. None without such a cache.
    """
    epochs = manifest["views"]
    for file in cache.glob("features-*/manifest.json"):
        try:
            other = read_json(file)
        except (OSError, ValueError):  # another process writes or removes it
            continue
        longer = other.get("views") if isinstance(other, dict) else None
        if not isinstance(longer, int) or longer <= epochs:
            continue
        if {**other, "views": epochs} != manifest:
            continue
        files = {name: feature_file(file.parent, name) for name in names}
        if all(path.exists() for path in files.values()):  # else it is incomplete
            return longer, files
    return None
