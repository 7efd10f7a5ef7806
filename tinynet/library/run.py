"""`Run` evaluates a trained run, predicts with it and reports on it; the other public functions."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import runs
from tinynet.errors import InputError
from tinynet.library.arguments import as_count, as_sizes, as_texts
from tinynet.library.results import Predictions, Rows
from tinynet.runs import StageFolder, finished_stage, stage_to_adapt
from tinynet.training.config import RunConfig, open_data
from tinynet.values import as_path, brief

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import nn

    from tinynet.compute import Compute
    from tinynet.data.packed import Packed
    from tinynet.evaluation.export import Export
    from tinynet.evaluation.model import RunModel
    from tinynet.evaluation.predict import Explanation
    from tinynet.evaluation.predictor import Predictor
    from tinynet.resolution.fixres import Findings
    from tinynet.score.probabilities import Probabilities


class Run:
    """A trained run in a folder.

    `path`: the folder of the run. `stage`: the stage to use (default: the last finished one).
    Raises `InputError` if the folder contains no run.

    Examples:
        >>> tinynet.Run("runs/first").evaluate(tta="flip")
    """

    def __init__(self, path: str | Path, stage: str | None = None):
        self.path, self._stage = as_path(path, "path"), stage
        if stage is not None and stage not in runs.STAGES:
            raise InputError(f"stage is {stage!r}; use one of {', '.join(runs.STAGES)}")
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

    @cached_property
    def data(self) -> "Packed":
        """All images of the run's archive, decoded: `train`, `val` and `test`.

        Each has `images`, `labels` (None for `test`) and `boxes`. `train` includes the hold-out.
        Raises `InputError` if the data no longer exists.

        Examples:
            >>> run.data.val.images  # (N, H, W, 3) uint8
        """
        return open_data(None, None, self.config)

    def curves(self) -> "Figure":
        """Plot the loss, the hold-out accuracy and the learning rate of the stage in use.

        Examples:
            >>> run.curves()
        """
        from tinynet.report.figures import training_curves

        if self.config.recipe.stage(self.folder.stage).soup > 1:
            path = self.folder.path / f"seed-{self.config.seed}"
            raise InputError(
                f"{self.folder.path}: is an average of trainings and has no curves of its own; use "
                f"tinynet.Run({str(path)!r}).curves()"
            )

        return training_curves(self.folder.read_log(), self.folder.stage)

    def predictor(
        self, data: str | None = None, device: str = "auto", precision: Any = "auto"
    ) -> "Predictor":
        """Return an object that computes the probabilities of every view on the data of the run."""
        from tinynet.evaluation.predictor import Predictor

        packed = self.data if data is None else open_data(data, None, self.config)
        return Predictor(self.folder, packed, _compute(device, precision))

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

        `tta`: sets of views, for instance "flip" or ["flip", "ten"] (default: those that the
        hold-out chose, in the run's use.json). `split`: holdout, val, both,
        or test if it has labels. `size`: test sizes in pixels. `merge`: mean, gmean, max, vote,
        sharpen. `calibrate`: add rows for val at the temperature that fits the hold-out best.
        `where`: the keywords `data`, `device` and `precision`.

        Examples:
            >>> run.evaluate(tta="flip")
        """
        from tinynet.evaluation.evaluate import ScoreRequest, evaluate
        from tinynet.evaluation.use import usual_views

        if split not in ("holdout", "val", "both", "test"):
            raise InputError(f"split is {split!r}; use holdout, val, both or test")
        merges = as_texts(merge, "merge")
        if not merges:
            raise InputError(f"merge is {merge!r}; use for instance mean")
        request = ScoreRequest(
            ("holdout", "val") if split == "both" else (split,),
            None if size is None else as_sizes(size),
            as_texts(tta, "tta") or (usual_views(self.folder) if size is None else ()),
            merges,
            calibrate=calibrate,
        )
        return Rows(evaluate(self.predictor(**where), request))

    def probabilities(
        self, split: str = "val", tta: str = "none", size: int | None = None, **where: Any
    ) -> "Probabilities":
        """Return the log-probabilities of every view of the images of a split, and the labels.

        They are saved in the run and computed once. `split`: holdout, val or test. `size`: the test
        size in pixels (default: the training size). `where`: the keywords `data`, `device` and
        `precision`. `merged()` of the result has the mean over the views, (N, C).

        Examples:
            >>> run.probabilities("val", tta="flip").log_probabilities  # (views, N, C)
        """
        if split not in ("holdout", "val", "test"):
            raise InputError(f"split is {split!r}; use holdout, val or test")
        predictor = self.predictor(**where)
        sizes = as_sizes(predictor.size if size is None else size)
        sets = predictor.sets(as_texts(tta, "tta"), sizes[0])
        if len(sets) != 1 or len(sizes) != 1:
            raise InputError(f"tta is {tta!r} and size is {size!r}; use one set of views, one size")
        return predictor.predict(split, sets[0])

    def select_views(self, tta: str | Sequence[str], most: int = 10, **where: Any) -> Rows:
        """Select up to `most` of the views in `tta` and of ten-crop, and score the selections.

        Views are selected on one half of the hold-out and scored on the other half, and on val,
        compared with ten-crop. `where`: the keywords `data`, `device` and `precision`.

        Examples:
            >>> run.select_views(["flip+shift", "scales"])
        """
        from tinynet.evaluation.select_views import select_views

        sets, predictor = as_texts(tta, "tta"), self.predictor(**where)
        return Rows(select_views(predictor, sets, predictor.size, as_count(most, "most")))

    def resolution(
        self,
        sizes: int | Sequence[int],
        fit: Sequence[int] = (),
        out: str | Path | None = None,
        **where: Any,
    ) -> "Findings":
        """Evaluate the run at several test sizes, as it is and with corrections.

        The stage is the last finished one before fixres, unless another was named. `sizes`: in
        pixels; the training size is always included. `fit`: sizes to fine-tune the head
        at; the training size is added as the control.

        `out`: the folder for figures and JSON (default: sizes, in the run). `where`: the
        keywords `data`, `device` and `precision`. The result has `rows`, `activations`, `costs` and
        `conclusions`.

        Examples:
            >>> run.resolution([64, 80, 96]).conclusions
        """
        from tinynet.report.curves import Curves
        from tinynet.resolution.fixres import SizeRequest, investigate

        stage = stage_to_adapt(str(self.path), self._stage).stage
        predictor = Run(self.path, stage).predictor(**where)
        sides, heads = as_sizes(sizes, "sizes"), as_sizes(fit, "fit") if fit else ()
        for side in (*sides, *heads):
            predictor.model.backbone.check_size(side)
        folder = as_path(out, "out") if out is not None else predictor.folder.path / "sizes"
        return investigate([predictor], SizeRequest(sides, folder, heads), [Curves()])

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

        names = [files] if isinstance(files, (str, Path)) else files
        if not isinstance(names, (list, tuple)) or not names:
            raise InputError(f"files is {brief(files)}; name an image or a folder of images")
        for name in names:
            as_path(name, "a file")
        most = as_count(top, "top")
        if not isinstance(tta, str):
            raise InputError(f"tta is {tta!r}; predict takes one set of views, for instance 'flip'")
        predictor = run_predictor(self.folder, _compute(**where))
        predictions, unreadable = predictor.predict(
            expand([str(name) for name in names]), Preparation(tta), most, None
        )
        if unreadable:
            raise InputError(f"{unreadable[0]}; replace this file, or leave it out")
        return Predictions(predictions)

    def explain(
        self, file: str | Path, tta: str = "ten", merge: str = "mean", **where: Any
    ) -> "Figure":
        """Plot the views of an image, and the prediction of each.

        `where`: the keywords `device` and `precision`.

        Examples:
            >>> run.explain("photo.jpg", tta="ten")
        """
        from tinynet.evaluation.predict import Preparation, run_predictor
        from tinynet.report.figures import view_votes

        explanations: list[Explanation] = []
        _, unreadable = run_predictor(self.folder, _compute(**where)).predict(
            [as_path(file, "file")], Preparation(tta, merge), 1, explanations.append
        )
        if unreadable:
            raise InputError(f"{unreadable[0]}; use another file")
        return view_votes(explanations[0])

    def heat_maps(
        self, images: "np.ndarray", classes: "np.ndarray", layer: str | None = None
    ) -> "np.ndarray":
        """Return Grad-CAM heat maps (N, H, W): where the network sees evidence for a class.

        `images`: (N, H, W, 3) uint8. `classes`: (N,) the class indices to explain. `layer`: of the
        backbone (default: one with about 8 x 8 cells). Every map is at least 0 and sums to 1, or
        is all 0.

        Examples:
            >>> run.heat_maps(run.data.val.images[:8], run.data.val.labels[:8])
        """
        import numpy as np

        from tinynet.models.checkpoint import load_model
        from tinynet.score.gradcam import heat_layer, heat_maps

        network, size = load_model(self.folder.best, self.data.wnids, self.folder.origin)
        pixels, indices = np.asarray(images), np.asarray(classes)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise InputError(
                f"images are {pixels.dtype} {pixels.shape}; they must be uint8 (N, H, W, 3)"
            )
        if indices.dtype.kind not in "iu" or indices.shape != pixels.shape[:1]:
            raise InputError(
                f"classes are {indices.dtype} {indices.shape}; they must be one class index for "
                f"each of the {len(pixels)} images"
            )
        return heat_maps(network, pixels, indices, size, layer or heat_layer(network, size))

    def model(self) -> "RunModel":
        """Return the network in eval mode on the CPU: (N, 3, H, W) in [0, 1] -> (N, C) logits.

        Its attributes: `class_ids`, `class_names`, `image_size` (pixels).

        Examples:
            >>> run.model()(torch.rand(1, 3, 64, 64)).argmax(1)
        """
        from tinynet.evaluation.model import RunModel

        return RunModel.load(self.folder)

    def export(self, file: str | Path, images: int = 500, data: str | None = None) -> "Export":
        """Write the network to a file that other programs run, and its model card beside it.

        `file`: its ending names the format: .onnx (ONNX), .pt2 (torch.export) or .safetensors
        (weights alone). `images`: how many images of val the file is checked on before it gets its
        name. `data`: the data, if it has moved. The result has the greatest `difference` of a
        probability, and for how many of the `checked` images the class is the `same`.

        Examples:
            >>> run.export("model.onnx")
        """
        from tinynet.report.card import export_with_card

        packed = self.data if data is None else open_data(data, None, self.config)
        path, count = as_path(file, "file"), as_count(images, "images")
        return export_with_card(self.folder, path, packed, count)

    def report(self, out: str | Path | None = None, data: str | None = None) -> Path:
        """Write the run's HTML report, and return its path (default: report.html in the run).

        Examples:
            >>> run.report()
        """
        from tinynet.report.collect import write_reports

        place = None if out is None else as_path(out, "out")
        return write_reports([self.path], data, None, place)[0]


