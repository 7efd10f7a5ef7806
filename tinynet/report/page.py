"""What a run has to show becomes one HTML file that needs nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet.files import atomic_file
from tinynet.plotting import inline_svg, save_figure
from tinynet.report.tables import titled
from tinynet.score.probabilities import Probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HERE = Path(__file__).parent

Row = dict[str, Any]


@dataclass
class RunReport:
    """All that a run shows: plain values and rows, pictures as data URIs, figures by name with a
    description.

    `plain`: what is said of the pictures of `split` as they are. `missing`: sentences that say what
    is not here, and what to run.
    """

    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    figures: dict[str, tuple["Figure", str]] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    mistakes: list[Row] = field(default_factory=list)
    hardest: list[Row] = field(default_factory=list)
    calibration: list[Row] = field(default_factory=list)
    sizes: list[Row] = field(default_factory=list)
    heats: list[Row] = field(default_factory=list)
    inside: Row | None = None
    duplicates: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    split: str = ""
    plain: Probabilities | None = None


def write_page(shown: RunReport, path: Path) -> None:
    """Write the page of one run, and its figures as PNG and SVG beside it, in a folder of the
    page's name.
    """
    figures = {name: inline_svg(figure, said) for name, (figure, said) in shown.figures.items()}
    for name, (figure, _) in shown.figures.items():
        for kind in ("png", "svg"):
            save_figure(figure, path.with_suffix("") / f"{name}.{kind}")
    said = {name: words for name, (_, words) in shown.figures.items()}
    matrix = {"order": shown.order, "names": shown.names, "counts": shown.counts}
    scores = [{key: value for key, value in row.items() if key != "run"} for row in shown.scores]
    _write(
        "page.html.j2",
        path,
        shown=shown,
        figures=figures,
        said=said,
        matrix=matrix,
        scores=titled(scores),
        epochs=titled(shown.epochs),
        calibration=titled(shown.calibration),
        sizes=titled(shown.sizes),
    )


def write_comparison(
    runs: Sequence[RunReport],
    links: Sequence[str],
    rows: Sequence[Row],
    classes: Sequence[Row],
    path: Path,
) -> None:
    """Write the page of several runs: `rows` of their scores, with paired tests against the first,
    and the `classes` on which they differ most. `links`: where the runs' own pages are.
    """
    figures = {
        f"{run.name}, {name.removeprefix('curves-')}": inline_svg(figure, f"{run.name}: {said}")
        for run in runs
        for name, (figure, said) in run.figures.items()
        if name.startswith("curves")
    }
    _write(
        "comparison.html.j2",
        path,
        runs=runs,
        links=links,
        scores=titled(rows),
        classes=classes,
        figures=figures,
    )


def _write(template: str, path: Path, **values: Any) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda share, digits=1: "" if share is None else f"{share:.{digits}%}"
    with atomic_file(path) as stream:
        stream.write(made.get_template(template).render(**values).encode())
