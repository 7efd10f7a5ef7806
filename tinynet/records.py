"""Rows of results, as dataclasses and as JSON objects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Json = dict[str, Any]  # one JSON object


class _Missing:
    """Marks a field that a row does not have. None is different: it is null in JSON."""

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()


@dataclass(frozen=True)
class Score:
    """Accuracy and loss on `n` images.

    `top1`, `top5`: fractions. `loss`: mean negative log-likelihood in nats. `ece`: expected
    calibration error (Guo et al. 2017). `low`, `high`: the 95 % Wilson interval of `top1`.
    """

    n: int
    top1: float
    top5: float
    loss: float
    ece: float
    low: float
    high: float


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

    `n`, `top1`, `top5`, `loss`, `ece`, `low`, `high`: as in `Score`. `forwards`: forward passes per
    image. `cost`: of all views, in forward passes at the training size. `seconds`: for a forward
    pass of one image. `gain`: over one view. `over`: gains over the run at its training size
    (`own`), over equal further training at that size (`control`), and over ten-crop (`ten`).

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


def _key(name: str) -> str:
    return _KEYS.get(name, name)


def to_json(rows: Iterable[ScoreRow]) -> list[Json]:
    """Return the rows as JSON objects."""
    return [row.to_json() for row in rows]
