"""The fit room and the stages above it: schedules, kept features, the loop, exact resume, recipes,
checkpoints.
"""

import copy
import dataclasses
import errno
import io
import itertools
import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import complaint, in_floats, needs_vnni, thin_network
from torch import nn
from torch.nn import functional as F

from tinynet import console, runs, train
from tinynet.compute import Compute
from tinynet.data.batches import batches
from tinynet.data.packed import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.models.checkpoint import load_model, load_training, save_model, save_training
from tinynet.models.classifier import Classifier, pooled_features
from tinynet.models.vgg import Backbone
from tinynet.runs import StageFolder
from tinynet.score.metrics import score
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import resize
from tinynet.training import extraction, features, schedules, single_stage, stages
from tinynet.training.config import RunConfig, split_of
from tinynet.training.inputs import TrainingImages, augment_images, epoch_order, steps_per_epoch
from tinynet.training.loop import Training, fit
from tinynet.training.recipes import RECIPES, REFERENCE, TUNED, Network, SplitConfig, Stage

CPU = Compute(torch.device("cpu"), torch.float32)
TIMES = {"seconds", "pictures_per_second"}


@pytest.fixture(scope="module", autouse=True)
def thin():
    with thin_network():
        yield


def differences(one, other, place=""):
    """Where two nests of tensors and plain values differ, bit for bit; times aside."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: keys {one.keys() ^ other.keys()}"]
        return [
            d
            for key in one
            if key not in TIMES
            for d in differences(one[key], other[key], f"{place}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        return [
            d
            for i, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{place}/{i}")
        ]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [f"{place}: {one} and {other}"]


# --- schedules ------------------------------------------------------------------------------------


def optimizer(factors=(1.0,), lr=1.0):
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "factor": factor, "lr": lr * factor}
        for factor in factors
    ]
    return torch.optim.Adam(groups, lr=lr)


def rates(stage, steps, factors=(1.0,)):
    """The rates of every group before each move and after the last: (moves + 1, groups)."""
    made = optimizer(factors, stage.lr)
    schedule = schedules.make_schedule(made, stage, steps)
    found = [[group["lr"] for group in made.param_groups]]
    for _ in range(schedules.moves(stage, steps)):
        made.step()
        schedule.step()
        found.append([group["lr"] for group in made.param_groups])
        assert all(group["betas"] == (0.9, 0.999) for group in made.param_groups)
    return np.array(found)


def triangular2(move, low, high, up, down):
    """Smith 2015, section 3.1: a triangle whose height halves from cycle to cycle."""
    cycle, place = divmod(move, up + down)
    height = place / up if place <= up else (up + down - place) / down
    return low + (high - low) * height / 2**cycle


@pytest.mark.parametrize(
    ("cycles", "pct_start"), [(1, 0.5), (3, 0.5), (2.5, 0.2), (1, 0.08), (0.4, 0.5), (4, 0.9)]
)
def test_cyclic_is_triangular2(cycles, pct_start):
    stage = Stage(epochs=4, lr=3e-3, min_lr=1e-4, cycles=cycles, pct_start=pct_start)
    factors = (0.1, 1.0, 2.0)
    up, down = schedules.half_cycles(stage, 15)
    assert up + down == round(60 / cycles) and up == round(pct_start * round(60 / cycles))
    expected = [
        [triangular2(move, factor * 1e-4, factor * 3e-3, up, down) for factor in factors]
        for move in range(61)
    ]
    np.testing.assert_allclose(rates(stage, 15, factors), expected, rtol=1e-9)


@given(epochs=st.integers(1, 5), steps=st.integers(2, 30), pct_start=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_unless_told_otherwise_the_rate_goes_through_one_whole_cycle(epochs, steps, pct_start):
    stage = Stage(epochs=epochs, lr=1e-2, min_lr=1e-5, pct_start=pct_start)
    found = rates(stage, steps)[:, 0]
    assert found[0] == pytest.approx(1e-5) and found[-1] == pytest.approx(1e-5)
    assert found.max() == pytest.approx(1e-2)
    peak = found.argmax()
    assert (np.diff(found[: peak + 1]) > 0).all() and (np.diff(found[peak:]) < 0).all()
    assert schedules.warning(stage, steps) is None


def test_less_than_one_cycle_is_warned_of():
    half = Stage(epochs=2, cycles=0.5)
    assert "50.0% of one cycle" in schedules.warning(half, 10)
    assert schedules.warning(Stage(epochs=2, cycles=3), 10) is None
    for other in ("onecycle", "cosine", "constant"):
        assert schedules.warning(dataclasses.replace(half, schedule=other), 10) is None
    said = schedules.warning(REFERENCE.base, 1485)
    assert "10 times (once per epoch)" in said and "2,808" in said and "0.4%" in said


def test_the_rates_of_the_reference_never_leave_their_floor():
    for stage, steps in ((REFERENCE.base, 1485), (REFERENCE.finetune, 1485)):
        found = rates(stage, steps)[:, 0]
        assert len(found) == stage.epochs + 1
        assert found[0] == pytest.approx(stage.min_lr) and (np.diff(found) > 0).all()
        assert found.max() < 1.04 * stage.min_lr < stage.lr / 5


@given(
    schedule=st.sampled_from(["cyclic", "onecycle", "cosine", "constant"]),
    every=st.sampled_from(["step", "epoch"]),
    epochs=st.integers(1, 20),
    steps=st.integers(1, 20),
    cycles=st.floats(0.1, 5),
    pct_start=st.one_of(st.floats(0.01, 0.99), st.sampled_from([0.1, 0.2, 0.25, 0.5])),
)
@settings(max_examples=60, deadline=None)
def test_every_schedule_comes_to_its_end(schedule, every, epochs, steps, cycles, pct_start):
    stage = Stage(
        schedule=schedule,
        schedule_every=every,
        epochs=epochs,
        lr=1e-2,
        min_lr=1e-4,
        cycles=cycles,
        pct_start=pct_start,
    )
    found = rates(stage, steps, (1.0, 0.5))
    assert np.isfinite(found).all() and (found > 0).all()
    assert found[:, 0].max() <= 1e-2 * (1 + 1e-9)
    np.testing.assert_allclose(found[:, 1], found[:, 0] / 2)


@pytest.mark.parametrize(
    ("epochs", "pct_start"), [(10, 0.1), (2, 0.5), (4, 0.25), (1, 0.5), (20, 0.05)]
)
def test_onecycle_can_rise_in_any_share(epochs, pct_start):
    stage = Stage(
        schedule="onecycle", schedule_every="epoch", epochs=epochs, lr=1e-2, pct_start=pct_start
    )
    found = rates(stage, 7)[:-1]
    assert len(found) == epochs and found.max() <= 1e-2 * (1 + 1e-9)


def test_onecycle_rises_to_its_peak_and_falls_to_nothing():
    found = rates(Stage(schedule="onecycle", epochs=2, lr=1e-2, pct_start=0.3), 10)[:-1, 0]
    assert (
        found.argmax() == 5
        and found[[0, 5]] == pytest.approx([1e-2 / 25, 1e-2])
        and found[-1] < 1e-6
    )


def test_cosine_falls_from_lr_to_the_floor_and_constant_stays():
    stage = Stage(schedule="cosine", epochs=3, lr=1e-2, min_lr=1e-3)
    expected = [
        1e-3 + (1e-2 - 1e-3) * (1 + math.cos(math.pi * move / 30)) / 2 for move in range(31)
    ]
    np.testing.assert_allclose(rates(stage, 10)[:, 0], expected)
    assert set(rates(dataclasses.replace(stage, schedule="constant"), 10)[:, 0]) == {1e-2}


# --- the order of pictures ------------------------------------------------------------------------


def test_all_that_chance_decides_of_images_is_drawn_on_the_cpu_and_sent():
    stage = Stage(crop_side=(20, 32), flip="random", saturation=(0.5, 2.0), hue=0.1, size=48)
    # what stays on the CPU cannot be mixed with it
    images = torch.zeros(4, 3, 32, 32, device="meta")
    for one in (
        stage,
        Stage(size=48),
        dataclasses.replace(stage, crop_side=(), crop_area=(0.5, 1.0)),
    ):
        assert augment_images(
            images, torch.zeros(4, dtype=torch.long, device="meta"), one
        ).shape == (4, 3, 48, 48)


@given(
    count=st.integers(2, 200),
    batch=st.integers(2, 70),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
@settings(deadline=None)
def test_an_epoch_shows_every_image_once_and_no_batch_of_one(count, batch, seed, epoch):
    order = epoch_order(count, seed, epoch, batch)
    sizes = [len(order[i : i + batch]) for i in range(0, len(order), batch)]
    assert len(set(order)) == len(order) and set(order) <= set(range(count))
    assert count - len(order) == (count % batch == 1)
    assert len(sizes) == steps_per_epoch(count, batch) and min(sizes) >= 2
    assert np.array_equal(order, epoch_order(count, seed, epoch, batch))


def test_the_order_changes_with_seed_and_epoch():
    orders = [tuple(epoch_order(50, seed, epoch, 8)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_chance_differs_between_seeds_epochs_and_batches_and_any_batch_can_be_made_again(packed):
    stage = Stage(size=64, batch=8, flip="random")

    def shown(seed, epoch, start=0):
        images = TrainingImages(packed.train, ROWS, stage, seed)
        return list(images.epoch(epoch, CPU.device, start))

    mirrored = set()
    for seed, epoch in itertools.product(range(2), range(3)):
        for batch in (whole := shown(seed, epoch)):
            plain = (
                torch.from_numpy(packed.train.images[batch.rows.numpy()]).permute(0, 3, 1, 2) / 255
            )
            mirrored.add(tuple((batch.images != plain).flatten(1).any(1).tolist()))
        for start in (1, 2):
            assert not differences(shown(seed, epoch, start), whole[start:])
    assert len(mirrored) >= 15  # of 18, each of eight flags


# --- kept features --------------------------------------------------------------------------------


ROWS = np.arange(1, 72, 3)  # 24 pictures of all classes
IMAGES = Stage(
    size=32, batch=8, cached_epochs=2, feature_dtype="float32", flip="random", crop_side=(40, 64)
)


def classifier(feature_names=("pool5:grid2", "relu4_3:max"), seed=0):
    torch.manual_seed(seed)
    return Classifier(Backbone(), feature_names, (16,), 6, 0.5, True)


def with_cache(packed, folder):
    """The same pictures with another place for their features."""
    other = copy.copy(packed)
    other.folder = folder / packed.folder.name
    return other


def kept(packed, cache, model=None, stage=IMAGES, seed=0, rows=ROWS, compute=CPU):
    place = features.FeatureCache(model or classifier(), with_cache(packed, cache), compute)
    return place.train_features(rows, stage, seed)


@pytest.fixture
def count_describe(monkeypatch):
    """Counts the batches whose features are extracted; `limit` interrupts before a batch."""
    counted = SimpleNamespace(calls=0, limit=None, error=KeyboardInterrupt)

    def describe_and_count(*arguments):
        if counted.calls == counted.limit:
            raise counted.error
        counted.calls += 1
        return pooled_features(*arguments)

    monkeypatch.setattr(extraction, "pooled_features", describe_and_count)
    return counted


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(saturation=(0.5, 2.0), hue=0.05),
        dict(crop_side=(), crop_area=(0.4, 1.0), flip="none"),
    ],
)
def test_a_view_holds_what_live_training_shows_in_its_epoch_batch_for_batch(
    packed, tmp_path, changes
):
    model, stage = classifier(), dataclasses.replace(IMAGES, **changes)
    found = kept(packed, tmp_path, model, stage, seed=3)
    running = model.for_inference(CPU.device, CPU.dtype)
    seen = []
    for epoch in range(2):
        live = TrainingImages(packed.train, ROWS, stage, seed=3).epoch(epoch, CPU.device)
        for (inputs, labels), batch in zip(found.epoch(3, epoch, 8, CPU.device), live, strict=True):
            with torch.inference_mode():
                assert torch.equal(inputs, running.features(batch.images))
            assert torch.equal(labels, batch.labels)
            seen.append(inputs.sum().item())
    assert len(seen) == 6 and len(set(seen)) == 6


def test_two_views_of_alternating_flips_hold_every_epoch(packed, tmp_path):
    model, stage = (
        classifier(),
        Stage(size=32, batch=8, cached_epochs=2, feature_dtype="float32", flip="alternating"),
    )
    found = kept(packed, tmp_path, model, stage)
    running = model.for_inference(CPU.device, CPU.dtype)
    for epoch in range(4):
        live = TrainingImages(packed.train, ROWS, stage, seed=0).epoch(epoch, CPU.device)
        for (inputs, labels), batch in zip(found.epoch(0, epoch, 8, CPU.device), live, strict=True):
            with torch.inference_mode():  # other batches: the last bits may differ
                torch.testing.assert_close(
                    inputs, running.features(batch.images), rtol=1e-5, atol=1e-6
                )
            assert torch.equal(labels, batch.labels)


@needs_vnni
def test_features_in_integers_are_kept_apart_and_nearly_the_same(packed, tmp_path):
    exact = kept(packed, tmp_path)
    rough = kept(packed, tmp_path, compute=Compute(CPU.device, torch.float32, int8=True))
    assert len(folders(tmp_path)) == 2
    for (inputs, _), (rounded, _) in zip(
        exact.epoch(0, 1, 8, CPU.device), rough.epoch(0, 1, 8, CPU.device), strict=True
    ):
        assert 0 < (inputs - rounded).norm() < 0.05 * inputs.norm()
    # They are the same whatever floats the processor has beside its integers.
    halves = kept(
        packed, tmp_path / "halves", compute=Compute(CPU.device, torch.bfloat16, int8=True)
    )
    assert all(map(np.array_equal, rough.arrays, halves.arrays)) and folders(
        tmp_path / "halves"
    ) < folders(tmp_path)


def test_an_epoch_can_begin_at_any_batch(packed, tmp_path):
    found = kept(packed, tmp_path)
    whole = list(found.epoch(0, 1, 8, CPU.device))
    for start in range(4):
        assert not differences(list(found.epoch(0, 1, 8, CPU.device, start)), whole[start:])


def folders(cache):
    return {path.name for path in cache.glob("features-*")}


def test_the_cache_knows_all_that_features_depend_on(packed, tmp_path):
    other_mean = Classifier(Backbone((0.5, 0.5, 0.5)), ("pool5:grid2",), (16,), 6, 0.5, True)
    other_mean.backbone.features.load_state_dict(classifier().backbone.features.state_dict())
    other_data = copy.copy(packed)
    other_data.contents = "0" * 16
    changes = [
        dict(),
        dict(rows=ROWS[::-1]),
        dict(rows=ROWS[1:]),
        dict(seed=1),
        dict(model=classifier(seed=1)),
        dict(model=other_mean),
        dict(packed=other_data),
        dict(compute=Compute(CPU.device, torch.bfloat16)),
    ]
    changes += [
        dict(stage=dataclasses.replace(IMAGES, **change))
        for change in (
            dict(flip="none"),
            dict(flip="alternating"),
            dict(crop_side=(41, 64)),
            dict(crop_side=()),
            dict(cached_epochs=4),
            dict(crop_side=(), crop_area=(0.5, 1.0)),
            dict(saturation=(0.5, 2.0)),
            dict(hue=0.1),
            dict(size=40),
            dict(batch=12),
            dict(feature_dtype="float16"),
            dict(flip="none", crop_side=()),
        )
    ]
    for number, change in enumerate(changes):
        kept(**{"packed": packed, "cache": tmp_path, **change})
        assert len(folders(tmp_path)) == number + 1, change


@pytest.mark.parametrize("change", [dict(), dict(flip="alternating", crop_side=())])
def test_fewer_views_are_the_first_of_more_that_are_kept(packed, tmp_path, count_describe, change):
    many = dataclasses.replace(IMAGES, cached_epochs=3, **change)
    alone, of_many = (
        dataclasses.replace(many, cached_epochs=2),
        kept(packed, tmp_path / "both", stage=many),
    )
    done = count_describe.calls
    found = kept(packed, tmp_path / "both", stage=alone)
    assert len(folders(tmp_path / "both")) == 1 and count_describe.calls == done
    for array, more, expected in zip(
        found.arrays,
        of_many.arrays,
        kept(packed, tmp_path / "one", stage=alone).arrays,
        strict=True,
    ):
        assert (
            len(array) == 2 and np.array_equal(array, more[:2]) and np.array_equal(array, expected)
        )
    kept(
        packed,
        tmp_path / "both",
        Classifier(classifier().backbone, ("relu4_3:mean",), (16,), 6, 0.5, True),
        alone,
    )
    assert len(folders(tmp_path / "both")) == 2  # other depths were not kept of the three


@pytest.mark.parametrize("text", ["{}", '{"views": 3', None])
def test_what_holds_no_views_is_passed_over(packed, tmp_path, text):
    """Another kind of folder, one that is being written, and one whose arrays are gone."""
    kept(packed, tmp_path / "first")
    (whole,) = (tmp_path / "first").glob("features-*/manifest.json")
    (tmp_path / "again" / "features-other").mkdir(parents=True)
    more = json.dumps({**json.loads(whole.read_text()), "views": 9})
    (tmp_path / "again" / "features-other" / "manifest.json").write_text(
        more if text is None else text
    )
    found = kept(packed, tmp_path / "again")
    assert len(folders(tmp_path / "again")) == 2 and len(found.arrays[0]) == IMAGES.cached_epochs


def test_the_cache_knows_a_view_by_what_it_does(packed, tmp_path):
    views = [
        lambda images: images[..., :32, :32],
        lambda images: images[..., :32, :32].flip(-1),
        lambda images: images[..., :40, :32],
        lambda images: images[..., 1:33, :32],
    ]
    for part in (packed.train, packed.val):
        for view in views:
            before = len(folders(tmp_path))
            place = features.FeatureCache(classifier(), with_cache(packed, tmp_path), CPU)
            found = place.view_features(part, np.arange(10, 2, -1), view, IMAGES)
            assert len(folders(tmp_path)) == before + 1
            images = in_floats(part.images[10:2:-1])
            with torch.inference_mode():
                expected = classifier().eval().features(view(images))
            torch.testing.assert_close(
                torch.cat(list(found.in_order(CPU.device, 3))), expected, rtol=1e-4, atol=1e-5
            )
            assert np.array_equal(found.labels, part.labels[10:2:-1])
    place.view_features(
        packed.val, np.arange(10, 2, -1), lambda anything: views[0](anything), IMAGES
    )
    assert len(folders(tmp_path)) == 8


def test_the_cache_does_not_mind_what_features_do_not_depend_on(packed, tmp_path, count_describe):
    kept(packed, tmp_path)
    done = count_describe.calls
    head = classifier()
    for layer in head.head:
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
    kept(
        packed,
        tmp_path,
        head,
        dataclasses.replace(IMAGES, lr=0.7, epochs=9, ema=0.5, max_grad_norm=1.0),
    )
    assert len(folders(tmp_path)) == 1 and count_describe.calls == done == 6

    fixed = dataclasses.replace(IMAGES, flip="alternating", crop_side=())
    kept(packed, tmp_path, None, fixed)
    done = count_describe.calls
    # chance plays no part in these
    kept(packed, tmp_path, None, dataclasses.replace(fixed, batch=12), seed=9)
    assert len(folders(tmp_path)) == 2 and count_describe.calls == done


def test_only_taps_that_are_not_kept_are_extracted(packed, tmp_path, count_describe):
    whole = kept(packed, tmp_path, classifier(("pool5:grid2", "relu4_3:max")))
    assert count_describe.calls == 6
    part = kept(packed, tmp_path, classifier(("relu4_3:max",)))
    swapped = kept(packed, tmp_path, classifier(("relu4_3:max", "pool5:grid2")))
    assert count_describe.calls == 6
    assert np.array_equal(part.arrays[0], whole.arrays[1]) and np.array_equal(
        swapped.arrays[1], whole.arrays[0]
    )
    more = kept(packed, tmp_path, classifier(("pool5:grid2", "relu3_3:mean", "relu4_3:max")))
    assert count_describe.calls == 12 and len(folders(tmp_path)) == 1
    assert np.array_equal(more.arrays[0], whole.arrays[0]) and np.array_equal(
        more.arrays[2], whole.arrays[1]
    )
    alone = kept(packed, tmp_path / "other", classifier(("relu3_3:mean",)))
    assert np.array_equal(more.arrays[1], alone.arrays[0])


def final_arrays(cache):
    return [path for path in cache.rglob("*.npy") if ".partial" not in path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_extraction_goes_on_where_it_was_interrupted(packed, tmp_path, count_describe, error):
    whole = kept(packed, tmp_path / "whole").arrays
    assert count_describe.calls == 6
    count_describe.error = error
    for stop in range(6):
        cache = tmp_path / f"stopped at {stop}"
        count_describe.calls, count_describe.limit = 0, stop
        with pytest.raises(error):
            kept(packed, cache)
        assert not final_arrays(cache)
        count_describe.calls, count_describe.limit = 0, None
        again = kept(packed, cache).arrays
        stored = stop - (stop % 3 > 0)  # within a view the last batch is still on its way
        assert count_describe.calls == (6 - stored if error is KeyboardInterrupt else 6)
        assert not differences(
            [torch.from_numpy(a.copy()) for a in again], [torch.from_numpy(a.copy()) for a in whole]
        )
        assert not list(cache.rglob("*.partial*")) and not list(cache.rglob("progress.json"))


def test_an_extraction_interrupted_in_other_batches_begins_anew(
    packed, tmp_path, count_describe, monkeypatch
):
    """What is kept of an interruption counts batches."""
    plain = dataclasses.replace(IMAGES, flip="alternating", crop_side=())
    monkeypatch.setattr(features, "default_batch_size", lambda size, device: 16)
    whole = kept(packed, tmp_path / "whole", None, plain).arrays
    count_describe.calls, count_describe.limit = 0, 2
    with pytest.raises(KeyboardInterrupt):
        kept(packed, tmp_path, None, plain)
    count_describe.limit = None
    monkeypatch.setattr(features, "default_batch_size", lambda size, device: 32)
    again = kept(packed, tmp_path, None, plain).arrays
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(again, whole, strict=True))


def test_other_taps_than_those_interrupted_are_extracted_from_the_start(
    packed, tmp_path, count_describe
):
    count_describe.limit = 4
    with pytest.raises(KeyboardInterrupt):
        kept(packed, tmp_path)
    count_describe.limit = None
    for feature_names in (("relu4_3:max",), ("pool5:grid2", "relu4_3:max")):
        found = kept(packed, tmp_path, classifier(feature_names)).arrays
        alone = kept(packed, tmp_path / "other", classifier(feature_names)).arrays
        assert all(map(np.array_equal, found, alone))


def test_features_that_float16_cannot_hold_are_refused(packed, tmp_path):
    model = classifier()
    with torch.no_grad():
        model.backbone.features[28].weight *= 1e8
    half = dataclasses.replace(IMAGES, feature_dtype="float16")
    complaint(lambda: kept(packed, tmp_path, model, half), "float16", "--feature-dtype float32")
    assert not final_arrays(tmp_path) and not list(tmp_path.rglob("*partial*")) + list(
        tmp_path.rglob("progress*")
    )
    assert kept(packed, tmp_path, model).arrays[0].max() > 65504


def test_float16_rounds_what_float32_keeps(packed, tmp_path):
    exact = kept(packed, tmp_path).arrays
    rough = kept(
        packed, tmp_path, stage=dataclasses.replace(IMAGES, feature_dtype="float16")
    ).arrays
    for one, other in zip(exact, rough, strict=True):
        assert one.dtype == np.float32 and other.dtype == np.float16
        assert np.array_equal(one.astype(np.float16), other)


# --- the loop, on a small module ------------------------------------------------------------------


INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


def toy():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def toy_stream(epoch, start, batch=8):
    """Three batches an epoch, the last of them smaller."""
    for first in range(start * batch, 20, batch):
        yield INPUTS[first : first + batch], LABELS[first : first + batch]


def toy_training(compute=CPU, **changes):
    stage = Stage(**{"epochs": 2, "batch": 8, "schedule": "constant", "lr": 0.01, **changes})
    module = toy()
    return Training(module, {"head": [module]}, stage, 3, compute)


def run_toy(training, check=lambda module: {"top1": 0.0}, after_step=lambda: None):
    def stop():
        after_step()
        return False

    return list(fit(training, toy_stream, check, stop))


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_a_row_is_yielded_for_every_step_and_epoch():
    rows = run_toy(toy_training(epochs=3))
    assert [(row["kind"], row["epoch"], row["step"]) for row in rows] == [
        row
        for epoch in range(3)
        for row in [
            *(("step", epoch, 3 * epoch + step) for step in (1, 2, 3)),
            ("epoch", epoch, 3 * epoch + 3),
        ]
    ]
    for epoch in of_kind(rows, "epoch"):
        losses = [row["loss"] for row in of_kind(rows, "step") if row["epoch"] == epoch["epoch"]]
        # a mean over pictures, not batches
        assert epoch["loss"] == pytest.approx(np.dot(losses, [8, 8, 4]) / 20)
        assert epoch["seconds"] > 0
        assert epoch["pictures_per_second"] == pytest.approx(20 / epoch["seconds"])
    json.dumps(rows)


def test_rows_are_the_same_however_often_they_are_read(monkeypatch):
    late = run_toy(toy_training())
    monkeypatch.setattr("tinynet.training.loop._FLUSH_AFTER", 0.0)
    assert not differences(run_toy(toy_training()), late)


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    training = toy_training(label_smoothing=0.2)
    module = copy.deepcopy(training.module)
    torch.manual_seed(5)
    loss = training.train_batch(INPUTS[:8], LABELS[:8])
    torch.manual_seed(5)
    logp = torch.log_softmax(module.train()(INPUTS[:8]), 1)
    target = 0.8 * F.one_hot(LABELS[:8], 3) + 0.2 / 3
    assert loss.item() == pytest.approx(-(target * logp).sum(1).mean().item(), rel=1e-6)


def test_training_stops_when_patience_ends_and_remembers_the_best_epoch():
    script = [0.1, 0.3, 0.3, 0.2, 0.9]
    for patience, epochs in ((1, 3), (2, 4), (3, 5), (None, 5)):
        training, marks = toy_training(epochs=5, patience=patience), iter(script)
        rows = of_kind(
            run_toy(training, lambda module, marks=marks: {"top1": next(marks), "mark": "kept"}),
            "epoch",
        )
        assert [row["holdout"]["top1"] for row in rows] == script[:epochs]
        assert [row["improved"] for row in rows] == [True, True, False, False, True][:epochs]
        assert (
            training.best == rows[4 if epochs == 5 else 1]
            and training.best["holdout"]["mark"] == "kept"
        )
        assert training.stale == (0 if epochs == 5 else patience)


def test_the_result_is_the_moving_average_of_the_weights_after_each_step():
    training, after, judged = toy_training(ema=0.8), [], []
    run_toy(
        training,
        lambda module: judged.append(module) or {"top1": 0.0},
        lambda: after.append([p.detach().clone() for p in training.module.parameters()]),
    )
    weights = after[:3] + after[4:7]  # an epoch's end asks once more
    average = weights[0]
    for now in weights[1:]:
        average = [0.8 * a + 0.2 * p for a, p in zip(average, now, strict=True)]
    result = list(training.result.parameters())
    assert all(module is training.result for module in judged)
    for found, expected, last in zip(result, average, weights[-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(found, last, rtol=1e-3)


def test_the_batch_norms_of_an_average_are_measured_on_what_it_learns_from():
    training, judged = toy_training(ema=0.8), []
    run_toy(
        training, lambda average: judged.append(average[2].running_mean.clone()) or {"top1": 0.0}
    )
    average = training.result
    hidden = [torch.relu(average[0](inputs)) for inputs, _ in toy_stream(1, 0)]
    mean, var = (
        torch.stack(found).mean(0)
        for found in ([h.mean(0) for h in hidden], [h.var(0) for h in hidden])
    )
    torch.testing.assert_close(average[2].running_mean, mean)
    torch.testing.assert_close(average[2].running_var, var)
    assert torch.equal(judged[1], average[2].running_mean)
    # those of the live network
    assert not torch.allclose(training.module[2].running_mean, mean, rtol=0.05)


def test_images_that_batch_norms_are_measured_on_are_made_in_float32():
    training, made, ran = toy_training(ema=0.8, compute=Compute(CPU.device, torch.bfloat16)), [], []
    run_toy(training)

    def inputs():
        made.append(
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        )
        yield INPUTS[:8]

    watched = training.result.register_forward_pre_hook(
        lambda *_: ran.append(torch.is_autocast_enabled("cpu"))
    )
    training.update_bn(inputs())
    watched.remove()
    assert made == [torch.float32] and ran == [True]


def test_the_batch_norms_of_an_average_stay_where_no_head_learns():
    stage = Stage(epochs=1, batch=8, schedule="constant", lr=0.01, trainable=("conv5",), ema=0.8)
    module = toy()
    training = Training(module, {"conv5": [module[0]]}, stage, 3, CPU)
    run_toy(training)
    assert torch.equal(training.result[2].running_mean, training.module[2].running_mean)


def test_without_an_average_the_result_is_the_module():
    training = toy_training()
    assert training.result is training.module


def test_the_gradient_is_clipped_to_its_norm():
    def norms(clip):
        training, found = toy_training(max_grad_norm=clip), []
        run_toy(
            training,
            after_step=lambda: found.append(
                torch.stack([p.grad.norm() for p in training.module.parameters()]).norm().item()
            ),
        )
        return found

    assert min(norms(None)) > 0.05
    assert max(norms(0.05)) <= 0.05 * 1.0001
    assert not differences(norms(1e6), norms(None))


def test_weights_decay_and_biases_and_batch_norm_do_not():
    training = toy_training(weight_decay=0.3)
    decayed = {
        id(p)
        for group in training.optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    everything = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    linear = [module.weight for module in training.module if isinstance(module, nn.Linear)]
    assert decayed == {id(weight) for weight in linear}
    assert everything == {id(p) for p in training.module.parameters()}

    # Without a gradient all that moves a weight is its decay.
    for weight_decay, share in ((0.3, (1 - 0.01 * 0.3) ** 6), (0.0, 1.0)):
        training = toy_training(weight_decay=weight_decay)
        before = training.module[0].weight.detach().clone()
        for inputs, labels in [*toy_stream(0, 0), *toy_stream(1, 0)]:
            training.train_batch(torch.zeros_like(inputs), labels)
        torch.testing.assert_close(training.module[0].weight, before * share, rtol=1e-6, atol=0)


def test_each_part_learns_at_its_own_rate_and_frozen_parts_not_at_all():
    model = classifier()
    model.train_only(("conv2", "conv5", "head"))
    stage = Stage(
        trainable=("conv2", "conv5", "head"),
        lr=0.1,
        weight_decay=0.2,
        schedule="constant",
        lr_factors=(1, 0.5, 1, 1, 0.25, 2),
    )
    training = Training(
        model, {name: model.groups[name] for name in stage.trainable}, stage, 3, CPU
    )
    rate = {
        id(p): group["lr"] for group in training.optimizer.param_groups for p in group["params"]
    }
    for name, modules in model.groups.items():
        expected = {"conv2": 0.05, "conv5": 0.025, "head": 0.2}.get(name)
        assert {rate.get(id(p)) for module in modules for p in module.parameters()} == {expected}
    assert len(rate) == sum(p.requires_grad for p in model.parameters())


def test_the_schedule_moves_every_step_or_every_epoch():
    def lrs(every):
        stage = dict(schedule="cosine", schedule_every=every, epochs=4, lr=0.1, min_lr=0.01)
        return np.reshape(
            [row["lr"] for row in of_kind(run_toy(toy_training(**stage)), "step")], (4, 3)
        )

    def cosine(move, moves):
        return 0.01 + 0.09 * (1 + math.cos(math.pi * move / moves)) / 2

    np.testing.assert_allclose(lrs("step").ravel(), [cosine(move, 12) for move in range(12)])
    np.testing.assert_allclose(lrs("epoch"), [[cosine(epoch, 4)] * 3 for epoch in range(4)])


def test_a_loss_that_is_no_number_ends_the_training():
    training = toy_training()

    def stream(epoch, start):
        yield INPUTS[:8], LABELS[:8]
        yield INPUTS[:8] * float("nan"), LABELS[:8]
        yield INPUTS[:8], LABELS[:8]

    with pytest.raises(FloatingPointError, match="step 2.*--lr"):
        list(fit(training, stream, lambda module: {"top1": 0.0}))


def after(questions):
    """Says yes from the n-th question on."""
    asked = itertools.count(1)
    return lambda: next(asked) >= questions


@pytest.mark.parametrize("schedule", ["cyclic", "onecycle", "cosine", "constant"])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_training_goes_on_exactly_from_its_checkpoint(schedule, kind, tmp_path):
    changes = dict(
        schedule=schedule,
        optimizer=kind,
        epochs=4,
        ema=0.9,
        weight_decay=0.1,
        max_grad_norm=1.0,
        patience=2,
    )
    whole = toy_training(**changes)
    torch.manual_seed(1)
    rows = run_toy(whole)
    assert len(of_kind(rows, "epoch")) == 3  # patience ends it
    for stop_at in range(1, 13):
        first = toy_training(**changes)
        torch.manual_seed(1)
        begun = list(fit(first, toy_stream, lambda module: {"top1": 0.0}, after(stop_at)))
        save_training(tmp_path / "last.pt", first.state_dict(), ("a",))
        second = toy_training(**changes)
        torch.manual_seed(99)
        second.load_state_dict(load_training(tmp_path / "last.pt", ("a",)))
        ended = run_toy(second)
        assert begun[-1]["kind"] == "stopped"
        assert not differences(second.state_dict(), whole.state_dict())
        assert not differences(begun[:-1] + ended, rows)


def test_ctrl_c_in_the_very_last_step_is_not_forgotten():
    training = toy_training(epochs=1)
    rows = list(fit(training, toy_stream, lambda module: {"top1": 0.0}, after(3)))
    assert [row["kind"] for row in rows] == ["step"] * 3 + ["epoch", "stopped"]


# --- both stages, stopped and resumed -------------------------------------------------------------


def small_recipe(base=(), finetune=(), **both):
    """The tuned recipe in small: two epochs of three steps in either stage, with all that depends
    on chance.
    """
    recipe = TUNED.override(
        {
            "hidden": (16,),
            "holdout": 0.2,
            "size": 32,
            "batch": 20,
            "epochs": 2,
            "features": ("pool5:grid2", "relu4_3:mean"),
            **both,
        }
    )
    base = {"flip": "random", "crop_side": (40, 64), "feature_dtype": "float32", **dict(base)}
    finetune = {"crop_side": (40, 64), "ema": 0.7, **dict(finetune)}
    return recipe.override(base, ("base",)).override(finetune, ("finetune",))


def config(archive_path, cache, **changes):
    recipe = small_recipe(**{k: changes.pop(k) for k in ("base", "finetune") if k in changes})
    return RunConfig(
        **{
            "recipe": recipe,
            "data": str(archive_path),
            "cache": str(cache),
            "weights": "none",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory, archive_path):
    folder = tmp_path_factory.mktemp("cache")
    open_packed(archive_path, str(folder))
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, archive_path, cache):
    """A run of both stages that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert [row["stage"] for row in stages.train(run, config(archive_path, cache), CPU)] == [
        "base",
        "finetune",
    ]
    return run


