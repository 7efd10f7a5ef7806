"""Compute log-probabilities of views of images, and save them to files."""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinynet.compute import AutoBatch
from tinynet.data.batches import Batch
from tinynet.errors import InputError
from tinynet.files import atomic_file, regular_file
from tinynet.records import Json
from tinynet.score.merges import Merge, mean
from tinynet.score.views import View, identity

_SUM_TOLERANCE = 1e-3  # of probabilities, for rounding
# An array may decompress to this many bytes, or to this many times its compressed size. Real
# probabilities do not compress so well.
_MAX_BYTES, _MAX_RATIO = 2**28, 100
_COMPARE_SAME = "compare only probabilities of the same images"


class _InvalidContent(ValueError):
    """Raised for a readable file that does not contain valid probabilities."""


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise `_InvalidContent` for a decompression bomb."""
    for member in archive.infolist():
        if member.file_size > max(_MAX_BYTES, _MAX_RATIO * member.compress_size):
            raise _InvalidContent(f"{member.filename} decompresses to {member.file_size:,} bytes")


@dataclass(frozen=True)
class Probabilities:
    """Log-probabilities of N images and C classes under V views, with labels and their origin.

    `views`: names of the views. `log_probabilities`: (V, N, C) float32. `rows`: (N,) int64, the
    images' rows in their split. `labels`: (N,) int64, or None for images without labels. `wnids`:
    the C class ids in order. `seconds`: (V,) time per view, NaN if the view was not timed.
    `about`: JSON values about the origin, among them `split` and `data`, the data's digest.
    """

    views: tuple[str, ...]
    log_probabilities: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    wnids: tuple[str, ...]
    seconds: np.ndarray
    about: Json = field(default_factory=dict)

    @property
    def required_labels(self) -> np.ndarray:
        """(N,) int64 labels; raises `InputError` where there are none."""
        if self.labels is None:
            raise InputError(
                "the images have no labels, so they cannot be scored; use 'val' or 'holdout'"
            )
        return self.labels

    def save(self, path: Path) -> None:
        """Write a compressed `.npz` file atomically."""
        arrays: Json = dict(
            views=np.array(self.views),
            log_probabilities=self.log_probabilities,
            rows=self.rows,
            wnids=np.array(self.wnids),
            seconds=self.seconds,
            about=np.array(json.dumps(self.about)),
        )
        if self.labels is not None:
            arrays["labels"] = self.labels
        with atomic_file(path) as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Probabilities":
        """Read a file that `save` wrote; raise `InputError` for any other file."""
        try:
            with np.load(regular_file(path), allow_pickle=False) as archive:
                _check_sizes(archive.zip)
                probabilities = cls(
                    tuple(archive["views"].tolist()),
                    archive["log_probabilities"],
                    archive["rows"],
                    archive["labels"] if "labels" in archive else None,
                    tuple(archive["wnids"].tolist()),
                    archive["seconds"],
                    json.loads(archive["about"].item()),
                )
            probabilities._check()
            return probabilities
        except Exception as error:  # a broken or foreign file can raise nearly any exception
            reason = (
                str(error)
                if isinstance(error, _InvalidContent)
                else getattr(error, "strerror", None) or type(error).__name__
            )
            raise InputError(
                f"{path}: not a file of probabilities ({reason}); "
                "`python -m tinynet.evaluate --save-probabilities` writes one"
            ) from None

    def _check(self) -> None:
        """Raise `_InvalidContent` unless the arrays fit together and are in their ranges."""
        values, shape = self.log_probabilities, (len(self.views), len(self.rows), len(self.wnids))
        timed = self.seconds.shape == shape[:1] and self.seconds.dtype.kind == "f"
        if values.dtype != np.float32 or values.shape != shape or 0 in shape or not timed:
            raise _InvalidContent(
                f"{values.dtype} of shape {values.shape} for {shape[0]} views, {shape[1]} images "
                f"and {shape[2]} classes"
            )
        if len(set(self.wnids)) < len(self.wnids):
            raise _InvalidContent("has one class twice")
        if np.isnan(values).any():
            raise _InvalidContent("contains NaN")
        with np.errstate(over="ignore"):
            sums = np.exp(values).sum(-1, dtype=np.float64)
        if not np.allclose(sums, 1, atol=_SUM_TOLERANCE):
            raise _InvalidContent(
                f"the probabilities of an image sum to {sums.flat[np.abs(sums - 1).argmax()]:.4g}, "
                "not 1"
            )
        self._check_indices("rows", self.rows, np.inf)
        if self.labels is not None:
            self._check_indices("labels", self.labels, shape[2] - 1)
        if not isinstance(self.about, dict) or not all(
            isinstance(name, str) for name in (*self.views, *self.wnids)
        ):
            raise _InvalidContent("its metadata is invalid")

    def _check_indices(self, name: str, indices: np.ndarray, most: float) -> None:
        if indices.shape != (len(self.rows),) or indices.dtype.kind not in "iu":
            raise _InvalidContent(f"{name} of shape {indices.shape} for {len(self.rows)} images")
        if indices.min() < 0 or indices.max() > most:
            raise _InvalidContent(
                f"{name} from {indices.min()} to {indices.max()} for {len(self.wnids)} classes"
            )

    def merged(self, merge: Merge = mean) -> np.ndarray:
        """Return the log-probabilities (N, C) of all views, combined with `merge`."""
        return merge(torch.from_numpy(self.log_probabilities)).numpy()

    def choose(self, views: Iterable[str]) -> "Probabilities":
        """Return the probabilities of `views` only; raise `ValueError` for an unknown name."""
        indices = [self.views.index(view) for view in views]
        return Probabilities(
            tuple(self.views[i] for i in indices),
            self.log_probabilities[indices],
            self.rows,
            self.labels,
            self.wnids,
            self.seconds[indices],
            self.about,
        )


def _images(probabilities: "Probabilities") -> str | None:
    """The digest of the images, whatever size they are stored at; early files have that of data."""
    return probabilities.about.get("images", probabilities.about.get("data"))


def same_images(first: Probabilities, second: Probabilities, names: tuple[str, str]) -> None:
    """Raise `InputError` unless both have the same images in the same order, and the same classes.

    `names`: of the two files or runs, for messages.
    """
    one, other = names
    splits = first.about.get("split"), second.about.get("split")
    if splits[0] != splits[1]:
        raise InputError(
            f"{other}: has split {splits[1]}, {one} has split {splits[0]}; {_COMPARE_SAME}"
        )
    for what, a, b in (
        ("classes", first.wnids, second.wnids),
        ("data", _images(first), _images(second)),
    ):
        if a != b:
            raise InputError(f"{other}: has other {what} than {one}; {_COMPARE_SAME}")
    if np.array_equal(first.rows, second.rows):
        if not same_labels(first.labels, second.labels):
            raise InputError(f"{other}: has other labels than {one}; {_COMPARE_SAME}")
        return
    reordered = np.array_equal(np.sort(first.rows), np.sort(second.rows))
    difference = "the same images in another order" if reordered else "other images"
    raise InputError(f"{other}: has {difference} than {one}; {_COMPARE_SAME}")


def same_labels(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Whether two arrays of labels are equal, or both are missing."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def log_softmax(logits: Tensor) -> Tensor:
    """Compute float32 log-probabilities (N, C) of logits of any float dtype."""
    return torch.log_softmax(logits.float(), 1)


@torch.inference_mode()
def view_probabilities(
    network: nn.Module, batches: Iterable[Batch], view: View = identity
) -> np.ndarray:
    """Compute float32 log-probabilities (N, C) of one view of each image.

    `network`: in eval mode, images (N, 3, H, W) in [0, 1] to logits (N, C).
    """
    predict = AutoBatch(lambda images: log_softmax(network(images)).cpu(), network)
    return _joined(
        predict(view(batch.images).contiguous(memory_format=torch.channels_last))
        for batch in batches
    )


@torch.inference_mode()
def head_probabilities(head: nn.Module, inputs: Iterable[Tensor]) -> np.ndarray:
    """Compute float32 log-probabilities (N, C) of a head, in eval mode, on batches of features."""
    return _joined(log_softmax(head(features)).cpu() for features in inputs)


def _joined(parts: Iterable[Tensor]) -> np.ndarray:
    """The parts, one after another; (0, 0) if there are none: a rank may have no images."""
    tensors = list(parts)
    return torch.cat(tensors).numpy() if tensors else np.empty((0, 0), np.float32)
