"""The library in front of the packages: `fit` trains a run, and `Run` is what can be done with one.

The commands do the same with flags.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import runs
from tinynet.errors import InputError
from tinynet.records import Json, ScoreRow
from tinynet.runs import STAGES, WHOLE, StageFolder, finished_stage
from tinynet.training.config import RunConfig, open_data
from tinynet.training.plan import (
    Settings,
    plan_later,
    plan_new,
    recipe_fields,
    with_found_data,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from tinynet.compute import Compute
    from tinynet.evaluation.model import RunModel
    from tinynet.evaluation.predict import Prediction
    from tinynet.evaluation.predictor import Predictor


def fit(
    run: str | Path,
    data: str | Path | None = None,
    stages: str | Sequence[str] = "all",
    recipe: str | None = None,
    **settings: Any,
) -> "Run":
    """Train the stages of a run that are not finished yet, and return the run.

    A run that was stopped continues where it stopped, to the same result on a CPU.

    `run`: its folder. `data`: the archive (default: the official one, downloaded if needed).
    `stages`: one or several of base, finetune, fixres; all: base and finetune. `recipe`: tuned
    (default) or reference. `settings`: `weights`, `seed`, `cache`, `device`, `precision`,
    `tensorboard`, and any field of the recipe, for instance `epochs=4`.

    Raises `InputError` for unusable input, and `KeyboardInterrupt` after Ctrl-C, when everything
    is saved.

    Examples:
        >>> run = tinynet.fit("runs/first", data="tiny-imagenet-200.zip", stages="base", epochs=4)
    """
    from tinynet.compute import choose_compute
    from tinynet.report.curves import Curves
    from tinynet.training.observers import Observer
    from tinynet.training.stages import train

    path = Path(run)
    names = _stage_names(stages)
    compute = choose_compute(settings.pop("device", "auto"), settings.pop("precision", "auto"))
    observers: list[Observer] = [Curves()]
    if settings.pop("tensorboard", False):
        from tinynet.report.tensorboard import TensorBoard

        observers.append(TensorBoard())
    asked = _settings(data, recipe, settings)
    for config in _configs(path, names, asked):
        train(path, config, compute, resume=True, observers=observers)
    return Run(path)


def _stage_names(stages: str | Sequence[str]) -> tuple[str, ...]:
    names = WHOLE if stages == "all" else (stages,) if isinstance(stages, str) else tuple(stages)
    if unknown := [name for name in names if name not in STAGES]:
        raise InputError(f"stage {unknown[0]!r}: choose from {', '.join(STAGES)}, or all")
    return tuple(sorted(names, key=STAGES.index))


def _settings(data: str | Path | None, recipe: str | None, settings: dict[str, Any]) -> Settings:
    others = {name: settings.pop(name, None) for name in ("weights", "seed", "cache")}
    if unknown := sorted(set(settings) - set(recipe_fields())):
        raise InputError(
            f"{unknown[0]}: not a setting; choose from weights, seed, cache, device, precision, "
            f"tensorboard, {', '.join(recipe_fields())}"
        )
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return Settings(
        recipe,
        fields,
        str(data) if data is not None else None,
        str(others["weights"]) if others["weights"] is not None else None,
        others["seed"],
        str(others["cache"]) if others["cache"] is not None else None,
    )


def _configs(run: Path, stages: Sequence[str], settings: Settings) -> Iterable[RunConfig]:
    """Yield a configuration a stage: new ones, and those of stages that were started before."""
    for stage in stages:
        folder = StageFolder(run, stage)
        if folder.started:
            _refuse_changes(folder, settings)
            yield replace(RunConfig.of(folder), stages=(stage,))
        elif stage == "base":
            yield with_found_data(plan_new(settings, (stage,)))
        else:
            if runs.stage_before(run, stage) is None:
                raise InputError(f"{run}: has no finished base for {stage}; add base to stages")
            later = Settings(settings.recipe, _stage_fields(settings), settings.data)
            yield with_found_data(plan_later(later, stage, run, run))


def _stage_fields(settings: Settings) -> dict[str, Any]:
    """The fields of a stage; the split and the network are fixed by base."""
    from tinynet.training.recipes import Stage

    names = Stage.__dataclass_fields__
    return {name: value for name, value in settings.fields.items() if name in names}


def _refuse_changes(folder: StageFolder, settings: Settings) -> None:
    """Raise `InputError` where a stage was started with other values of the recipe's fields."""
    recipe = RunConfig.of(folder).recipe
    parts = (recipe.stage(folder.stage), recipe.network, recipe.data)
    for name, value in settings.fields.items():
        before = next(getattr(part, name) for part in parts if hasattr(part, name))
        if before != value:
            raise InputError(
                f"{folder.path}: was started with {name}={before!r}, not {value!r}; use another "
                "folder for another value"
            )
    if settings.recipe not in (None, recipe.name):
        raise InputError(
            f"{folder.path}: was started with the recipe {recipe.name}, not {settings.recipe}; use "
            "another folder for another recipe"
        )