def checkpoints(run):
    return {
        f"{stage}/{name}": torch.load(run / stage / name, weights_only=True)
        for stage in runs.WHOLE
        for name in ("best.pt", "last.pt")
    }


def logs(run):
    return {stage: runs.read_rows(StageFolder(run, stage).log) for stage in runs.WHOLE}


def check_same_run(run, other):
    assert not differences(checkpoints(run), checkpoints(other))
    assert not differences(logs(run), logs(other))
    for stage in runs.WHOLE:
        rows = [runs.read_rows(StageFolder(r, stage).scores) for r in (run, other)]
        assert (
            len(rows[0]) == 1
            and rows[0][0].pop("run") == str(run)
            and rows[1][0].pop("run") == str(other)
        )
        assert not differences(*rows)
        assert not list((run / stage).glob(".*"))


def stop_after(monkeypatch, questions):
    """Ctrl-C before the loop asks for the n-th time: after each step and once more after each
    epoch.
    """

    @contextmanager
    def stop_on_interrupt():
        yield stop

    def stop():
        nonlocal left
        left -= 1
        return left <= 0

    left = questions
    monkeypatch.setattr(console, "stop_on_interrupt", stop_on_interrupt)


def interruptions(run, asked, monkeypatch, questions):
    """Train to the end, stopped again and again after so many questions; how often that was."""
    for stops in range(100):
        stop_after(monkeypatch, questions)
        try:
            stages.train(run, asked, CPU, resume=stops > 0)
        except KeyboardInterrupt:
            continue
        return stops
    raise AssertionError("training makes no progress")


