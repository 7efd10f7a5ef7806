"""Run every command on a simulated GPU and compare with the CPU.

Kinds of arithmetic: float16 as a GPU of capability 7.5 has it, bfloat16 as one of 8.0, and float32.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu
from support import ROOT, SMALL, call, thin_network

from tinynet import demo, evaluate, fixres, predict, runs, train
from tinynet import folder as folder_command
from tinynet import select_views as select_views_command
from tinynet import soup as soup_command
from tinynet import zero_shot as zero_shot_command
from tinynet.compute import choose_compute
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.packed import Packed, open_packed
from tinynet.evaluation import predictor as predictor
from tinynet.evaluation import zero_shot
from tinynet.models.classifier import Classifier
from tinynet.models.weights import load_backbone
from tinynet.runs import StageFolder
from tinynet.score.gradcam import gradcam
from tinynet.score.merges import MERGES
from tinynet.score.probabilities import Probabilities
from tinynet.score.tta import TestTimeAugmentation
from tinynet.training import loop, stages
from tinynet.training.config import RunConfig
from tinynet.training.features import FeatureCache
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training, fit
from tinynet.training.recipes import RECIPES, TUNED

report = importlib.import_module("tinynet.report.__main__")
pytestmark = pytest.mark.filterwarnings("ignore:.*not writable")

CAPABILITIES = {"float16": (7, 5), "bfloat16": (8, 0), "float32": (7, 5)}
DTYPES = {
    "float16": {torch.float16},
    "float32": {torch.float32},
    # what does not learn may have more digits there
    "bfloat16": {torch.bfloat16, torch.float16},
}
# How far from the CPU's float32: probabilities and mean losses of the same weights, and losses of
# training, relative. With few channels the head's standardised features make more of a rounding
# than those of a whole network.
APART = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.1}
LOSSES_APART = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.03}
ON_CPU = ("--device", "cpu", "--precision", "float32")
BASE = [flag for flag in SMALL if flag not in ON_CPU]
FINETUNE = ("--stage", "finetune", "--epochs", "1", "--batch", "16", "--size", "32")
VIEWS = (
    "flip",
    "five",
    "ten",
    "shift",
    "rotate",
    "zoom",
    "scales:32,48",
    "resize:48",
    "dense:64",
    "flip+scales:32,48",
    "resize:40+flip+rotate:10",
)
MERGED = ("mean", "gmean", "max", "vote", "sharpen")
SMALL_NETWORK = ("--arch", "shufflenet_v2_x0_5", "--weights", "none")
NOT_COMPARED = ("run", "precision", "pictures_per_second", "seconds", "path")


@pytest.fixture(scope="module", autouse=True)
def thin():
    """Thin networks, and a short `fixres` without dropout: chance differs between devices."""
    small = replace(TUNED, fixres=replace(TUNED.fixres, epochs=1, batch=16, dropout=0.0))
    with thin_network() as patch:
        patch.setitem(RECIPES, "tuned", small)
        for module in ("report.curves", "resolution.fixres", "report.page"):
            # the slowest part by far
            patch.setattr(f"tinynet.{module}.save_figure", lambda figure, path: None)
        yield


@pytest.fixture(scope="module", params=CAPABILITIES)
def arithmetic(request):
    return request.param


@contextmanager
def gpu_of(arithmetic, **how):
    with pretend_gpu(CAPABILITIES[arithmetic], **how) as gpu:
        yield gpu


def flags_of(arithmetic):
    """The others are what such a GPU has by itself."""
    return ("--precision", "float32") if arithmetic == "float32" else ()


def device_of(arithmetic):
    return choose_compute(precision="float32" if arithmetic == "float32" else "auto")


def rows_of(command, *flags):
    """The rows that a command prints."""
    ran = call(command, *flags, "--json")
    assert ran.status == 0, "\n".join(reversed(ran.err.splitlines()))  # the last line says why
    return json.loads(ran.out)


# --- steps of training ---


def classifier(dropout=0.0):
    """A network with random weights, for six classes."""
    return Classifier(
        load_backbone("none"), TUNED.network.features, (16,), 6, dropout, standardise=True
    )


def training(stage, device, dropout=0.5):
    torch.manual_seed(0)
    model = classifier(dropout)
    model.to(device.device, memory_format=torch.channels_last).train_only(stage.trainable)
    module = model.head if stage.cached_epochs else model
    return Training(
        module.train(), {name: model.groups[name] for name in stage.trainable}, stage, 6, device
    )


def stream_of(packed, stage, device):
    """What a stage learns from: kept features, or images that are cropped, mirrored and
    recoloured.
    """
    rows = np.arange(40)
    if stage.cached_epochs:
        features = FeatureCache(classifier(), packed, device).train_features(rows, stage, seed=0)
        return lambda epoch, start: features.epoch(0, epoch, stage.batch, device.device, start)
    images = TrainingImages(packed.train, rows, stage, seed=0)
    return lambda epoch, start: (
        (batch.images, batch.labels) for batch in images.epoch(epoch, device.device, start)
    )


STAGES = {
    "base": replace(TUNED.base, epochs=1, batch=7, size=32, max_grad_norm=0.5, ema=0.9),
    "finetune": replace(
        TUNED.finetune, epochs=1, batch=7, size=32, saturation=(0.5, 2.0), hue=0.05, ema=0.9
    ),
}
each_stage = pytest.mark.parametrize("name", STAGES)


@each_stage
@pytest.mark.parametrize("free", [14 * 2**30, 1000], ids=["sent once", "sent step by step"])
def test_training_loop_never_synchronizes(packed, arithmetic, name, free, monkeypatch):
    """Only where losses are read, which it does once a second and at the end."""
    monkeypatch.setattr(loop, "_FLUSH_AFTER", 1e9)
    waits = []
    with gpu_of(arithmetic, free=free) as gpu:
        device, stage = device_of(arithmetic), STAGES[name]
        stream = stream_of(Packed(packed.folder), stage, device)
        learner = training(stage, device)
        next(iter(stream(0, 0)))  # what is sent once is sent
        gpu.waits.clear()
        rows = list(
            fit(
                learner, stream, lambda module: {"top1": 0.0}, lambda: waits.append(dict(gpu.waits))
            )
        )
    assert waits[:6] == [{}] * 6 and len(waits) == 7
    assert [row["kind"] for row in rows] == ["step"] * 6 + ["epoch"]


def same(one, other):
    """Two states, down to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.cpu(), other.cpu())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@each_stage
