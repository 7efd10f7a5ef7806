"""Split the official training images into train and hold-out, reproducibly by seed."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.values import as_integer, brief, plain

Kind = Literal["stratified", "random_split"]


@dataclass(frozen=True)
class Split:
    """Rows of the archive's train part: `train` and `holdout`, each (n,) int64, ascending."""

    train: np.ndarray
    holdout: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) of both arrays as little-endian int64."""
        sha256 = hashlib.sha256()
        for rows in (self.train, self.holdout):
            sha256.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return sha256.hexdigest()[:16]


def split_train(
    labels: np.ndarray,
    kind: Kind = "stratified",
    fraction: float = 0.05,
    seed: int = 42,
    per_class: int | None = None,
) -> Split:
    """Split the official training images into train and hold-out.

    `labels`: (N,) int64 class indices of all training images, sorted by file name. `kind`:
    `stratified` holds out the same `fraction` of every class; `random_split` is the split of the
    reference system, torch's `random_split` over the images in `ImageFolder` order. `per_class`:
    number of images per class to use, sampled with `seed`, for quick runs; None: all.

    Raises `InputError` if an argument is out of range or a class has fewer than two images.
    """
    fraction, seed = plain(fraction), as_integer(seed, option("split_seed"))
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise InputError(
            f"hold-out fraction {brief(fraction)}: out of range; use a number above 0 and below 1"
        )
    if not 0 <= seed < 2**32:
        raise InputError(
            f"{option('split_seed')} {seed}: out of range; use an integer from 0 to {2**32 - 1}"
        )
    if kind == "random_split":
        if per_class is not None:
            raise InputError(
                f"{option('per_class')} {per_class}: random_split needs all images; use "
                f"{option('split_kind')} stratified"
            )
        return _random_split(len(labels), fraction, seed)
    if kind != "stratified":
        raise InputError(f"split {kind!r}: unknown; choose stratified or random_split")
    return _stratified(labels, fraction, seed, per_class)


def _stratified(labels: np.ndarray, fraction: float, seed: int, per_class: int | None) -> Split:
    # NEP 19 freezes RandomState's stream for good; default_rng's may change with numpy.
    random = np.random.RandomState(seed)
    train, holdout = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[random.permutation(len(rows))]
        if per_class is not None:
            if not 2 <= per_class <= len(rows):
                raise InputError(
                    f"{option('per_class')} {per_class}: class {label} has {len(rows)} images; "
                    f"choose a number from 2 to {len(rows)}"
                )
            rows = rows[:per_class]
        if len(rows) < 2:
            raise InputError(
                f"class {label} has {len(rows)} training image; a hold-out needs at least 2 per "
                "class, so add images or remove the class"
            )
        count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
        holdout.append(rows[:count])
        train.append(rows[count:])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(holdout)))


def _random_split(count: int, fraction: float, seed: int) -> Split:
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    train_count = round(count * (1 - fraction))
    return Split(np.sort(order[:train_count]), np.sort(order[train_count:]))