def test_the_uninterrupted_run_is_what_the_others_are_compared_with(whole_run):
    found = logs(whole_run)
    for stage in runs.WHOLE:
        assert [row["step"] for row in of_kind(found[stage], "step")] == list(range(1, 7))
        assert len(of_kind(found[stage], "epoch")) == 2
    weights = [
        {
            name: value
            for name, value in checkpoints(whole_run)[f"{stage}/best.pt"]["weights"].items()
            if not name.endswith("num_batches_tracked")
        }
        for stage in runs.WHOLE
    ]
    assert len(differences(*weights)) == len(weights[0]) - 2  # all but mean and std


def test_the_best_epoch_is_kept(whole_run, archive_path, cache):
    packed, asked = open_packed(archive_path, str(cache)), config(archive_path, cache)
    for stage in runs.WHOLE:
        folder = StageFolder(whole_run, stage)
        rows = of_kind(runs.read_rows(folder.log), "epoch")
        best = max(rows, key=lambda row: row["holdout"]["top1"])  # the first among equals
        assert [row["improved"] for row in rows] == [True, best is rows[1]]
        model, _ = load_model(folder.best, packed.wnids)
        held = split_of(asked, packed).holdout
        found = view_probabilities(
            model, batches(packed.train, held), lambda images: resize(images, 32)
        )
        loss = score(found, packed.train.labels[held])["loss"]
        assert loss == pytest.approx(best["holdout"]["loss"], rel=1e-5)
        assert rows[0]["holdout"]["loss"] != pytest.approx(rows[1]["holdout"]["loss"], rel=1e-3)