def test_resume_is_bit_identical(packed, arithmetic, name):
    """Weights, average, optimizer, scaler, and the chance of dropout, from a file that is read on
    the CPU.
    """
    with gpu_of(arithmetic):
        device, stage = device_of(arithmetic), STAGES[name]
        stream = stream_of(packed, stage, device)
        whole, first, again = (training(stage, device) for _ in range(3))
        torch.manual_seed(0)
        losses = [whole.train_batch(*batch).item() for batch in stream(0, 0)]
        torch.manual_seed(0)
        for _, batch in zip(range(3), stream(0, 0), strict=False):
            first.train_batch(*batch)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        torch.manual_seed(1)
        again.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        assert [again.train_batch(*batch).item() for batch in stream(0, 3)] == losses[3:]
        states = whole.state_dict(), again.state_dict()
        assert bool(states[0]["scaler"]) == (arithmetic == "float16")
        for key, value in states[0].items():
            assert same(value, states[1][key]), key


def test_gradients_are_clipped_in_their_own_scale(packed, arithmetic):
    """Adam does not see the scale of gradients, but its first moments after one step are a tenth of
    them.
    """
    stage, norms = replace(STAGES["finetune"], max_grad_norm=0.05), {}
    for where in ("gpu", "cpu"):
        with gpu_of(arithmetic):
            compute = device_of(arithmetic) if where == "gpu" else choose_compute("cpu", "float32")
            learner = training(stage, compute, dropout=0.0)
            learner.scaler = torch.amp.GradScaler(
                compute.device.type, init_scale=2.0**8, enabled=learner.scaler.is_enabled()
            )
            learner.train_batch(*next(iter(stream_of(packed, stage, compute)(0, 0))))
            moments = [
                learner.optimizer.state[p]["exp_avg"].double().square().sum().item()
                for group in learner.optimizer.param_groups
                for p in group["params"]
            ]
            norms[where] = sum(moments) ** 0.5 / 0.1
    assert norms["cpu"] == pytest.approx(stage.max_grad_norm, rel=1e-3)
    assert norms["gpu"] == pytest.approx(norms["cpu"], rel=1e-2)


