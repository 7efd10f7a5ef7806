"""Score a trained run on its hold-out and on the official val, plain and over views.

    python -m tinynet.evaluate --tta flip                     the newest finished run
    python -m tinynet.evaluate --run runs/... --size 64 80    several test sizes

Choices belong on the hold-out; val is for reporting. Intervals are Wilson's, 95 %.
"""

from tinynet import cli
from tinynet.plan import Plan, open_data
from tinynet.runs import STAGES, finished_stage


def parser() -> cli.Parser:
    """The command's flags."""
    made = cli.Parser("tinynet.evaluate", __doc__)
    made.add_argument("--stage", choices=STAGES, help="default: the last finished stage of the run")
    made.add_argument("--tta", choices=("none", "flip"), default="none",
                      help="views whose probabilities are averaged; the plain result is given too (default: none)")
    made.add_argument("--size", type=int, nargs="+", metavar="N",
                      help="test sizes in pixels (default: the training size)")
    cli.add_common(made, "data", "cache", "run", "split", "device", "precision", "json")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    asked = parser().parse_args(argv)
    folder = finished_stage(asked.run, asked.stage)
    cli.say(f"evaluating {folder.path}")
    from tinynet.device import choose_device
    from tinynet.report.tables import show_scores
    from tinynet.scoring import evaluate

    device = choose_device(asked.device, asked.precision)
    packed = open_data(asked.data, asked.cache, Plan.read(folder.read_recipe()))
    splits = ("holdout", "val") if asked.split == "both" else (asked.split,)
    show_scores(evaluate(folder, packed, device, splits, asked.size, asked.tta), asked.json)


if __name__ == "__main__":
    cli.run(main)