def test_a_worse_epoch_does_not_replace_the_best(archive_path, cache, tmp_path, monkeypatch):
    tops, scored = iter([0.9, 0.1]), single_stage.score
    monkeypatch.setattr(
        single_stage, "score", lambda *given: {**scored(*given), "top1": next(tops)}
    )
    stages.train(tmp_path / "run", config(archive_path, cache, stages=("base",)), CPU)
    best, last = (
        torch.load(tmp_path / "run" / "base" / file, weights_only=True)
        for file in ("best.pt", "last.pt")
    )
    assert differences(
        {f"head.{name}": value for name, value in last["state"]["module"].items()},
        {name: value for name, value in best["weights"].items() if name.startswith("head.")},
    )


@pytest.mark.parametrize("questions", [1, 3, 11])
def test_a_run_stopped_anywhere_ends_bit_for_bit_as_if_it_had_not_been(
    whole_run, archive_path, cache, tmp_path, monkeypatch, questions
):
    stops = interruptions(tmp_path / "run", config(archive_path, cache), monkeypatch, questions)
    assert stops == {1: 12, 3: 4, 11: 1}[questions]
    check_same_run(tmp_path / "run", whole_run)


def test_a_stop_between_the_stages_leaves_the_second_for_later(
    archive_path, cache, tmp_path, monkeypatch, whole_run
):
    stop_after(monkeypatch, 7)  # the last step of base
    with pytest.raises(KeyboardInterrupt):
        stages.train(tmp_path / "run", config(archive_path, cache), CPU)
    assert not StageFolder(tmp_path / "run", "finetune").started
    stop_after(monkeypatch, 100)
    stages.train(tmp_path / "run", config(archive_path, cache), CPU, resume=True)
    check_same_run(tmp_path / "run", whole_run)


