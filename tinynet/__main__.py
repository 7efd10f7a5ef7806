"""`tinynet COMMAND`, which is also `python -m tinynet COMMAND`."""

import sys
from difflib import get_close_matches
from importlib import import_module

from tinynet import __version__
from tinynet.flags import run_command

# Name -> module and what it does.
COMMANDS = {
    "demo": ("tinynet.demo", "the whole pipeline on synthetic images, in two minutes"),
    "data": ("tinynet.data.__main__", "download, check, pack, list and draw images"),
    "train": ("tinynet.train", "train the head, fine-tune the network, adapt to a test size"),
    "evaluate": ("tinynet.evaluate", "accuracies of a run, with intervals, over views and sizes"),
    "compare": ("tinynet.compare", "runs or stored probabilities, in pairs and together"),
    "soup": ("tinynet.soup", "the average of several runs' weights"),
    "select-views": ("tinynet.select_views", "the test-time views that are worth their cost"),
    "zero-shot": ("tinynet.zero_shot", "a pretrained network without training"),
    "folder": ("tinynet.folder", "a pretrained network on any folder of images"),
    "fixres": ("tinynet.fixres", "a run at other test sizes, and corrections"),
    "predict": ("tinynet.predict", "classes of image files, or of the official test images"),
    "report": ("tinynet.report.__main__", "one HTML page a run"),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command that is named first; without one, list all."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
    elif words[0] == "--version":
        print(f"tinynet {__version__}")
    elif words[0] in COMMANDS:
        import_module(COMMANDS[words[0]][0]).main(words[1:])
    else:
        near = get_close_matches(words[0], COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"tinynet: unknown command {words[0]!r}; {hint}see tinynet --help", file=sys.stderr)
        raise SystemExit(2)


def _help() -> str:
    lines = [f"  {name:13} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"tinynet {__version__}: transfer learning on small images, with scores to rely on",
            "",
            "usage: tinynet COMMAND ..., or python -m tinynet COMMAND ...",
            "",
            "commands:",
            *lines,
            "",
            "Each takes --help. Start with: tinynet demo",
        ]
    )


def script() -> None:
    """The console script."""
    run_command(main)


if __name__ == "__main__":
    run_command(main)
