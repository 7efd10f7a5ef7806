"""Say what is in pictures: any files and folders, or the official test pictures, which have no
labels.

    python -m tinynet.predict photo.jpg holiday/    the newest finished run
    python -m tinynet.predict photo.jpg --arch resnet18    a pretrained ImageNet network
    python -m tinynet.predict photo.jpg --tta ten --explain views.png    how each view votes
    python -m tinynet.predict --out predictions.txt    `file wnid` for every official test picture

The last is the format that the course which published the data asked for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console
from tinynet.files import can_hold, write_text
from tinynet.flags import (
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
    from tinynet.evaluation.predict import Explanation


_TEST_TAKES = {
    "tta",
    "merge",
    "size",
    "data",
    "cache",
    "run",
    "stage",
    "out",
    "device",
    "precision",
}
_FILES_TAKE = {
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
    made = Parser("tinynet.predict", __doc__)
    made.add_argument(
        "files",
        nargs="*",
        type=user_path,
        default=[],
        metavar="FILE|FOLDER",
        help="pictures (default: the official test pictures)",
    )
    made.add_argument(
        "--tta",
        default="none",
        metavar="VIEWS",
        help="set of views to merge, as for tinynet.evaluate (default: none)",
    )
    made.add_argument(
        "--merge", default="mean", metavar="MERGE", help="how they become one (default: mean)"
    )
    made.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="side in pixels that the network sees (default: the training size, or the published "
        "one)",
    )
    made.add_argument(
        "--top",
        type=positive_int,
        default=5,
        metavar="K",
        help="classes to name of each picture (default: 5)",
    )
    made.add_argument(
        "--explain",
        type=user_path,
        metavar="FILE.png",
        help="draw the views of the first picture and how each votes",
    )
    made.add_argument("--stage", choices=STAGES, help="default: the last finished stage of the run")
    add_common(made, "data", "cache", "run", "out", "device", "precision", "format", "json")
    add_pretrained(made.add_argument_group("pretrained networks"))
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    made = parser()
    asked = made.parse_args(argv)
    if not asked.files:
        refuse_others(made, asked, "the official test set", _TEST_TAKES)
        _official_test(asked)
        return
    way = "--arch" if asked.arch else "a run on files"
    refuse_others(
        made, asked, way, _FILES_TAKE | ({"arch", "weights"} if asked.arch else {"run", "stage"})
    )
    from tinynet.compute import choose_compute
    from tinynet.report.tables import show

    # their ranges would need train pictures
    compute = choose_compute(asked.device, asked.precision, int8=False)
    rows, unreadable = _files(asked, compute)
    show(rows, asked.format)
    for complaint in unreadable:
        console.log(f"error: {' '.join(complaint.split())}")
    if unreadable:
        raise SystemExit(1)


def _files(asked: Any, compute: "Compute") -> tuple[list[dict[str, Any]], list[str]]:
    from tinynet.data.image_folder import expand
    from tinynet.evaluation.predict import Preparation, pretrained_predictor, run_predictor

    files = expand(asked.files)
    if asked.arch:
        predictor = pretrained_predictor(asked.arch, asked.weights or "DEFAULT", compute)
    else:
        predictor = run_predictor(_stage(asked), compute)
    how = Preparation(
        asked.tta, asked.merge, asked.size, asked.resize, asked.resize_mode, asked.interpolation
    )
    return predictor.name(files, how, asked.top, _drawing(asked.explain))


def _drawing(place: str | None) -> "Callable[[Explanation], None] | None":
    if place is None:
        return None
    path = Path(place)
    can_hold(path)

    def draw(explanation: "Explanation") -> None:
        from tinynet.plotting import save_figure
        from tinynet.report.figures import view_votes

        save_figure(view_votes(explanation), path)
        console.log(f"views and votes: {path}")

    return draw


def _stage(asked: Any) -> StageFolder:
    folder = finished_stage(asked.run, asked.stage)
    console.log(f"predicting with {folder.path}")
    return folder


def _official_test(asked: Any) -> None:
    folder = _stage(asked)
    from tinynet.compute import choose_compute
    from tinynet.evaluation.predictor import Predictor
    from tinynet.score import merges

    merge = merges.get(asked.merge)
    packed = open_data(asked.data, asked.cache, RunConfig.of(folder))
    predictor = Predictor(folder, packed, choose_compute(asked.device, asked.precision))
    target = can_hold(asked.out or folder.path / "test-predictions.txt")
    (chosen,) = predictor.sets([asked.tta], predictor.size if asked.size is None else asked.size)
    found = predictor.predict("test", chosen)
    best = found.merged(merge).argmax(1)
    names = (packed.test.files[row].rsplit("/", 1)[1] for row in found.rows)
    write_text(
        target, "".join(f"{name} {packed.wnids[c]}\n" for name, c in zip(names, best, strict=True))
    )
    print(target)


if __name__ == "__main__":
    run_command(main)
