"""The order of the rooms, read from the imports, and what starting a command loads."""

import ast
import subprocess
import sys
from functools import cache

import pytest
from support import PROGRAMS, ROOT

import tinynet
from tinynet.__main__ import COMMANDS

ROOMS = ("data", "models", "score", "training", "evaluation", "resolution", "report")
LEAVES = (
    "allocator",
    "errors",
    "values",
    "interrupts",
    "memory",
    "files",
    "console",
    "distributed",
    "signs",
    "compute",
    "plotting",
    "records",
    "runs",
)
SOURCES = sorted((ROOT / "tinynet").rglob("*.py"))


def module_of(path):
    """tinynet/score/views.py -> tinynet.score.views, and __init__.py -> its package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def rank(module):
    """0 for leaves and the bare package, 1 ... 7 for the packages, 8 for commands: who may import
    whom.
    """
    pieces = module.split(".")
    if pieces[-1] == "__main__":
        return len(ROOMS) + 1
    if len(pieces) == 1 or pieces[1] in LEAVES:
        return 0
    return ROOMS.index(pieces[1]) + 1 if pieces[1] in ROOMS else len(ROOMS) + 1


def imports(code, package):
    """(line, module, inside a function or under TYPE_CHECKING) of every import of `code`, absolute
    and in full.
    """
    tree = ast.parse(code)
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, id(node) in later
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            source = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                yield node.lineno, _inside(source, name.name), id(node) in later
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            yield node.lineno, "an import whose name is computed", id(node) in later


@cache
def library_names():
    """Public name of the package -> its module, read from the imports for type checkers."""
    tree = ast.parse((ROOT / "tinynet" / "__init__.py").read_text())
    return {
        name.name: _inside(node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("tinynet.")
        for name in node.names
    }


def _inside(source, name):
    """What `from source import name` reaches: a module of its own, or something in `source`."""
    if source == "tinynet" and name in library_names():
        return library_names()[name]  # the package imports it when it is used
    place = ROOT.joinpath(*source.split("."), name)
    return f"{source}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else source


def wrongs(code, module, package):
    """What `code`, standing as `module`, imports against the order."""
    for line, imported, _ in imports(code, package):
        if imported.startswith("an import") and module == "tinynet.__main__":
            continue  # its table of commands
        if imported.startswith("an import") or imported.endswith(".__main__"):
            yield f"{module}, line {line}: {imported}"
        elif imported.split(".")[0] == "tinynet" and rank(imported) > rank(module):
            yield f"{module}, line {line}: imports {imported}, which stands behind it"


def package_of(path):
    return module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]


def test_no_room_imports_what_stands_behind_it():
    inner = [path for path in SOURCES if module_of(path) != "tinynet"]
    assert {rank(module_of(path)) for path in inner} == set(range(len(ROOMS) + 2))
    assert [
        wrong
        for path in inner
        for wrong in wrongs(path.read_text(), module_of(path), package_of(path))
    ] == []


def test_importing_the_package_imports_none_of_its_modules():
    path = ROOT / "tinynet" / "__init__.py"
    modules = {module for _, module, later in imports(path.read_text(), "tinynet") if not later}
    assert modules == {"importlib", "typing"}


def test_the_names_of_commands_and_of_the_library_lead_to_modules():
    assert sorted(library_names()) == tinynet.__all__
    places = [*(module for module, _ in COMMANDS.values()), *library_names().values()]
    for module in places:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


@pytest.mark.parametrize(
    "code",
    [
        "import tinynet.training.loop",
        "from tinynet.training import loop",
        "from tinynet import training",
        "from tinynet import console, evaluate",
        "def late():\n    from tinynet.score.metrics import score",
        "class A:\n    def late(self):\n        import tinynet.report.tables as tables",
        "if TYPE_CHECKING:\n    from tinynet.training.loop import Training",
        "from ..training import recipes",
        "from tinynet.data.__main__ import main",
        "import importlib\nimportlib.import_module('tinynet.training.loop')",
    ],
)
def test_the_reader_of_imports_sees_every_way_of_writing_one(code):
    assert len(list(wrongs(code, "tinynet.models.vgg", "tinynet.models"))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from tinynet.data.batches import batches",
        "from tinynet import console, __version__",
        "from . import vgg",
        "import torch",
        "from tinynet.errors import InputError",
        "from tinynet import TinyImageNet",
    ],
)
def test_what_stands_before_may_be_imported(code):
    assert list(wrongs(code, "tinynet.models.vgg", "tinynet.models")) == []
    assert len(list(wrongs(code, "tinynet.files", "tinynet"))) == ("data" in code or "Tiny" in code)


@pytest.mark.parametrize(
    "file",
    [
        "console.py",
        "flags.py",
        "errors.py",
        "files.py",
        "runs.py",
        "training/recipes.py",
        "training/config.py",
    ],
)
def test_what_help_reads_imports_no_torch(file):
    path = ROOT / "tinynet" / file
    found = {
        module.split(".")[0]
        for _, module, later in imports(path.read_text(), package_of(path))
        if not later
    }
    assert not found & {"torch", "torchvision", "matplotlib", "scipy", "tqdm"}


def test_starting_a_command_loads_nothing_slow():
    code = (
        "import importlib, sys\n"
        f"for name in {[*PROGRAMS, 'tinynet.console']}:\n"
        "    importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = ast.literal_eval(done.stdout)
    assert "tinynet" in loaded
    assert not {"torch", "torchvision", "torchinfo", "matplotlib", "scipy", "PIL"} & set(loaded)


def test_pickles_are_never_trusted():
    calls = [
        call
        for folder in ("tinynet", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func)
        in ("torch.load", "load_state_dict_from_url", "weights.get_state_dict")
    ]
    assert len(calls) >= 3
    for call in calls:
        assert "weights_only=True" in map(ast.unparse, call.keywords), ast.unparse(call)
    assert not [path for path in SOURCES if "allow_pickle=True" in path.read_text()]
