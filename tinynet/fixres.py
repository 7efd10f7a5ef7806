"""Test a run at other sizes than its own: how good, how dear, why, and what mends the difference.

    python -m tinynet.fixres --sizes 64 80 96 128    the newest finished run
    python -m tinynet.fixres --run runs/a --sizes 64 80 96 --fit 80    its head trained at 80 px
    python -m tinynet.fixres --run runs/a --no-fit --keep runs/larger    a larger size, kept
    python -m tinynet.fixres --run runs/a --beside runs/b --sizes 64 96 --no-fit    two runs
    python -m tinynet.fixres --policy    how large objects appear, for the recipes
    python -m tinynet.fixres --policy --train-scale 0.08 1 --train-size 224 --test-resize 256

Touvron et al. 2019, "Fixing the train-test resolution discrepancy". The hold-out chooses, val
reports. Corrections change the features that the head sees: `frechet` and `quantile` give them the
distribution of the training size, `batch norm` measures the head's statistics at the test size,
`fine-tuned` trains the head on at it (stage fixres).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinynet import console
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, positive_int, refuse_others, run_command, user_path
from tinynet.runs import STAGES, WHOLE, finished_stage

if TYPE_CHECKING:
    from tinynet.resolution.crops import Policy

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
    "sizes",
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
_DRAWN, _SIDE = 20_000, 64  # crops drawn for a histogram, from pictures of that side


def parser() -> Parser:
    """The command's flags."""
    made = Parser("tinynet.fixres", __doc__)
    made.add_argument("--stage", choices=STAGES, help="default: the last finished stage of the run")
    made.add_argument(
        "--sizes",
        type=positive_int,
        nargs="+",
        metavar="N",
        help=f"test sizes in pixels (default: {' '.join(map(str, SIZES))}), beside the training "
        "size",
    )
    fit = made.add_mutually_exclusive_group()
    fit.add_argument(
        "--fit",
        type=positive_int,
        nargs="+",
        metavar="N",
        help="sizes at which the head is trained on, and at the training size to compare with "
        "(default: all sizes)",
    )
    fit.add_argument("--no-fit", dest="fit", action="store_const", const=[], help="at none")
    made.add_argument(
        "--methods",
        nargs="+",
        default=["antialias"],
        metavar="METHOD",
        help="how pictures are enlarged: antialias (bilinear), bilinear, bicubic, nearest, area, "
        "lanczos; the first for everything, the others compared with it (default: antialias)",
    )
    made.add_argument(
        "--beside",
        nargs="+",
        type=user_path,
        default=[],
        metavar="RUN",
        help="runs shown beside it, as they are: trained at other sizes, or with other taps",
    )
    made.add_argument(
        "--keep",
        type=user_path,
        metavar="DIR",
        help="a new folder for the run with its batch norms measured at the size where the "
        "hold-out likes that best: evaluate and predict take it",
    )
    add_common(made, "data", "cache", "run", "out", "device", "precision", "format", "json")
    group = made.add_argument_group(
        "--policy: how large objects appear in testing, for a way of cropping"
    )
    group.add_argument(
        "--policy", action="store_true", help="of the recipes, or of the flags below; needs no run"
    )
    group.add_argument(
        "--train-scale", type=float, nargs=2, metavar="X", help="area of crops (default: 1 1)"
    )
    group.add_argument(
        "--train-ratio",
        type=float,
        nargs=2,
        metavar="X",
        help="width over height of crops (default: torchvision's 0.75 1.3333)",
    )
    group.add_argument(
        "--train-size", type=positive_int, metavar="N", help="side that crops are resized to"
    )
    group.add_argument(
        "--test-resize",
        type=positive_int,
        metavar="N",
        help="side of the whole test picture (default: --test-size)",
    )
    group.add_argument(
        "--test-size",
        type=positive_int,
        metavar="N",
        help="side of the test crop (default: --train-size)",
    )
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    made = parser()
    asked = made.parse_args(argv)
    refuse_others(
        made, asked, "--policy" if asked.policy else "a run", _POLICY if asked.policy else _RUN
    )
    from tinynet.report.tables import show

    rows = _policies(made, asked) if asked.policy else _study(asked)
    show(rows, asked.format)


