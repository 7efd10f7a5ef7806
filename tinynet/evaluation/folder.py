"""Evaluate a pretrained ImageNet network on any folder of images, by its publisher's procedure.

Images are decoded in batches, so memory does not grow with their number.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from tinynet import console
from tinynet.compute import AutoBatch, Compute
from tinynet.data.image_folder import Images, imagenet_wnids, labelled_images, open_image
from tinynet.data.workers import can_start
from tinynet.distributed import World, get_world
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import GainsOverFirst
from tinynet.files import check_writable, new_array, temporary_folder
from tinynet.models.classifier import MAX_SIDE
from tinynet.models.pretrained import WeightsInfo, load_pretrained
from tinynet.records import Json, Score, ScoreRow, class_names
from tinynet.score import merges as merging
from tinynet.score.metrics import Tally
from tinynet.score.probabilities import Probabilities, log_softmax
from tinynet.score.views import ViewSet, view_set

_WORKER_ERROR = re.compile(
    "DataLoader worker|shared memory|unable to open file|received 0 items of ancdata", re.I
)
_MAX_WORKERS = 256  # processes; more fill memory before one has decoded an image
# PIL's numbers
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class FolderRequest:
    """How to prepare and score the images of a folder; None: as the network's publisher does.

    `resize`: the shorter side before crops of `size`, in pixels; both sides if `resize_mode` is
    `squash`. Views that name sides resize the decoded image themselves. `tta`, `merges`: as in
    `ScoreRequest`. `workers`: processes that decode. `save`: a file for the probabilities.
    """

    resize: int | None = None
    resize_mode: str | None = None
    interpolation: str | None = None
    size: int | None = None
    tta: Sequence[str] = ()
    merges: Sequence[str] = ("mean",)
    workers: int = 2
    save: str | None = None

    def sets(self, published: WeightsInfo) -> list[ViewSet]:
        """Parse the sets of views, the plain view first.

        Raises `InputError` for unknown views or merges, for a crop that is larger than the resized
        image, and for `save` with more than one set of views.
        """
        size, resize = self.size or published.size, self.resize or published.resize
        for name in self.merges:
            merging.get(name)
        if not 0 <= self.workers <= _MAX_WORKERS:
            raise InputError(
                f"{console.option('workers')} {self.workers}: out of range; use 0 to {_MAX_WORKERS}"
            )
        check_resize(resize)
        if self.save and get_world().size > 1:
            raise InputError(
                f"{console.option('save_probabilities')}: is written by one process; start it "
                "without torchrun"
            )
        if self.save:
            check_writable(self.save)
        if self.save and len(self.tta) > 1:
            raise InputError(
                f"{console.option('save_probabilities')} {self.save}: one file holds one set of "
                f"views, not {len(self.tta)}; name one with {console.option('tta')}"
            )
        if size > resize:
            raise InputError(
                f"{console.option('size')} {size}: a crop of {size} pixels does not fit into "
                f"images resized to {resize}; use a larger {console.option('resize')}, for "
                f"instance {round(size * 8 / 7)}"
            )
        sets = [view_set(text, size, prepared=True) for text in dict.fromkeys(("none", *self.tta))]
        for views in sets:
            refuse_dense(views)
        return sets


def evaluate_folder(
    folder: str,
    labels: str | None,
    arch: str,
    weights: str,
    request: FolderRequest,
    compute: Compute,
) -> Iterator[ScoreRow]:
    """Yield rows of scores of a pretrained network on the images of `folder`.

    Classes are matched by WordNet id. `labels`: as for `labelled_images`. `apart` of a row is the
    measured top-1 minus the documented one, in half widths of the 95 % interval; beyond 1, the
    procedure or the images differ from the documented ones.

    Raises `InputError` for unusable input and for the first unreadable image: a score without it
    would be of other images.
    """
    model, published = get_world().main_first(lambda: load_pretrained(arch, weights))
    class_ids = imagenet_wnids() if len(published.names) == 1000 else published.names
    images = labelled_images(folder, class_ids, labels)
    sets, network = request.sets(published), model.on(compute)
    side = request.resize or published.resize
    for views in sets:
        probe = torch.zeros(1, 3, side, side, device=compute.device)
        check_views(network, views, probe, f"{console.option('arch')} {arch}")
    source = ScoreRow(
        run=arch,
        stage=weights,
        split=Path(folder).resolve().name,
        size=request.size or published.size,
        precision=compute.precision,
    )
    digest = _digest(images, Path(folder))
    get_world().check_equal(digest, "folder of images")
    evaluation = _Evaluation(network, published, images, class_ids, request, compute)
    yield from evaluation.rows(sets, source, digest)


def check_resize(resize: int) -> None:
    """Raise `InputError` for a side in pixels that would fill memory."""
    if not 0 < resize <= MAX_SIDE:
        raise InputError(
            f"{console.option('resize')} {resize}: out of range; use 1 to {MAX_SIDE} pixels"
        )


def decode_batch_size(views: ViewSet) -> int:
    """Return how many images to decode at a time: fewer if views resize the original images."""
    return 4 if views.resizes else 32


def refuse_dense(views: ViewSet) -> None:
    """Raise `InputError` for a dense set, which only the network of a run can evaluate."""
    if views.dense:
        raise InputError(
            f"{console.option('tta')} {views.name}: dense works only for runs of tinynet; use "
            "larger images instead, for instance scales:256,320"
        )


def check_views(model: nn.Module, views: ViewSet, probe: Tensor, name: str) -> None:
    """Raise `InputError` if the network cannot process a view of `probe` (1, 3, H, H).

    Views that resize are tried on an oblong image too. `name`: of the network, for the message.
    """
    square = probe.cpu()
    oblong = square.repeat(1, 1, 1, 2)[..., : square.shape[-1] * 4 // 3]
    for view, image in (
        *views(square).items(),
        *(views(oblong).items() if views.resizes else ()),
    ):
        try:
            with torch.inference_mode():
                model(image.to(probe.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"{name}: cannot process {view} of {console.option('tta')} {views.name}, "
                f"{image.shape[-1]}x{image.shape[-2]} pixels "
                f"({' '.join(str(error).split())[:120]}); name another "
                f"{console.option('size')} or {console.option('tta')}"
            ) from None


def _digest(images: Images, folder: Path) -> str:
    """SHA-256 (first 16 hex digits) of the files' names, sizes and labels."""
    digest = hashlib.sha256()
    for file, label in zip(images.files, images.labels, strict=True):
        try:
            size = file.stat().st_size
        except OSError as error:
            raise InputError(
                f"{file}: cannot be read as an image ({error.strerror}); restore it or remove it"
            ) from None
        line = f"{file.relative_to(folder)} {size} {label}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _documented(row: ScoreRow, published: WeightsInfo) -> tuple[float | None, float | None]:
    """The published top-1, and the difference to it in half widths of the interval."""
    if published.accuracies is None or row.views != "none":
        return None, None
    documented = published.accuracies[0]
    return documented, (row.top1 - documented) / ((row.high - row.low) / 2)