# --- runs: trained, stopped and resumed ---


@pytest.fixture(scope="module")
def place(archive_path, tmp_path_factory):
    """A folder with the data, two runs that the CPU trained (`cpu` in both stages, `other` in its
    first), and images: `photo.png`, and class folders in `tree`. Runs have no dropout, since chance
    differs between devices.
    """
    folder = tmp_path_factory.mktemp("gpu")
    data = ("--data", archive_path, "--cache", folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained("cpu", data, *ON_CPU)
        rows_of(
            train,
            "--stage",
            "base",
            "--out",
            "other",
            "--seed",
            "1",
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


def draw(path, sides):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(sides[0]).randint(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC).save(path)


def trained(run, data, *flags, dropout=0.0):
    """Both stages in a new run."""
    rows_of(
        train,
        "--stage",
        "base",
        "--out",
        run,
        *BASE,
        "--epochs",
        "2",
        "--dropout",
        dropout,
        *data,
        *flags,
    )
    rows_of(train, "--run", run, *FINETUNE, "--dropout", dropout, *flags)


def log_of(run, stage, kind="step"):
    return [row for row in runs.read_rows(StageFolder(run, stage).log) if row["kind"] == kind]


def stop_after(patch, steps):
    """Ctrl-C once the loop has asked so often: after each step, and once more after each epoch."""
    left = iter(range(steps - 1))
    patch.setattr(
        stages.console,
        "stop_on_interrupt",
        lambda: contextlib.nullcontext(lambda: next(left, None) is None),
    )


@pytest.fixture(scope="module")
def gpu_run(place, arithmetic):
    """A run that a GPU trained, called like its arithmetic, and the dtypes of its convolutions.

    Its scaler begins low, so that it passes no step over.
    """
    with pytest.MonkeyPatch.context() as patch, gpu_of(arithmetic) as gpu:
        patch.chdir(place.folder)
        patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**8))
        trained(arithmetic, place.data, *flags_of(arithmetic))
    return SimpleNamespace(name=arithmetic, dtypes=set(gpu.convolutions))


def test_runs_learn_what_they_learn_on_the_cpu(there, gpu_run, arithmetic):
    assert gpu_run.dtypes <= DTYPES[arithmetic]
    for stage in runs.WHOLE:
        facts = json.loads(Path(gpu_run.name, stage, "recipe.json").read_text())["device"]
        assert facts["type"] == "cuda" and arithmetic in json.dumps(facts)
        ours, theirs = log_of(gpu_run.name, stage), log_of("cpu", stage)
        assert [row["lr"] for row in ours] == [row["lr"] for row in theirs] and len(ours) == (8, 4)[
            stage == "finetune"
        ]
        for kind, loss in (
            ("step", lambda row: row["loss"]),
            ("epoch", lambda row: row["holdout"]["loss"]),
        ):
            assert [loss(row) for row in log_of(gpu_run.name, stage, kind)] == pytest.approx(
                [loss(row) for row in log_of("cpu", stage, kind)], rel=LOSSES_APART[arithmetic]
            )


def test_features_of_each_device_are_kept_apart(there, gpu_run, arithmetic):
    """What a GPU computes in float32 is nearly, not exactly, what the CPU does."""
    manifests = [
        json.loads(path.read_text()) for path in Path("cache").glob("features-*/manifest.json")
    ]
    devices = {(manifest["device"], manifest["precision"]) for manifest in manifests}
    assert ("cpu", "float32") in devices
    assert devices & {("cuda", str(dtype).removeprefix("torch.")) for dtype in DTYPES[arithmetic]}


def test_what_is_frozen_has_one_cache_for_all_gpus(there, tmp_path):
    """A T4 and an A100 compute the same features; one that lost three bits to bfloat16 would
    not.
    """
    flags = ("--stage", "base", *BASE, "--data", there.data[1], "--cache", tmp_path / "cache")
    for capability, kept in (((7, 5), 1), ((8, 0), 0), ((6, 1), 1)):
        with pretend_gpu(capability) as gpu:
            ran = call(train, *flags, "--out", tmp_path / f"{capability}")
            assert ran.status == 0, ran.err
        dtype = torch.float32 if capability < (7, 0) else torch.float16
        assert set(gpu.convolutions) <= {dtype} and bool(gpu.convolutions) == bool(kept)
        facts = json.loads((tmp_path / f"{capability}/base/recipe.json").read_text())["device"]
        learns = {6: "float32", 7: "float16", 8: "bfloat16"}[capability[0]]
        assert (facts["precision"], facts.get("frozen")) == (
            learns,
            "float16" if learns == "bfloat16" else None,
        )
        row = json.loads((tmp_path / f"{capability}/base/scores.jsonl").read_text().splitlines()[0])
        assert row["precision"] == str(dtype).removeprefix("torch.")
    # of train and hold-out, in float16 and float32
    assert len(list((tmp_path / "cache").glob("features-*"))) == 4