def _policies(made: Parser, asked: Any) -> list[dict[str, Any]]:
    """A row a policy; with --out the shares of the picture that are seen, as a figure."""
    from tinynet.plotting import save_figure
    from tinynet.resolution.crops import draw_shares
    from tinynet.resolution.figures import shares_seen

    chosen = _asked_policies(made, asked) if asked.train_size else _recipes(made, asked)
    if asked.out:
        drawn = [
            (
                name,
                draw_shares(policy, _DRAWN, _SIDE if policy.sides else policy.resize),
                policy.seen_in_test,
            )
            for name, policy in chosen.items()
        ]
        place = Path(asked.out) / "seen.png"
        save_figure(shares_seen(drawn, "Share of the picture that is seen"), place)
        console.log(f"shares of the picture seen in training and testing: {place}")
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
            "seen": policy.seen_in_test,
        }
        for name, policy in chosen.items()
    ]


def _recipes(made: Parser, asked: Any) -> dict[str, "Policy"]:
    from tinynet.resolution.crops import Policy
    from tinynet.training.recipes import RECIPES

    if asked.train_scale or asked.train_ratio or asked.test_resize or asked.test_size:
        made.error("--policy with flags of its own takes --train-size")
    return {
        f"{recipe.name}, {stage}": Policy.of(recipe.stage(stage), _SIDE)
        for recipe in RECIPES.values()
        for stage in WHOLE
    }


def _asked_policies(made: Parser, asked: Any) -> dict[str, "Policy"]:
    """The policy of the flags; beside crops of any ratio the square ones that the paper's formula
    is for.
    """
    from tinynet.resolution.crops import Policy

    area, size = tuple(asked.train_scale or (1.0, 1.0)), asked.test_size or asked.train_size
    common = dict(train=asked.train_size, resize=asked.test_resize or size, test=size, area=area)
    ratio = tuple(asked.train_ratio or ((3 / 4, 4 / 3) if asked.train_scale else (1.0, 1.0)))
    found = {"square crops": Policy(**common)}
    if ratio != (1.0, 1.0):
        found[f"crops of ratio {ratio[0]:.4g} to {ratio[1]:.4g}, drawn as torchvision does"] = (
            Policy(ratio=ratio, **common)
        )
    return found


def _study(asked: Any) -> list[dict[str, Any]]:
    """Everything about a run and its sizes, into a folder; returns the rows of its table."""
    from tinynet.compute import choose_compute
    from tinynet.evaluation.predictor import Predictor
    from tinynet.models.vgg import check_side
    from tinynet.report.curves import Curves
    from tinynet.resolution.fixres import investigate
    from tinynet.training.config import RunConfig, open_data

    compute = choose_compute(asked.device, asked.precision)
    folders = [finished_stage(run, asked.stage) for run in (asked.run, *asked.beside)]
    packed = open_data(asked.data, asked.cache, RunConfig.of(folders[0]))
    predictors = [Predictor(folder, packed, compute) for folder in folders]
    own = predictors[0].size
    for flag, asked_sizes in (("--sizes", asked.sizes or SIZES), ("--fit", asked.fit or ())):
        for size in asked_sizes:
            check_side(size, flag)
    sizes = sorted({own, *(asked.sizes or SIZES)})
    fit = sizes if asked.fit is None else sorted({own, *asked.fit}) if asked.fit else []
    if folders[0].stage == "fixres":
        raise InputError(
            f"{folders[0].path}: is fitted to a size already; name what it was before with --stage"
        )
    out = Path(asked.out) if asked.out else folders[0].path / "sizes"
    keep = Path(asked.keep) if asked.keep else None
    found = investigate(predictors, sizes, fit, asked.methods, out, keep, [Curves()])
    console.log("\n".join(("", *found.conclusions)))
    return [*found.rows, *found.beside, *found.methods]


if __name__ == "__main__":
    run_command(main)
