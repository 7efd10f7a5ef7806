"""Score a trained run on its hold-out and on the official val, plain and over views.

    python -m tinynet.evaluate --tta flip    the newest finished run
    python -m tinynet.evaluate --tta flip ten --size 64 80 --merge mean gmean    a grid
    python -m tinynet.evaluate --tta flip+shift scales --choose 10    which views to take
    python -m tinynet.evaluate --soup runs/a runs/b --out runs/ab    the mean of weights, if better
    python -m tinynet.evaluate --from-probabilities a.npz b.npz    together and compared
    python -m tinynet.evaluate --head imagenet --arch vgg16    an ImageNet network as it is
    python -m tinynet.evaluate --dataset imagefolder --data val --arch resnet50    ImageNet's val

Choices belong on the hold-out; val is for reporting. Intervals are Wilson's, 95 %; gain and p
compare with the plain result of the same pictures, in pairs (McNemar).
"""

from typing import TYPE_CHECKING, Any

from tinynet import console
from tinynet.flags import (
    Parser,
    add_common,
    add_pretrained,
    positive_int,
    refuse_others,
    run_command,
    user_path,
)
from tinynet.runs import STAGES, finished_stage
from tinynet.training.config import RunConfig, open_data

if TYPE_CHECKING:
    from tinynet.compute import Compute

# What each way of scoring takes beside the flags that all take; any other flag is refused, not
# passed over.
_TAKES = {
    "a run": {
        "run",
        "stage",
        "tta",
        "merge",
        "size",
        "split",
        "cache",
        "out",
        "calibrate",
        "per_class",
        "save_probabilities",
    },
    "--soup": {"soup", "stage", "cache", "out"},
    "--choose": {"choose", "run", "stage", "tta", "size", "cache", "out"},
    "--from-probabilities": {"from_probabilities", "merge", "format"},
    "--head imagenet": {
        "head",
        "arch",
        "weights",
        "tta",
        "merge",
        "size",
        "split",
        "cache",
        "per_class",
        "save_probabilities",
    },
    "--dataset imagefolder": {
        "dataset",
        "arch",
        "weights",
        "tta",
        "merge",
        "size",
        "labels",
        "resize",
        "resize_mode",
        "interpolation",
        "workers",
        "save_probabilities",
    },
}
_ALL_BUT_STORED_TAKE = {"data", "device", "precision", "format"}


def parser() -> Parser:
    """The command's flags."""
    made = Parser("tinynet.evaluate", __doc__)
    made.add_argument("--stage", choices=STAGES, help="default: the last finished stage of the run")
    add_common(made, "tta")
    made.add_argument(
        "--merge",
        nargs="+",
        default=["mean"],
        metavar="MERGE",
        help="how the probabilities of views become one: mean (sum), gmean, max, vote, sharpen "
        "(default: mean)",
    )
    made.add_argument(
        "--size",
        type=positive_int,
        nargs="+",
        metavar="N",
        help="test sizes in pixels (default: the training size, or the published one)",
    )
    made.add_argument(
        "--calibrate",
        action="store_true",
        help="a second row for val at the temperature that fits the hold-out best",
    )
    made.add_argument(
        "--choose",
        type=int,
        metavar="N",
        help="which N views or fewer of all in --tta are worth their cost: chosen and weighted on "
        "one half of the hold-out, judged on the other and on val, beside ten-crop",
    )
    made.add_argument(
        "--soup",
        nargs="+",
        type=user_path,
        metavar="RUN",
        help="the mean of these runs' weights, beside each of them, on the hold-out; written to "
        "--out where it is better",
    )
    made.add_argument(
        "--per-class", action="store_true", help="a row for each class in place of one for all"
    )
    made.add_argument(
        "--save-probabilities",
        type=user_path,
        metavar="FILE",
        help="write the probabilities of every view; for one split, one size and one set of views",
    )
    made.add_argument(
        "--from-probabilities",
        nargs="+",
        type=user_path,
        metavar="FILE",
        help="score what was saved: each file, all together, and each against the first",
    )
    add_common(
        made, "data", "cache", "run", "out", "split", "device", "precision", "format", "json"
    )
    other = made.add_argument_group("pretrained networks")
    other.add_argument(
        "--head",
        choices=("imagenet",),
        help="no run, but the network --arch with its own head, restricted to the data's classes",
    )
    other.add_argument(
        "--dataset",
        choices=("imagefolder",),
        help="no archive, but the folder --data: a folder for each class, or flat with --labels",
    )
    add_pretrained(other)
    other.add_argument(
        "--labels",
        type=user_path,
        metavar="FILE|DIR",
        help="of a flat folder: a wnid or class index a line, or FILE LABEL; or ImageNet's devkit",
    )
    other.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes that decode; 0: this one (default: 2)",
    )
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    made = parser()
    asked = made.parse_args(argv)
    way = next(
        (
            way
            for way in (
                "--from-probabilities",
                "--dataset imagefolder",
                "--head imagenet",
                "--soup",
                "--choose",
            )
            if getattr(asked, way.split()[0][2:].replace("-", "_")) is not None
        ),
        "a run",
    )
    stored = way == "--from-probabilities"
    refuse_others(made, asked, way, _TAKES[way] | (set() if stored else _ALL_BUT_STORED_TAKE))
    from tinynet.report.tables import show

    if stored:
        from tinynet.evaluation.ensemble import score_files

        rows = score_files(asked.from_probabilities, asked.merge)
    else:
        from tinynet.compute import choose_compute

        compute = choose_compute(
            asked.device, asked.precision, int8=not (asked.head or asked.dataset)
        )
        compute = compute.for_frozen() if asked.head or asked.dataset else compute
        rows = {
            "a run": _run,
            "--soup": _soup,
            "--choose": _choose,
            "--head imagenet": _zero_shot,
            "--dataset imagefolder": _folder,
        }[way](made, asked, compute)
    show(rows, asked.format)


