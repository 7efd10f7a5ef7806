"""Which pictures belong to train, holdout, val and test: seeded, stratified, the same
everywhere.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinynet.errors import InputError

Kind = Literal["stratified", "random_split"]


@dataclass(frozen=True)
class Split:
    """Rows of the archive's train part: `train` and `holdout`, each (n,) int64 and ascending."""

    train: np.ndarray
    holdout: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) over both lists of rows as little-endian int64."""
        both = hashlib.sha256()
        for rows in (self.train, self.holdout):
            both.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return both.hexdigest()[:16]


def split_train(
    labels: np.ndarray,
    kind: Kind = "stratified",
    fraction: float = 0.05,
    seed: int = 42,
    per_class: int | None = None,
) -> Split:
    """Set a part of the official train pictures apart as hold-out.

    `labels`: (N,) int64 classes of all train pictures, in the order of sorted file names. `kind`:
    `stratified` takes the same `fraction` of every class; `random_split` is the split of the
    reference system, torch's `random_split` over pictures in `ImageFolder` order. `per_class`: keep
    only so many pictures of every class (drawn with `seed`), for quick runs.

    Raises `InputError` where train or hold-out would be empty, or a class has too few pictures.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"a hold-out of {fraction} was asked for; it is a fraction of train between 0 and 1"
        )
    if kind == "random_split":
        if per_class is not None:
            raise InputError(
                "--per-class needs --split-kind stratified; random_split is defined on all pictures"
            )
        return _random_split(len(labels), fraction, seed)
    if kind != "stratified":
        raise InputError(f"split {kind!r} is unknown; there are stratified and random_split")
    # NEP 19 freezes RandomState's stream for good; default_rng's may change with numpy.
    draw = np.random.RandomState(seed)
    train, holdout = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[draw.permutation(len(rows))]
        if per_class is not None:
            if not 2 <= per_class <= len(rows):
                raise InputError(
                    f"--per-class {per_class}: class {label} has {len(rows)} pictures; "
                    f"2 to {len(rows)} can be kept"
                )
            rows = rows[:per_class]
        if len(rows) < 2:
            raise InputError(
                f"class {label} has {len(rows)} train picture; a hold-out needs at least 2"
            )
        held = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
        holdout.append(rows[:held])
        train.append(rows[held:])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(holdout)))


def _random_split(count: int, fraction: float, seed: int) -> Split:
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    kept = round(count * (1 - fraction))
    return Split(np.sort(order[:kept]), np.sort(order[kept:]))