def test_a_resumed_run_keeps_both_kinds_of_floats(there, tmp_path, monkeypatch):
    flags = ("--stage", "base", *BASE, *there.data, "--epochs", "2")
    with pretend_gpu((8, 0)):
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            assert call(train, *flags, "--out", tmp_path / "run").status == 130
        ran = call(train, "--resume", tmp_path / "run")
    assert (
        ran.status == 0
        and "bfloat16, float16 where frozen" in ran.err
        and "same steps" not in ran.err
    )


def test_the_rate_of_the_first_view_does_not_include_the_start_of_the_gpu(
    there, tmp_path, monkeypatch
):
    shutil.copytree("cpu", tmp_path / "run", ignore=shutil.ignore_patterns("probabilities"))
    events, probabilities = [], predictor.view_probabilities
    monkeypatch.setattr(
        predictor,
        "view_probabilities",
        lambda *given: events.append("network") or probabilities(*given),
    )
    monkeypatch.setattr(
        predictor.time, "perf_counter", lambda: events.append("clock") or float(len(events))
    )
    with pretend_gpu():
        rows_of(
            evaluate,
            "--run",
            tmp_path / "run",
            "--stage",
            "finetune",
            "--tta",
            "flip",
            "--split",
            "val",
        )
    assert events == ["network", "clock", "network", "clock", "clock", "network", "clock"]


def test_resume_is_bit_identical_by_command(there, arithmetic, monkeypatch):
    """Each stage with dropout, by the command, in one process."""
    whole, run = f"{arithmetic}-whole", f"{arithmetic}-stopped"
    with gpu_of(arithmetic):
        trained(whole, there.data, *flags_of(arithmetic), dropout=0.5)
        commands = (
            ("--stage", "base", "--out", run, *BASE, "--epochs", "2", *there.data),
            ("--run", run, *FINETUNE),
        )
        for flags, steps in zip(commands, (3, 2), strict=True):
            with monkeypatch.context() as patch:
                stop_after(patch, steps)
                ran = call(train, *flags, "--dropout", "0.5", *flags_of(arithmetic))
                assert ran.status == 130 and f"--resume {run}" in ran.err, ran.err
            rows_of(train, "--resume", run)
    for stage in runs.WHOLE:
        assert [row["loss"] for row in log_of(run, stage)] == [
            row["loss"] for row in log_of(whole, stage)
        ]
        for file in ("best.pt", "last.pt"):
            one, other = (
                torch.load(Path(name, stage, file), map_location="cpu", weights_only=True)
                for name in (run, whole)
            )
            for state in (one, other):
                for times in ("seconds", "best"):
                    state.get("state", {}).pop(times, None)
            assert same(one, other)


def test_a_stage_runs_again_in_one_process(there, arithmetic, monkeypatch):
    """As the cells of a notebook do: begun, stopped, gone on with, and looked at when it is
    finished.
    """
    config = RunConfig.read(StageFolder("cpu", "base").read_recipe())
    with_dropout = {name: replace(config.recipe.stage(name), dropout=0.5) for name in runs.WHOLE}
    config = replace(config, recipe=replace(config.recipe, **with_dropout), stages=runs.WHOLE)
    run = Path(f"{arithmetic}-again")
    with gpu_of(arithmetic):
        for steps in (2, 5, 4):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                stop_after(patch, steps)
                stages.train(run, config, device_of(arithmetic), resume=True)
        rows = stages.train(run, config, device_of(arithmetic), resume=True)
        assert stages.train(run, config, device_of(arithmetic), resume=True) == rows
    assert [row["stage"] for row in rows] == ["base", "finetune"]