def _wanted(asked: Any) -> Any:
    from tinynet.evaluation.evaluate import Wanted

    splits = ("holdout", "val") if asked.split == "both" else (asked.split,)
    return Wanted(
        splits,
        asked.size,
        asked.tta,
        asked.merge,
        calibrate=asked.calibrate,
        per_class=asked.per_class,
        save=asked.save_probabilities,
    )


def _scorer(asked: Any, compute: "Compute") -> Any:
    from tinynet.evaluation.predictor import Predictor

    folder = finished_stage(asked.run, asked.stage).with_results(asked.out)
    console.log(f"evaluating {folder.path} on {compute}")
    return Predictor(folder, open_data(asked.data, asked.cache, RunConfig.of(folder)), compute)


def _run(made: Parser, asked: Any, compute: "Compute") -> list[dict[str, Any]]:
    from tinynet.evaluation.evaluate import evaluate

    return list(evaluate(_scorer(asked, compute), _wanted(asked)))


def _choose(made: Parser, asked: Any, compute: "Compute") -> list[dict[str, Any]]:
    if asked.choose < 1 or not asked.tta or len(asked.size or []) > 1:
        made.error(
            "--choose takes 1 or more, --tta with the views to choose from, and at most one --size"
        )
    from tinynet.evaluation.select_views import choose
    from tinynet.files import can_write
    from tinynet.plotting import save_figure
    from tinynet.report.figures import accuracy_against_cost

    predictor = _scorer(asked, compute)
    rows = list(choose(predictor, asked.tta, (asked.size or [predictor.size])[0], asked.choose))
    figure = predictor.folder.results / "views.png"
    if can_write(figure.parent):
        save_figure(
            accuracy_against_cost(rows, f"{predictor.folder.run.name}: {predictor.folder.stage}"),
            figure,
        )
        console.log(f"accuracy against cost: {figure}")
    return rows


def _soup(made: Parser, asked: Any, compute: "Compute") -> list[dict[str, Any]]:
    if len(asked.soup) < 2:
        made.error("--soup takes two runs or more")
    from tinynet.evaluation.soup import make_soup

    folders = [finished_stage(run, asked.stage) for run in asked.soup]
    packed = open_data(asked.data, asked.cache, RunConfig.of(folders[0]))
    return make_soup(folders, packed, compute, asked.out)


def _zero_shot(made: Parser, asked: Any, compute: "Compute") -> list[dict[str, Any]]:
    from tinynet.data.download import find_data
    from tinynet.data.packed import open_packed
    from tinynet.evaluation.evaluate import evaluate
    from tinynet.evaluation.zero_shot import ZeroShot

    wanted = _wanted(asked)
    packed = open_packed(find_data(asked.data), asked.cache)
    return list(
        evaluate(
            ZeroShot(asked.arch or "vgg16", asked.weights or "DEFAULT", packed, compute), wanted
        )
    )


def _folder(made: Parser, asked: Any, compute: "Compute") -> list[dict[str, Any]]:
    if asked.data is None or asked.arch is None or len(asked.size or []) > 1:
        made.error(
            "--dataset imagefolder takes --data with a folder, --arch with a network, and at most "
            "one --size"
        )
    from tinynet.evaluation.folder import Procedure, evaluate_folder

    how = Procedure(
        asked.resize,
        asked.resize_mode,
        asked.interpolation,
        (asked.size or [None])[0],
        asked.tta,
        asked.merge,
        workers=asked.workers,
        save=asked.save_probabilities,
    )
    return list(
        evaluate_folder(
            asked.data, asked.labels, asked.arch, asked.weights or "DEFAULT", how, compute
        )
    )


if __name__ == "__main__":
    run_command(main)
