"""Evaluate a pretrained ImageNet network on Tiny ImageNet, without any training.

    python -m tinynet.zero_shot --arch vgg16
    python -m tinynet.zero_shot --arch timm/resnet50 --size 224 --tta flip

The network's own classifier is restricted to the 200 classes of the data.
"""

from tinynet.distributed import join
from tinynet.evaluate import score_request
from tinynet.flags import Parser, add_common, add_network, add_scoring, run_command


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.zero_shot", __doc__)
    add_network(parser)
    add_scoring(parser, "the published one")
    add_common(parser, "split", "data", "cache", "device", "precision", "format", "json")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    world = join()
    from tinynet.compute import choose_compute
    from tinynet.data.copies import PackRequest, open_packed
    from tinynet.data.download import find_data
    from tinynet.evaluation.evaluate import evaluate
    from tinynet.evaluation.zero_shot import ZeroShot
    from tinynet.report.tables import show
    from tinynet.training.plan import pack_size_for

    request = score_request(args)
    compute = (
        choose_compute(args.device, args.precision, int8=False)
        .for_frozen()
        .for_network(runs_in_int8=False)
    )
    size = pack_size_for(args.size) if args.size else None
    place = world.main_first(lambda: find_data(args.data))
    packed = open_packed(place, args.cache, PackRequest(size))
    network = world.main_first(
        lambda: ZeroShot(args.arch or "vgg16", args.weights or "DEFAULT", packed, compute)
    )
    show(list(evaluate(network, request)), args.format)


if __name__ == "__main__":
    run_command(main)