class _MergeTally:
    """Counts of one merge, and whether it classifies each image right."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._right: list[np.ndarray] = []

    def add(self, merged: np.ndarray, labels: np.ndarray) -> None:
        self._tally.add(merged, labels)
        self._right.append(merged.argmax(1) == labels)

    def of_all(self, world: World) -> "_MergeTally":
        """The tally of the images of all ranks."""
        whole = _MergeTally()
        for tally, right in world.gather_objects((self._tally, self._right)):
            whole._tally.merge(tally)
            whole._right += right
        return whole

    @property
    def score(self) -> Score:
        return self._tally.result()

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return np.concatenate(self._right)


class _ViewWriter:
    """Collects the probabilities of every view on disk, then writes one file, if there is a path.

    They may not fit in memory.
    """

    def __init__(self, path: str | None, views: ViewSet, count: int, classes: int):
        self.path, self.views, self.shape = path, views, (len(views), count, classes)

    def __enter__(self) -> "_ViewWriter":
        if self.path:
            self._folder = temporary_folder(f"{self.path}.views")
            path = self._folder.__enter__() / "views.npy"
            self._array = new_array(path, self.shape, np.float32)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.path:
            del self._array
            self._folder.__exit__(*error)

    def add(self, log_probabilities: Tensor, positions: Sequence[int]) -> None:
        if self.path:
            self._array[:, positions] = log_probabilities.numpy()

    def save(self, labels: Sequence[int], class_ids: Sequence[str], about: Json) -> None:
        if self.path:
            Probabilities(
                tuple(self.views.views),
                self._array,
                np.arange(len(labels)),
                np.array(labels),
                tuple(class_ids),
                np.full(len(self.views), np.nan),
                about,
            ).save(Path(self.path))


class DecodedImages(Dataset):
    """Images of files, decoded and resized by PIL.

    An item is its index and a uint8 tensor (3, H, W), or its index and an error message. `resize`:
    the shorter side in pixels, or both with `squash`; None: the original size. `upright`: rotate as
    the EXIF data say.
    """

    def __init__(
        self,
        files: Sequence[Path],
        resize: int | None,
        mode: str,
        interpolation: str,
        upright: bool = False,
    ):
        self.files, self.resize, self.mode = files, resize, mode
        self.interpolation, self.upright = INTERPOLATIONS[interpolation], upright

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            image = open_image(self.files[index], self.upright)
        except InputError as error:
            # The message of an exception from a worker would be a traceback.
            return index, str(error)
        if self.resize:
            width, height = image.size
            scale = self.resize / min(width, height)
            sides = (
                (self.resize, self.resize)
                if self.mode == "squash"
                else (max(self.resize, int(width * scale)), max(self.resize, int(height * scale)))
            )
            image = image if sides == image.size else image.resize(sides, self.interpolation)
        return index, torch.from_numpy(np.array(image)).permute(2, 0, 1)


@dataclass(frozen=True)
class _Evaluation:
    """A network on its device, and the images to evaluate it on."""

    network: nn.Module
    published: WeightsInfo
    images: Images
    class_ids: Sequence[str]
    request: FolderRequest
    compute: Compute

    def rows(self, sets: Sequence[ViewSet], source: ScoreRow, digest: str) -> Iterator[ScoreRow]:
        """Yield a row for each set of views and merge; gains are over the first row."""
        gains = GainsOverFirst()
        classes = class_names(self.class_ids, self.published.names)
        for views in sets:
            about = {
                "run": source.run,
                "stage": source.stage,
                "split": source.split,
                "tta": views.name,
                "size": source.size,
                "data": digest,
                "precision": source.precision,
            }
            start = time.perf_counter()
            tallies = self._run(views, self.request.save if views is sets[-1] else None, about)
            rate = len(self.images.files) / (time.perf_counter() - start)
            for merge, tally in tallies.items():
                right = tally.right
                gain = gains.gain(right)
                row = replace(
                    source,
                    views=views.name,
                    merge=merge,
                    forwards=len(views),
                    images_per_second=rate,
                    gain=gain,
                ).with_score(tally.score, classes)
                documented, apart = _documented(row, self.published)
                yield replace(row, documented=documented, apart=apart)

    def _run(self, views: ViewSet, save: str | None, about: Json) -> dict[str, _MergeTally]:
        """Evaluate a set of views: a tally for each merge. `save`: a file for the probabilities."""
        names = self.request.merges if len(views) > 1 else ("mean",)
        tallies = {merge: _MergeTally() for merge in names}
        writer = _ViewWriter(save, views, len(self.images.files), len(self.class_ids))

        def count() -> None:
            with writer, _worker_errors(self.request.workers):
                for log_probabilities, positions in self._batches(views):
                    labels = np.array([self.images.labels[i] for i in positions])
                    for merge, tally in tallies.items():
                        tally.add(merging.get(merge)(log_probabilities).numpy(), labels)
                    writer.add(log_probabilities, positions)
                writer.save(self.images.labels, self.class_ids, about)

        get_world().agreed(count)
        return {merge: tally.of_all(get_world()) for merge, tally in tallies.items()}

    def _batches(self, views: ViewSet) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield (V, n, C) log-probabilities of n images, and the positions of these images."""
        request, published = self.request, self.published
        dataset = DecodedImages(
            self.images.files,
            None if views.resizes else request.resize or published.resize,
            request.resize_mode or published.resize_mode,
            request.interpolation or published.interpolation,
        )
        workers = request.workers if request.workers and can_start() else 0
        # Python tests its temporary folder with a file, which a killed worker would leave behind.
        tempfile.gettempdir()
        share = get_world().share(len(dataset))
        loader = DataLoader(
            Subset(dataset, range(share.start, share.stop)),
            decode_batch_size(views),
            num_workers=workers,
            collate_fn=_as_arrays,
            worker_init_fn=_silence,
        )
        with console.progress(total=len(dataset), label=views.name, unit="images") as bar:
            for batch in loader:
                get_world().check()
                for _, image in batch:
                    if isinstance(image, str):
                        raise InputError(f"{image}; replace or remove this file")
                batch_images = [torch.from_numpy(image) for _, image in batch]
                yield (
                    image_probabilities(self.network, batch_images, views, self.compute),
                    [index for index, _ in batch],
                )
                bar.update(len(batch) * get_world().size)


