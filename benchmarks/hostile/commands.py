"""The command lines that several kinds of cases share."""

from benchmarks.hostile.case import WORLD
from benchmarks.hostile.world import ON, SIDE, SQUEEZE

# Every class is named, so that the colours can be computed from the probabilities; not quiet,
# because then it would not name unreadable files.
_SEEING = ("--size", str(SIDE), "--top", "13", "--json", *ON)


def predict(*files: str, run: str = f"{WORLD}/probe") -> tuple[str, ...]:
    """Flags of `tinynet.predict` with the network that says what it sees."""
    return (*files, "--run", run, *_SEEING)


def evaluate_folder(data: str, *more: str, weights: str = f"{WORLD}/squeeze.pt") -> tuple[str, ...]:
    """Flags of `tinynet.folder`, which keeps what it says of each image."""
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
    """Flags of `tinynet.evaluate` of a run on the drawn archive."""
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
    """Flags of `tinynet.predict` of the red image with a run on the drawn archive."""
    return (f"{WORLD}/red.png", "--run", run, "--json", *ON)


def predict_pretrained(weights: str) -> tuple[str, ...]:
    """Flags of `tinynet.predict` of the red image with SqueezeNet; all classes are named."""
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
    """Flags of `tinynet.train` that continue a run on the drawn archive."""
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
    """Flags of `tinynet.train` of a base from these weights, in one epoch on the drawn archive."""
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
    """Flags of `tinynet.report` of a run on the drawn archive."""
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
