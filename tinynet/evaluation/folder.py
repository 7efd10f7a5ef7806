"""ImageNet's own networks on any folder of pictures: the procedure of "reproducing ImageNet's val
accuracy".

Streaming: 50,000 pictures need no more memory than a few batches.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tinynet import console
from tinynet.compute import AutoBatch, Compute
from tinynet.data.image_folder import Images, imagenet_wnids, labelled_images, open_image
from tinynet.data.workers import can_start
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import NOT_PAIRED, paired
from tinynet.files import can_hold, new_array, temporary_folder
from tinynet.models.pretrained import Published, load_pretrained
from tinynet.score import merges as merging
from tinynet.score.metrics import Tally
from tinynet.score.probabilities import Probabilities, log_softmax
from tinynet.score.views import ViewSet, view_set

_OF_WORKERS = re.compile(
    "DataLoader worker|shared memory|unable to open file|received 0 items of ancdata", re.I
)
# PIL's numbers
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Procedure:
    """How pictures are prepared and scored; None stands for what the network's publisher does.

    `resize`: shorter side (or, with `squash`, both) before crops of `size`, in pixels; views that
    name sides resize the decoded picture themselves. `tta`, `merges`: as in `scoring.Wanted`.
    `workers`: processes that decode. Raises `InputError` for what there is not.
    """

    resize: int | None = None
    resize_mode: str | None = None
    interpolation: str | None = None
    size: int | None = None
    tta: Sequence[str] = ()
    merges: Sequence[str] = ("mean",)
    workers: int = 2
    save: str | None = None

    def sets(self, published: Published) -> list[ViewSet]:
        """The sets of views, plain first; raises `InputError` where crops do not fit."""
        size, resize = self.size or published.size, self.resize or published.resize
        for name in self.merges:
            merging.get(name)
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: a number of processes, 0 or more")
        if self.save:
            can_hold(self.save)
        if self.save and len(self.tta) > 1:
            raise InputError(
                f"--save-probabilities {self.save}: one file holds one set of views; name one with "
                "--tta"
            )
        if size > resize:
            raise InputError(
                f"--size {size}: a crop of {size} pixels does not fit into pictures resized to "
                f"{resize}; name a larger --resize, for instance {round(size * 8 / 7)}"
            )
        sets = [view_set(text, size, prepared=True) for text in dict.fromkeys(("none", *self.tta))]
        for chosen in sets:
            refuse_dense(chosen)
        return sets


def evaluate_folder(
    folder: str, labels: str | None, arch: str, weights: str, how: Procedure, compute: Compute
) -> Iterator[dict[str, Any]]:
    """Rows of scores of a pretrained network on the pictures of `folder`, beside its documented
    accuracy.

    Classes go by wnid. `labels`: as `labelled_pictures` takes it. `apart`: measured less documented
    top-1, in half widths of the 95 % interval: beyond 1 in size, the procedure or the pictures are
    not the documented ones. Raises `InputError` for unusable input, the first unreadable picture
    included: a score without it would be of other pictures.
    """
    model, published = load_pretrained(arch, weights)
    classes = imagenet_wnids() if len(published.names) == 1000 else published.names
    images = labelled_images(folder, classes, labels)
    sets, running = how.sets(published), model.on(compute)
    side = how.resize or published.resize
    for chosen in sets:
        can_see(
            running, chosen, torch.zeros(1, 3, side, side, device=compute.device), f"--arch {arch}"
        )
    named = {"run": arch, "stage": weights, "split": Path(folder).resolve().name}
    first = None
    for chosen in sets:
        counted = {merge: _Counted() for merge in (how.merges if len(chosen) > 1 else ("mean",))}
        save = how.save if chosen is sets[-1] else None
        started = time.perf_counter()
        with _Kept(save, chosen, len(images.files), len(classes)) as kept, _told_of(how.workers):
            for found, at in _answers(running, images, chosen, published, how, compute):
                known = np.array([images.labels[i] for i in at])
                for merge, one in counted.items():
                    one.add(merging.get(merge)(found).numpy(), known)
                kept.add(found, at)
            kept.save(
                images,
                classes,
                {
                    **named,
                    "tta": chosen.name,
                    "data": _digest(images, Path(folder)),
                    "precision": compute.precision,
                },
            )
        rate = len(images.files) / (time.perf_counter() - started)
        for merge, one in counted.items():
            right = np.concatenate(one.right)
            beside = NOT_PAIRED if first is None else paired(right, first)
            first = right if first is None else first
            row = {
                **named,
                "views": chosen.name,
                "merge": merge,
                "size": how.size or published.size,
                **one.tally.result(),
                "precision": compute.precision,
                "forwards": len(chosen),
                "pictures_per_second": rate,
                **beside,
            }
            yield row | _documented(row, published)


def at_once(chosen: ViewSet) -> int:
    """Pictures that are decoded and seen together; those that views resize come as large as they
    are.
    """
    return 4 if chosen.resizes else 32


def refuse_dense(chosen: ViewSet) -> None:
    """Raise `InputError` for a set that only a run's own network can slide over."""
    if chosen.dense:
        raise InputError(
            f"--tta {chosen.name}: dense is for runs of tinynet; other networks see views of any "
            "size whole: scales:256,320"
        )