class Killed(Exception):
    pass


class EverySecond:
    """A time that has passed every second time one looks."""

    looks = 0

    def __lt__(self, passed):
        self.looks += 1
        return self.looks % 2 == 0


@pytest.mark.parametrize(
    "flush_after", [0.0, 1.0, EverySecond()], ids=["step", "epoch", "two steps"]
)
def test_a_run_killed_between_any_two_writes_is_resumed_exactly(
    whole_run, archive_path, cache, tmp_path, monkeypatch, flush_after
):
    writes = left = 0

    def deadly(name, module):
        write = getattr(module, name)

        def write_or_die(*arguments):
            nonlocal writes, left
            writes, left = writes + 1, left - 1
            if left == 0:
                raise Killed
            return write(*arguments)

        monkeypatch.setattr(module, name, write_or_die)

    monkeypatch.setattr(single_stage, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr("tinynet.training.loop._FLUSH_AFTER", flush_after)
    deadly("append_rows", runs)
    deadly("save_model", single_stage)
    deadly("save_training", single_stage)
    deadly("write_json", single_stage)
    # Killed at every write once, one after the other: each life gets one write further than the
    # last.
    run, asked = tmp_path / "run", config(archive_path, cache)
    for life in range(1, 200):
        left = life
        try:
            stages.train(run, asked, CPU, resume=life > 1)
        except Killed:
            continue
        break
    assert life >= 5
    check_same_run(run, whole_run)


def test_rows_that_a_killed_run_wrote_after_its_checkpoint_are_cut(
    whole_run, archive_path, cache, tmp_path, monkeypatch
):
    run, asked = tmp_path / "run", config(archive_path, cache)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run, asked, CPU)
    log = StageFolder(run, "base").log
    assert [row["kind"] for row in runs.read_rows(log)] == ["step", "step", "stopped"]
    with open(log, "a") as stream:
        for step in (3, 4):
            stream.write(
                json.dumps({"kind": "step", "epoch": 0, "step": step, "lr": 9.0, "loss": 9.0})
                + "\n"
            )
        stream.write(json.dumps({"kind": "epoch", "epoch": 0, "step": 3, "loss": 9.0}) + "\n")
        stream.write('{"kind": "step", "epo')
    stop_after(monkeypatch, 100)
    stages.train(run, asked, CPU, resume=True)
    check_same_run(run, whole_run)