def _compute(device: str = "auto", precision: Any = "auto") -> "Compute":
    from tinynet.compute import choose_compute

    return choose_compute(device, precision)


def download(target: str | Path | None = None) -> Path:
    """Return the path of the archive; the official one is downloaded (248 MB) if there is none.

    `target`: the name of a zip, or a folder for it (default: the archive that the environment
    variable TINYNET_DATA names, else data/tiny-imagenet-200.zip). Raises `InputError` if the
    download fails.

    Examples:
        >>> tinynet.download()
    """
    from tinynet.data.download import find_data, get

    return find_data(None) if target is None else get(as_path(target, "target"))


def arrays(
    root: str | Path,
    split: str = "train",
    cache: str | None = None,
    labels: str | Path | None = None,
    pack_size: int | None = None,
) -> "tuple[Any, Any]":
    """Return images (N, H, W, 3) uint8 and labels (N,) int64 of a split, for any framework.

    `root`: the archive, or a folder with a folder for each class. `split`: train (all training
    images, with the hold-out of `Images`), val, or test (labels are None where there are none). The
    images are decoded once into the folder `cache` (default: next to the data). The arrays are
    read-only and memory-mapped.

    `labels`: a file of labels, for images without class folders. `pack_size`: images of different
    sizes become squares of so many pixels (default: 258).

    Examples:
        >>> images, labels = tinynet.arrays("data/tiny-imagenet-200.zip", "val")
    """
    from tinynet.data.copies import PackRequest, open_packed

    if split not in ("train", "val", "test"):
        raise InputError(f"split {split!r}: unknown; use train, val or test")
    request = PackRequest(pack_size, None if labels is None else str(as_path(labels, "labels")))
    part = open_packed(root, cache, request).part(split)
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
