"""Evaluate a run on its hold-out and on val, with and without test-time augmentation.

    python -m tinynet.evaluate                               the newest finished run
    python -m tinynet.evaluate --tta flip                    the same, with horizontal flips
    python -m tinynet.evaluate --run runs/a --calibrate      also with calibrated probabilities
    python -m tinynet.evaluate --tta flip ten --size 64 80 --merge mean gmean    a grid

Intervals are Wilson's, 95 %. `gain` and `p` compare with the one-view result on the same images
(McNemar's paired test). Make every choice on the hold-out; val is for reporting.

See also the commands compare, soup, select-views, zero-shot and folder.
"""

from typing import Any

from tinynet import console
from tinynet.distributed import get_world, join
from tinynet.errors import InputError
from tinynet.files import can_write
from tinynet.flags import OF_RUN, Parser, add_common, add_scoring, run_command
from tinynet.runs import STAGES, StageFolder, finished_stage
from tinynet.training.config import RunConfig, open_data

# Flags of the first edition -> the command that has replaced them.
_MOVED = {
    "--from-probabilities": "python -m tinynet.compare A.npz B.npz",
    "--soup": "python -m tinynet.soup RUN RUN",
    "--choose": "python -m tinynet.select_views --tta VIEWS --most N",
    "--head": "python -m tinynet.zero_shot --arch NAME",
    "--dataset": "python -m tinynet.folder --data DIR --arch NAME",
    "--arch": "python -m tinynet.zero_shot --arch NAME, or python -m tinynet.folder --data DIR "
    "--arch NAME",
}


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.evaluate", __doc__, moved=_MOVED)
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    add_scoring(parser, "the training size")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="add a row for val at the temperature that fits the hold-out best",
    )
    out = "folder for scores and probabilities (default: that of the run)"
    add_common(parser, "split", "run", "data", "cache", "out", data=OF_RUN, out=out)
    add_common(parser, "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    join()
    from tinynet.compute import choose_compute
    from tinynet.evaluation.evaluate import evaluate
    from tinynet.evaluation.use import usual_views
    from tinynet.report.tables import show

    compute = choose_compute(args.device, args.precision)
    predictor = open_run(args, compute)
    alone = args.per_class or args.save_probabilities
    if not args.tta and args.size is None and not alone:
        args.tta = get_world().from_main(lambda: list(usual_views(predictor.folder)))
    show(list(evaluate(predictor, score_request(args))), args.format)


def score_request(args: Any) -> Any:
    """What the flags of `add_scoring` ask for."""
    from tinynet.evaluation.evaluate import ScoreRequest

    return ScoreRequest(
        ("holdout", "val") if args.split == "both" else (args.split,),
        args.size,
        args.tta,
        args.merge,
        calibrate=getattr(args, "calibrate", False),
        per_class=args.per_class,
        save=args.save_probabilities,
    )


def open_run(args: Any, compute: Any) -> Any:
    """The predictor of the run that the flags name, or of the newest finished one."""
    from tinynet.evaluation.predictor import Predictor
    from tinynet.training.extraction import evaluation_compute

    # Other machines may not have the run.
    folder, config = get_world().from_main(lambda: _run_to_score(args))
    console.log(f"evaluating {folder.path} on {evaluation_compute(config, folder.stage, compute)}")
    return Predictor(folder, open_data(args.data, args.cache, config), compute)


def _run_to_score(args: Any) -> tuple[StageFolder, RunConfig]:
    folder = finished_stage(args.run, args.stage).with_results(args.out)
    if args.out and not can_write(folder.results):
        raise InputError(
            f"--out {args.out}: is not a folder that can be written to; name another folder"
        )
    return folder, RunConfig.of(folder)


if __name__ == "__main__":
    run_command(main)
