"""Run the whole chain on a few drawn pictures: no download, no weights, two minutes on two cores.

    python -m tinynet.demo

It draws a small archive in the official layout, trains both stages of the tuned recipe in small,
scores hold-out and val, and leaves a run in --out that looks like a real one.
"""

from pathlib import Path

from tinynet import console, runs
from tinynet.errors import InputError
from tinynet.flags import Parser, add_common, run_command
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig, open_data
from tinynet.training.recipes import TUNED, Recipe

CLASSES, SIDE = 8, 32
_NEXT = """The network began with random weights on synthetic images: this only shows that it works.
Look at the run:
  {report} --open
  {predict}
For the real thing:
  python -m tinynet.data get                    the official archive, 248 MB
  python -m tinynet.train --stage base          the head on a frozen VGG16
  python -m tinynet.evaluate --tta flip         hold-out and official val, plain and mirrored
  python -m tinynet.train --stage finetune      all of the network"""


def small_recipe() -> Recipe:
    """The tuned recipe, cut down to drawn pictures and a backbone that knows nothing yet."""
    recipe = TUNED.override(dict(holdout=0.2, hidden=(128,), batch=16, size=SIDE))
    recipe = recipe.override(dict(epochs=20), ("base",))
    # Random convolutions have more to learn than pretrained ones, so all parts get one rate.
    one_rate = dict(lr=5e-4, lr_factors=(1.0,) * 6)
    return recipe.override(
        dict(epochs=8, batch=32, crop_side=(28, SIDE), ema=0.9, **one_rate), ("finetune",)
    )


def demo_config(run: Path, seed: int = 0) -> RunConfig:
    """A plan for both stages of `small_recipe`, on pictures that are drawn below `run` where they
    are not there yet.
    """
    from tinynet.data.synthetic import synthetic

    source = run / "data" / f"drawn-{seed}.zip"
    if not source.exists():
        synthetic(source, classes=CLASSES, train=40, val=20, test=5, side=SIDE, seed=seed)
    return RunConfig(small_recipe(), str(source.resolve()), weights="none", seed=seed)


def main(argv: list[str] | None = None) -> None:
    """The command; exits with status 1 where the result is not clearly above chance."""
    parser = Parser("tinynet.demo", __doc__)
    add_common(parser, "out", "seed", "device", "precision", "json")
    asked = parser.parse_args(argv)
    # A folder below runs/ that is no run itself: the other commands' newest run is never a demo.
    run = runs.new_run(asked.out, "demo", runs.ROOT / "demo")
    if StageFolder(run, "base").started:
        raise InputError(f"{run}: holds a run already; name another folder with --out")
    from tinynet.compute import choose_compute
    from tinynet.evaluation.evaluate import Wanted, evaluate
    from tinynet.evaluation.predictor import Predictor
    from tinynet.report.curves import Curves
    from tinynet.report.tables import show
    from tinynet.training.stages import train

    compute = choose_compute(asked.device, asked.precision)
    console.log(f"{run}: the whole chain on drawn pictures, on {compute}")
    config = demo_config(run, asked.seed or 0)
    train(run, config, compute, observers=[Curves()])
    packed = open_data(None, None, config)
    rows = [
        row
        for stage in runs.WHOLE
        for row in evaluate(
            Predictor(StageFolder(run, stage), packed, compute), Wanted(tta=["flip"])
        )
    ]
    show(rows, asked.format)
    last, chance = rows[-1], 1 / CLASSES
    console.log(f"\nchance is {chance:.1%}; learning curves: {StageFolder(run, 'finetune').curves}")
    if last["low"] < 2 * chance:
        console.log(
            f"val top-1 of {last['top1']:.1%} is not clearly above chance: something is broken here"
        )
        raise SystemExit(1)
    console.log(
        _NEXT.format(
            report=console.shell_command("tinynet.report", run),
            predict=console.shell_command("tinynet.predict", "PICTURE", "--run", run),
        )
    )


if __name__ == "__main__":
    run_command(main)
