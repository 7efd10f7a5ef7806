"""A network, batches and views become log-probabilities of every view: only probabilities leave a
model.
"""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinynet.compute import AutoBatch
from tinynet.data.batches import Batch
from tinynet.errors import InputError
from tinynet.files import atomic_file, no_pipe
from tinynet.score.merges import Merge
from tinynet.score.views import View, same

_SUM_APART = 1e-3  # what rounding leaves of a sum of 1
# bytes, and times smaller in the file: floats that say something are not
_LARGE, _DENSEST = 2**28, 100


class _Unfit(ValueError):
    """A file that can be read, of something else."""


def _refuse_bomb(archive: zipfile.ZipFile) -> None:
    for member in archive.infolist():
        if member.file_size > max(_LARGE, _DENSEST * member.compress_size):
            raise _Unfit(f"{member.filename} decompresses to {member.file_size:,} bytes")


@dataclass(frozen=True)
class Probabilities:
    """`log_probabilities`: (V, N, C) float32, one row of the first axis for each name in `views`.

    `rows`: (N,) int64, the pictures' rows in their part of the archive. `labels`: (N,) int64, or
    None for pictures without labels. `wnids`: the C classes in order. `seconds`: (V,), what each
    view cost, not a number where it cost nothing. `about`: plain values that say where they come
    from, among them `split` and `data`, the digest of its contents.
    """

    views: tuple[str, ...]
    log_probabilities: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    wnids: tuple[str, ...]
    seconds: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a compressed `.npz`, whole or not at all."""
        arrays = dict(
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
        """Read what `save` wrote; raises `InputError` where the file is another one, or holds no
        probabilities.
        """
        try:
            with np.load(no_pipe(path), allow_pickle=False) as stored:
                _refuse_bomb(stored.zip)
                read = cls(
                    tuple(stored["views"].tolist()),
                    stored["log_probabilities"],
                    stored["rows"],
                    stored["labels"] if "labels" in stored else None,
                    tuple(stored["wnids"].tolist()),
                    stored["seconds"],
                    json.loads(stored["about"].item()),
                )
            read._check()
            return read
        except Exception as error:  # a broken or foreign file raises nearly anything
            reason = (
                str(error)
                if isinstance(error, _Unfit)
                else getattr(error, "strerror", None) or type(error).__name__
            )
            raise InputError(
                f"{path}: not a file of stored probabilities ({reason}); "
                "`python -m tinynet.evaluate --save-probabilities` writes them"
            ) from None

    def _check(self) -> None:
        """Raise `_Unfit` where these are not log-probabilities of pictures with labels."""
        values, shape = self.log_probabilities, (len(self.views), len(self.rows), len(self.wnids))
        seconds = self.seconds.shape == shape[:1] and self.seconds.dtype.kind == "f"
        if values.dtype != np.float32 or values.shape != shape or 0 in shape or not seconds:
            raise _Unfit(
                f"{values.dtype} of shape {values.shape} for {shape[0]} views, {shape[1]} images "
                f"and {shape[2]} classes"
            )
        if len(set(self.wnids)) < len(self.wnids):
            raise _Unfit("has one class twice")
        if np.isnan(values).any():
            raise _Unfit("contains NaN")
        with np.errstate(over="ignore"):
            sums = np.exp(values).sum(-1, dtype=np.float64)
        if not np.allclose(sums, 1, atol=_SUM_APART):
            raise _Unfit(
                f"the probabilities of an image sum to {sums.flat[np.abs(sums - 1).argmax()]:.4g}, "
                "not 1"
            )
        for name, numbers, most in (
            ("rows", self.rows, np.inf),
            ("labels", self.labels, shape[2] - 1),
        ):
            if numbers is None:
                continue
            if numbers.shape != shape[1:2] or numbers.dtype.kind not in "iu":
                raise _Unfit(f"{name} of shape {numbers.shape} for {shape[1]} images")
            if numbers.min() < 0 or numbers.max() > most:
                raise _Unfit(
                    f"{name} from {numbers.min()} to {numbers.max()} for {shape[2]} classes"
                )
        if not isinstance(self.about, dict) or not all(
            isinstance(name, str) for name in (*self.views, *self.wnids)
        ):
            raise _Unfit("its metadata is invalid")

    def merged(self, merge: Merge) -> np.ndarray:
        """(N, C) log-probabilities of all views together."""
        return merge(torch.from_numpy(self.log_probabilities)).numpy()

    def choose(self, views: Iterable[str]) -> "Probabilities":
        """Those of some of the views."""
        at = [self.views.index(view) for view in views]
        return Probabilities(
            tuple(self.views[i] for i in at),
            self.log_probabilities[at],
            self.rows,
            self.labels,
            self.wnids,
            self.seconds[at],
            self.about,
        )


def same_images(first: Probabilities, second: Probabilities, names: tuple[str, str]) -> None:
    """Raise `InputError` unless both are of the same pictures in the same order, with the same
    classes.
    """
    ours, theirs = names
    splits = first.about.get("split"), second.about.get("split")
    if splits[0] != splits[1]:
        raise InputError(
            f"{theirs}: is of {splits[1]}, {ours} of {splits[0]}; compare what was scored on the "
            "same"
        )
    for what, a, b in (
        ("classes", first.wnids, second.wnids),
        ("data", first.about.get("data"), second.about.get("data")),
    ):
        if a != b:
            raise InputError(
                f"{theirs}: is of other {what} than {ours}; compare what was scored on the same"
            )
    if np.array_equal(first.rows, second.rows) and not np.array_equal(first.labels, second.labels):
        raise InputError(
            f"{theirs}: has other labels than {ours}; compare what was scored on the same"
        )
    if not np.array_equal(first.rows, second.rows):
        same = np.array_equal(np.sort(first.rows), np.sort(second.rows))
        raise InputError(
            f"{theirs}: is of {'the same pictures in another order' if same else 'other pictures'} "
            f"than {ours}; compare what was scored on the same"
        )


def log_softmax(logits: Tensor) -> Tensor:
    """(N, C) float32 log-probabilities of logits of any precision."""
    return torch.log_softmax(logits.float(), 1)


@torch.inference_mode()
def view_probabilities(
    network: nn.Module, batches: Iterable[Batch], view: View = same
) -> np.ndarray:
    """(N, C) float32 log-probabilities of one view of every picture.

    `network`: in eval mode, pictures to logits.
    """
    says = AutoBatch(lambda images: log_softmax(network(images)).cpu(), network)
    return torch.cat(
        [
            says(view(batch.images).contiguous(memory_format=torch.channels_last))
            for batch in batches
        ]
    ).numpy()


@torch.inference_mode()
def head_probabilities(head: nn.Module, inputs: Iterable[Tensor]) -> np.ndarray:
    """(N, C) float32 log-probabilities of a head, in eval mode, on batches of kept features."""
    return torch.cat([log_softmax(head(features)).cpu() for features in inputs]).numpy()
