"""Write a trained run's predictions for pictures without labels: `file wnid`, a line each.

    python -m tinynet.predict --out predictions.txt     the newest finished run on the official test pictures

The format is the one that the course which published the data asked for.
"""

from pathlib import Path

from tinynet import cli
from tinynet.files import write_text
from tinynet.plan import Plan, open_data
from tinynet.runs import finished_stage


def parser() -> cli.Parser:
    """The command's flags."""
    made = cli.Parser("tinynet.predict", __doc__)
    made.add_argument("--tta", default="none", metavar="VIEWS", help="set of views to average (default: none)")
    made.add_argument("--size", type=int, metavar="N", help="test size in pixels (default: the training size)")
    cli.add_common(made, "data", "cache", "run", "out", "device", "precision")
    return made


def main(argv: list[str] | None = None) -> None:
    """The command."""
    asked = parser().parse_args(argv)
    folder = finished_stage(asked.run, None)
    cli.say(f"predicting with {folder.path}")
    from tinynet.device import choose_device
    from tinynet.score.merges import mean
    from tinynet.scoring import Scorer

    packed = open_data(asked.data, asked.cache, Plan.read(folder.read_recipe()))
    device = choose_device(asked.device, asked.precision)
    scorer = Scorer(folder, packed, device)
    target = Path(asked.out or folder.path / "test-predictions.txt")
    target.parent.mkdir(parents=True, exist_ok=True)  # before the work, so that it is not done for nothing
    (chosen,) = scorer.sets([asked.tta], scorer.size if asked.size is None else asked.size)
    found = scorer.score("test", chosen)
    best = found.merged(mean).argmax(1)
    names = (packed.test.files[row].rsplit("/", 1)[1] for row in found.rows)
    write_text(target, "".join(f"{name} {packed.wnids[c]}\n" for name, c in zip(names, best, strict=True)))
    print(target)


if __name__ == "__main__":
    cli.run(main)