@pytest.mark.parametrize("begins", ["gpu", "cpu"])
def test_a_run_goes_on_on_another_device(there, arithmetic, begins, monkeypatch):
    """No random state goes with it, and a scaler has no state elsewhere; the weights do."""
    run = f"{arithmetic}-from-{begins}"
    flags = {"gpu": flags_of(arithmetic), "cpu": ON_CPU}
    for name in ("gpu", "cpu") if begins == "gpu" else ("cpu", "gpu"):
        with (
            gpu_of(arithmetic) if name == "gpu" else contextlib.nullcontext(),
            monkeypatch.context() as patch,
        ):
            if name == begins:
                stop_after(patch, 2)
                ran = call(
                    train, "--out", run, "--run", "cpu", *FINETUNE, "--dropout", "0", *flags[name]
                )
                assert ran.status == 130, ran.err
            else:
                where = ("--device", "cuda") if name == "gpu" else ()
                rows_of(train, "--resume", run, *where, *flags[name])
    assert [row["loss"] for row in log_of(run, "finetune")] == pytest.approx(
        # with a step that its scaler passes over
        [row["loss"] for row in log_of("cpu", "finetune")],
        rel=0.1,
    )


# --- scores ---


@pytest.fixture(scope="module")
def on_cpu(place):
    """What a command says on the CPU, of the runs that the CPU trained; asked once for all kinds of
    arithmetic.
    """
    rows = {}

    def ask(command, *flags):
        if flags not in rows:
            rows[flags] = rows_of(command, *flags, *ON_CPU)
        return rows[flags]

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


def check_rows(ours, theirs, arithmetic):
    """Words and counts are the same, losses near; in float32 every number is."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - set(NOT_COMPARED):
            if key == "loss" or (arithmetic == "float32" and isinstance(other[key], float)):
                assert one[key] == pytest.approx(
                    other[key], rel=APART[arithmetic], abs=APART[arithmetic]
                ), (key, one)
            elif arithmetic == "float32" or isinstance(other[key], (str, int)):
                assert one[key] == other[key], (key, one)


def check_probabilities(ours, theirs, arithmetic, count, split="*"):
    """Every view that two stages keep."""
    files = [path.name for path in Path(ours).glob(f"probabilities/{split}-*.npz")]
    assert len(files) >= count
    for file in files:
        one, other = (
            Probabilities.load(Path(folder, "probabilities", file)) for folder in (ours, theirs)
        )
        assert (one.about["device"], other.about["device"]) == (
            "cuda",
            "cpu",
        ) and one.views == other.views
        assert (
            np.array_equal(one.labels, other.labels) if one.labels is not None else "test" in file
        )
        difference = np.abs(np.exp(one.log_probabilities) - np.exp(other.log_probabilities)).max()
        assert difference < APART[arithmetic], (file, one.views)


@pytest.mark.parametrize("stage, count", [("base", 2 * 11), ("finetune", 2 * 28)])
def test_scores_are_those_of_the_cpu(there, copies, on_cpu, arithmetic, stage, count):
    """All views and merges."""
    views = VIEWS if stage == "finetune" else ("flip", "ten")
    flags = ("--stage", stage, "--tta", *views, "--merge", *MERGED, "--size", "32", "--calibrate")
    theirs = on_cpu(evaluate, "--run", "cpu", *flags)
    with gpu_of(arithmetic) as gpu:
        ours = rows_of(evaluate, "--run", copies("cpu"), *flags, *flags_of(arithmetic))
    assert gpu.convolutions and set(gpu.convolutions) <= DTYPES[arithmetic]
    check_rows(ours, theirs, arithmetic)
    check_probabilities(Path(copies("cpu"), stage), Path("cpu", stage), arithmetic, count)


def test_cache_is_separate_per_device(there, arithmetic, tmp_path):
    """What they say in the same precision differs in its last bits."""
    run = shutil.copytree("cpu", tmp_path / "run", ignore=shutil.ignore_patterns("probabilities"))
    rows_of(evaluate, "--run", run, "--split", "val", *ON_CPU)
    with gpu_of(arithmetic):
        rows_of(evaluate, "--run", run, "--split", "val", "--precision", "float32")
    (file,) = run.glob("finetune/probabilities/*.npz")
    assert Probabilities.load(file).about["device"] == "cuda"


def test_float32_disables_tf32(arithmetic, monkeypatch):
    """cuDNN's convolutions round to ten bits unless they are told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with gpu_of(arithmetic):
        device_of(arithmetic)
    assert torch.backends.cudnn.allow_tf32 == (arithmetic != "float32")


