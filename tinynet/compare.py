"""Compare runs or stored probabilities on the same images, in pairs.

    python -m tinynet.compare runs/a runs/b --tta flip
    python -m tinynet.compare a.npz b.npz --merge mean gmean

Prints a row for each result, and one for the ensemble of all. `gain` and `p` compare each row with
the first (McNemar's paired test). `python -m tinynet.evaluate --save-probabilities FILE` writes
the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinynet.flags import (
    OF_RUN,
    Parser,
    add_common,
    add_merge,
    positive_int,
    refuse_others,
    refuse_twice,
    run_command,
    user_path,
)
from tinynet.runs import STAGES, finished_stage
from tinynet.training.config import RunConfig, open_data


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.compare", __doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        type=user_path,
        metavar="RUN|FILE.npz",
        help="runs, or files of stored probabilities",
    )
    add_merge(parser)
    runs = parser.add_argument_group("runs")
    runs.add_argument("--stage", choices=STAGES, help="default: the last finished stage of each")
    runs.add_argument(
        "--split",
        choices=("holdout", "val"),
        default="val",
        help="the images: the hold-out, or val (default: val)",
    )
    runs.add_argument(
        "--tta", default="none", metavar="VIEWS", help="one set of views (default: none)"
    )
    runs.add_argument(
        "--size", type=positive_int, metavar="N", help="test size in pixels (default: as trained)"
    )
    add_common(runs, "data", "cache", "device", "precision", data=OF_RUN)
    add_common(parser, "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    refuse_twice(args.sources)
    runs = [source for source in args.sources if Path(source).is_dir()]
    if not runs:
        refuse_others(flags, args, "comparing files", {"sources", "merge", "format"})
    for run in runs:
        finished_stage(run, args.stage)  # raises before anything is computed
    from tinynet.evaluation.ensemble import compare
    from tinynet.report.tables import show
    from tinynet.score import merges

    for name in args.merge:
        merges.get(name)
    results, names = zip(*(_result(source, args) for source in args.sources), strict=True)
    classes = next(filter(None, names), ())
    show(compare(args.sources, results, args.merge, classes), args.format)


def _result(source: str, args: Any) -> tuple[Any, Sequence[str]]:
    """The probabilities of a run or of a file, and the names of the classes, which a run has."""
    from tinynet.score.probabilities import Probabilities

    if not Path(source).is_dir():
        return Probabilities.load(Path(source)), ()
    from tinynet.compute import choose_compute
    from tinynet.evaluation.predictor import Predictor

    folder = finished_stage(source, args.stage)
    packed = open_data(args.data, args.cache, RunConfig.of(folder))
    predictor = Predictor(folder, packed, choose_compute(args.device, args.precision))
    views = predictor.sets([args.tta], args.size or predictor.size)
    return predictor.predict(args.split, *views), packed.titles


if __name__ == "__main__":
    run_command(main)