def test_a_run_is_not_resumed_on_other_data_split_or_weights(
    archive_path, cache, tmp_path, monkeypatch
):
    run, asked = tmp_path / "run", config(archive_path, cache)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        stages.train(run, asked, CPU)
    before = checkpoint_of(run)
    other = synthetic(tmp_path / "other.zip", classes=6, train=12, val=1, test=1, seed=5)
    for word, changed in (
        ("data", dataclasses.replace(asked, data=str(other))),
        ("split", dataclasses.replace(asked, recipe=asked.recipe.override({"split_seed": 1}))),
        ("starting weights", dataclasses.replace(asked, seed=1)),
    ):
        complaint(
            lambda changed=changed: stages.train(run, changed, CPU, resume=True),
            run / "base",
            f"the {word} changed (",
        )
    assert not differences(checkpoint_of(run), before)


def test_a_finished_run_does_not_stand_for_another_plan(whole_run, archive_path, cache):
    asked = config(archive_path, cache)
    assert [row["stage"] for row in stages.train(whole_run, asked, CPU)] == ["base", "finetune"]
    for changed in (
        dataclasses.replace(asked, seed=1),
        dataclasses.replace(asked, recipe=small_recipe({"lr": 0.1})),
        dataclasses.replace(asked, recipe=asked.recipe.override({"dropout": 0.1})),
    ):
        complaint(
            lambda changed=changed: stages.train(whole_run, changed, CPU),
            whole_run / "base",
            "--out",
        )


