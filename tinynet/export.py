"""Export a run to a file that other programs run.

    python -m tinynet.export runs/first model.onnx

The file's ending names the format: .onnx (ONNX), .pt2 (torch.export) or .safetensors (weights
alone). ONNX and torch.export files take images in [0, 1], resize and normalise them, and return
probabilities. All files contain the class names. A file is compared with the run on images of val
before it is saved. FILE.md is its model card.
"""

from pathlib import Path

from tinynet.flags import OF_RUN, Parser, add_common, positive_int, run_command, user_path
from tinynet.runs import STAGES, finished_stage
from tinynet.training.config import RunConfig, open_data

IMAGES = 500


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.export", __doc__)
    parser.add_argument("run", type=user_path, metavar="RUN", help="folder of the run")
    parser.add_argument("file", type=user_path, metavar="FILE", help="file to write")
    parser.add_argument("--stage", choices=STAGES, help="default: the last finished stage")
    parser.add_argument(
        "--images",
        type=positive_int,
        default=IMAGES,
        metavar="N",
        help=f"number of images of val to check the file on (default: {IMAGES})",
    )
    add_common(parser, "data", "cache", "format", "json", data=OF_RUN)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    folder = finished_stage(args.run, args.stage)
    from tinynet.report.card import export_with_card
    from tinynet.report.tables import show

    packed = open_data(args.data, args.cache, RunConfig.of(folder))
    show([export_with_card(folder, Path(args.file), packed, args.images)], args.format)


if __name__ == "__main__":
    run_command(main)