def can_see(model: nn.Module, chosen: ViewSet, probe: Tensor, name: str) -> None:
    """Raise `InputError` where a view of `probe`, or of an oblong one, is none that the network can
    see.
    """
    square = probe.cpu()
    oblong = square.repeat(1, 1, 1, 2)[..., : square.shape[-1] * 4 // 3]
    for view, seen in (
        *chosen(square).items(),
        *(chosen(oblong).items() if chosen.resizes else ()),
    ):
        try:
            with torch.inference_mode():
                model(seen.to(probe.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"{name}: cannot see {view} of --tta {chosen.name}, "
                f"{seen.shape[-1]}x{seen.shape[-2]} pixels ({' '.join(str(error).split())[:120]}); "
                "name another --size or --tta"
            ) from None


def _digest(images: Images, folder: Path) -> str:
    """SHA-256 (first 16 hex digits) of the files' names, sizes and labels."""
    whole = hashlib.sha256()
    for file, label in zip(images.files, images.labels, strict=True):
        line = f"{file.relative_to(folder)} {file.stat().st_size} {label}\n"
        whole.update(line.encode("utf-8", "surrogateescape"))
    return whole.hexdigest()[:16]


def _documented(row: dict[str, Any], published: Published) -> dict[str, Any]:
    if published.documented is None or row["views"] != "none":
        return {"documented": None, "apart": None}
    half = (row["high"] - row["low"]) / 2
    return {
        "documented": published.documented[0],
        "apart": (row["top1"] - published.documented[0]) / half,
    }


class _Counted:
    """The tally of one merge, and which pictures it gets right."""

    def __init__(self):
        self.tally, self.right = Tally(), []

    def add(self, merged: np.ndarray, labels: np.ndarray) -> None:
        self.tally.add(merged, labels)
        self.right.append(merged.argmax(1) == labels)


class _Kept:
    """Probabilities of every view on disk while they are computed, and in one file at the end, if
    that is wanted.
    """

    def __init__(self, path: str | None, chosen: ViewSet, count: int, classes: int):
        self.path, self.chosen, self.shape = path, chosen, (len(chosen), count, classes)

    def __enter__(self) -> "_Kept":
        if self.path:
            self.room = temporary_folder(f"{self.path}.views")
            self.array = new_array(self.room.__enter__() / "views.npy", self.shape, np.float32)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.path:
            del self.array
            self.room.__exit__(*error)

    def add(self, found: Tensor, at: Sequence[int]) -> None:
        if self.path:
            self.array[:, at] = found.numpy()

    def save(self, images: Images, classes: Sequence[str], about: dict[str, Any]) -> None:
        if self.path:
            Probabilities(
                tuple(self.chosen.views),
                self.array,
                np.arange(len(images.files)),
                np.array(images.labels),
                tuple(classes),
                np.full(len(self.chosen), np.nan),
                about,
            ).save(Path(self.path))


class DecodedImages(Dataset):
    """Pictures of files, decoded and resized by PIL: (index, uint8 (3, H, W)), or (index, what is
    wrong).

    `resize`: shorter side, or both with `squash`; None: as they are. `upright`: turned as their
    EXIF data say.
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
            # an exception would come out of a worker with its traceback for a message
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


def _answers(
    model: nn.Module,
    images: Images,
    chosen: ViewSet,
    published: Published,
    how: Procedure,
    compute: Compute,
) -> Iterator[tuple[Tensor, list[int]]]:
    """(V, n, C) log-probabilities of n pictures and their places, batch after batch."""
    shown = DecodedImages(
        images.files,
        None if chosen.resizes else how.resize or published.resize,
        how.resize_mode or published.resize_mode,
        how.interpolation or published.interpolation,
    )
    workers = how.workers if how.workers and can_start() else 0
    tempfile.gettempdir()  # Python tries it with a file, which a worker that is killed would leave
    loader = DataLoader(
        shown, at_once(chosen), num_workers=workers, collate_fn=list, worker_init_fn=_hush
    )
    with console.progress(total=len(shown), label=chosen.name, unit="pictures") as bar:
        for batch in loader:
            for _, image in batch:
                if isinstance(image, str):
                    raise InputError(image)
            yield (
                see(model, [image for _, image in batch], chosen, compute),
                [index for index, _ in batch],
            )
            bar.update(len(batch))


def _hush(worker: int) -> None:
    """Let a process that decodes say nothing itself: what it has to say comes through this one."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def _told_of(workers: int) -> Iterator[None]:
    """Raise `InputError` where a worker process dies or cannot be had; torch raises wherever this
    process just is.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        text = str(error).strip() or type(error).__name__
        if not workers or not (
            _OF_WORKERS.search(text) or isinstance(error, (OSError, MemoryError))
        ):
            raise
        reason = text.splitlines()[-1][:100]  # a worker's traceback comes first
        raise InputError(
            f"--workers {workers}: a worker process died ({reason}); use fewer workers, or "
            "--workers 0"
        ) from None


@torch.inference_mode()
def see(model: nn.Module, images: Sequence[Tensor], chosen: ViewSet, compute: Compute) -> Tensor:
    """(V, n, C) log-probabilities on the CPU of n pictures, uint8 (3, H, W) of any sizes; equal
    ones go together.
    """
    answers = []
    network = AutoBatch(lambda together: log_softmax(model(together)).cpu(), model)
    # Large pictures are shrunk where they are: less is sent, and a GPU does not shrink by 95 or
    # more (pytorch's limit).
    where = "cpu" if chosen.resizes else compute.device
    for view in chosen.views.values():
        seen = [
            view(image.to(where).float().div_(255)[None]).to(compute.device) for image in images
        ]
        found: list[Tensor] = [torch.empty(0)] * len(seen)
        for shape in dict.fromkeys(image.shape for image in seen):
            at = [i for i, image in enumerate(seen) if image.shape == shape]
            together = torch.cat([seen[i] for i in at]).contiguous(
                memory_format=torch.channels_last
            )
            for place, answer in zip(at, network(together), strict=True):
                found[place] = answer
        answers.append(torch.stack(found))
    return torch.stack(answers)