class Rows(list[ScoreRow]):
    """Score rows that print as a table, and show as a table in a notebook."""

    def __repr__(self) -> str:
        from tinynet.report.tables import table

        return table(self.to_json()) if self else "no rows"

    def _repr_html_(self) -> str:
        from tinynet.plotting import inline_svg
        from tinynet.report.tables import cells

        if not self:
            return "no rows"
        head, *lines = cells(self.to_json())
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
        return table + inline_svg(self.figure(), "top-1 with 95 % intervals")

    def to_json(self) -> list[Json]:
        """The rows as JSON objects, with the keys of the result files."""
        return [row.to_json() for row in self]

    def figure(self) -> "Figure":
        """Top-1 of every row with its 95 % interval."""
        from tinynet.report.rows import top1_with_intervals

        return top1_with_intervals(self)


class Predictions(list["Prediction"]):
    """The most probable classes of images, as a table."""

    def __repr__(self) -> str:
        from tinynet.report.tables import table

        rows = [prediction.to_json() for prediction in self]
        return table(rows) if rows else "no images"


class Run:
    """A trained run in a folder.

    `stage`: the stage to use (default: the last finished one). `path`: the folder. Raises
    `InputError` where the folder contains no run.

    Examples:
        >>> tinynet.Run("runs/first").evaluate(tta="flip")
    """

    def __init__(self, path: str | Path, stage: str | None = None):
        self.path, self._stage = Path(path), stage
        if not runs.started_stages(self.path):
            raise InputError(f"{path}: {runs.NOT_A_RUN}; name a folder that tinynet.fit wrote")

    def __repr__(self) -> str:
        stages = [folder.stage for folder in runs.started_stages(self.path) if folder.finished]
        return f"Run({str(self.path)!r}), finished: {', '.join(stages) or 'no stage'}"

    @property
    def folder(self) -> StageFolder:
        """The folder of the stage in use; raises `InputError` where none is finished."""
        return finished_stage(str(self.path), self._stage)

    @property
    def config(self) -> RunConfig:
        """The configuration that the stage was trained by."""
        return RunConfig.of(self.folder)

    def predictor(
        self, data: str | None = None, device: str = "auto", precision: Any = "auto"
    ) -> "Predictor":
        """The stage with its data, for probabilities of every view."""
        from tinynet.evaluation.predictor import Predictor

        folder, compute = self.folder, _compute(device, precision)
        return Predictor(folder, open_data(data, None, RunConfig.of(folder)), compute)

    def evaluate(
        self,
        tta: str | Sequence[str] = (),
        split: str = "both",
        size: int | Sequence[int] | None = None,
        merge: str | Sequence[str] = "mean",
        calibrate: bool = False,
        **where: Any,
    ) -> Rows:
        """Scores with 95 % intervals, the plain view first, with the paired gain of each set.

        `tta`: sets of views, for instance "flip" or ["flip", "ten"]. `split`: holdout, val or both.
        `size`: test sizes in pixels. `merge`: mean, gmean, max, vote, sharpen. `calibrate`: add
        rows at the temperature that fits the hold-out. `where`: `data`, `device`, `precision`.

        Examples:
            >>> run.evaluate(tta="flip")
        """
        from tinynet.evaluation.evaluate import ScoreRequest, evaluate

        request = ScoreRequest(
            ("holdout", "val") if split == "both" else (split,),
            [size] if isinstance(size, int) else size,
            [tta] if isinstance(tta, str) else tta,
            [merge] if isinstance(merge, str) else merge,
            calibrate=calibrate,
        )
        return Rows(evaluate(self.predictor(**where), request))

    def predict(
        self,
        files: str | Path | Sequence[str | Path],
        tta: str = "none",
        top: int = 5,
        **where: Any,
    ) -> Predictions:
        """The `top` most probable classes of image files and folders.

        `where`: `device`, `precision`. Raises `InputError` for a file that cannot be read.

        Examples:
            >>> run.predict("photo.jpg", tta="ten")
        """
        from tinynet.data.image_folder import expand
        from tinynet.evaluation.predict import Preparation, run_predictor

        names = [files] if isinstance(files, (str, Path)) else files
        predictor = run_predictor(self.folder, _compute(**where))
        predictions, unreadable = predictor.predict(
            expand([str(name) for name in names]), Preparation(tta), top, None
        )
        if unreadable:
            raise InputError(unreadable[0])
        return Predictions(predictions)

    def model(self) -> "RunModel":
        """The network in eval mode on the CPU: (N, 3, H, W) in [0, 1] -> (N, C) logits.

        Attributes: `class_ids`, `class_names`, `image_size` (pixels).

        Examples:
            >>> run.model()(torch.rand(1, 3, 64, 64)).argmax(1)
        """
        from tinynet.evaluation.model import RunModel

        return RunModel.load(self.folder)

    def report(self, out: str | Path | None = None, data: str | None = None) -> Path:
        """Write the run's HTML report, and return its path (default: report.html in the run).

        Examples:
            >>> run.report()
        """
        from tinynet.report.collect import write_reports

        return write_reports([self.path], data, None, Path(out) if out else None)[0]


