"""Training on a simulated GPU, compared with the CPU: steps, runs, resumed runs."""

import contextlib
import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_runs import (
    BASE,
    DTYPES,
    FINETUNE,
    classifier,
    device_of,
    flags_of,
    gpu_of,
    in_bfloat16_slow,
    log_of,
    rows_of,
    simulated_gpu_only,
    trained,
)
from pretend_gpu import pretend_gpu
from small_runs import interrupt_at
from support import ON_CPU, argv, call

from tinynet import evaluate, runs, train
from tinynet.compute import choose_compute
from tinynet.data.packed import Packed
from tinynet.evaluation import predictor as predictor
from tinynet.records import EpochRow, Score, StepRow
from tinynet.runs import StageFolder
from tinynet.training import loop, rates, stages
from tinynet.training.config import RunConfig
from tinynet.training.features import FeatureCache
from tinynet.training.inputs import TrainingImages
from tinynet.training.loop import Training, fit, weight_groups
from tinynet.training.rates import frozen_rate
from tinynet.training.recipes import TUNED

pytestmark = [
    pytest.mark.usefixtures("small_gpu_runs"),
    pytest.mark.filterwarnings("ignore:.*not writable"),
]


LOSSES_APART = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.03}


# --- steps of training ---


def training(stage, device, dropout=0.5):
    torch.manual_seed(0)
    model = classifier(dropout)
    model.to(device.device, memory_format=torch.channels_last).train_only(stage.trainable)
    module = model.head if stage.cached_epochs else model
    return Training(module.train(), weight_groups(model, stage), stage, 6, device)


def stream_of(packed, stage, device):
    """What a stage learns from: cached features, or images that are cropped, mirrored and
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
SCORE = Score(
    n=1,
    top1=0.0,
    top5=0.0,
    loss=1.0,
    ece=0.0,
    low=0.0,
    high=1.0,
    balanced=0.0,
    worst=0.0,
    worst_label=0,
)


@simulated_gpu_only
@each_stage
@pytest.mark.parametrize("free", [14 * 2**30, 1000], ids=["sent once", "sent step by step"])
def test_training_loop_never_synchronizes(packed, arithmetic, name, free, monkeypatch):
    """Only where losses are read, which it does once a second and at the end."""
    monkeypatch.setattr(loop, "FLUSH_AFTER", 1e9)
    waits = []
    with gpu_of(arithmetic, free=free) as gpu:
        device, stage = device_of(arithmetic), STAGES[name]
        stream = stream_of(Packed(packed.folder), stage, device)
        learner = training(stage, device)
        next(iter(stream(0, 0)))  # what is sent once is sent
        gpu.waits.clear()
        rows = list(
            fit(learner, stream, lambda module: SCORE, lambda: waits.append(dict(gpu.waits)))
        )
    assert waits[:6] == [{}] * 6 and len(waits) == 7
    assert list(map(type, rows)) == [StepRow] * 6 + [EpochRow]


@simulated_gpu_only
def test_rates_are_measured_without_waiting_for_each_batch(packed, arithmetic, monkeypatch):
    """The CPU waits after the first batch, after the last, and after each eighth between them."""
    times = itertools.count()
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(times))
    waits = {}
    for batches in (1, 7, 17):  # the clock goes on by one second each time it is read
        with gpu_of(arithmetic) as gpu:
            device = device_of(arithmetic).for_frozen()
            assert frozen_rate(classifier(), Packed(packed.folder), 32, device, batches) > 0
        waits[batches] = sum(gpu.waits.values())
    assert waits[1] == waits[7] == waits[17] - 2, waits


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


@simulated_gpu_only
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


def test_runs_train_as_on_the_cpu(there, gpu_run, arithmetic):
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


@simulated_gpu_only
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


@simulated_gpu_only
def test_a_resumed_run_keeps_both_kinds_of_floats(there, tmp_path, monkeypatch):
    flags = ("--stage", "base", *BASE, *there.data, "--epochs", "2")
    with pretend_gpu((8, 0)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2)
            assert call(train, *flags, "--out", tmp_path / "run").status == 130
        ran = call(train, "--resume", tmp_path / "run")
    assert (
        ran.status == 0
        and "bfloat16, float16 where frozen" in ran.err
        and "same steps" not in ran.err
    )


@simulated_gpu_only
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
            evaluate, "--run", tmp_path / "run", *argv("--stage finetune --tta flip --split val")
        )
    assert events == ["network", "clock", "network", "clock", "clock", "network", "clock"]


@simulated_gpu_only
@in_bfloat16_slow
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
                interrupt_at(patch, steps)
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


@in_bfloat16_slow
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
                interrupt_at(patch, steps)
                stages.train(run, config, device_of(arithmetic), resume=True)
        rows = stages.train(run, config, device_of(arithmetic), resume=True)
        assert stages.train(run, config, device_of(arithmetic), resume=True) == rows
    assert [row.stage for row in rows] == ["base", "finetune"]


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
                interrupt_at(patch, 2)
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
