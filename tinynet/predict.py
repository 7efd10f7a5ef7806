"""Predict the classes of image files, or of the test images of the data.

    python -m tinynet.predict photo.jpg holiday/              the newest finished run
    python -m tinynet.predict photo.jpg --arch resnet18       a pretrained ImageNet network
    python -m tinynet.predict photo.jpg --tta ten --explain views.png     a figure of the views
    python -m tinynet.predict --out predictions.txt           the test images of the data

The last command writes a line `FILE CLASS_ID` for every test image, with a tab between them if a
name has spaces. The course that published the data uses this format.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console
from tinynet.distributed import get_world, join
from tinynet.files import check_writable, write_text
from tinynet.flags import (
    OF_RUN,
    Parser,
    add_common,
    add_pretrained,
    positive_int,
    refuse_others,
    run_command,
    user_path,
)
from tinynet.runs import STAGES, StageFolder, finished_stage
from tinynet.training.config import RunConfig, open_data

if TYPE_CHECKING:
    from tinynet.compute import Compute
    from tinynet.evaluation.predict import Explanation, Prediction

# The flags that each use takes.
_TEST = {"tta", "merge", "size", "data", "cache", "run", "stage", "out", "device", "precision"}
_FILES = {
    "files",
    "tta",
    "merge",
    "size",
    "top",
    "explain",
    "format",
    "device",
    "precision",
    "resize",
    "resize_mode",
    "interpolation",
}


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.predict", __doc__)
    parser.add_argument(
        "files",
        nargs="*",
        type=user_path,
        default=[],
        metavar="FILE|FOLDER",
        help="images (default: the test images of the data)",
    )
    parser.add_argument(
        "--tta",
        default="none",
        metavar="VIEWS",
        help="one set of test-time views (default: none); see evaluate --help",
    )
    parser.add_argument(
        "--merge",
        default="mean",
        metavar="MERGE",
        help="how the probabilities of views are merged (default: mean); see evaluate --help",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="image size in pixels (default: the training size, or the published one)",
    )
    parser.add_argument(
        "--top",
        type=positive_int,
        default=5,
        metavar="K",
        help="number of classes to list for each image (default: 5)",
    )
    parser.add_argument(
        "--explain",
        type=user_path,
        metavar="FILE.png",
        help="write a figure of the first image's views and the classes that they predict",
    )
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    parser.add_argument(
        "--model",
        type=user_path,
        metavar="FILE",
        help="an .onnx file that the command export wrote",
    )
    add_common(parser, "run", "data", "cache", data=OF_RUN)
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file for the predictions of the test images (default: test-predictions.txt in the "
        "folder of the stage)",
    )
    add_common(parser, "device", "precision", "format", "json")
    add_pretrained(parser.add_argument_group("pretrained networks"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command; exits with status 1 if a file cannot be read."""
    flags = parser()
    args = flags.parse_args(argv)
    join()
    if not args.files:
        refuse_others(flags, args, "the test set", _TEST)
        _predict_test(args)
        return
    if args.model:
        refuse_others(flags, args, "--model", (_FILES | {"model"}) - {"device", "precision"})
    elif args.arch:
        refuse_others(flags, args, "--arch", _FILES | {"arch", "weights"})
    else:
        refuse_others(flags, args, "a run on files", _FILES | {"run", "stage"})
    from tinynet.compute import choose_compute
    from tinynet.report.tables import show

    # No int8: its ranges would need training images.
    compute = choose_compute(args.device, args.precision, int8=False)
    predictions, unreadable = _predict_files(args, compute)
    show(predictions, args.format)
    for message in unreadable:
        console.log(f"error: {' '.join(message.split())}")
    if unreadable:
        raise SystemExit(1)


def _predict_files(args: Any, compute: "Compute") -> "tuple[list[Prediction], list[str]]":
    from tinynet.data.image_folder import expand
    from tinynet.evaluation.predict import (
        Preparation,
        exported_predictor,
        pretrained_predictor,
        run_predictor,
    )

    files = expand(args.files)
    if args.model:
        predictor = exported_predictor(Path(args.model))
    elif args.arch:
        predictor = pretrained_predictor(args.arch, args.weights or "DEFAULT", compute)
    else:
        predictor = run_predictor(_stage(args), compute)
    preparation = Preparation(
        args.tta, args.merge, args.size, args.resize, args.resize_mode, args.interpolation
    )
    return predictor.predict(files, preparation, args.top, _drawing(args.explain))


def _drawing(place: str | None) -> "Callable[[Explanation], None] | None":
    """A function that draws an explanation, if there is a place for it."""
    if place is None:
        return None
    from tinynet.plotting import figure_path

    path = check_writable(figure_path(place))

    def draw(explanation: "Explanation") -> None:
        from tinynet.plotting import save_figure
        from tinynet.report.figures import view_votes

        save_figure(view_votes(explanation), path)
        console.log(f"views and votes: {path}")

    return draw


def _stage(args: Any) -> StageFolder:
    folder = get_world().from_main(lambda: finished_stage(args.run, args.stage))
    console.log(f"predicting with {folder.path}")
    return folder


def _predict_test(args: Any) -> None:
    """Write the predictions of the test images of the data."""
    folder = _stage(args)
    from tinynet.compute import choose_compute
    from tinynet.evaluation.predictor import Predictor
    from tinynet.score import merges

    merge = merges.get(args.merge)
    world = get_world()
    packed = open_data(args.data, args.cache, world.from_main(lambda: RunConfig.of(folder)))
    predictor = Predictor(folder, packed, choose_compute(args.device, args.precision))
    path = world.from_main(lambda: check_writable(args.out or folder.path / "test-predictions.txt"))
    (views,) = predictor.sets([args.tta], predictor.size if args.size is None else args.size)
    probabilities = predictor.predict("test", views)
    best = probabilities.merged(merge).argmax(1)
    files = [packed.test.files[row] for row in probabilities.rows]
    names = [file.rsplit("/", 1)[1] for file in files]
    if len(set(names)) < len(names):  # class folders may have files of one name
        names = [file.split("/", 1)[1] for file in files]
    between = "\t" if any(" " in word for word in (*names, *packed.wnids)) else " "
    lines = (
        f"{name}{between}{packed.wnids[label]}\n" for name, label in zip(names, best, strict=True)
    )
    if world.main:
        write_text(path, "".join(lines))
    print(path)


if __name__ == "__main__":
    run_command(main)
