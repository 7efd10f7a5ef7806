"""The library: `fit` trains a run; `Run` evaluates it, predicts with it and reports on it.

The commands call the same functions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import runs
from tinynet.errors import InputError
from tinynet.records import Json, ScoreRow
from tinynet.runs import STAGES, WHOLE, StageFolder, finished_stage
from tinynet.training.config import RunConfig, open_data
from tinynet.training.plan import (
    Device,
    Settings,
    plan_later,
    plan_new,
    recipe_fields,
    with_found_data,
    with_new_places,
)
from tinynet.training.recipes import Network, SplitConfig

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

    A stopped run continues where it stopped. On a CPU the result is bit-identical.

    `run`: the folder of the run. `data`: the archive (default: the official one, downloaded if
    needed). `stages`: one or more of base, finetune, fixres; "all" means base and finetune.
    `recipe`: tuned (default) or reference. `settings`: `weights`, `seed`, `cache`, `device`,
    `precision`, `tensorboard`, and any field of the recipe, for instance `epochs=4`.

    Raises `InputError` for invalid input. After Ctrl-C it saves the run and raises
    `KeyboardInterrupt`.

    Examples:
        >>> run = tinynet.fit("runs/first", data="tiny-imagenet-200.zip", stages="base", epochs=4)
    """
    from tinynet.compute import choose_compute
    from tinynet.report.curves import Curves
    from tinynet.training.observers import Observer
    from tinynet.training.stages import train

    path = _path(run, "run")
    names = _stage_names(stages)
    device = Device(settings.pop("device", "auto"), settings.pop("precision", "auto"))
    observers: list[Observer] = [Curves()]
    if settings.pop("tensorboard", False):
        from tinynet.report.tensorboard import TensorBoard

        observers.append(TensorBoard())
    for config in _configs(path, names, _settings(data, recipe, settings)):
        folder = StageFolder(path, config.stages[0])
        chosen = device.as_started(folder) if folder.started else device
        compute = choose_compute(
            chosen.device, chosen.precision, floats=chosen.floats, frozen=chosen.frozen
        )
        train(path, config, compute, resume=True, observers=observers)
    return Run(path)


def _stage_names(stages: str | Sequence[str]) -> tuple[str, ...]:
    names = WHOLE if stages == "all" else _texts(stages, "stages")
    if not names:
        raise InputError(f"stages is empty; use {', '.join(STAGES)} or all")
    if unknown := [name for name in names if name not in STAGES]:
        raise InputError(f"stage {unknown[0]!r}: unknown; use {', '.join(STAGES)} or all")
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
    """Yield the configuration of each stage: a new one, or the saved one of a started stage."""
    for stage in stages:
        folder = StageFolder(run, stage)
        if folder.started:
            _refuse_changes(folder, settings)
            config = with_new_places(RunConfig.of(folder), settings)
            yield replace(config, stages=(stage,))
        elif stage == "base":  # with finetune, so that both are checked before either is trained
            new = tuple(name for name in stages if name in WHOLE)
            yield with_found_data(plan_new(settings, new))
        else:
            before = runs.stage_before(run, stage)
            if before is None:
                raise InputError(f"{run}: has no finished base for {stage}; add base to stages")
            names = {each.name for part in (SplitConfig, Network) for each in fields(part)}
            shared = {name: settings.fields[name] for name in settings.fields.keys() & names}
            _refuse_changes(before, Settings(fields=shared, weights=settings.weights))
            own = {name: settings.fields[name] for name in settings.fields.keys() - names}
            later = replace(settings, fields=own, weights=None)
            yield with_found_data(plan_later(later, stage, run, run))


def _path(place: Any, name: str) -> Path:
    if not isinstance(place, (str, Path)) or not str(place):
        raise InputError(f"{name} is {place!r}; it must be a path")
    return Path(place)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """One or several words; raises `InputError` for anything else."""
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{name} is {value!r}; it must be a string or a list of strings")
    return tuple(words)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """One or several sizes in pixels, or None."""
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not sizes or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes
    ):
        raise InputError(f"size is {value!r}; it must be a number of pixels or a list of them")
    return sizes


def _refuse_changes(folder: StageFolder, settings: Settings) -> None:
    """Raise `InputError` if a stage was started with other settings."""
    config = RunConfig.of(folder)
    parts = (config.recipe.stage(folder.stage), config.recipe.network, config.recipe.data)
    pairs = {
        name: (next(getattr(part, name) for part in parts if hasattr(part, name)), value)
        for name, value in settings.fields.items()
    }
    if settings.recipe is not None:
        pairs["recipe"] = config.recipe.name, settings.recipe
    if settings.seed is not None:
        pairs["seed"] = config.seed, settings.seed
    if settings.weights is not None and not Path(settings.weights).is_file():
        pairs["weights"] = config.weights, settings.weights  # files are compared by their digest
    for name, (before, value) in pairs.items():
        if before != value:
            raise InputError(
                f"{folder.path}: was started with {name}={before!r}, not {value!r}; use another "
                "folder for another value"
            )


class Rows(list[ScoreRow]):
    """A list of score rows that prints as a table; a notebook shows a table and a figure."""

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
        """Return the rows as JSON objects, with the keys of the result files."""
        return [row.to_json() for row in self]

    def figure(self) -> "Figure":
        """Plot the top-1 accuracy of every row with its 95 % interval."""
        from tinynet.report.rows import top1_with_intervals

        return top1_with_intervals(self)


