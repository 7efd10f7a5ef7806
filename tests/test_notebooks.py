"""Notebooks: alike where they should be, short, with outputs on the real data; and each runs on
synthetic images, without downloads.
"""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
sys.path.insert(0, str(ROOT / "notebooks"))
execute = __import__("execute")
pytestmark = pytest.mark.slow

# What the last cells print on synthetic images too: the notebook ran to its end and has results.
ANSWERS = {
    "01_data": r"val: uint8 \(160, 32, 32, 3\), 8 labels\n20 to 20 images per label",
    "02_transfer": r"finetune: \d+\.\d% of val \(\d.*\nfinetune - base, .*: [+-]\d",
    "03_views": r"Ten-crop: [+-]\d",
    "04_resolution": r"of 32, 40, 48 px is at \d+ px.*\n+The best correction on the hold-out",
    "05_errors": r"\d+ of 160 images are wrong",
}
FREE = ("torch", "matplotlib", "matplotlib_inline")  # packages that every notebook may import
MOST_IMPORTS, MOST_WORDS = 4, 850


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them run, as a reader's would: what one has trained the next finds again."""
    return tmp_path_factory.mktemp("notebooks")


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tree(cell):
    """The syntax tree of a code cell, whose magics are calls."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def printed(notebook):
    return [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    ]


def test_the_five_are_there():
    assert [path.stem for path in PATHS] == list(ANSWERS)


@NOTEBOOKS
def test_it_asks_answers_and_goes_on(path):
    words = [cell.source for cell in cells(path, "markdown")]
    assert re.match(r"# .+\?\n", words[0])
    assert any(text.startswith("## The answer") for text in words)
    assert "## Try this" in words[-1]


def test_the_address_stands_in_one_place():
    """pyproject's project.urls says where the repository is; badges and first cells say the
    same.
    """
    tomllib = pytest.importorskip("tomllib")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    place = address.removeprefix("https://github.com/")
    for path in PATHS:
        badge = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name}"
        assert badge in cells(path, "markdown")[0].source
        assert f'"tinynet @ git+{address}"' in cells(path)[0].source
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff"):
        assert place not in (ROOT / name).read_text(encoding="utf-8")


def test_all_begin_alike():
    """One cell that installs and names the device, one of settings in capitals, which begin
    alike.
    """
    assert len({cells(path)[0].source for path in PATHS}) == 1
    settings = [cells(path)[1].source for path in PATHS]
    shortest = min(settings, key=len)
    assert all(text.startswith(shortest) for text in settings)
    assert "QUICK = not torch.cuda.is_available()\n" in shortest
    for text in settings:
        names = [
            node.targets[0].id for node in ast.parse(text).body if isinstance(node, ast.Assign)
        ]
        assert names and all(name.isupper() for name in names)


@NOTEBOOKS
def test_it_defines_nothing(path):
    """What trains, evaluates or draws is in the library; a notebook only calls it."""
    for cell in cells(path):
        for node in ast.walk(tree(cell)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), cell.source
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("backward", "zero_grad", "optim"), cell.source


@NOTEBOOKS
def test_it_is_short(path):
    """Few imports, because the library does the work, and few words."""
    names = [
        alias.name
        for cell in cells(path)
        for node in ast.walk(tree(cell))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and (getattr(node, "module", None) or node.names[0].name).split(".")[0] not in FREE
        for alias in node.names
    ]
    assert len(set(names)) <= MOST_IMPORTS, names
    assert sum(len(cell.source.split()) for cell in cells(path, "markdown")) <= MOST_WORDS


@NOTEBOOKS
def test_outputs_are_of_the_real_data(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < execute.MOST
    assert not re.search(r"/(root|home|tmp|Users|content|work)/(?!drive)", text), (
        "a path of the machine that ran it"
    )
    notebook = nbformat.read(path, as_version=4)
    texts = printed(notebook) + [
        output.data.get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "execute_result"
    ]
    assert any("10,000" in line for line in texts), "not of the real data"
    assert any(
        "image/jpeg" in output.get("data", {}) for cell in cells(path) for output in cell.outputs
    )
    assert not any(output.output_type == "error" for cell in cells(path) for output in cell.outputs)


@NOTEBOOKS
def test_it_runs(path, folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # quick mode
    monkeypatch.setenv("TINYNET_PROGRESS", "0")
    found = execute.execute(path, {}, folder, timeout=600)
    text = "".join(printed(found))
    assert re.search(ANSWERS[path.stem], text), text
    assert any(
        "image/jpeg" in output.get("data", {})
        for cell in found.cells
        for output in cell.get("outputs", [])
    )
    assert [cell.source for cell in found.cells] == [
        cell.source for cell in nbformat.read(path, as_version=4).cells
    ]


def test_settings_are_changed_for_a_run_alone(tmp_path, monkeypatch):
    """`--set` runs with other values; the notebook keeps its own source, and grows no larger than
    allowed.
    """
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('N = 1   # a number\nprint("N is", N)'),
            nbformat.v4.new_code_cell('from pathlib import Path\nprint(Path("b").resolve())'),
        ]
    )
    nbformat.write(made, tmp_path / "a.ipynb")
    monkeypatch.setattr(execute, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["execute.py", "--set", "N=2"])
    execute.main()
    kept, place = cells(tmp_path / "a.ipynb")
    assert place.outputs[0].text == "b\n"  # without the folder of this machine
    assert kept.source.startswith("N = 1   # a number") and kept.outputs[0].text == "N is 2\n"
    before = (tmp_path / "a.ipynb").read_bytes()
    for words in (["--set", "M=2"], ["--set", "N"], ["b"]):
        monkeypatch.setattr(sys, "argv", ["execute.py", *words])
        with pytest.raises(SystemExit) as ended:
            execute.main()
        assert ended.value.code not in (0, None)
    monkeypatch.setattr(sys, "argv", ["execute.py", "--set", "N=3"])
    monkeypatch.setattr(execute, "MOST", 10)
    with pytest.raises(SystemExit, match="a.ipynb: .* 10 at most are kept"):
        execute.main()
    assert (tmp_path / "a.ipynb").read_bytes() == before
