"""Every `InputError` names a value or a flag, and says after a semicolon what to do."""

import ast
import re

import pytest
from support import ROOT

MODULES = sorted((ROOT / "tinynet").rglob("*.py"))

# Messages without a way out in their own text, with {} for a formatted value.
EXCEPTIONS = {
    # The callers know what to do with an unreadable image: replace it, or leave it out.
    ("data/decode.py", "{}: is not an image{}"),
    ("data/decode.py", "{}: {}"),
    ("data/decode.py", "{}: out of memory while decoding"),
    ("data/decode.py", "{}: cannot be read as an image ({})"),
    # They put the name of a file, or a rank, before a message that has a way out.
    ("distributed.py", "rank {}: {}"),
    ("data/labels.py", "{}: {}"),
    ("models/checkpoint.py", "{}: {}"),
    ("training/config.py", "{}: {}"),
    ("training/recipes.py", "{}: {}"),
}


def texts(node):
    """The texts that an expression can have, with {} for each formatted value."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left) for right in texts(node.right)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    return ["{}"]


def messages(source):
    """The texts of all `InputError(...)`, and of the `label_error(...)` of `data.labels`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name == "InputError":
                yield from texts(node.args[0])
            elif name == "label_error":
                yield from (f"labels {{}}: {text}" for text in texts(node.args[0]))


def faults(text):
    """What a message lacks."""
    if not text.partition(";")[2].strip():
        yield "a way out after a semicolon"
    if not re.search(r"\{\}|--\w|'[^']+'|\"[^\"]+\"|`[^`]+`", text):
        yield "a value, a flag, or a name in quotes"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_have_a_value_and_a_way_out(path):
    name = path.relative_to(ROOT / "tinynet").as_posix()
    wrong = {
        text: list(faults(text))
        for text in messages(path.read_text(encoding="utf-8"))
        if (name, text) not in EXCEPTIONS and any(faults(text))
    }
    assert not wrong


def test_exceptions_are_in_use():
    """Each exception is the text of a message, and is needed."""
    for name, text in EXCEPTIONS:
        assert text in messages((ROOT / "tinynet" / name).read_text(encoding="utf-8"))
        assert any(faults(text))


def test_what_is_a_fault():
    source = """
raise InputError(f"{path}: is broken" + ("" if deep else "; fetch it again"))
raise errors.InputError("no images; name another folder")
"""
    assert [list(map(str, faults(text))) for text in messages(source)] == [
        ["a way out after a semicolon"],
        [],
        ["a value, a flag, or a name in quotes"],
    ]
