"""Evaluate a run at other image sizes: accuracy, cost, feature statistics, corrections.

    python -m tinynet.fixres --size 64 80 96 128                          the newest finished run
    python -m tinynet.fixres --run runs/a --no-fit --keep runs/larger     save it for a larger size
    python -m tinynet.fixres --run runs/a --beside runs/b --size 64 96    compare two runs
    python -m tinynet.fixres --policy                                     sizes of objects
    python -m tinynet.fixres --policy --train-scale 0.08 1 --train-size 224 --test-resize 256

Touvron et al. 2019, "Fixing the train-test resolution discrepancy". Sizes and corrections are
selected on the hold-out and reported on val. Corrections: `frechet` and `quantile` map features to
their distribution at the training size; `batch norm` recomputes the statistics of the trained batch
norms at the test size; `fine-tuned` trains the head at the test size (stage fixres).
"""

from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console
from tinynet.flags import (
    OF_RUN,
    Parser,
    add_common,
    positive_int,
    refuse_others,
    refuse_twice,
    run_command,
    user_path,
)
from tinynet.records import Json, ScoreRow
from tinynet.runs import STAGES, WHOLE, stage_to_adapt

if TYPE_CHECKING:
    from tinynet.resolution.crops import Policy

# The flags that each of the two uses takes.
_POLICY = {
    "policy",
    "train_scale",
    "train_ratio",
    "train_size",
    "test_resize",
    "test_size",
    "out",
    "format",
}
_RUN = {
    "run",
    "beside",
    "stage",
    "size",
    "fit",
    "methods",
    "data",
    "cache",
    "device",
    "precision",
    "out",
    "keep",
    "format",
}
SIZES = (64, 80, 96, 128, 160)
_CROPS, _SIDE = 20_000, 64  # crops drawn for a histogram, from images of that side


def parser() -> Parser:
    """The command's flags."""
    parser = Parser("tinynet.fixres", __doc__)
    parser.add_argument(
        "--stage", choices=STAGES, help="default: the last finished one before fixres"
    )
    sizes: dict[str, Any] = dict(type=positive_int, nargs="+", metavar="N", dest="size")
    parser.add_argument(
        "--size",
        help=f"test sizes in pixels (default: {' '.join(map(str, SIZES))}); the training size is "
        "always included",
        **sizes,
    )
    parser.add_argument("--sizes", help=SUPPRESS, **sizes)  # its name in the first edition
    fit = parser.add_mutually_exclusive_group()
    fit.add_argument(
        "--fit",
        type=positive_int,
        nargs="+",
        metavar="N",
        help="train the head at these sizes, and at the training size for comparison (default: all "
        "sizes)",
    )
    fit.add_argument(
        "--no-fit", dest="fit", action="store_const", const=[], help="do not train the head"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["antialias"],
        metavar="METHOD",
        help="how images are resized: antialias (bilinear), bilinear, bicubic, nearest, area, "
        "lanczos; the first is used throughout, the others are compared with it (default: "
        "antialias)",
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        type=user_path,
        default=[],
        metavar="RUN",
        help="other runs to compare with; they are not corrected",
    )
    parser.add_argument(
        "--keep",
        type=user_path,
        metavar="DIR",
        help="save a new run in DIR, with batch norm statistics recomputed at the size with the "
        "best hold-out accuracy; evaluate and predict can use it",
    )
    out = "folder for the results (default: sizes/ in the folder of the stage)"
    add_common(parser, "run", "data", "cache", "out", data=OF_RUN, out=out)
    add_common(parser, "device", "precision", "format", "json")
    _add_policy(parser)
    return parser


def _add_policy(parser: Parser) -> None:
    group = parser.add_argument_group("size of objects in training and in testing")
    group.add_argument(
        "--policy",
        action="store_true",
        help="show how large objects appear with the recipes, or with the crops of the flags "
        "below; needs no run",
    )
    group.add_argument(
        "--train-scale",
        type=float,
        nargs=2,
        metavar="X",
        help="smallest and largest area of training crops (default: 1 1)",
    )
    group.add_argument(
        "--train-ratio",
        type=float,
        nargs=2,
        metavar="X",
        help="smallest and largest aspect ratio of training crops (default: torchvision's 0.75 "
        "1.3333)",
    )
    for flag, text in (
        ("--train-size", "side of a resized training crop"),
        ("--test-resize", "side of the test image before the crop (default: --test-size)"),
        ("--test-size", "side of the test crop (default: --train-size)"),
    ):
        group.add_argument(flag, type=positive_int, metavar="N", help=text)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    flags = parser()
    args = flags.parse_args(argv)
    use, allowed = ("--policy", _POLICY) if args.policy else ("a run", _RUN)
    refuse_others(flags, args, use, allowed)
    from tinynet.report.tables import show

    show(_policies(flags, args) if args.policy else _study(args), args.format)


