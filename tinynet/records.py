"""Rows of results and of logs, as dataclasses and as JSON objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

Json = dict[str, Any]  # one JSON object


class _Missing:
    """Marks a field that a row does not have. None is different: it is null in JSON."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "missing"

    def __reduce__(self) -> str:
        return "MISSING"  # after pickling it is the same object


MISSING: Any = _Missing()


@dataclass(frozen=True)
class Score:
    """Accuracy and loss on `n` images.

    `top1`, `top5`: fractions. `loss`: mean negative log-likelihood in nats. `ece`: expected
    calibration error (Guo et al. 2017). `low`, `high`: the 95 % Wilson interval of `top1`.

    `balanced`: the mean of the top-1 accuracies of the classes (Brodersen et al. 2010). `worst`:
    the lowest of them. `worst_label`: the index of its class; among equals, of the class with the
    most images.
    """

    n: int
    top1: float
    top5: float
    loss: float
    ece: float
    low: float
    high: float
    balanced: float
    worst: float
    worst_label: int

    def to_json(self) -> Json:
        """Return the score as a JSON object, with the names of the fields as keys."""
        return _to_json(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Score":
        """Read a score from a JSON object; what it lacks is `MISSING`."""
        return cls(**_values(cls, row))


@dataclass(frozen=True)
class Gain:
    """The difference between two top-1 accuracies on the same images; all None if not compared.

    `gain`: the difference, as a fraction. `low`, `high`: the 95 % interval of `gain`. `p`: the
    two-sided p-value of McNemar's exact test.
    """

    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def to_json(self, over: str = "") -> Json:
        """Return keys `gain`, `gain_low`, `gain_high` and `p`, with a suffix like `_over_ten`."""
        end = f"_over_{over}" if over else ""
        values = {"gain": self.gain, "gain_low": self.low, "gain_high": self.high, "p": self.p}
        return {f"{key}{end}": value for key, value in values.items() if value is not MISSING}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], over: str = "") -> "Gain":
        """Read the gain of a row; early result files have no intervals."""
        end = f"_over_{over}" if over else ""
        keys = (f"{key}{end}" for key in ("gain", "gain_low", "gain_high", "p"))
        return cls(*(row.get(key, MISSING) for key in keys))


NOT_COMPARED = Gain()
_OVER = ("own", "control", "ten")  # references of a gain, besides the plain result
_KEYS = {"images_per_second": "pictures_per_second"}  # field -> key of JSON, where they differ


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A score, and what was scored and how. A field that does not apply is `MISSING`.

    `run`, `stage`, `split`: what was scored. `trained`, `size`: training and test size in pixels.
    `views`, `merge`: the test-time views, and how their probabilities are merged. `method`: how
    images are resized. `correction`: how features are corrected at another test size. `name`: the
    class, in a row for one class. `temperature`: the temperature of calibration.

    `n`: number of images. `top1`, `top5`: fractions. `loss`: mean negative log-likelihood in nats.
    `ece`: expected calibration error. `low`, `high`: the 95 % interval of `top1`. `balanced`: the
    mean of the top-1 accuracies of the classes. `worst`, `worst_class`: the lowest of them, and the
    id and the name of its class.

    `forwards`: forward passes per image. `cost`: of all views, in forward passes at the training
    size. `seconds`: for a forward pass of one image. `gain`: over one view. `over`: gains over the
    run at its training size (`own`), over equal further training at that size, or, for a soup, over
    runs with recomputed batch norms (`control`), and over ten-crop (`ten`).

    `documented`: the published top-1. `apart`: `top1` minus the published one, in half-widths of
    the 95 % interval. `taken`, `weights`: the selected views, and their weights.
    """

    run: str = MISSING
    stage: str | None = MISSING
    split: str | None = MISSING
    trained: int = MISSING
    views: str | None = MISSING
    merge: str = MISSING
    size: int = MISSING
    method: str = MISSING
    correction: str = MISSING
    name: str = MISSING
    n: int = MISSING
    top1: float = MISSING
    top5: float = MISSING
    loss: float = MISSING
    ece: float = MISSING
    low: float = MISSING
    high: float = MISSING
    balanced: float = MISSING
    worst: float = MISSING
    worst_class: str = MISSING
    temperature: float = MISSING
    precision: str | None = MISSING
    forwards: int = MISSING
    cost: float = MISSING
    images_per_second: float | None = MISSING
    gain: Gain = MISSING
    over: Mapping[str, Gain] = field(default_factory=dict)
    documented: float | None = MISSING
    apart: float | None = MISSING
    taken: list[str] = MISSING
    weights: list[float] | None = MISSING
    seconds: float = MISSING
    other: Mapping[str, Any] = field(default_factory=dict)  # keys of files that no field has

    def with_score(self, score: Score, classes: Sequence[str] = ()) -> "ScoreRow":
        """Return the row with the accuracies and the loss of `score`.

        `classes`: by class index, as from `class_names`; without them the row has no `worst_class`.
        """
        values = dict(vars(score))
        label = values.pop("worst_label")
        unnamed = not classes or label is MISSING  # as in an early log
        return replace(self, **values, worst_class=MISSING if unnamed else classes[label])

    def with_score_of(self, other: "ScoreRow") -> "ScoreRow":
        """Return the row with the accuracies and the loss of another row."""
        return replace(self, **{name: getattr(other, name) for name in _SCORED})

    def to_json(self) -> Json:
        """Return the row as a JSON object, with the keys of the result files."""
        row: Json = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "over":
                for name, gain in value.items():
                    row |= gain.to_json(name)
            elif each.name == "other":
                row |= value
            elif value is not MISSING:
                row |= value.to_json() if isinstance(value, Gain) else {_key(each.name): value}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "ScoreRow":
        """Read a row from a JSON object; keys without a field go to `other`."""
        rest = dict(row)
        values: Json = {}
        for each in fields(cls):
            if each.name not in ("gain", "over", "other") and _key(each.name) in rest:
                values[each.name] = rest.pop(_key(each.name))
        if "gain" in row:
            values["gain"] = Gain.from_json(row)
        over = {name: Gain.from_json(row, name) for name in _OVER if f"gain_over_{name}" in row}
        for gain in ([values["gain"].to_json()] if "gain" in values else []) + [
            gain.to_json(name) for name, gain in over.items()
        ]:
            for key in gain:
                del rest[key]
        return cls(**values, over=over, other=rest)


# The fields of a row that come from a score.
_SCORED = (*(each.name for each in fields(Score) if each.name != "worst_label"), "worst_class")


def class_names(ids: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return what rows call each class: its id and its name, or only one of them if they are equal.

    `ids`, `names`: by class index.
    """
    pairs = zip(ids, names, strict=True)
    return [name if name == class_id else f"{class_id} {name}" for class_id, name in pairs]