def _compute(device: str = "auto", precision: Any = "auto") -> "Compute":
    from tinynet.compute import choose_compute

    return choose_compute(device, precision)


def arrays(root: str | Path, split: str = "train", cache: str | None = None) -> "tuple[Any, Any]":
    """Images (N, H, W, 3) uint8 and labels (N,) int64 of a split, for any framework.

    `root`: the archive or its folder. `split`: train (all official training images), val, or test,
    whose labels are None. The arrays are read-only and memory-mapped; they are decoded once into
    the `cache` (default: beside the data).

    Examples:
        >>> images, labels = tinynet.arrays("data/tiny-imagenet-200.zip", "val")
    """
    from tinynet.data.packed import open_packed
    from tinynet.data.places import locate

    if split not in ("train", "val", "test"):
        raise InputError(f"split {split!r}: choose train, val or test")
    part = open_packed(locate(Path(root)), cache).part(split)
    return part.images, part.labels


def tta(
    model: "nn.Module", views: str = "flip", merge: str = "mean", size: int | None = None
) -> Any:
    """A classifier with test-time augmentation: averages its probabilities over views.

    `model`: images (N, 3, H, W) -> logits (N, C). `views`: for instance "flip+scales:64,80".
    Returns a module: images -> (N, C) log-probabilities.

    Examples:
        >>> tinynet.tta(model, "flip+scales:64,80")(images)
    """
    from tinynet.score.tta import TestTimeAugmentation

    return TestTimeAugmentation(model, views, merge, size)
