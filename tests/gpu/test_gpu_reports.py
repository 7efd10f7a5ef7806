"""Reports, TensorBoard and notebooks beside a simulated GPU."""

import contextlib
import importlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from gpu_runs import BASE, FINETUNE, flags_of, gpu_of, log_of, rows_of, simulated_gpu_only
from IPython.core.inputtransformer2 import TransformerManager
from pretend_gpu import pretend_gpu
from support import ROOT

from tinynet import evaluate, runs, train
from tinynet.report import __main__ as report
from tinynet.training import recipes

pytestmark = [
    simulated_gpu_only,
    pytest.mark.usefixtures("small_gpu_runs"),
    pytest.mark.filterwarnings("ignore:.*not writable"),
]


@pytest.mark.parametrize("arithmetic", ["float16"], indirect=True)
def test_a_page_is_made_beside_a_gpu(there, gpu_run, arithmetic, monkeypatch):
    """Of a run that a GPU trained and scored; the page is the one that a machine without a GPU
    makes.
    """
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # the date in drawings

    def page(out):
        (row,) = rows_of(report, gpu_run.name, "--out", out, *there.data)
        return Path(row["path"]).read_text(encoding="utf-8")

    with gpu_of(arithmetic):
        rows_of(evaluate, "--run", gpu_run.name, "--tta", "flip", *flags_of(arithmetic))
        ours = page("pages")
    assert (
        ours.count("data:image/jpeg") > 20 and "No heat maps" not in ours and "Pretend GPU" in ours
    )
    assert ours == page("pages-of-the-cpu")


@pytest.mark.parametrize("stage", runs.WHOLE)
def test_tensorboard_shows_what_the_log_says(there, arithmetic, stage):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = f"{arithmetic}-board-{stage}"
    begin = (
        ("--stage", "base", *BASE, *there.data) if stage == "base" else ("--run", "cpu", *FINETUNE)
    )
    with gpu_of(arithmetic):
        rows_of(train, "--out", run, *begin, "--tensorboard", *flags_of(arithmetic))
    events = accumulator.EventAccumulator(str(Path(run, stage, "tensorboard"))).Reload()
    assert [event.value for event in events.Scalars("train/loss of a step")] == pytest.approx(
        [row["loss"] for row in log_of(run, stage)]
    )
    assert len(events.Images("hold-out/confusion")) == len(log_of(run, stage, "epoch"))
    assert len(events.Images("training images")) == 1


class Magics:
    """`get_ipython()` of a notebook whose one magic is `%run -m MODULE -- ARGUMENTS`."""

    def __init__(self, names):
        self.names = names

    def run_line_magic(self, name, line):
        _, module, _, *arguments = line.format(**self.names).split()
        assert name == "run"
        importlib.import_module(f"{module}.__main__").main(arguments)


def run_cells(path):
    """What the cells of a notebook print, in quick mode, which a GPU would turn off, and with fewer
    draws.
    """
    output, names = io.StringIO(), {"__name__": "__notebook__"}
    names["get_ipython"] = lambda: Magics(names)
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source = re.sub(r"^QUICK = .*$", "QUICK = True", "".join(cell["source"]), flags=re.M)
            source = TransformerManager().transform_cell(source.replace("20_000", "200"))
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
    return output.getvalue()


@pytest.mark.slow
def test_notebooks_run(there, tmp_path, monkeypatch):
    """All five, one after the other, in one process and one folder, with a shorter training on
    fewer images.
    """
    backend = pytest.importorskip("matplotlib_inline.backend_inline")
    # there is no notebook to show them
    monkeypatch.setattr(backend, "set_matplotlib_formats", lambda *_, **__: None)
    monkeypatch.setattr(recipes, "DEMO", recipes.DEMO.override(dict(epochs=2), runs.WHOLE))
    monkeypatch.chdir(tmp_path)
    with pretend_gpu((7, 5)) as gpu:
        outputs = {path.stem: run_cells(path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    for name, answer in {
        "01_data": r"20 to 20 images per label",
        "02_transfer": r"finetune: .*\nfinetune - base, .*: [+-]\d",
        "03_views": r"Ten-crop: [+-]\d",
        "04_resolution": r"hold-out accuracy .* is at \d+ px.*\n+The best correction",
        "05_errors": r"\d+ of 160 images are wrong",
    }.items():
        assert re.search(answer, outputs[name]), outputs[name]
    assert gpu.convolutions[torch.float16] > 100 and not gpu.convolutions[torch.bfloat16]
