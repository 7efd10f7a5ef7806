"""Runs in files that other programs run."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_folders import draw_noise
from support import CPU, ROOT, argv, call, in_floats, refused, succeed

from tinynet import Run, export, predict
from tinynet.evaluation import export as exporting
from tinynet.evaluation.model import RunModel
from tinynet.evaluation.predictor import Predictor
from tinynet.models import export as files
from tinynet.runs import StageFolder

# The exporter of torch 2.6 does not take the head's batch norms.
NEW_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)
KINDS = [kind for kind in files.WRITERS if NEW_TORCH or kind != ".onnx"]
writes_onnx = pytest.mark.skipif(not NEW_TORCH, reason="this torch cannot write it")


@pytest.fixture
def run(finished_run, thin, tmp_path, monkeypatch):
    """A finished run in the present folder."""
    shutil.copytree(finished_run.folder / "runs" / "done", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture(params=KINDS)
def exported(request, run):
    """The run's network in a file of each kind, and what the command printed."""
    ran = succeed(export, run, f"model{request.param}", "--images", "7", "--json")
    return run.parent / f"model{request.param}", json.loads(ran.out)


def test_a_file_computes_the_probabilities_of_the_run(exported, run, packed):
    path, (row,) = exported
    folder = StageFolder(run, "finetune")
    model, (compute, about) = RunModel.load(folder), files.read(path)
    predictor = Predictor(folder, packed, CPU)
    (views,) = predictor.sets(["none"], predictor.size)
    expected = np.exp(predictor.predict("val", views).log_probabilities[0])
    np.testing.assert_allclose(
        compute(in_floats(packed.val.images).numpy()), expected, rtol=1e-3, atol=1e-5
    )
    for shape in ((2, 3, 90, 70), (5, 3, 40, 200)):
        values = compute(np.random.default_rng(0).random(shape, np.float32))
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-4)
    assert about.class_ids == packed.wnids and about.image_size == model.image_size
    assert about.class_names == model.class_names
    assert row["checked"] == row["same"] == 7 and row["difference"] < 1e-5


def test_a_card_tells_what_the_file_is(exported, run):
    card = (run.parent / f"{exported[0].name}.md").read_text()
    assert card.startswith("---\n") and card.endswith("\n") and "{" not in card.split("---")[2]
    scores = StageFolder(run, "finetune").read_scores()
    assert scores and all(f"{score.top1:.2%}" in card for score in scores)
    assert exported[0].name in card and "Licences" in card


@writes_onnx
def test_predict_takes_a_file(run, tmp_path):
    succeed(export, run, "model.onnx", "--images", "3")
    draw_noise(tmp_path / "photo.png", (80, 120), seed=1)
    rows = [
        json.loads(succeed(predict, "photo.png", *flags, "--json").out)
        for flags in (
            ("--model", "model.onnx"),
            ("--run", run, *argv("--device cpu --precision float32")),
        )
    ]
    for row, other in zip(*rows, strict=True):
        assert (row["class"], row["id"]) == (other["class"], other["id"])
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-4)
    refused(predict, ["photo.png", "--model", "model.onnx", "--run", run], "--run")
    refused(predict, ["photo.png", "--model", "model.onnx", "--precision", "bfloat16"], "precision")


@writes_onnx
def test_the_documented_code_needs_neither_tinynet_nor_torch(run, tmp_path):
    succeed(export, run, "model.onnx", "--images", "3")
    draw_noise(tmp_path / "photo.jpg", (64, 64), seed=1)
    page = (ROOT / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    code += "\nimport sys\nassert not {'torch', 'tinynet'} & set(sys.modules)\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    expected = json.loads(succeed(predict, "photo.jpg", "--model", "model.onnx", "--json").out)
    assert [line.split("%  ")[1].split(",")[0] for line in ran.stdout.splitlines()] == [
        row["class"] for row in expected
    ]


def test_a_file_that_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    def other(model, path, about):
        model.network.head[-1].bias.data[0] += 0.01
        right(model, path, about)
        model.network.head[-1].bias.data[0] -= 0.01

    right = files.WRITERS[".safetensors"]
    monkeypatch.setitem(files.WRITERS, ".safetensors", other)
    refused(export, [run, "model.safetensors"], "differ")
    monkeypatch.setattr(exporting, "TOLERANCE", 1.0)
    succeed(export, run, "model.safetensors")


def test_a_network_that_cannot_be_written_takes_one_line(run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operator\nin line 1")

    monkeypatch.setitem(files.WRITERS, ".pt2", fail)
    refused(export, [run, "model.pt2"], "no such operator", "another format")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("run", "model.h5"), ".onnx"),
        (("run", "model"), ".onnx"),
        (("nowhere", "model.onnx"), "nowhere"),
        (("run", "model.onnx", "--images", "0"), "--images"),
    ],
)
def test_mistakes_take_one_line(run, flags, word):
    refused(export, flags, word)


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(export, [run, "model.onnx"], "onnxscript", "tinynet[export]")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.zip"])
def test_other_files_are_no_networks(run, tmp_path, name):
    draw_noise(tmp_path / "photo.png", (64, 64), seed=1)
    (tmp_path / name).write_bytes(b"no network" * 100)
    refused(predict, ["photo.png", "--model", name], name)
    refused(predict, ["photo.png", "--model", f"no-{name}"], f"no-{name}")


def test_the_library_exports(run, packed, tmp_path):
    row = Run(run).export(tmp_path / "library.safetensors", images=5)
    assert row.checked == 5 and (tmp_path / "library.safetensors.md").exists()


def test_ctrl_c_leaves_no_file(run, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "compare", stop)
    before = set(tmp_path.rglob("*"))
    assert call(export, run, "model.safetensors").status == 130
    assert set(tmp_path.rglob("*")) == before