def _policies(flags: Parser, args: Any) -> list[Json]:
    """A row for each policy; with --out, also a figure."""
    from tinynet.plotting import save_figure
    from tinynet.resolution.crops import draw_shares
    from tinynet.resolution.figures import crop_shares

    policies = _policy_of_flags(args) if args.train_size else _policies_of_recipes(flags, args)
    if args.out:
        shares = [
            (
                name,
                draw_shares(policy, _CROPS, _SIDE if policy.sides else policy.resize),
                policy.test_share,
            )
            for name, policy in policies.items()
        ]
        path = Path(args.out) / "seen.png"
        save_figure(crop_shares(shares, "Share of the image in a crop"), path)
        console.log(f"shares of the image in training and test crops: {path}")
    return [
        {
            "policy": name,
            "trained": policy.train,
            "resize": policy.resize,
            "size": policy.test,
            "F": policy.mean_side,
            "object_ratio": policy.object_ratio,
            "cure": policy.cure,
            "test_at": round(policy.resize * policy.cure),
            "seen": policy.test_share,
        }
        for name, policy in policies.items()
    ]


def _policies_of_recipes(flags: Parser, args: Any) -> "dict[str, Policy]":
    from tinynet.resolution.crops import Policy
    from tinynet.training.recipes import RECIPES

    if args.train_scale or args.train_ratio or args.test_resize or args.test_size:
        flags.error("--policy with flags of crops needs --train-size")
    return {
        f"{recipe.name}, {stage}": Policy.of(recipe.stage(stage), _SIDE)
        for recipe in RECIPES.values()
        for stage in WHOLE
    }


def _policy_of_flags(args: Any) -> "dict[str, Policy]":
    """The policy of the flags, and the one of square crops, which the paper's formula is for."""
    from tinynet.resolution.crops import Policy

    area, size = tuple(args.train_scale or (1.0, 1.0)), args.test_size or args.train_size
    common = dict(train=args.train_size, resize=args.test_resize or size, test=size, area=area)
    ratio = tuple(args.train_ratio or ((3 / 4, 4 / 3) if args.train_scale else (1.0, 1.0)))
    policies = {"square crops": Policy(**common)}
    if ratio != (1.0, 1.0):
        name = f"crops of ratio {ratio[0]:.4g} to {ratio[1]:.4g}, drawn as torchvision does"
        policies[name] = Policy(ratio=ratio, **common)
    return policies


def _study(args: Any) -> list[ScoreRow]:
    """Study a run at several sizes, and write figures and JSON; returns the rows of the table."""
    from tinynet.compute import choose_compute
    from tinynet.evaluation.predictor import Predictor
    from tinynet.report.curves import Curves
    from tinynet.resolution.fixres import SizeRequest, investigate
    from tinynet.training.config import RunConfig, open_data

    compute = choose_compute(args.device, args.precision)
    folders = [stage_to_adapt(run, args.stage) for run in (args.run, *args.beside)]
    refuse_twice([str(folder.run) for folder in folders])
    predictors = [
        Predictor(folder, open_data(args.data, args.cache, RunConfig.of(folder)), compute)
        for folder in folders
    ]
    own = predictors[0].size
    for flag, numbers in (("--size", args.size or SIZES), ("--fit", args.fit or ())):
        for number in numbers:
            predictors[0].model.backbone.check_size(number, flag)
    sizes = sorted({own, *(args.size or SIZES)})
    fit = sizes if args.fit is None else args.fit
    out = Path(args.out) if args.out else folders[0].path / "sizes"
    keep = Path(args.keep) if args.keep else None
    request = SizeRequest(sizes, out, fit, args.methods, keep)
    findings = investigate(predictors, request, [Curves()])
    console.log("\n".join(("", *findings.conclusions)))
    return [*findings.rows, *findings.others, *findings.methods]


if __name__ == "__main__":
    run_command(main)
