"""Command lines that several kinds of cases share."""

from benchmarks.hostile.case import WORLD
from benchmarks.hostile.world import ON, SIDE, SQUEEZE

# All classes, so that the colours can be computed from their probabilities; not quiet, because
# then the names of unreadable files would be missing.
_ALL_CLASSES = ("--size", str(SIDE), "--top", "13", "--json", *ON)


def predict(*files: str, run: str = f"{WORLD}/probe") -> tuple[str, ...]:
    """Flags of `tinynet.predict` with the probe, whose output gives the colours of an image."""
    return (*files, "--run", run, *_ALL_CLASSES)


def evaluate_folder(data: str, *more: str, weights: str = f"{WORLD}/squeeze.pt") -> tuple[str, ...]:
    """Flags of `tinynet.folder`, with the probabilities of each image saved."""
    return (
        "--data",
        data,
        "--arch",
        SQUEEZE,
        "--weights",
        weights,
        "--size",
        str(SIDE),
        "--resize",
        str(SIDE),
        "--workers",
        "0",
        "--save-probabilities",
        "out/saved.npz",
        "--json",
        "--quiet",
        *ON,
        *more,
    )


def evaluate_run(run: str, *more: str) -> tuple[str, ...]:
    """Flags of `tinynet.evaluate` for a run on the synthetic archive."""
    return (
        "--run",
        run,
        "--data",
        f"{WORLD}/drawn.zip",
        "--cache",
        "out/cache",
        "--json",
        "--quiet",
        *ON,
        *more,
    )


def predict_run(run: str) -> tuple[str, ...]:
    """Flags of `tinynet.predict` for the red image, with a run on the synthetic archive."""
    return (f"{WORLD}/red.png", "--run", run, "--json", *ON)


def predict_pretrained(weights: str) -> tuple[str, ...]:
    """Flags of `tinynet.predict` for the red image, with SqueezeNet and all classes."""
    return (
        f"{WORLD}/red.png",
        "--arch",
        SQUEEZE,
        "--weights",
        weights,
        "--resize",
        str(SIDE),
        "--size",
        str(SIDE),
        "--top",
        "1000",
        "--json",
        *ON,
    )


def resume(run: str) -> tuple[str, ...]:
    """Flags of `tinynet.train` to resume a run on the synthetic archive."""
    return (
        "--resume",
        run,
        "--data",
        f"{WORLD}/drawn.zip",
        "--cache",
        "out/cache",
        "--json",
        "--quiet",
        *ON,
    )


def train(weights: str) -> tuple[str, ...]:
    """Flags of `tinynet.train`: one epoch of base from these weights, on the synthetic archive."""
    return (
        "--stage",
        "base",
        "--weights",
        weights,
        "--hidden",
        "16",
        "--holdout",
        "0.25",
        "--size",
        str(SIDE),
        "--batch",
        "6",
        "--epochs",
        "1",
        "--data",
        f"{WORLD}/drawn.zip",
        "--cache",
        "out/cache",
        "--out",
        "out/run",
        "--json",
        "--quiet",
        *ON,
    )


def report(run: str) -> tuple[str, ...]:
    """Flags of `tinynet.report` for a run on the synthetic archive."""
    return (
        run,
        "--data",
        f"{WORLD}/drawn.zip",
        "--cache",
        "out/cache",
        "--out",
        "out/pages",
        "--quiet",
    )
