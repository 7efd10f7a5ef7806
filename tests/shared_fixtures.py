"""Fixtures of several test files: one small drawn archive, and runs that are trained once a
session.
"""

import json
import os
import shutil
import zipfile
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from image_folders import TREE_CLASSES, CellMeans, draw_noise
from page_reader import PageReader
from small_runs import CROPPED, LATER_FLAGS, interrupt_at, run_config
from support import CPU, ON_CPU, SMALL, argv, call, succeed, thin_network

from tinynet import console, evaluate, fixres, train
from tinynet.data.copies import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import Archive
from tinynet.evaluation import folder as folder_scores
from tinynet.evaluation import predict as file_predictions
from tinynet.evaluation import zero_shot
from tinynet.models.classifier import Classifier, pooled_features
from tinynet.models.pretrained import Pretrained, WeightsInfo
from tinynet.models.vgg import VGG16
from tinynet.report import __main__ as report
from tinynet.runs import WHOLE
from tinynet.training import extraction, stages


def pytest_configure():
    """One thread a process: the images are small, and the processes share the cores."""
    settings.register_profile("tinynet", deadline=None)  # machines are busy
    settings.load_profile("tinynet")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def no_command():
    """Messages of the next test are those of the library: no command runs."""
    yield
    console.set_flags(None)
    console.set_program("")
    console.set_quiet(False)


@pytest.fixture(scope="session")
def archive_path(tmp_path_factory):
    """A zip in the official layout: 6 classes with 12 train, 4 val and 3 test images each,
    64x64.
    """
    return synthetic(
        tmp_path_factory.mktemp("data") / "drawn.zip", classes=6, train=12, val=4, test=3
    )


@pytest.fixture(scope="session")
def archive(archive_path):
    return Archive(archive_path)


@pytest.fixture(scope="session")
def packed(archive_path):
    return open_packed(archive_path)


@pytest.fixture
def folder(archive_path, tmp_path):
    """The extracted archive, to be changed at will."""
    with zipfile.ZipFile(archive_path) as source:
        source.extractall(tmp_path)
    return tmp_path / "tiny-imagenet-200"


@pytest.fixture
def contents(archive_path):
    """File name -> bytes of everything in the archive, as zipfile sees it."""
    with zipfile.ZipFile(archive_path) as source:
        return {
            name.removeprefix("tiny-imagenet-200/"): source.read(name) for name in source.namelist()
        }


# --- runs of the command, trained once a session ---


@pytest.fixture
def thin():
    """VGG16 is thin, for the time of a test; a MonkeyPatch for more."""
    with thin_network() as patch:
        yield patch


@pytest.fixture(scope="session")
def finished_run(archive_path, tmp_path_factory):
    """A folder with a finished run of both stages, runs/done, and what its training printed."""
    folder = tmp_path_factory.mktemp("finished")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with thin_network(curves=True) as patch:
        patch.chdir(folder)
        # test_whole_run.py has a run with fixres.
        patch.setattr("tinynet.train.whole_run", lambda recipe: WHOLE)
        ran = call(train, *argv("--stage all --out runs/done --json"), *SMALL, *flags)
    return SimpleNamespace(folder=folder, ran=ran, flags=flags)


