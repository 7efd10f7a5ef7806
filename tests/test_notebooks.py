"""Every notebook runs from top to bottom on drawn pictures, without network or weights."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # quick mode
    monkeypatch.setenv("TINYNET_PROGRESS", "0")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    results = [output.text for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    assert "finetune  val      flip" in results[-1], results[-1]
