"""Evaluate a pretrained network on a folder of images, with its published resize and crop.

    python -m tinynet.folder --data val --arch resnet50 --tta ten
    python -m tinynet.folder --data flat --labels val_labels.txt --arch timm/resnet50

The folder contains a folder for each class, or images whose labels are in --labels. The result is
compared with the published accuracy.
"""

from tinynet.distributed import join
from tinynet.flags import (
    Parser,
    add_common,
    add_merge,
    add_pretrained,
    positive_int,
    run_command,
    user_path,
)


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.folder", __doc__)
    parser.add_argument("--data", type=user_path, metavar="DIR", help="the folder of images")
    parser.add_argument(
        "--labels",
        type=user_path,
        metavar="FILE|DIR",
        help="labels of a flat folder: lines of FILE LABEL or of labels alone, a CSV file, or "
        "ImageNet's devkit; a label is a class id (wnid) or an index",
    )
    add_pretrained(parser)
    add_common(parser, "tta")
    add_merge(parser)
    parser.add_argument(
        "--size", type=positive_int, metavar="N", help="test size in pixels (default: published)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes that decode images; 0: none (default: 2)",
    )
    parser.add_argument(
        "--save-probabilities",
        type=user_path,
        metavar="FILE",
        help="write the probabilities of every view; takes one set of views",
    )
    add_common(parser, "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    join()
    if args.data is None or args.arch is None:
        flags.error("needs --data with a folder and --arch with a network")
    from tinynet.compute import choose_compute
    from tinynet.evaluation.folder import FolderRequest, evaluate_folder
    from tinynet.report.tables import show

    compute = (
        choose_compute(args.device, args.precision, int8=False)
        .for_frozen()
        .for_network(runs_in_int8=False)
    )
    request = FolderRequest(
        args.resize,
        args.resize_mode,
        args.interpolation,
        args.size,
        args.tta,
        args.merge,
        workers=args.workers,
        save=args.save_probabilities,
    )
    weights = args.weights or "DEFAULT"
    rows = evaluate_folder(args.data, args.labels, args.arch, weights, request, compute)
    show(list(rows), args.format)


if __name__ == "__main__":
    run_command(main)
