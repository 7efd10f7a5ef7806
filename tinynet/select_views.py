"""Select the test-time views that are worth their cost.

    python -m tinynet.select_views --tta flip+shift scales --most 10

Views are selected and weighted on one half of the hold-out, and evaluated on the other half and on
val, compared with ten-crop. The command also plots accuracy against cost in views.png.
"""

from tinynet import console
from tinynet.evaluate import open_run
from tinynet.flags import COMMON, OF_RUN, Parser, add_common, positive_int, run_command
from tinynet.runs import STAGES


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.select_views", __doc__)
    help_text = "sets of test-time views to select from (required); see evaluate --help"
    parser.add_argument("--tta", **COMMON["tta"] | {"help": help_text})
    parser.add_argument(
        "--most",
        type=positive_int,
        default=10,
        metavar="N",
        help="maximum number of views to select (default: 10)",
    )
    parser.add_argument(
        "--size", type=positive_int, metavar="N", help="test size in pixels (default: as trained)"
    )
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    out = "folder for views.png, scores and probabilities (default: that of the run)"
    add_common(parser, "run", "data", "cache", "out", data=OF_RUN, out=out)
    add_common(parser, "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    if not args.tta:
        flags.error("needs views to select from, for instance --tta flip+shift scales")
    from tinynet.compute import choose_compute
    from tinynet.evaluation.select_views import select_views
    from tinynet.files import can_write
    from tinynet.plotting import save_figure
    from tinynet.report.figures import accuracy_against_cost
    from tinynet.report.tables import show

    predictor = open_run(args, choose_compute(args.device, args.precision))
    rows = list(select_views(predictor, args.tta, args.size or predictor.size, args.most))
    path = predictor.folder.results / "views.png"
    if can_write(path.parent):
        title = f"{predictor.folder.run.name}: {predictor.folder.stage}"
        save_figure(accuracy_against_cost(rows, title), path)
        console.log(f"accuracy against cost: {path}")
    show(rows, args.format)


if __name__ == "__main__":
    run_command(main)
