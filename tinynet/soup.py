"""Average the weights of several runs, and save the average if it is better.

    python -m tinynet soup runs/a runs/b --out runs/ab

Each run and the average are evaluated on the hold-out. The average is saved in --out if it is
better than the best run (model soups, Wortsman et al. 2022).
"""

from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.runs import STAGES, finished_stage
from tinynet.training.config import RunConfig, open_data


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.soup", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="two or more runs")
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    add_common(parser, "data", "cache", "out", "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    if len(args.runs) < 2:
        flags.error(f"takes two runs or more, not {len(args.runs)}")
    from tinynet.compute import choose_compute
    from tinynet.evaluation.soup import make_soup
    from tinynet.report.tables import show

    compute = choose_compute(args.device, args.precision)
    folders = [finished_stage(run, args.stage) for run in args.runs]
    packed = open_data(args.data, args.cache, RunConfig.of(folders[0]))
    show(make_soup(folders, packed, compute, args.out), args.format)


if __name__ == "__main__":
    run_command(main)
