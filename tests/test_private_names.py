"""Tests reach for public names of tinynet alone: what is private may change without a test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

# All but this file, and the faults that are planted into the source, which quote it.
TESTS = sorted(
    {*(ROOT / "tests").rglob("*.py")} - {ROOT / "tests" / "planted_faults.py", Path(__file__)}
)
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
# In a string: all of it, behind a dot, or imported.
QUOTED = re.compile(rf"(?:(?<=\.)|(?<=import )){PRIVATE.pattern}|^{PRIVATE.pattern}$")
# Names that others chose.
PROTOCOLS = {"_repr_html_", "_type"}  # of notebooks; of data sets on the Hugging Face Hub


def names_bound(tree):
    """Names of functions, classes, variables, attributes and fields that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@cache
def private_names():
    """The private names that tinynet and its benchmarks bind."""
    return {
        name
        for package in ("tinynet", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        for name in names_bound(ast.parse(path.read_text(encoding="utf-8")))
        if PRIVATE.fullmatch(name)
    } - PROTOCOLS


def private_uses(code, private):
    """(line, name) of every private name that `code` reads from another module: as an attribute, in
    an import, or in a string, as `monkeypatch` and `python -c` take it.
    """
    tree = ast.parse(code)
    private = private - set(names_bound(tree))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = QUOTED.findall(node.value)
        yield from ((node.lineno, name) for name in names if name in private)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_name_is_used(path):
    assert list(private_uses(path.read_text(encoding="utf-8"), private_names())) == []


@pytest.mark.parametrize(
    "code",
    [
        "from tinynet.files import _sync",
        "files._sync(path)",
        "monkeypatch.setattr(files, '_sync', None)",
        "monkeypatch.setattr('tinynet.files._sync', None)",
        "code = 'from tinynet.files import _sync'",
    ],
)
def test_every_way_to_a_private_name_is_found(code):
    assert [name for _, name in private_uses(code, {"_sync"})] == ["_sync"]


@pytest.mark.parametrize(
    "code",
    ["files.sync(path)", "parser._actions", "'a_sync'", "'a _sync.txt'", "self._sync = self._sync"],
)
def test_public_names_and_a_tests_own_are_free(code):
    assert list(private_uses(code, {"_sync"})) == []