def test_choosing_and_souping_match_cpu(there, copies, on_cpu, arithmetic):
    """Which views are worth it may differ by a rounding, and so the rows; what ten-crop is worth
    may not.
    """

    def ten(rows):
        return [row for row in rows if row["views"] == "ten"]

    choosing = ("--stage", "finetune", "--tta", "flip+shift", "zoom", "--most", "4")
    choices = on_cpu(select_views_command, "--run", "cpu", *choosing)
    rows = on_cpu(soup_command, "cpu", "other", "--stage", "base")
    with gpu_of(arithmetic):
        ours = rows_of(
            select_views_command, "--run", copies("cpu"), *choosing, *flags_of(arithmetic)
        )
        soup = rows_of(
            soup_command,
            copies("cpu"),
            copies("other"),
            "--stage",
            "base",
            *flags_of(arithmetic),
        )
    check_rows(ten(ours), ten(choices), arithmetic)
    if arithmetic == "float32":
        check_rows(ours, choices, arithmetic)
    assert {row["views"] for row in ours} >= {"ten", "learned weights", "greedy 1", "greedy 4"}
    check_rows(soup, rows, arithmetic)


def test_other_sizes_match_cpu(there, copies, on_cpu, arithmetic):
    """All ways to enlarge, corrections, a head that learns on, and a run that is kept."""

    def flags(run):
        return (
            "--run",
            run,
            "--stage",
            "base",
            "--sizes",
            "32",
            "48",
            "--fit",
            "48",
            "--keep",
            f"{run}-norms",
            "--methods",
            "antialias",
            "bilinear",
            "bicubic",
            "nearest",
            "area",
            "lanczos",
        )

    theirs = on_cpu(fixres, *flags("cpu"))
    with gpu_of(arithmetic) as gpu:
        ours = rows_of(fixres, *flags(copies("cpu")), *flags_of(arithmetic))
        again = rows_of(evaluate, "--run", f"{copies('cpu')}-norms", *flags_of(arithmetic))
    assert set(gpu.convolutions) <= DTYPES[arithmetic]
    corrections = {(row.get("correction"), row["size"], row["split"]): row["loss"] for row in ours}
    assert {name for name, *_ in corrections} == {
        "as is",
        "frechet",
        "quantile",
        "batch norm",
        "fine-tuned",
        "trained on, own size",
        None,
    }
    check_rows(ours, theirs, arithmetic)
    assert [(row["split"], row["size"]) for row in again] == [("holdout", 48), ("val", 48)]
    assert again[1]["loss"] == pytest.approx(corrections["batch norm", 48, "val"], rel=1e-3)
    weights = [
        torch.load(f"{run}-norms/base/best.pt", map_location="cpu", weights_only=True)["weights"]
        for run in (copies("cpu"), "cpu")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            value, weights[1][name], rtol=APART[arithmetic], atol=APART[arithmetic]
        )


# --- images of any files ---


def check_names(ours, theirs, arithmetic):
    """The probability of every class of every file."""
    one, other = (
        {(row["file"], row["id"]): row["probability"] for row in rows} for rows in (ours, theirs)
    )
    assert one.keys() == other.keys() and one == pytest.approx(other, abs=APART[arithmetic])


@pytest.mark.parametrize(
    "flags",
    [
        ("--tta", "ten", "--explain", "votes.png"),
        ("--tta", "flip+scales:32,48"),
        ("--tta", "dense:64", "--merge", "gmean"),
        ("--size", "48"),
    ],
    ids=lambda flags: flags[1],
)
def test_files_are_named_as_on_the_cpu(there, copies, on_cpu, arithmetic, flags):
    flags = ("photo.png", "tree", *flags, "--top", "6")
    theirs = on_cpu(predict, "--run", "cpu", *flags)
    Path("votes.png").unlink(missing_ok=True)
    with gpu_of(arithmetic):
        ours = rows_of(predict, "--run", copies("cpu"), *flags, *flags_of(arithmetic))
    check_names(ours, theirs, arithmetic)
    assert Path("votes.png").is_file() == ("--explain" in flags)


