"""Runs that the CPU trained, and the kinds of arithmetic: float16 as a GPU of capability
7.5 has it, bfloat16 as one of 8.0, and float32.
"""

import shutil
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_runs import BASE, CAPABILITIES, draw, fast_runs, flags_of, gpu_of, rows_of, trained
from support import ON_CPU, argv

from tinynet import train


@pytest.fixture(scope="module", params=CAPABILITIES)
def arithmetic(request):
    return request.param


@pytest.fixture(scope="session")
def place(archive_path, tmp_path_factory):
    """A folder with the data, two runs that the CPU trained (`cpu` in both stages, `other` in its
    first), and images: `photo.png`, and class folders in `tree`. Runs have no dropout, since chance
    differs between devices.
    """
    folder = tmp_path_factory.mktemp("gpu")
    data = ("--data", archive_path, "--cache", folder / "cache")
    with fast_runs() as patch:
        patch.chdir(folder)
        trained("cpu", data, *ON_CPU)
        rows_of(
            train,
            *argv("--stage base --out other --seed 1"),
            *BASE,
            "--dropout",
            "0",
            *data,
            *ON_CPU,
        )
        draw("photo.png", (120, 90))
        for number, wnid in enumerate(("n01440764", "n02123045")):
            for side in (70, 64, 90):
                draw(f"tree/{wnid}/{wnid}_{side}.png", (side, 64 + number))
    return SimpleNamespace(folder=folder, data=data, archive=archive_path)


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    return place


@pytest.fixture(scope="session")
def gpu_runs(place):
    """Runs that a GPU trained, called like their arithmetic, and the dtypes of their convolutions.

    Their scaler begins low, so that it passes no step over.
    """

    @cache
    def train_on_gpu(arithmetic):
        with fast_runs() as patch, gpu_of(arithmetic) as gpu:
            patch.chdir(place.folder)
            patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**8))
            trained(arithmetic, place.data, *flags_of(arithmetic))
        return SimpleNamespace(name=arithmetic, dtypes=set(gpu.convolutions))

    return train_on_gpu


@pytest.fixture
def gpu_run(gpu_runs, arithmetic):
    return gpu_runs(arithmetic)


@pytest.fixture(scope="session")
def on_cpu(place):
    """What a command says on the CPU, of the runs that the CPU trained; asked once for all kinds of
    arithmetic.
    """
    rows = {}

    def ask(command, *flags):
        if (command, flags) not in rows:
            rows[command, flags] = rows_of(command, *flags, *ON_CPU)
        return rows[command, flags]

    return ask


@pytest.fixture
def copies(there, arithmetic):
    """The runs of the CPU for a GPU to score: `<arithmetic>-cpu` and `<arithmetic>-other`."""
    for name in ("cpu", "other"):
        if not Path(f"{arithmetic}-{name}").exists():
            shutil.copytree(
                name,
                f"{arithmetic}-{name}",
                ignore=shutil.ignore_patterns("probabilities", "sizes"),
            )
    return lambda name: f"{arithmetic}-{name}"


@pytest.fixture
def small_gpu_runs():
    with fast_runs():
        yield
