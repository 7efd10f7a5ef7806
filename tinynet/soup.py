"""Average the weights of several runs, and save the average if it is better.

    python -m tinynet.soup runs/a runs/b --out runs/ab

Each run and the average are evaluated on the hold-out (model soups, Wortsman et al. 2022). The
batch norms of the average are recomputed, so each run is also evaluated with its batch norms
recomputed in the same way: `over control` is the gain of the average over the best of these. The
average is saved in --out if it is better than each run, as it is and with these batch norms.
"""

from tinynet.flags import OF_RUN, Parser, add_common, refuse_twice, run_command, user_path
from tinynet.runs import STAGES, finished_stage
from tinynet.training.config import RunConfig, open_data


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.soup", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="two or more runs")
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    out = "folder of a new run for the average (default: it is not saved)"
    add_common(parser, "data", "cache", "out", data=OF_RUN, out=out)
    add_common(parser, "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    if len(args.runs) < 2:
        flags.error(f"takes two runs or more, not {len(args.runs)}")
    refuse_twice(args.runs)
    from tinynet.compute import choose_compute
    from tinynet.evaluation.soup import make_soup
    from tinynet.report.tables import show

    compute = choose_compute(args.device, args.precision)
    folders = [finished_stage(run, args.stage) for run in args.runs]
    packed = open_data(args.data, args.cache, RunConfig.of(folders[0]))
    show(make_soup(folders, packed, compute, args.out), args.format)


if __name__ == "__main__":
    run_command(main)