def _as_arrays(items: Sequence[tuple[int, Tensor | str]]) -> list[tuple[int, np.ndarray | str]]:
    """Return items of `DecodedImages` with arrays for tensors.

    Workers send tensors through shared memory and sockets in the temporary folder. If the path of
    a socket is too long, the main process would wait for ever.
    """
    return [(index, image if isinstance(image, str) else image.numpy()) for index, image in items]


def _silence(worker: int) -> None:
    """Discard the standard error of a worker: this process reports its errors."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def _worker_errors(workers: int) -> Iterator[None]:
    """Raise `InputError` if a worker process dies or cannot start.

    Torch raises in this process, at whatever line it is.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        text = str(error).strip() or type(error).__name__
        if not workers or not (
            _WORKER_ERROR.search(text) or isinstance(error, (OSError, MemoryError))
        ):
            raise
        reason = text.splitlines()[-1][:100]  # a worker's traceback comes first
        raise InputError(
            f"{console.option('workers')} {workers}: a worker process died ({reason}); use fewer "
            f"workers, or {console.option('workers')} 0"
        ) from None


@torch.inference_mode()
def image_probabilities(
    model: nn.Module, images: Sequence[Tensor], views: ViewSet, compute: Compute
) -> Tensor:
    """Compute the log-probabilities (V, n, C), on the CPU, of n images under every view.

    `images`: uint8 (3, H, W), of any sizes; views of equal size share a forward pass.
    """
    network = AutoBatch(lambda batch: log_softmax(model(batch)).cpu(), model)
    # Large images are resized on the CPU: less is sent to the GPU, and a GPU cannot shrink by a
    # factor of 95 or more (a limit of PyTorch).
    place = "cpu" if views.resizes else compute.device
    log_probabilities = []
    for view in views.views.values():
        inputs = [
            view(image.to(place).float().div_(255)[None]).to(compute.device) for image in images
        ]
        outputs: list[Tensor] = [torch.empty(0)] * len(inputs)
        for shape in dict.fromkeys(image.shape for image in inputs):
            positions = [i for i, image in enumerate(inputs) if image.shape == shape]
            batch = torch.cat([inputs[i] for i in positions]).contiguous(
                memory_format=torch.channels_last
            )
            for position, output in zip(positions, network(batch), strict=True):
                outputs[position] = output
        log_probabilities.append(torch.stack(outputs))
    return torch.stack(log_probabilities)
