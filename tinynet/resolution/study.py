"""Scores of a finished run at other test sizes, with and without corrections of its features."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from tinynet.console import log, option
from tinynet.data.batches import batches
from tinynet.errors import InputError
from tinynet.evaluation.evaluate import GainsOverFirst
from tinynet.evaluation.predictor import Predictor
from tinynet.models.classifier import Classifier, is_norm, update_bn
from tinynet.records import NOT_COMPARED, ScoreRow
from tinynet.resolution.activations import FeatureRow, curve, describe, distances
from tinynet.resolution.corrections import Mapping, frechet_mapping, quantile_mapping
from tinynet.resolution.resize import METHOD, METHODS, resize_square
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.probabilities import head_probabilities
from tinynet.training.config import split_of
from tinynet.training.features import FeatureCache, Features
from tinynet.training.recipes import Stage

AS_IS = "as is"
FITTED = "fine-tuned"
CONTROL = "trained on, own size"
NORMS = "batch norm"
# Training images whose features show the distribution at a size. Their labels are not used.
_SAMPLE = 5000
_BN_BATCH = 1000  # of them at a time, where the head alone is recomputed
_CURVE_POINTS = 201  # of a cumulative curve
_MAPPINGS: dict[str, Callable[[np.ndarray, np.ndarray], Mapping]] = {
    "frechet": frechet_mapping,
    "quantile": quantile_mapping,
}
_WidthAndMapping = tuple[int, Mapping]  # how many features to map, and their mapping


class Study:
    """A finished stage at any test size: its features and the predictions of its head.

    `method`: how images are resized, one of `resize.METHODS`. Features are cached with the data.
    Raises `InputError` for an unknown method, and for other data than the run's own.
    """

    def __init__(self, predictor: Predictor, method: str = METHOD):
        if method not in METHODS:
            raise InputError(
                f"{option('methods')} {method}: unknown; choose from {', '.join(METHODS)}"
            )
        self.predictor, self.method = predictor, method
        self._fitted: dict[tuple[int, str], list[_WidthAndMapping]] = {}
        self._normed: dict[int, Classifier] = {}
        predictor.images("holdout")  # raises for other data

    def features(self, split: str, size: int, model: Classifier | None = None) -> Features:
        """Compute the features of `holdout`, `val`, or a `sample` of train, at `size` pixels.

        `model`: the run's network with other batch norms; None: as it is.
        """
        predictor = self.predictor
        part, rows = (
            (predictor.packed.train, self.sample) if split == "sample" else predictor.images(split)
        )
        # The scores must be those of `tinynet evaluate`: it rounds features if it caches them.
        dtype = predictor.stage.feature_dtype if predictor.stage.cached_epochs else "float32"
        stage = Stage(size=size, feature_dtype=dtype)
        cache = FeatureCache(model or predictor.model, predictor.packed, predictor.compute)
        return cache.view_features(part, rows, self._view(size), stage)

    def _view(self, size: int) -> Callable[[Tensor], Tensor]:
        return partial(resize_square, size=size, method=self.method)

    @property
    def sample(self) -> np.ndarray:
        """Rows of training images, at equal steps."""
        rows = split_of(self.predictor.config, self.predictor.packed).train
        return rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)]

    def predict(self, split: str, size: int, correction: str = AS_IS) -> np.ndarray:
        """Compute (N, C) log-probabilities of a split at a test size, with a correction."""
        device = self.predictor.compute.device
        model = self.with_bn_of(size) if correction == NORMS else self.predictor.model
        inputs = self.features(split, size, model).in_order(device)
        if correction in _MAPPINGS:
            mappings = self._mappings(size, correction)
            inputs = (_mapped(features, mappings) for features in inputs)
        return head_probabilities(copy.deepcopy(model.head).to(device), inputs)

    def _mappings(self, size: int, correction: str) -> list[_WidthAndMapping]:
        """The mappings of a correction, in the order of the features."""
        if (size, correction) not in self._fitted:  # for the hold-out and val
            names = self.predictor.model.feature_names
            features, reference = (
                self.features("sample", side).arrays for side in (size, self.predictor.size)
            )
            self._fitted[size, correction] = [
                (values.shape[2], _mapping(correction, name, values[0], target[0]))
                for name, values, target in zip(names, features, reference, strict=True)
            ]
        return self._fitted[size, correction]

    def with_bn_of(self, size: int) -> Classifier:
        """Return a copy on the CPU with batch norm statistics of images of `size` pixels.

        The statistics of the head are recomputed, and those of batch norms in the backbone that the
        stage trained.
        """
        if size not in self._normed:
            model = copy.deepcopy(self.predictor.model)
            if self._backbone_norms:
                self._update_all(model, size)
            else:
                # A batch of few classes has less variance, so the images are shuffled.
                shuffled = self.features("sample", size).epoch(0, 0, _BN_BATCH, torch.device("cpu"))
                update_bn(model.head, (inputs for inputs, _ in shuffled))
            self._normed[size] = model
        return self._normed[size]

    def _update_all(self, model: Classifier, size: int) -> None:
        """Recompute all batch norms of `model` that were trained, from images of `size` pixels."""
        predictor, view = self.predictor, self._view(size)
        stage, compute = predictor.stage, predictor.compute
        rows = np.random.RandomState(0).permutation(self.sample)
        images = batches(
            predictor.packed.train, rows, batch_size=stage.batch, device=compute.device
        )
        model.to(compute.device).train_only([*stage.trainable, "head"])
        update_bn(model, (view(batch.images) for batch in images), compute.autocast)
        model.requires_grad_(False).cpu()

    @cached_property
    def _backbone_norms(self) -> bool:
        """Whether the stage trained batch norms of the backbone."""
        model = copy.deepcopy(self.predictor.model)
        model.train_only(self.predictor.stage.trainable)
        return model.trains_backbone_norms

    def activations(self, size: int) -> Iterator[FeatureRow]:
        """Yield a row for each feature: its distribution, and its distance to the training size."""
        features, reference = (
            self.features("sample", side) for side in (size, self.predictor.size)
        )
        names = self.predictor.model.feature_names
        for name, values, target in zip(names, features.arrays, reference.arrays, strict=True):
            yield FeatureRow(
                size=size,
                feature=name,
                count=values[0].size,
                distribution=describe(values[0]),
                distances=distances(values[0], target[0]),
                curve=curve(values[0], _CURVE_POINTS).tolist(),
            )

    @property
    def corrections(self) -> list[str]:
        """The corrections without training; `batch norm` only if there are any to recompute."""
        normed = self._backbone_norms or any(map(is_norm, self.predictor.model.head.modules()))
        return [*_MAPPINGS, *([NORMS] if normed else [])]


def _mapping(correction: str, feature: str, values: np.ndarray, target: np.ndarray) -> Mapping:
    try:
        return _MAPPINGS[correction](values, target)
    except InputError as error:
        log(f"note: {correction} does not change {feature}: {error}")
        return lambda features: features


def _mapped(features: Tensor, mappings: Sequence[_WidthAndMapping]) -> Tensor:
    groups = features.split([width for width, _ in mappings], 1)
    return torch.cat(
        [mapping(group) for group, (_, mapping) in zip(groups, mappings, strict=True)], 1
    )


def sweep(
    study: Study, sizes: Sequence[int], fitted: dict[int, Study], corrections: Sequence[str]
) -> Iterator[ScoreRow]:
    """Yield a row for every split, size and correction; the uncorrected run comes first.

    `fitted`: studies of the run with its head fine-tuned, by the size of that training. The one at
    the training size is the control: equal further training at the old size. `gain` of a row is
    over the uncorrected run at the same size. `over`: `own`, the uncorrected run at its own size;
    `control`, for a head fine-tuned at the test size, the control at its own size.
    """
    for split in ("holdout", "val"):
        part, rows = study.predictor.images(split)
        labels = part.required_labels[rows]
        own = study.predictor.size
        at_own = {"own": study.predict(split, own).argmax(1) == labels}
        if own in fitted:
            at_own["control"] = fitted[own].predict(split, own).argmax(1) == labels
        for size in sizes:
            results = _results(study, split, size, fitted, corrections)
            yield from _rows(study, split, size, results, labels, at_own)


def _results(
    study: Study,
    split: str,
    size: int,
    fitted: dict[int, Study],
    corrections: Sequence[str],
) -> dict[str, np.ndarray]:
    """(N, C) log-probabilities at a test size, by correction."""
    own = study.predictor.size
    names = (AS_IS, *(corrections if size != own else ()))
    results = {name: study.predict(split, size, name) for name in names}
    if size in fitted:
        results[FITTED] = fitted[size].predict(split, size)
    if own in fitted and size != own:
        results[CONTROL] = fitted[own].predict(split, size)
    return results


def _rows(
    study: Study,
    split: str,
    size: int,
    results: dict[str, np.ndarray],
    labels: np.ndarray,
    at_own: dict[str, np.ndarray],
) -> Iterator[ScoreRow]:
    """Yield a row for each result at a test size.

    `at_own`: (N,) bool, whether the run and the control are right at the training size.
    """
    own, packed = study.predictor.size, study.predictor.packed
    classes = packed.titles
    as_is = results[AS_IS].argmax(1) == labels
    for name, log_probabilities in results.items():
        right = log_probabilities.argmax(1) == labels
        references = {
            "own": None if (size, name) == (own, AS_IS) else at_own["own"],
            "control": at_own.get("control") if name == FITTED and size != own else None,
        }
        yield replace(
            study.predictor.source,
            split=split,
            trained=own,
            size=size,
            method=study.method,
            correction=name,
            gain=NOT_COMPARED if name == AS_IS else mcnemar(right, as_is),
            over={
                what: NOT_COMPARED if reference is None else mcnemar(right, reference)
                for what, reference in references.items()
            },
        ).with_score(score(log_probabilities, labels), classes)


def compare_methods(predictor: Predictor, methods: Sequence[str], size: int) -> Iterator[ScoreRow]:
    """Yield a row of the hold-out at `size` for each way to resize; gains are over the first."""
    packed = predictor.packed
    labels = packed.train.required_labels[predictor.images("holdout")[1]]
    classes = packed.titles
    gains = GainsOverFirst()
    for method in methods:
        log_probabilities = Study(predictor, method).predict("holdout", size)
        right = log_probabilities.argmax(1) == labels
        yield replace(
            predictor.source,
            split="holdout",
            size=size,
            method=method,
            gain=gains.gain(right),
        ).with_score(score(log_probabilities, labels), classes)
