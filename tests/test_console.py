"""How messages name commands and options: as the user started tinynet, or called it."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from support import ROOT, complaint

from tinynet import __main__ as entry
from tinynet import compute, console
from tinynet.data.image_folder import labelled_images
from tinynet.data.places import locate
from tinynet.data.splits import split_train
from tinynet.models.vgg import VGG16
from tinynet.models.weights import load_vgg16

PROGRAMS = ("tinynet", "python -m tinynet", "")
COMMAND = re.compile(r"python -m (tinynet[\w.]*)|(?<=`)(tinynet [a-z-]+)")
# Commands, and the modules that only they import.
OF_COMMANDS = {"__main__.py", "flags.py"} | {
    f"{module.removeprefix('tinynet.').replace('.', '/')}.py"
    for module, _ in entry.COMMANDS.values()
}
FLAG = re.compile(r"--[a-z][a-z-]*")


@pytest.fixture
def command():
    """A command with the flags `--data`, `--size` and `--split` is running."""
    console.set_flags(["--data", "--size", "--split"])


def test_commands_are_written_as_the_user_started_tinynet():
    text = "run `python -m tinynet.select_views --tta flip`, python -m tinynet.train or python -m x"
    written = {}
    for program in PROGRAMS:
        console.set_program(program)
        written[program] = console.as_started(text)
        assert console.shell_command("tinynet.soup", "a b").endswith("soup 'a b'")
    assert written["tinynet"] == (
        "run `tinynet select-views --tta flip`, tinynet train or python -m x"
    )
    assert written["python -m tinynet"] == (
        "run `python -m tinynet select-views --tta flip`, python -m tinynet train or python -m x"
    )
    assert written[""] == text


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", entry.COMMANDS)
def test_help_names_every_command_as_the_user_started_it(program, name, capsys):
    console.set_program(program)
    module = entry.COMMANDS[name][0]
    with pytest.raises(SystemExit):
        import_module(module).main(["--help"])
    text = capsys.readouterr().out
    own = f"{program} {name}" if program else f"python -m {module.removesuffix('.__main__')}"
    assert text.startswith(f"usage: {own} [")
    for match in re.finditer(r"(python -m )?\btinynet[. ](?=[a-z])", text):
        assert match[0] == (f"{program} " if program else "python -m tinynet."), match[0]


@pytest.mark.parametrize(
    ("start", "words", "expected"),
    [
        (["-c", "from tinynet.__main__ import script; script()"], "zero-shot", "tinynet zero-shot"),
        (["-m", "tinynet"], "zero-shot", "python -m tinynet zero-shot"),
        (["-m", "tinynet.zero_shot"], "", "python -m tinynet.zero_shot"),
        (["-c", "from tinynet.__main__ import script; script()"], "data get", "tinynet data get"),
        (["-m", "tinynet.data"], "get", "python -m tinynet.data get"),
    ],
)
def test_usage_agrees_with_the_start(start, words, expected):
    ended = subprocess.run(
        [sys.executable, *start, *words.split(), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {expected} [")


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (["-c", "from tinynet.__main__ import script; script()", "train"], "tinynet train"),
        (["-m", "tinynet", "train"], "python -m tinynet train"),
        (["-m", "tinynet.train"], "python -m tinynet.train"),
    ],
)
def test_an_error_names_commands_as_the_user_started_tinynet(start, expected, tmp_path):
    words = [*start, "--stage", "finetune"]
    ended = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"train its first stage: {expected} --stage base\n")


def test_a_moved_flag_leads_to_the_command(capsys):
    console.set_program("tinynet")
    with pytest.raises(SystemExit):
        import_module("tinynet.evaluate").main(["--arch", "vgg16"])
    line = capsys.readouterr().err
    assert line == (
        "tinynet evaluate: --arch has moved; use: tinynet zero-shot --arch NAME, or tinynet folder "
        "--data DIR --arch NAME; see --help\n"
    )


def strings(path):
    """(text, whether `advice` or `shell_command` may leave it out) of every string of a module,
    without docstrings.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    left_out = {
        id(inner)
        for call in calls
        if ast.unparse(call.func).split(".")[-1] in ("advice", "shell_command")
        for inner in ast.walk(call)
    }
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings:
            yield text, id(node) in left_out


def test_texts_name_commands_as_modules():
    """The form that `as_started` rewrites, of modules that exist."""
    modules = set()
    for path in (ROOT / "tinynet").rglob("*.py"):
        if path.name == "console.py":
            continue
        for text, _ in strings(path):
            for module, bare in () if text == "python -m tinynet" else COMMAND.findall(text):
                assert module and module != "tinynet" and not bare, (path, text)
                modules.add(module.rstrip("."))
    assert modules >= {"tinynet.train", "tinynet.evaluate", "tinynet.data"}
    assert all(find_spec(module) for module in modules)


# Flags in the library that are no advice: parts of a command, and the flag that an observer is for.
FLAGS_OF_TEXTS = {
    "report/collect.py": {"--out"},
    "report/tensorboard.py": {"--tensorboard"},
    "runs.py": {"--run ", "--run", " --restart"},
    "training/recipes.py": {
        "smallest and largest side of random square crops in pixels; they are resized to --size"
    },
    "training/resume.py": {" (--data)", " (--weights, or --run for a later stage)"},
}


def test_the_library_names_no_flags():
    """Messages name flags through `option` and `advice`, since Python has none."""
    for path in (ROOT / "tinynet").rglob("*.py"):
        name = path.relative_to(ROOT / "tinynet").as_posix()
        if name in OF_COMMANDS:
            continue
        texts = {
            text
            for text, left_out in strings(path)
            if FLAG.search(re.sub("`python -m [^`]*`", "", text)) and not left_out
        }
        assert texts == FLAGS_OF_TEXTS.get(name, set()), name


def test_options_are_flags_in_a_command_and_names_in_python(command):
    assert console.option("feature_dtype") == "--feature-dtype"
    assert console.advice(" with --data") == " with --data"
    assert console.advice(" with --out") == ""  # this command has no --out
    assert console.advice(f"; use a smaller {console.option('size')}") == "; use a smaller --size"
    console.set_flags(None)
    assert console.option("feature_dtype") == "feature_dtype"
    assert console.advice(" with --data") == ""
    assert console.advice(f"; use a smaller {console.option('size')}") == "; use a smaller size"


@pytest.mark.parametrize(
    ("action", "in_command", "in_python"),
    [
        (lambda: locate("nowhere.zip"), "and --data or TINYNET_DATA", "and TINYNET_DATA"),
        (lambda: VGG16().check_size(8), "--size 8: too small", "size 8: too small"),
        (lambda: load_vgg16("x"), "--weights x: no such file", "weights x: no such file"),
        (
            lambda: compute.choose_compute("cpu", "float16"),
            "--precision float16: not supported",
            "precision float16: not supported",
        ),
        (
            lambda: labelled_images("nowhere", ["a"], None),
            "--data nowhere: no such folder",
            "data nowhere: no such folder",
        ),
        (
            lambda: split_train(np.repeat([0, 1], 4), per_class=9),
            "--per-class 9: class 0 has",
            "per_class 9: class 0 has",
        ),
    ],
)
def test_a_message_to_a_caller_in_python_has_no_flags(command, action, in_command, in_python):
    assert in_command in complaint(action)
    console.set_flags(None)
    message = complaint(action)
    assert in_python in message
    assert not FLAG.search(re.sub("`[^`]*`", "", message))