class Predictions(list["Prediction"]):
    """A list of the most probable classes of images, which prints as a table."""

    def __repr__(self) -> str:
        from tinynet.report.tables import table

        rows = [prediction.to_json() for prediction in self]
        return table(rows) if rows else "no images"


class Run:
    """A trained run in a folder.

    `path`: the folder of the run. `stage`: the stage to use (default: the last finished one).
    Raises `InputError` if the folder contains no run.

    Examples:
        >>> tinynet.Run("runs/first").evaluate(tta="flip")
    """

    def __init__(self, path: str | Path, stage: str | None = None):
        self.path, self._stage = _path(path, "path"), stage
        if not runs.started_stages(self.path):
            raise InputError(f"{path}: {runs.NOT_A_RUN}; name a folder that tinynet.fit wrote")

    def __repr__(self) -> str:
        stages = [folder.stage for folder in runs.started_stages(self.path) if folder.finished]
        return f"Run({str(self.path)!r}), finished: {', '.join(stages) or 'no stage'}"

    @property
    def folder(self) -> StageFolder:
        """The folder of the stage in use; raises `InputError` if no stage is finished."""
        return finished_stage(str(self.path), self._stage)

    @property
    def config(self) -> RunConfig:
        """The configuration that the stage was trained with."""
        return RunConfig.of(self.folder)

    def predictor(
        self, data: str | None = None, device: str = "auto", precision: Any = "auto"
    ) -> "Predictor":
        """Return an object that computes the probabilities of every view on the data of the run."""
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
        """Return accuracies with 95 % intervals: with one view first, then with each set of views.

        `tta`: sets of views, for instance "flip" or ["flip", "ten"]. `split`: holdout, val or both.
        `size`: test sizes in pixels. `merge`: mean, gmean, max, vote, sharpen. `calibrate`: add
        rows for val at the temperature that fits the hold-out best. `where`: the keywords `data`,
        `device` and `precision`.

        Examples:
            >>> run.evaluate(tta="flip")
        """
        from tinynet.evaluation.evaluate import ScoreRequest, evaluate

        if split not in ("holdout", "val", "both"):
            raise InputError(f"split is {split!r}; use holdout, val or both")
        merges = _texts(merge, "merge")
        if not merges:
            raise InputError(f"merge is {merge!r}; use for instance mean")
        request = ScoreRequest(
            ("holdout", "val") if split == "both" else (split,),
            _sizes(size),
            _texts(tta, "tta"),
            merges,
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
        """Return the `top` most probable classes of image files, and of the images in folders.

        `where`: the keywords `device` and `precision`. Raises `InputError` for a file that cannot
        be read.

        Examples:
            >>> run.predict("photo.jpg", tta="ten")
        """
        from tinynet.data.image_folder import expand
        from tinynet.evaluation.predict import Preparation, run_predictor

        names = [files] if isinstance(files, (str, Path)) else list(files)
        for name in names:
            _path(name, "a file")
        if not names:
            raise InputError(f"files is {files!r}; name an image or a folder of images")
        if not isinstance(top, int) or top < 1:
            raise InputError(f"top is {top!r}; it must be an integer greater than 0")
        if not isinstance(tta, str):
            raise InputError(f"tta is {tta!r}; predict takes one set of views, for instance 'flip'")
        predictor = run_predictor(self.folder, _compute(**where))
        predictions, unreadable = predictor.predict(
            expand([str(name) for name in names]), Preparation(tta), top, None
        )
        if unreadable:
            raise InputError(f"{unreadable[0]}; replace this file, or leave it out")
        return Predictions(predictions)

    def model(self) -> "RunModel":
        """Return the network in eval mode on the CPU: (N, 3, H, W) in [0, 1] -> (N, C) logits.

        Its attributes: `class_ids`, `class_names`, `image_size` (pixels).

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
    """Return images (N, H, W, 3) uint8 and labels (N,) int64 of a split, for any framework.

    `root`: the archive or its folder. `split`: train (all official training images), val, or test
    (its labels are None). The images are decoded once into the folder `cache` (default: next to the
    data). The arrays are read-only and memory-mapped.

    Examples:
        >>> images, labels = tinynet.arrays("data/tiny-imagenet-200.zip", "val")
    """
    from tinynet.data.packed import open_packed
    from tinynet.data.places import locate

    if split not in ("train", "val", "test"):
        raise InputError(f"split {split!r}: unknown; use train, val or test")
    part = open_packed(locate(Path(root)), cache).part(split)
    return part.images, part.labels


def tta(
    model: "nn.Module", views: str = "flip", merge: str = "mean", size: int | None = None
) -> Any:
    """Return a classifier with test-time augmentation: it merges probabilities of several views.

    `model`: images (N, 3, H, W) -> logits (N, C). `views`: for instance "flip+scales:64,80".
    `merge`: mean, gmean, max, vote or sharpen. `size`: the network's image size in pixels (default:
    the shorter side of the images). The result is a module: images -> (N, C) log-probabilities.

    Examples:
        >>> tinynet.tta(model, "flip+scales:64,80")(images)
    """
    from tinynet.score.tta import TestTimeAugmentation

    return TestTimeAugmentation(model, views, merge, size)
