"""Write the report of a run as one self-contained HTML file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet.files import write_text
from tinynet.plotting import inline_svg, save_figure
from tinynet.records import MISSING, EpochRow, Json, ScoreRow
from tinynet.report.tables import titled
from tinynet.score.confusions import ClassAccuracy, ConfusedPair, ObjectSizeBin
from tinynet.score.probabilities import Probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Path(__file__).parent
# The columns of the score table that are always there, and those that are there if rows differ.
_MAIN = ("split", "views", "merge", "size", "n", "top1", "interval", "gain", "p")
_DISTINGUISHING = ("stage", "precision", "temperature")
_EPOCHS = ("stage", "epoch", "train_loss", "top1", "interval", "top5", "loss")


@dataclass(frozen=True)
class Card:
    """An image with the name of its class, its prediction, and the probability of the prediction.

    `image`: a data URI.
    """

    image: str
    file: str
    name: str
    prediction: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class ClassRow:
    """The accuracy of a class, and its names; `taken_for`: the name of `accuracy.taken_for`."""

    accuracy: ClassAccuracy
    name: str
    wnid: str
    taken_for: str | None


@dataclass(frozen=True)
class HardClass:
    """One of the classes with the lowest accuracy, and some of its images."""

    name: str
    top1: float
    cards: list[Card]


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused, their names, and examples."""

    classes: ConfusedPair
    names: tuple[str, str]
    cards: list[Card] = field(default_factory=list)


@dataclass(frozen=True)
class HeatMap:
    """A card with its Grad-CAM heat map (a data URI), the object's box and the heat inside it."""

    card: Card
    heat: str
    side: int
    box: list[int] | None
    inside: float | None


@dataclass(frozen=True)
class HeatInside:
    """The mean share of the heat inside boxes, over `n` images, and the mean area of the boxes."""

    n: int
    inside: float
    area: float
    layer: str


@dataclass(frozen=True)
class Twin:
    """An image that is also in train, with another label there."""

    image: str
    file: str
    name: str
    train_name: str
    prediction: str


@dataclass(frozen=True)
class LabelCheck:
    """An image whose label may be wrong, the class that the network suggests, their probabilities.

    `file`: its row, without the data. `image`: a data URI, which only the surest have.
    """

    file: str
    name: str
    suggestion: str
    p_label: float
    p_suggestion: float
    image: str | None = None


@dataclass(frozen=True)
class ClassDifference:
    """The accuracies of several runs on a class; `p` compares the best and the worst of them."""

    name: str
    n: int
    top1: list[float]
    difference: float
    p: float


@dataclass
class RunReport:
    """The contents of a run's page.

    `answer`: the result in one sentence. `figures`: by name, with a caption. `curves`: the figures
    of training. `epochs`: by stage. `counts`: (class, predicted class, number of images). `order`:
    the classes in the order of the matrix. `label_checks`: the surest first.
    `label_counts`: by split, the numbers of candidates for wrong labels and of images. `missing`:
    sentences on what the page lacks and how to get it. `plain`: the probabilities of the plain
    images of `split`, from which all analyses come but the label checks, which have all splits.
    """

    name: str
    answer: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    scores: list[ScoreRow] = field(default_factory=list)
    figures: dict[str, tuple["Figure", str]] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    epochs: dict[str, list[EpochRow]] = field(default_factory=dict)
    classes: list[ClassRow] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    mistakes: list[Card] = field(default_factory=list)
    hardest: list[HardClass] = field(default_factory=list)
    label_checks: list[LabelCheck] = field(default_factory=list)
    label_counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    calibration: list[ScoreRow] = field(default_factory=list)
    sizes: list[ObjectSizeBin] = field(default_factory=list)
    heats: list[HeatMap] = field(default_factory=list)
    inside: HeatInside | None = None
    twins: list[Twin] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    split: str = ""
    plain: Probabilities | None = None


def write_page(report: RunReport, path: Path) -> None:
    """Write the page of one run, and its figures as PNG and SVG.

    The figures are written to a folder next to the page that has the page's name.
    """
    figures = {
        name: inline_svg(figure, caption) for name, (figure, caption) in report.figures.items()
    }
    for name, (figure, _) in report.figures.items():
        for kind in ("png", "svg"):
            save_figure(figure, path.with_suffix("") / f"{name}.{kind}")
    scores = [replace(row, run=MISSING).to_json() for row in report.scores]
    _write(
        "page.html.j2",
        path,
        report=report,
        figures=figures,
        captions={name: caption for name, (_, caption) in report.figures.items()},
        matrix={"order": report.order, "names": report.names, "counts": report.counts},
        scores=titled(scores, _main_columns(scores)),
        all_scores=titled(scores),
        epochs=titled(_epoch_rows(report), _EPOCHS),
        calibration=titled([row.to_json() for row in report.calibration]),
        sizes=titled([asdict(row) for row in report.sizes]),
    )


def _epoch_rows(report: RunReport) -> list[Json]:
    return [
        {
            "stage": stage,
            "epoch": row.epoch + 1,
            "train_loss": row.loss,
            **row.holdout.to_json(),
        }
        for stage, rows in report.epochs.items()
        for row in rows
    ]


def _main_columns(rows: Sequence[Json]) -> list[str]:
    """The columns of the score table: the result, and what tells its rows apart."""
    differing = [key for key in _DISTINGUISHING if len({str(row.get(key)) for row in rows}) > 1]
    return [*differing, *_MAIN]


def write_comparison(
    runs: Sequence[RunReport],
    links: Sequence[str],
    rows: Sequence[ScoreRow],
    classes: Sequence[ClassDifference],
    path: Path,
) -> None:
    """Write the page that compares several runs.

    `links`: to the pages of the runs. `rows`: their scores, with paired tests against the first
    run. `classes`: those on which the runs differ most.
    """
    figures = {
        f"{run.name}, {name.removeprefix('curves-')}": inline_svg(figure, f"{run.name}: {caption}")
        for run in runs
        for name, (figure, caption) in run.figures.items()
        if name.startswith("curves")
    }
    _write(
        "comparison.html.j2",
        path,
        runs=runs,
        links=links,
        scores=titled([row.to_json() for row in rows]),
        classes=classes,
        figures=figures,
    )


def _write(template: str, path: Path, **values: Any) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    write_text(path, environment.get_template(template).render(**values))


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{share:.{digits}%}"