def test_each_stage_drops_its_own_share(archive_path, cache, tmp_path):
    asked = config(archive_path, cache, base={"dropout": 0.4}, finetune={"dropout": 0.0})
    stages.train(tmp_path / "run", asked, CPU)
    for stage, share in (("base", 0.4), ("finetune", 0.0)):
        model, _ = load_model(
            tmp_path / "run" / stage / "best.pt", open_packed(archive_path, str(cache)).wnids
        )
        dropped = [module.p for module in model.head if isinstance(module, nn.Dropout)]
        assert dropped == [share] * len(asked.recipe.network.hidden)


def checkpoint_of(run):
    return torch.load(run / "base" / "last.pt", weights_only=True)


# --- kept features and live training are one training ---


def test_training_on_kept_random_views_is_live_training_bit_for_bit(archive_path, cache, tmp_path):
    for name, views in (("kept", 2), ("live", 0)):
        asked = config(
            archive_path, cache, base={"cached_epochs": views, "ema": 0.8}, stages=("base",)
        )
        stages.train(tmp_path / name, asked, CPU)
    one, other = (
        {
            f: torch.load(tmp_path / name / "base" / f, weights_only=True)
            for f in ("best.pt", "last.pt")
        }
        for name in ("kept", "live")
    )
    for stored in (one["best.pt"], other["best.pt"]):
        assert stored.pop("origin")  # of the recipe, which has views or none
    assert not differences(one["best.pt"], other["best.pt"])
    for where, prefix in (("module", "head."), ("average", "module.head.")):
        live = {
            key: value for key, value in other["last.pt"]["state"][where].items() if "head." in key
        }
        head = {
            prefix + key.removeprefix("module."): value
            for key, value in one["last.pt"]["state"][where].items()
            if key != "n_averaged"
        }
        assert len(head) > 5 and not differences(head, live)
    logged = [runs.read_rows(tmp_path / name / "base" / "log.jsonl") for name in ("kept", "live")]
    assert len(logged[0]) == 8 and not differences(*logged)


def test_two_kept_views_of_alternating_flips_are_four_epochs_of_live_training(
    archive_path, cache, tmp_path
):
    alternating = {"flip": "alternating", "crop_side": (), "epochs": 4}
    for name, views in (("kept", 2), ("live", 0)):
        asked = config(
            archive_path, cache, base={**alternating, "cached_epochs": views}, stages=("base",)
        )
        stages.train(tmp_path / name, asked, CPU)
    one, other = (
        torch.load(tmp_path / name / "base" / "last.pt", weights_only=True)["state"]["module"]
        for name in ("kept", "live")
    )
    # Features are extracted in batches of another size, which may change their last bits.
    for key, value in one.items():
        torch.testing.assert_close(value, other[f"head.{key}"], rtol=1e-4, atol=1e-5)
    losses = [
        [row["loss"] for row in runs.read_rows(tmp_path / name / "base" / "log.jsonl")]
        for name in ("kept", "live")
    ]
    assert len(losses[0]) == 16 and losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- recipes --------------------------------------------------------------------------------------


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError):
        Stage(epoch=3)
    complaint(lambda: TUNED.override({"epoch": 3, "hidden": (8,)}), "epoch")
    complaint(lambda: TUNED.override({"label_smooting": 0.1}, ("base",)), "label_smooting")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TUNED.base.epochs = 3


def test_overriding_changes_what_was_named_and_nothing_else():
    changed = TUNED.override({"lr": 0.5, "hidden": (7,), "holdout": 0.3}, ("finetune",))
    assert changed.base == TUNED.base and changed.finetune == dataclasses.replace(
        TUNED.finetune, lr=0.5
    )
    assert changed.network == dataclasses.replace(TUNED.network, hidden=(7,))
    assert changed.data == dataclasses.replace(TUNED.data, holdout=0.3)
    both = TUNED.override({"lr": 0.5})
    assert both.base.lr == both.finetune.lr == 0.5
    assert TUNED.override({}) == TUNED


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=0),
        dict(epochs=-1),
        dict(batch=1),
        dict(batch=0),
        dict(size=0),
        dict(lr=0.0),
        dict(lr=float("nan")),
        dict(cycles=0.0),
        dict(cached_epochs=-1),
        dict(cached_epochs=1, trainable=("conv5", "head")),
        dict(crop_side=(40,)),
        dict(crop_side=(50, 40)),
        dict(crop_side=(0, 40)),
        dict(crop_area=(0.5, 1.5)),
        dict(crop_area=(0.0, 1.0)),
        dict(crop_side=(40, 64), crop_area=(0.5, 1.0)),
        dict(saturation=(1.0, 0.5)),
        dict(saturation=(1.0, 1.0, 1.0)),
        dict(hue=0.6),
        dict(hue=-0.1),
        dict(lr_factors=(1, 1)),
        dict(lr_factors=(1, 1, 1, 1, 1, 0)),
        dict(lr_factors=(1, 1, -1, 1, 1, 1)),
        dict(pct_start=0.0),
        dict(pct_start=1.0),
        dict(ema=1.0),
        dict(ema=-0.1),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(trainable=()),
        dict(trainable=("conv6",)),
        dict(min_lr=-1e-4),
        dict(min_lr=1.0, lr=0.5),
        dict(weight_decay=-0.1),
        dict(label_smoothing=1.5),
        dict(label_smoothing=-0.1),
        dict(max_grad_norm=0.0),
        dict(max_grad_norm=-1.0),
        dict(step_size_up=0),
        dict(patience=0),
        dict(patience=-1),
    ],
    ids=str,
)
def test_a_stage_with_a_value_out_of_range_is_refused(change):
    complaint(lambda: Stage(**change), next(iter(change)))
    complaint(lambda: TUNED.override(change), next(iter(change)))


@pytest.mark.parametrize("change", [dict(hidden=(16, 0)), dict(hidden=(-1,))], ids=str)
def test_a_network_with_a_value_out_of_range_is_refused(change):
    complaint(lambda: Network(**change), next(iter(change)))