@pytest.mark.parametrize("stage", runs.WHOLE)
def test_the_official_test_set_is_named_as_on_the_cpu(there, copies, arithmetic, stage):
    def lines(run, *flags):
        ran = call(
            predict, "--run", run, "--stage", stage, "--tta", "flip", "--out", f"{run}.txt", *flags
        )
        assert ran.status == 0, ran.err
        return Path(f"{run}.txt").read_text().splitlines()

    theirs = lines("cpu", *ON_CPU)
    with gpu_of(arithmetic):
        ours = lines(copies("cpu"), *flags_of(arithmetic))
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    # near ties may fall otherwise
    assert len(ours) == 18 and equal >= (18 if arithmetic == "float32" else 15)
    check_probabilities(Path(copies("cpu"), stage), Path("cpu", stage), arithmetic, 2, "test")


def imagenet_with(wnids):
    """ImageNet's 1,000 ids, the first of which are called like the drawn classes."""
    return (*wnids, *imagenet_wnids()[len(wnids) :])


def test_pretrained_networks_match_cpu(there, on_cpu, arithmetic, monkeypatch):
    """With random weights, the same ones everywhere."""
    wnids = imagenet_with(open_packed(there.archive, there.folder / "cache").wnids)
    monkeypatch.setattr(zero_shot, "imagenet_wnids", lambda: wnids)
    folder = (
        "--data",
        "tree",
        "--resize",
        "72",
        "--size",
        "64",
        "--workers",
        "0",
        "--tta",
        "ten",
        "scales:64,80",
        "--merge",
        *MERGED,
    )
    whole = (
        *there.data,
        "--size",
        "64",
        "--tta",
        "flip",
        "--merge",
        "mean",
        "vote",
    )
    files = ("photo.png", "tree", "--tta", "flip", "--top", "9")

    def rows(ask, *flags):
        """Of each command, the network's random weights drawn anew."""
        for command, way in (
            (folder_command, folder),
            (zero_shot_command, whole),
            (predict, files),
        ):
            torch.manual_seed(0)
            yield ask(command, *way, *SMALL_NETWORK, *flags)

    theirs = list(rows(on_cpu))
    with gpu_of(arithmetic) as gpu:
        *ours, names = rows(rows_of, *flags_of(arithmetic))
    assert gpu.convolutions and set(gpu.convolutions) <= DTYPES[arithmetic]
    for one, other in zip(ours, theirs, strict=False):
        check_rows(one, other, arithmetic)
    assert [row["file"] for row in names] == [row["file"] for row in theirs[-1]]
    assert [row["probability"] for row in names] == pytest.approx(
        [row["probability"] for row in theirs[-1]], rel=APART[arithmetic]
    )


def test_any_classifier_with_its_views_matches_cpu(there, arithmetic):
    """`TestTimeAugmentation` merges on the device."""
    torch.manual_seed(0)
    network, images = classifier().eval(), torch.rand(3, 3, 64, 64)
    for merge in MERGES:
        with torch.inference_mode():
            theirs = TestTimeAugmentation(network, "ten", merge, 48)(images)
        with gpu_of(arithmetic):
            device = device_of(arithmetic)
            on_device = network.for_inference(device.device, device.dtype)
            module = TestTimeAugmentation(on_device, "ten", merge, 48)
            with torch.inference_mode():
                ours = module(images.cuda())
        assert (
            ours.is_cuda and ours.cpu_tensor.exp().sub(theirs.exp()).abs().max() < APART[arithmetic]
        )


# --- pages, boards, notebooks ---


def test_gradcam_matches_cpu(there):
    torch.manual_seed(0)
    model = classifier().eval()
    images, classes = torch.rand(3, 3, 64, 64), torch.tensor([0, 3, 5])
    theirs = gradcam(model, images, classes, "relu4_3")
    with pretend_gpu():
        network = model.for_inference(choose_compute().device, torch.float32)
        ours = gradcam(network, images.cuda(), classes.cuda(), "relu4_3").cpu()
    assert torch.allclose(ours, theirs, atol=1e-6)


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


