"""Run the whole pipeline on a few synthetic images: no download, two minutes on two cores.

    python -m tinynet.demo

The demo creates a small archive in the official layout, trains both stages of a small version of
the tuned recipe, evaluates the hold-out and val, and saves an ordinary run in --out.
"""

from pathlib import Path

from tinynet import console, runs
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, run_command
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig, open_data
from tinynet.training.recipes import DEMO

CLASSES = 8
_NEXT = """The network started from random weights, on synthetic images: this only tests tinynet.
Look at the run:
  {report} --open
  {predict}
With real data:
  python -m tinynet.data get                    download the official archive, 248 MB
  python -m tinynet.train --stage base          train the head of a frozen VGG16
  python -m tinynet.evaluate --tta flip         accuracy on hold-out and official val
  python -m tinynet.train --stage finetune      train conv4, conv5 and the head"""


def demo_config(run: Path, seed: int = 0) -> RunConfig:
    """Both stages of `DEMO`, on synthetic images that are drawn below `run` if needed."""
    from tinynet.data.synthetic import synthetic

    source = run / "data" / f"drawn-{seed}.zip"
    if not source.exists():
        synthetic(source, classes=CLASSES, train=40, val=20, test=5, side=DEMO.base.size, seed=seed)
    return RunConfig(DEMO, str(source.resolve()), weights="none", seed=seed)


def main(argv: list[str] | None = None) -> None:
    """Run the command; exits with status 1 if val is not clearly above chance."""
    parser = Parser("tinynet.demo", __doc__)
    add_common(parser, "out", "seed", "device", "precision", "json")
    args = parser.parse_args(argv)
    # A folder below runs/ that is no run itself: the newest run of other commands is never a demo.
    run = runs.new_run(args.out, "demo", runs.ROOT / "demo")
    if StageFolder(run, "base").started:
        raise InputError(f"{run}: already contains a run; name another folder with --out")
    from tinynet.compute import choose_compute
    from tinynet.evaluation.evaluate import ScoreRequest, evaluate
    from tinynet.evaluation.predictor import Predictor
    from tinynet.report.curves import Curves
    from tinynet.report.tables import show
    from tinynet.training.stages import train

    compute = choose_compute(args.device, args.precision)
    console.log(f"{run}: the whole pipeline on synthetic images, on {compute}")
    config = demo_config(run, args.seed or 0)
    train(run, config, compute, observers=[Curves()])
    packed = open_data(None, None, config)
    request = ScoreRequest(tta=["flip"])
    rows = [
        row
        for stage in runs.WHOLE
        for row in evaluate(Predictor(StageFolder(run, stage), packed, compute), request)
    ]
    show(rows, args.format)
    last, chance = rows[-1], 1 / CLASSES
    console.log(f"\nchance is {chance:.1%}; curves: {StageFolder(run, 'finetune').curves}")
    if last.low < 2 * chance:
        console.log(f"val top-1 of {last.top1:.1%} is not clearly above chance: tinynet is broken")
        raise SystemExit(1)
    report = console.shell_command("tinynet.report", run)
    predict = console.shell_command("tinynet.predict", "IMAGE", "--run", run)
    console.log(_NEXT.format(report=report, predict=predict))


if __name__ == "__main__":
    run_command(main)
