"""Pick a network and a size for your images, within a budget of time.

    python -m tinynet.pick --arch vgg16 timm/tf_efficientnet_lite0 --size 64 128 224 --minutes 30

A candidate is a network at a size that it takes. A head is trained for each candidate on the
features of a few images. In each round the worse half is dropped and the others get more images,
until two are left. The last line names the command that trains the most accurate candidate. Val is
not used.

Columns of the table: `trained on`, the images of the last head; `top-1`, its accuracy on the
hold-out; `gain` and `p`, the difference from the best candidate of the same round, on the same
images (McNemar's paired test); `ms per image`, with loading; `minutes of extraction`, for the
features of a whole base run. The figure shows accuracy against milliseconds.
"""

from pathlib import Path

from tinynet import console
from tinynet.distributed import get_world, join
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, positive_int, run_command, user_path


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.pick", __doc__)
    parser.add_argument(
        "--arch",
        nargs="+",
        metavar="NAME",
        help="networks: vgg16, other classifiers of torchvision, or timm/NAME (required)",
    )
    parser.add_argument(
        "--size", nargs="+", type=positive_int, metavar="N", help="sizes in pixels (required)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        metavar="M",
        help="time to spend, without the decoding of the images (default: 30)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="weights of each network, in the same order: a name, a file, none, or DEFAULT",
    )
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="the figure to write (default: pick.png)"
    )
    seed = "seed of the images' order and of the heads (default: 0)"
    add_common(parser, "data", "labels", "pack-size", "cache", "seed", seed=seed)
    add_common(parser, "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    join()
    if not args.arch or not args.size:
        flags.error("needs networks and sizes, for instance --arch vgg16 resnet50 --size 64 128")
    if not 0 < args.minutes < float("inf"):
        raise InputError(f"--minutes is {args.minutes}; it must be a number greater than 0")
    from tinynet.compute import choose_compute
    from tinynet.data.copies import PackRequest, open_packed
    from tinynet.data.download import find_data
    from tinynet.evaluation.pick import candidates, pick
    from tinynet.models.backbones import runs_in_int8
    from tinynet.plotting import figure_path, save_figure
    from tinynet.report.candidates import accuracy_against_time
    from tinynet.report.tables import show
    from tinynet.training.plan import pack_size_for

    path = figure_path(args.out or "pick.png")
    options = candidates(args.arch, args.size, args.weights or ())
    compute = choose_compute(args.device, args.precision)
    for option in options:
        compute.check_network(runs_in_int8(option.arch))
    request = PackRequest(
        pack_size_for(args.size) if args.pack_size is None else args.pack_size, args.labels
    )
    packed = open_packed(
        get_world().main_first(lambda: find_data(args.data, args.labels)), args.cache, request
    )
    rows = pick(packed, options, args.minutes, compute, args.seed or 0)
    if get_world().main:
        save_figure(accuracy_against_time(rows), path)
    console.log(f"figure of accuracy against time: {path}")
    show(rows, args.format)
    best = rows[0].candidate
    flags_of_best = ["--stage", "base", "--arch", best.arch, "--size", best.size]
    weights = ["--weights", Path(best.weights)] if best.weights != "DEFAULT" else []
    values = {"--data": args.data, "--labels": args.labels, "--cache": args.cache}
    values |= {"--pack-size": packed.side if packed.resized else None}
    values |= {
        flag: value
        for flag, value in (("--device", args.device), ("--precision", args.precision))
        if value != "auto"
    }
    others = [word for flag, value in values.items() if value for word in (flag, value)]
    command = console.shell_command("tinynet.train", *flags_of_best, *weights, *others)
    console.log(f"go on with: {command}")


if __name__ == "__main__":
    run_command(main)
