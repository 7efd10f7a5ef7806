"""Run notebooks and keep their outputs in them, with other settings than a reader's where they are
given.

    python notebooks/execute.py  all of them, as a reader would
    python notebooks/execute.py 03_views --set QUICK=False DATA=data/tiny-imagenet-200.zip

Runs and data are found and made in the folder that it is started in. A setting is one of the names
in CAPITALS; the notebook keeps its own. Errors and progress bars are not kept, and neither is a
notebook that would grow too large.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tinynet.files import write_text

HERE = Path(__file__).parent
MOST = 300_000  # bytes of a notebook with its outputs


def with_settings(source: str, settings: dict[str, str]) -> str:
    """The source of a cell, whose lines `NAME = ...` have the given values."""
    for name, value in settings.items():
        source = re.sub(
            rf"^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v}", source, flags=re.M
        )
    return source


def execute(
    path: Path, settings: dict[str, str], folder: Path, timeout: int | None = None
) -> nbformat.NotebookNode:
    """The notebook at `path` with the outputs of a run in `folder`; `timeout`: seconds that a cell
    may take.
    """
    notebook = nbformat.read(path, as_version=4)
    written = [cell.source for cell in notebook.cells]
    for name in settings:
        if not any(re.search(rf"^{name} = ", source, re.M) for source in written):
            sys.exit(f"{path.name}: has no setting {name}")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = with_settings(cell.source, settings)
    NotebookClient(
        notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell, source in zip(notebook.cells, written, strict=True):
        cell.source = source
        cell.metadata.pop("execution", None)  # times of day
        for output in cell.get("outputs", []):
            if output.output_type == "stream":  # paths of this machine
                output.text = output.text.replace(f"{folder.resolve()}{os.sep}", "")
    return notebook


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as 03_views (default: all)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", dest="settings", help="a Python value"
    )
    asked = parser.parse_args()
    there = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    if unknown := sorted(set(asked.names) - set(there)):
        parser.error(f"no notebook called {', '.join(unknown)}; there are {', '.join(there)}")
    if wrong := [setting for setting in asked.settings if "=" not in setting]:
        parser.error(f"--set {wrong[0]}: a setting is NAME=VALUE")
    settings = dict(setting.split("=", 1) for setting in asked.settings)
    os.environ["TINYNET_PROGRESS"] = "0"
    for path in (there[name] for name in asked.names or there):
        started = time.monotonic()
        try:
            text = nbformat.writes(execute(path, settings, Path.cwd()))
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        if len(text.encode()) > MOST:
            sys.exit(
                f"{path.name}: {len(text.encode()):,} bytes with its outputs; {MOST:,} at most are "
                "kept"
            )
        write_text(path, text + "\n")
        print(
            f"{path.name}: {time.monotonic() - started:.0f} s, {len(text.encode()) / 1000:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main()
