"""A finished run at other test sizes than its own: how good, what its features are like, what mends
them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import NOT_PAIRED, paired
from tinynet.evaluation.predictor import Predictor
from tinynet.models.classifier import Classifier, update_bn
from tinynet.resolution.activations import curve, describe, distances
from tinynet.resolution.corrections import Mapping, frechet_mapping, quantile_mapping
from tinynet.resolution.resize import METHOD, METHODS, brought_to
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.training.config import split_of
from tinynet.training.features import Features, view_features
from tinynet.training.recipes import Stage

AS_IS = "as is"
FITTED = "fine-tuned"
CONTROL = "trained on, own size"
NORMS = "batch norm"
# train pictures whose features show a size's distribution; no label of theirs is used
_SAMPLE = 5000
_AT_ONCE = 1000  # of them that a batch norm sees at once
_DRAWN = 201  # points of a cumulative curve
_MAPPINGS: dict[str, Callable[[np.ndarray, np.ndarray], Mapping]] = {
    "frechet": frechet_mapping,
    "quantile": quantile_mapping,
}

Row = dict[str, Any]


class Study:
    """The features of a finished stage at any test size, and what its head says of them.

    `method`: how pictures are brought to a size, one of `score.sizes.METHODS`. Features are kept in
    the data's cache. Raises `InputError` for another method, or data that is not the run's own.
    """

    def __init__(self, predictor: Predictor, method: str = METHOD):
        if method not in METHODS:
            raise InputError(f"--methods {method}: not one of {', '.join(METHODS)}")
        self.predictor, self.method = predictor, method
        self._made: dict[tuple[int, str], tuple[nn.Module, list[tuple[int, Mapping]]]] = {}
        self._head = copy.deepcopy(predictor.model.head).to(predictor.compute.device)
        predictor.images("holdout")  # refuses other data

    def features(self, split: str, size: int) -> Features:
        """Features of `holdout`, `val`, or the `sample` of train, at `size` pixels."""
        predictor = self.predictor
        part, rows = (
            (predictor.packed.train, self._sample) if split == "sample" else predictor.images(split)
        )
        # Kept features score what `tinynet.evaluate` scores: as it keeps them, or unrounded where
        # it keeps none.
        dtype = predictor.stage.feature_dtype if predictor.stage.cached_epochs else "float32"
        stage = Stage(size=size, feature_dtype=dtype)
        view = partial(brought_to, size=size, method=self.method)
        return view_features(
            predictor.model, predictor.packed, part, rows, view, stage, predictor.compute
        )

    @property
    def _sample(self) -> np.ndarray:
        learnt = split_of(self.predictor.config, self.predictor.packed).train
        return learnt[np.linspace(0, len(learnt) - 1, min(_SAMPLE, len(learnt))).astype(np.int64)]

    def said(self, split: str, size: int, correction: str = AS_IS) -> np.ndarray:
        """(N, C) log-probabilities of a split at a size, its features corrected."""
        head, mappings = self._corrected(size, correction)
        shown = self.features(split, size).in_order(self.predictor.compute.device)
        if mappings:
            shown = (_mapped(features, mappings) for features in shown)
        return head_probabilities(head, shown)

    def _corrected(self, size: int, correction: str) -> tuple[nn.Module, list[tuple[int, Mapping]]]:
        """The head, and a mapping for the numbers of each tap with how many there are; none where
        all stay.
        """
        if correction == AS_IS:
            return self._head, []
        if (size, correction) not in self._made:  # the hold-out and val are corrected alike
            self._made[size, correction] = self._correct(size, correction)
        return self._made[size, correction]

    def _correct(self, size: int, correction: str) -> tuple[nn.Module, list[tuple[int, Mapping]]]:
        seen = self.features("sample", size)
        if correction == NORMS:
            head = copy.deepcopy(self._head)
            # a batch of a few classes varies less
            shuffled = seen.epoch(0, 0, _AT_ONCE, self.predictor.compute.device)
            update_bn(head, (features for features, _ in shuffled))
            return head, []
        trained = self.features("sample", self.predictor.size)
        made = [
            _mapping(correction, feature, ours[0], theirs[0])
            for feature, ours, theirs in zip(
                self.predictor.model.feature_names, seen.arrays, trained.arrays, strict=True
            )
        ]
        return self._head, [
            (array.shape[2], mapping) for array, mapping in zip(seen.arrays, made, strict=True)
        ]

    def with_bn_of(self, size: int) -> Classifier:
        """The network, its head's batch norms measured at `size`, in eval mode on the CPU."""
        made = copy.deepcopy(self.predictor.model)
        made.head.load_state_dict(self._corrected(size, NORMS)[0].state_dict())
        return made

    def activations(self, size: int) -> Iterator[Row]:
        """A row a tap: what its numbers are like at `size`, and how far from those at the training
        size.
        """
        seen, trained = (self.features("sample", side) for side in (size, self.predictor.size))
        for feature, ours, theirs in zip(
            self.predictor.model.feature_names, seen.arrays, trained.arrays, strict=True
        ):
            yield {
                "size": size,
                "tap": feature,
                "numbers": ours[0].size,
                **describe(ours[0]),
                **distances(ours[0], theirs[0]),
                "curve": curve(ours[0], _DRAWN).tolist(),
            }

    @property
    def corrections(self) -> list[str]:
        """What can be done without training; batch norm only where the head has one."""
        normed = any(isinstance(module, nn.BatchNorm1d) for module in self._head.modules())
        return [*_MAPPINGS, *([NORMS] if normed else [])]