def short_name(class_id: str, name: str) -> str:
    """Return the first synonym of a WordNet class; the names of other classes stay as they are."""
    return name if name == class_id else name.split(",")[0]


_Row = TypeVar("_Row", bound="LogRow")


@dataclass(frozen=True)
class LogRow:
    """A row of the log of a stage.

    `epoch`: counted from 0. `step`: the number of finished steps of the stage.
    """

    kind: ClassVar[str]  # the key `kind` in JSON
    epoch: int
    step: int

    def to_json(self) -> Json:
        """Return the row as a JSON object, with the keys of `log.jsonl`."""
        return {"kind": self.kind, **_to_json(self)}

    @classmethod
    def from_json(cls: type[_Row], row: Mapping[str, Any]) -> _Row:
        """Read a row from a JSON object; what it lacks is `MISSING`, and other keys are ignored."""
        return cls(**_values(cls, row))


@dataclass(frozen=True)
class StepRow(LogRow):
    """A step: its learning rate `lr`, and the mean `loss` of its batch in nats."""

    kind = "step"
    lr: float
    loss: float


@dataclass(frozen=True)
class EpochRow(LogRow):
    """The end of an epoch.

    `loss`: the mean over the images of the epoch, in nats. `seconds`: of training, without
    evaluation. `images_per_second`: in these seconds. `improved`: whether the epoch is the best so
    far. `holdout`: the score of the hold-out.
    """

    kind = "epoch"
    loss: float
    seconds: float
    images_per_second: float
    improved: bool
    holdout: Score

    def to_json(self) -> Json:
        """Return the row as a JSON object, with the keys of `log.jsonl`."""
        return {**super().to_json(), "holdout": self.holdout.to_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "EpochRow":
        """Read a row from a JSON object; what it lacks is `MISSING`, and other keys are ignored."""
        return cls(**{**_values(cls, row), "holdout": Score.from_json(row["holdout"])})


@dataclass(frozen=True)
class StopRow(LogRow):
    """The end of a training that was stopped before its last epoch."""

    kind = "stopped"


LOG_ROWS: dict[str, type[LogRow]] = {row.kind: row for row in (StepRow, EpochRow, StopRow)}


def _key(name: str) -> str:
    return _KEYS.get(name, name)


def _to_json(record: Any) -> Json:
    """The fields of a dataclass by their keys of JSON, without missing ones."""
    values = {_key(each.name): getattr(record, each.name) for each in fields(record)}
    return {key: value for key, value in values.items() if value is not MISSING}


def _values(record: Any, row: Mapping[str, Any]) -> Json:
    """The values in a JSON object by the names of the fields of a dataclass."""
    return {each.name: row.get(_key(each.name), MISSING) for each in fields(record)}


def to_json(rows: Iterable[ScoreRow]) -> list[Json]:
    """Return the rows as JSON objects."""
    return [row.to_json() for row in rows]
