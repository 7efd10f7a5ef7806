"""Run `tinynet COMMAND`, or `python -m tinynet COMMAND`."""

import sys
from difflib import get_close_matches
from importlib import import_module

from tinynet import __version__, console
from tinynet.flags import run_command

# Name -> module and what it does.
COMMANDS = {
    "demo": ("tinynet.demo", "run the whole pipeline on synthetic images, in two minutes"),
    "data": ("tinynet.data.__main__", "download, check, pack, list and show images"),
    "pick": ("tinynet.pick", "pick a network and a size, within a budget of time"),
    "train": ("tinynet.train", "train the head, fine-tune the network, adapt to a test size"),
    "evaluate": ("tinynet.evaluate", "evaluate a run, over views and sizes, with intervals"),
    "compare": ("tinynet.compare", "compare runs or stored probabilities, and their ensemble"),
    "soup": ("tinynet.soup", "average the weights of several runs"),
    "select-views": ("tinynet.select_views", "select the test-time views worth their cost"),
    "zero-shot": ("tinynet.zero_shot", "evaluate a pretrained network without training"),
    "folder": ("tinynet.folder", "evaluate a pretrained network on any folder"),
    "fixres": ("tinynet.fixres", "evaluate a run at other test sizes, with corrections"),
    "predict": ("tinynet.predict", "predict classes of image files, or of the images of test"),
    "export": ("tinynet.export", "export a run to ONNX, torch.export or safetensors"),
    "report": ("tinynet.report.__main__", "write one HTML page for each run"),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command that the first argument names; without arguments, list all commands."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["help"] and words[1:]:
        main([words[1], "--help"])
    elif not words or words[0] in ("-h", "--help", "help"):
        print(_help())
    elif words[0] == "--version":
        print(f"tinynet {__version__}")
    elif words[0] in COMMANDS:
        import_module(COMMANDS[words[0]][0]).main(words[1:])
    else:
        near = get_close_matches(words[0], COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        see = f"{hint}see {console.program()} --help"
        print(f"tinynet: unknown command {words[0]!r}; {see}", file=sys.stderr)
        raise SystemExit(2)


def _help() -> str:
    lines = [f"  {name:13} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"tinynet {__version__}: transfer learning on small images, with reliable results",
            "",
            f"usage: {console.program()} COMMAND ...",
            "",
            "commands:",
            *lines,
            "",
            f"Each command has --help. Start with: {console.program()} demo",
        ]
    )


def script() -> None:
    """Run the console script `tinynet`."""
    console.set_program("tinynet")
    run_command(main)


if __name__ == "__main__":
    console.set_program("python -m tinynet")
    run_command(main)