@pytest.fixture
def run_folder(finished_run, monkeypatch):
    """Stand in the folder of the finished run; what a test adds there is removed again."""
    monkeypatch.chdir(finished_run.folder)
    before = set(finished_run.folder.rglob("*"))
    scores = {path: path.read_bytes() for path in finished_run.folder.rglob("scores.jsonl")}
    yield finished_run
    for path in sorted(set(finished_run.folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, content in scores.items():
        path.write_bytes(content)


@pytest.fixture
def empty_folder(finished_run, tmp_path, monkeypatch):
    """Stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return finished_run


@pytest.fixture(scope="session")
def scored_runs(archive_path, tmp_path_factory):
    """A folder with two finished, evaluated runs, runs/one and runs/two."""
    folder = tmp_path_factory.mktemp("scored")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with thin_network() as patch:
        patch.chdir(folder)
        for name, seed in (("one", 0), ("two", 1)):
            run = argv(f"--stage base --out runs/{name} --seed {seed}")
            succeed(train, *run, *SMALL, "--epochs", "2", *flags)
            succeed(evaluate, *argv(f"--run runs/{name} --tta flip"), *ON_CPU, *flags)
    return SimpleNamespace(folder=folder, flags=flags)


@pytest.fixture
def scored_folder(scored_runs, monkeypatch):
    monkeypatch.chdir(scored_runs.folder)
    return scored_runs


@pytest.fixture
def no_figures(monkeypatch):
    """Pages have no files of figures beside them: drawing them again takes longer than the page."""
    monkeypatch.setattr("tinynet.report.page.save_figure", lambda figure, path: None)


@pytest.fixture(scope="session")
def page(scored_runs):
    """The report of runs/one."""
    with thin_network() as patch:
        patch.chdir(scored_runs.folder)
        path = succeed(report, "runs/one", *scored_runs.flags).out.strip()
    return PageReader(scored_runs.folder / path)


@pytest.fixture(scope="session")
def sized_runs(archive_path, tmp_path_factory):
    """A folder with a finished run of both stages at 32 px, runs/done, an evaluated base of its
    own, runs/base, and a base at 64 px, runs/other.
    """
    folder = tmp_path_factory.mktemp("sized")
    flags = ["--data", archive_path, "--cache", folder / "cache"]
    with thin_network() as patch:
        patch.chdir(folder)
        patch.setattr("tinynet.train.whole_run", lambda recipe: WHOLE)
        succeed(train, *argv("--stage all --out runs/done"), *CROPPED, *flags)
        succeed(train, *argv("--stage base --out runs/base"), *CROPPED, *flags)
        views = argv("--tta flip scales:32,64 --split val")
        succeed(evaluate, "--run", "runs/base", *views, *ON_CPU, *flags)
        succeed(train, *argv("--stage base --out runs/other"), *CROPPED, "--size", "64", *flags)
    packed = open_packed(archive_path, folder / "cache")
    return SimpleNamespace(folder=folder, flags=flags, packed=packed)


@pytest.fixture
def sized_folder(sized_runs, monkeypatch):
    monkeypatch.chdir(sized_runs.folder)
    return sized_runs


@pytest.fixture(scope="session")
def size_study(sized_runs):
    """The rows, the messages and the folder of a study of test sizes."""
    study = argv(
        "--run runs/base --beside runs/other --sizes 48 64 --fit 48 --methods antialias nearest"
        " --out story --keep kept --json"
    )
    with thin_network() as patch:
        patch.chdir(sized_runs.folder)
        ran = succeed(fixres, *study, *ON_CPU, *sized_runs.flags)
    return SimpleNamespace(rows=json.loads(ran.out), err=ran.err, out=sized_runs.folder / "story")


@pytest.fixture(scope="session")
def stopped_runs(archive_path, tmp_path_factory):
    """A folder with weights, a finished base, a finetune on it that goes elsewhere, and one that
    was stopped.
    """
    root = tmp_path_factory.mktemp("stopped")
    with thin_network() as patch:
        patch.chdir(root)
        shutil.copy(archive_path, "drawn.zip")
        features = VGG16().features.state_dict()
        torch.save({f"features.{name}": tensor for name, tensor in features.items()}, "vgg.pth")
        flags = [*SMALL, "--weights", "vgg.pth", "--epochs", "2"]
        base = ("--stage", "base", "--data", "drawn.zip", *flags)
        finetune = ("--stage", "finetune", "--run", "base", *LATER_FLAGS)
        succeed(train, *base, "--out", "base")
        succeed(train, *finetune, "--out", "whole")
        interrupt_at(patch, 2)
        assert call(train, *finetune, "--out", "stopped").status == 130
        interrupt_at(patch, 3)
        assert call(train, *base, "--out", "stopped-base").status == 130
    return root


@pytest.fixture
def runs_copy(stopped_runs, tmp_path, monkeypatch):
    """A copy of these runs, to be changed at will."""
    copy = tmp_path / "here"
    shutil.copytree(stopped_runs, copy)
    for recipe in copy.rglob("recipe.json"):
        recipe.write_text(recipe.read_text().replace(str(stopped_runs), str(copy)))
    monkeypatch.chdir(copy)
    open_packed("drawn.zip")  # its cache records where it is now
    with thin_network():
        yield copy


# --- small trainings in Python ---


@pytest.fixture(scope="session")
def cache_folder(archive_path, tmp_path_factory):
    """A folder with the packed copy of the archive, and features of what is trained there."""
    folder = tmp_path_factory.mktemp("cache")
    open_packed(archive_path, str(folder))
    return folder


@pytest.fixture(scope="session")
def whole_run(archive_path, cache_folder, tmp_path_factory):
    """A run of both stages that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with thin_network():
        rows = stages.train(run, run_config(archive_path, cache_folder), CPU)
    assert [row.stage for row in rows] == ["base", "finetune"]
    return run


@pytest.fixture
def extracted_batches(monkeypatch):
    """Counts the batches whose features are extracted; `limit` interrupts before a batch."""
    counted = SimpleNamespace(calls=0, limit=None, error=KeyboardInterrupt)

    def extract_and_count(*arguments):
        if counted.calls == counted.limit:
            raise counted.error
        counted.calls += 1
        return pooled_features(*arguments)

    monkeypatch.setattr(extraction, "pooled_features", extract_and_count)
    return counted


@pytest.fixture
def small_network(thin):
    torch.manual_seed(0)
    return Classifier(VGG16(), ["pool5:grid2", "relu4_3:mean"], (16,), 5, 0.5, True)


# --- networks and images of ImageNet's classes ---


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Class folders with images of several shapes and formats, and files that are no images."""
    root = tmp_path_factory.mktemp("tree")
    sides = [(90, 70), (64, 64), (70, 120), (200, 65), (90, 70)]
    for number, wnid in enumerate(TREE_CLASSES):
        for k, side in enumerate(sides):
            path = root / wnid / f"{wnid}_{k}{('.JPEG', '.png')[k % 2]}"
            draw_noise(path, side, seed=10 * number + k)
    (root / TREE_CLASSES[0] / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    return root


@pytest.fixture
def cell_means(monkeypatch):
    """`--arch` names a CellMeans, for 56 pixels out of 64."""

    def load(arch, weights, classes=None):
        published = WeightsInfo(
            tuple(f"name {i}" for i in range(1000)), 64, 56, "bilinear", (0.25, 0.5)
        )
        return Pretrained(CellMeans(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), classes).eval(), published

    for module in (folder_scores, file_predictions, zero_shot):
        monkeypatch.setattr(module, "load_pretrained", load)