def run_cells(path):
    """What the cells of a notebook print, in quick mode, which a GPU would turn off, and with fewer
    draws.
    """
    output, names = io.StringIO(), {"__name__": "__notebook__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source = re.sub(r"^QUICK = .*$", "QUICK = True", "".join(cell["source"]), flags=re.M)
            source = source.replace("20_000", "200")
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
    small = demo.small_recipe().override(dict(epochs=2), runs.WHOLE)
    monkeypatch.setattr(demo, "small_recipe", lambda: small)
    monkeypatch.chdir(tmp_path)
    with pretend_gpu((7, 5)) as gpu:
        outputs = {path.stem: run_cells(path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    for name, answer in {
        "01_data": r"val as it is: batches",
        "02_transfer": r"everything learnt: .*\n.*same pictures: [+-]\d",
        "03_views": r"Ten-crop: [+-]\d",
        "04_resolution": r"hold-out accuracy .* is at \d+ px.*\n+The best correction",
        "05_errors": r"\d+ of 160 pictures are wrong",
    }.items():
        assert "Pretend GPU, float16" in outputs[name] and re.search(answer, outputs[name]), (
            outputs[name]
        )
    assert gpu.convolutions[torch.float16] > 100 and not gpu.convolutions[torch.bfloat16]


# --- what a GPU cannot hold or do ---

MEMORY = ["torch", "cublas", "cublas at its start", "cudnn", "cudnn, integers"]


@pytest.mark.parametrize("error", MEMORY)
def test_oom_halves_batch_when_scoring(there, on_cpu, tmp_path, error):
    """Where the network sees views, and where features are extracted."""
    run = shutil.copytree("cpu", tmp_path / "run", ignore=shutil.ignore_patterns("probabilities"))
    with pretend_gpu() as gpu, gpu.short_of_memory(5, error):
        for stage, elsewhere in (("finetune", ()), ("base", ("--cache", tmp_path / "cache"))):
            flags = ("--stage", stage, "--tta", "flip", "--split", "val")
            ran = call(
                evaluate, "--run", run, *flags, *elsewhere, "--precision", "float32", "--json"
            )
            assert ran.status == 0, ran.err
            assert re.search(
                r"24 images of 32x32 pixels at once; continuing with 12 at a time\n", ran.err
            )
            check_rows(json.loads(ran.out), on_cpu(evaluate, "--run", "cpu", *flags), "float32")


@pytest.mark.parametrize("error", MEMORY)
def test_a_step_that_does_not_fit_takes_one_line(there, tmp_path, error):
    with pretend_gpu() as gpu, gpu.short_of_memory(15, error):
        ran = call(train, "--out", tmp_path / "large", "--run", "cpu", *FINETUNE)
    last = ran.err.splitlines()[-1]
    assert (
        ran.status == 2
        and "a training step (" in last
        and "--resume" in last
        and "Traceback" not in ran.err
    )


def test_oom_halves_batch_when_predicting(there, on_cpu):
    flags = ("tree", "--size", "64", "--top", "6")
    with pretend_gpu() as gpu, gpu.short_of_memory(3):
        ours = rows_of(predict, "--run", "cpu", *flags, "--precision", "float32")
    check_names(ours, on_cpu(predict, "--run", "cpu", *flags), "float32")


def test_oom_halves_batch_for_soup(there, on_cpu):
    flags = ("cpu", "other", "--stage", "base")
    with pretend_gpu() as gpu, gpu.short_of_memory(20):
        check_rows(
            rows_of(soup_command, *flags, "--precision", "float32"),
            on_cpu(soup_command, *flags),
            "float32",
        )


def test_large_files_are_shrunk_on_a_gpu_too(there, on_cpu, tmp_path):
    draw(tmp_path / "large.jpg", (3200, 3100))
    flags = (tmp_path / "large.jpg", "--tta", "scales:32,64", "--top", "6")
    theirs = on_cpu(predict, "--run", "cpu", *flags)
    with pretend_gpu():
        check_names(
            rows_of(predict, "--run", "cpu", *flags, "--precision", "float32"), theirs, "float32"
        )


def test_float16_overflow_suggests_precision(there, tmp_path):
    large = {
        f"features.{name}": 30 * value
        for name, value in load_backbone("none").features.state_dict().items()
    }
    torch.save(large, tmp_path / "large.pth")
    with pretend_gpu():
        ran = call(
            train,
            "--stage",
            "base",
            "--out",
            tmp_path / "run",
            *BASE,
            "--weights",
            tmp_path / "large.pth",
            "--feature-dtype",
            "float32",
            *there.data,
        )
    assert ran.status == 2 and "--precision float32" in ran.err
