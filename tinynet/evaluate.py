"""Score a trained run on its hold-out and on the official val, plain and over views.

    python -m tinynet.evaluate --tta flip                          the newest finished run
    python -m tinynet.evaluate --tta flip ten --size 64 80 --merge mean gmean      a grid
    python -m tinynet.evaluate --from-probabilities a.npz b.npz    together, and one against the other

Choices belong on the hold-out; val is for reporting. Intervals are Wilson's, 95 %; gain and p compare with the
plain result of the same pictures, in pairs (McNemar).
"""

from typing import TYPE_CHECKING, Any

from tinynet import cli
from tinynet.plan import Plan, open_data
from tinynet.runs import STAGES, StageFolder, finished_stage

if TYPE_CHECKING:
    from tinynet.data.packed import Packed
    from tinynet.device import Device


def parser() -> cli.Parser:
    """The command's flags."""
    made = cli.Parser("tinynet.evaluate", __doc__)
    made.add_argument("--stage", choices=STAGES, help="default: the last finished stage of the run")
    cli.add_common(made, "tta")
    made.add_argument("--merge", nargs="+", default=["mean"], metavar="MERGE",
                      help="how the probabilities of views become one: mean (sum), gmean, max, vote, sharpen "
                           "(default: mean)")
    made.add_argument("--size", type=int, nargs="+", metavar="N",
                      help="test sizes in pixels (default: the training size)")
    made.add_argument("--calibrate", action="store_true",
                      help="a second row for val at the temperature that fits the hold-out best")
    made.add_argument("--choose", type=int, metavar="N",
                      help="which N views or fewer of all in --tta are worth their cost: chosen and weighted on one "
                           "half of the hold-out, judged on the other and on val, beside ten-crop")
    made.add_argument("--per-class", action="store_true", help="a row for each class in place of one for all")
    made.add_argument("--save-probabilities", metavar="FILE",
                      help="write the probabilities of every view; for one split, one size and one set of views")
    made.add_argument("--from-probabilities", nargs="+", metavar="FILE",
                      help="score what was saved: each file, all together, and each against the first")
    made.add_argument("--format", choices=("table", "markdown", "csv", "json"), default="table",
                      help="of the result on standard output (default: table; --json is --format json)")
    cli.add_common(made, "data", "cache", "run", "split", "device", "precision", "json")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    made = parser()
    asked = made.parse_args(argv)
    form = "json" if asked.json else asked.format
    if asked.from_probabilities:
        _refuse_beside(made, asked)
        from tinynet.report.tables import show_scores
        from tinynet.stored import score_files

        show_scores(score_files(asked.from_probabilities, asked.merge), form)
        return
    folder = finished_stage(asked.run, asked.stage)
    cli.say(f"evaluating {folder.path}")
    from tinynet.device import choose_device
    from tinynet.report.tables import show_scores
    from tinynet.scoring import Wanted, evaluate

    device = choose_device(asked.device, asked.precision)
    packed = open_data(asked.data, asked.cache, Plan.read(folder.read_recipe()))
    if asked.choose is not None:
        show_scores(_choose(made, asked, folder, packed, device), form)
        return
    splits = ("holdout", "val") if asked.split == "both" else (asked.split,)
    wanted = Wanted(splits, asked.size, asked.tta, asked.merge, calibrate=asked.calibrate, per_class=asked.per_class,
                    save=asked.save_probabilities)
    show_scores(list(evaluate(folder, packed, device, wanted)), form)


def _choose(made: cli.Parser, asked: Any, folder: StageFolder, packed: "Packed",
            device: "Device") -> list[dict[str, Any]]:
    from tinynet.choosing import choose
    from tinynet.report.figures import accuracy_against_cost, save_figure
    from tinynet.scoring import Scorer

    others = [name for name in ("split", "merge", "calibrate", "per_class", "save_probabilities")
              if getattr(asked, name) != made.get_default(name)]
    if others or len(asked.size or []) > 1 or asked.choose < 1 or not asked.tta:
        made.error("--choose takes 1 or more, --tta with the views to choose from, at most one --size, and none of "
                   "--split, --merge, --calibrate, --per-class, --save-probabilities")
    scorer = Scorer(folder, packed, device)
    rows = list(choose(scorer, asked.tta, (asked.size or [scorer.size])[0], asked.choose))
    save_figure(accuracy_against_cost(rows, f"{folder.run.name}: {folder.stage}"), folder.path / "views.png")
    cli.say(f"accuracy against cost: {folder.path / 'views.png'}")
    return rows


def _refuse_beside(made: cli.Parser, asked: Any) -> None:
    """What was saved has its run, split, size and views; flags that say otherwise are not passed over."""
    others = [name for name in ("run", "stage", "size", "tta", "data", "split", "calibrate", "per_class",
                                   "save_probabilities") if getattr(asked, name) != made.get_default(name)]
    if others:
        flags = ", ".join(map(cli.flag_name, others))
        made.error(f"--from-probabilities takes no {flags}: the files hold that already")


if __name__ == "__main__":
    cli.run(main)