def _mapping(correction: str, feature: str, ours: np.ndarray, theirs: np.ndarray) -> Mapping:
    try:
        return _MAPPINGS[correction](ours, theirs)
    except InputError as error:
        log(f"note: {correction} leaves {feature} as it is: {error}")
        return lambda features: features


def _mapped(features: Tensor, mappings: Sequence[tuple[int, Mapping]]) -> Tensor:
    parts = features.split([width for width, _ in mappings], 1)
    return torch.cat([mapping(part) for part, (_, mapping) in zip(parts, mappings, strict=True)], 1)


def sweep(
    study: Study, sizes: Sequence[int], fitted: dict[int, Study], corrections: Sequence[str]
) -> Iterator[Row]:
    """A row for every split, size and correction, as is first.

    `fitted`: studies of the run whose head learnt on, by the size at which it did; the one of the
    training size is the control: as much more training, at the old size. `gain` and `p`: over the
    run as it is at the same size; `gain_over_own` and `p_over_own`: over it at the size it was
    trained at; `gain_over_control` and `p_over_control`: of a head that learnt on at the size, over
    the control at its own.
    """
    for split in ("holdout", "val"):
        part, rows = study.predictor.images(split)
        labels = part.labels[rows]
        own = study.predictor.size
        at_own = {"own": study.said(split, own).argmax(1) == labels}
        if own in fitted:
            at_own["control"] = fitted[own].said(split, own).argmax(1) == labels
        for size in sizes:
            yield from _at_size(study, split, size, labels, at_own, fitted, corrections)


def _at_size(
    study: Study,
    split: str,
    size: int,
    labels: np.ndarray,
    at_own: dict[str, np.ndarray],
    fitted: dict[int, Study],
    corrections: Sequence[str],
) -> Iterator[Row]:
    """`at_own`: whether each picture is right at the training size, of the run and of the
    control.
    """
    own = study.predictor.size
    said = {
        name: study.said(split, size, name)
        for name in (AS_IS, *(corrections if size != own else ()))
    }
    if size in fitted:
        said[FITTED] = fitted[size].said(split, size)
    if own in fitted and size != own:
        said[CONTROL] = fitted[own].said(split, size)
    as_is = said[AS_IS].argmax(1) == labels
    for name, found in said.items():
        right = found.argmax(1) == labels
        over = {
            "own": None if (size, name) == (own, AS_IS) else at_own["own"],
            "control": at_own.get("control") if name == FITTED and size != own else None,
        }
        yield {
            **study.predictor.named,
            "split": split,
            "trained": own,
            "size": size,
            "method": study.method,
            "correction": name,
            **score(found, labels),
            **(NOT_PAIRED if name == AS_IS else paired(right, as_is)),
            **{
                f"{key}_over_{what}": value
                for what, other in over.items()
                for key, value in (NOT_PAIRED if other is None else paired(right, other)).items()
            },
        }


def compare_methods(predictor: Predictor, methods: Sequence[str], size: int) -> Iterator[Row]:
    """Rows of the hold-out at `size`, pictures brought there by each of `methods`; the first is
    what others gain on.
    """
    labels = predictor.packed.train.labels[predictor.images("holdout")[1]]
    first = None
    for method in methods:
        found = Study(predictor, method).said("holdout", size)
        right = found.argmax(1) == labels
        beside = NOT_PAIRED if first is None else paired(right, first)
        first = right if first is None else first
        yield {
            **predictor.named,
            "split": "holdout",
            "size": size,
            "method": method,
            **score(found, labels),
            **beside,
        }