@pytest.mark.parametrize(
    "recipe",
    [
        *RECIPES.values(),
        TUNED.override(
            dict(
                features=("relu1_1:max",),
                hidden=(),
                per_class=3,
                cached_epochs=0,
                trainable=("conv5", "head"),
                crop_area=(0.25, 1.0),
                crop_side=(),
                saturation=(0.5, 2.0),
                hue=0.1,
                max_grad_norm=None,
                patience=4,
                step_size_up=9,
                lr_factors=(1, 2, 3, 4, 5, 6.5),
            )
        ),
    ],
    ids=["tuned", "reference", "another"],
)
def test_a_plan_is_read_back_exactly(recipe, tmp_path):
    first = RunConfig(recipe, "data.zip", ("finetune",), "none", 3, "cache", "runs/before")
    stored = json.loads(json.dumps({"stage": "base", **dataclasses.asdict(first), "more": 1}))
    again = RunConfig.read(stored)
    assert again == first
    assert [type(v) for v in dataclasses.astuple(again.recipe.base)] == [
        type(v) for v in dataclasses.astuple(first.recipe.base)
    ]
    assert RunConfig.read(
        json.loads(json.dumps(dataclasses.asdict(RunConfig(recipe, "d"))))
    ) == RunConfig(recipe, "d")


def test_recipe_json_holds_the_plan_of_the_run(whole_run, archive_path, cache):
    for stage in runs.WHOLE:
        stored = StageFolder(whole_run, stage).read_recipe()
        assert RunConfig.read(stored) == config(archive_path, cache)
        assert stored["stage"] == stage and stored["pictures"] == {"train": 60, "holdout": 12}


def test_every_field_is_a_flag_and_its_default_is_no_change():
    made = train.parser()
    fields = {
        field.name for part in (SplitConfig, Network, Stage) for field in dataclasses.fields(part)
    }
    flags = {action.dest for action in made._actions}
    assert fields <= flags
    asked = made.parse_args([])
    assert not fields & set(vars(asked))
    flags = (
        "--taps pool5:mean relu4_3:max --hidden --max-grad-norm none --lr 0.5 --lr-factors 1 2 3 4 "
        "5 6.5 --no-standardise --per-class 7 --crop-side 40 64 --schedule cosine"
    )
    asked = made.parse_args(flags.split())
    given = {name: value for name, value in vars(asked).items() if name in fields}
    assert given == dict(
        features=("pool5:mean", "relu4_3:max"),
        hidden=(),
        max_grad_norm=None,
        lr=0.5,
        per_class=7,
        lr_factors=(1.0, 2.0, 3.0, 4.0, 5.0, 6.5),
        standardise=False,
        crop_side=(40, 64),
        schedule="cosine",
    )
    Stage(**{name: value for name, value in given.items() if name in Stage.__dataclass_fields__})


def test_what_the_base_fixed_cannot_be_changed_in_finetune(whole_run, tmp_path):
    asked = [
        "--stage",
        "finetune",
        "--run",
        str(whole_run),
        "--out",
        str(tmp_path / "more"),
        "--device",
        "cpu",
    ]
    for flags, name in (
        (["--hidden", "8"], "--hidden"),
        (["--features", "pool5:mean"], "--features"),
        (["--holdout", "0.3"], "--holdout"),
        (["--split-seed", "1"], "--split-seed"),
        (["--no-standardise"], "--standardise"),
    ):
        complaint(lambda flags=flags: train.main([*asked, *flags]), name, "fixed by the base")
    assert not (tmp_path / "more").exists()


def test_a_resumed_run_keeps_its_recipe(whole_run):
    complaint(
        lambda: train.main(["--resume", str(whole_run), "--lr", "0.1", "--hidden", "8"]),
        "--hidden",
        "--lr",
        "cannot be changed when a run is resumed",
    )


# --- checkpoints ----------------------------------------------------------------------------------


WNIDS = ("n01", "n02", "n03", "n04", "n05", "n06")


@pytest.fixture
def checkpoint(tmp_path):
    save_model(tmp_path / "best.pt", classifier().eval(), WNIDS, 48)
    return tmp_path / "best.pt"


def test_a_model_is_loaded_as_it_was_saved(checkpoint):
    model, size = load_model(checkpoint, WNIDS)
    assert (
        size == 48 and not model.training and not any(module.training for module in model.modules())
    )
    assert not differences(model.state_dict(), classifier().state_dict())
    images = torch.rand(3, 3, 48, 48)
    assert torch.equal(model(images), classifier().eval()(images))


def test_normalisation_is_loaded_with_the_model(tmp_path):
    model = Classifier(
        Backbone((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ("pool5:mean",), (), 6, 0.0, False
    )
    save_model(tmp_path / "best.pt", model, WNIDS, 32)
    assert load_model(tmp_path / "best.pt", WNIDS)[0].backbone.digest() == model.backbone.digest()


def test_classes_in_another_order_or_of_another_data_set_are_refused(checkpoint):
    complaint(lambda: load_model(checkpoint, WNIDS[::-1]), checkpoint, "another order", "--data")
    complaint(
        lambda: load_model(checkpoint, ("m01", *WNIDS[1:])), checkpoint, "other classes (6, here 6)"
    )
    complaint(lambda: load_model(checkpoint, WNIDS[:-1]), checkpoint, "other classes (6, here 5)")


class Harmful:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def test_what_is_no_checkpoint_is_refused_unread(checkpoint, tmp_path, capsys):
    whole = checkpoint.read_bytes()
    save_training(tmp_path / "last.pt", toy_training().state_dict(), WNIDS)
    contents = {
        "empty.pt": b"",
        "text.pt": b"no checkpoint at all",
        "short.pt": whole[: len(whole) // 2],
    }
    values = {
        "harmful.pt": {"format": 1, "kind": "model", "weights": Harmful()},
        "tensor.pt": torch.ones(2),
        "state.pt": classifier().state_dict(),
        "later.pt": {"format": 99, "kind": "model"},
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name, value in values.items():
        torch.save(value, tmp_path / name)
    for name in (*contents, *values, "last.pt", "missing.pt"):
        complaint(lambda name=name: load_model(tmp_path / name, WNIDS), name, "tinynet.train")
    complaint(lambda: load_training(checkpoint, WNIDS), "not a training checkpoint")
    assert "has run code" not in "".join(capsys.readouterr())


def test_checkpoints_hold_tensors_and_plain_values_only(whole_run):
    def kinds(value):
        if isinstance(value, dict):
            return {kind for pair in value.items() for part in pair for kind in kinds(part)}
        if isinstance(value, (list, tuple)):
            return {kind for part in value for kind in kinds(part)}
        return {type(value)}

    for content in checkpoints(whole_run).values():
        assert kinds(content) <= {torch.Tensor, str, int, float, bool, type(None)}
        assert content["wnids"] == sorted(content["wnids"]) and len(content["wnids"]) == 6


class FullDisk(io.RawIOBase):
    """A file on a disk with room for `room` bytes at once."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize(("numbers", "room"), [(10, 0), (100_000, 0), (100_000, 10_000)])
def test_a_full_disk_is_not_hidden_by_torch(tmp_path, monkeypatch, numbers, room):
    monkeypatch.setattr(
        "tinynet.files.open", lambda path, mode: io.BufferedWriter(FullDisk(room)), raising=False
    )
    with pytest.raises(OSError) as caught:
        save_training(
            tmp_path / "last.pt", {"one": torch.zeros(numbers), "two": torch.zeros(numbers)}, WNIDS
        )
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "last.pt")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError):
        save_model(checkpoint, classifier(seed=1), WNIDS, 32)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
