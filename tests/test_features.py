"""Cached features: what they depend on, and what they hold."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from small_runs import (
    CROPPED_STAGE,
    TRAIN_ROWS,
    cached_features,
    differences,
    folders,
    small_classifier,
    with_cache,
)
from support import CPU, in_floats, needs_vnni
from torch import nn

from tinynet.compute import Compute
from tinynet.models.classifier import Classifier
from tinynet.models.vgg import VGG16
from tinynet.training import features
from tinynet.training.inputs import TrainingImages
from tinynet.training.recipes import Stage

pytestmark = pytest.mark.usefixtures("thin")


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
    model, stage = small_classifier(), dataclasses.replace(CROPPED_STAGE, **changes)
    found = cached_features(packed, tmp_path, model, stage, seed=3)
    running = model.for_inference(CPU.device, CPU.dtype)
    seen = []
    for epoch in range(2):
        live = TrainingImages(packed.train, TRAIN_ROWS, stage, seed=3).epoch(epoch, CPU.device)
        for (inputs, labels), batch in zip(found.epoch(3, epoch, 8, CPU.device), live, strict=True):
            with torch.inference_mode():
                assert torch.equal(inputs, running.features(batch.images))
            assert torch.equal(labels, batch.labels)
            seen.append(inputs.sum().item())
    assert len(seen) == 6 and len(set(seen)) == 6


def test_two_views_of_alternating_flips_hold_every_epoch(packed, tmp_path):
    model, stage = (
        small_classifier(),
        Stage(size=32, batch=8, cached_epochs=2, feature_dtype="float32", flip="alternating"),
    )
    found = cached_features(packed, tmp_path, model, stage)
    running = model.for_inference(CPU.device, CPU.dtype)
    for epoch in range(4):
        live = TrainingImages(packed.train, TRAIN_ROWS, stage, seed=0).epoch(epoch, CPU.device)
        for (inputs, labels), batch in zip(found.epoch(0, epoch, 8, CPU.device), live, strict=True):
            with torch.inference_mode():  # other batches: the last bits may differ
                torch.testing.assert_close(
                    inputs, running.features(batch.images), rtol=1e-5, atol=1e-6
                )
            assert torch.equal(labels, batch.labels)


@needs_vnni
def test_features_in_integers_are_kept_apart_and_nearly_the_same(packed, tmp_path):
    exact = cached_features(packed, tmp_path)
    rough = cached_features(packed, tmp_path, compute=Compute(CPU.device, torch.float32, int8=True))
    assert len(folders(tmp_path)) == 2
    for (inputs, _), (rounded, _) in zip(
        exact.epoch(0, 1, 8, CPU.device), rough.epoch(0, 1, 8, CPU.device), strict=True
    ):
        assert 0 < (inputs - rounded).norm() < 0.05 * inputs.norm()
    # They are the same whatever floats the processor has beside its integers.
    halves = cached_features(
        packed, tmp_path / "halves", compute=Compute(CPU.device, torch.bfloat16, int8=True)
    )
    assert all(map(np.array_equal, rough.arrays, halves.arrays)) and folders(
        tmp_path / "halves"
    ) < folders(tmp_path)


def test_an_epoch_can_begin_at_any_batch(packed, tmp_path):
    found = cached_features(packed, tmp_path)
    whole = list(found.epoch(0, 1, 8, CPU.device))
    for start in range(4):
        assert not differences(list(found.epoch(0, 1, 8, CPU.device, start)), whole[start:])


def test_the_cache_knows_all_that_features_depend_on(packed, tmp_path):
    other_mean = Classifier(VGG16((0.5, 0.5, 0.5)), ("pool5:grid2",), (16,), 6, 0.5, True)
    other_mean.backbone.features.load_state_dict(small_classifier().backbone.features.state_dict())
    other_data = copy.copy(packed)
    other_data.contents = "0" * 16
    changes = [
        dict(),
        dict(rows=TRAIN_ROWS[::-1]),
        dict(rows=TRAIN_ROWS[1:]),
        dict(seed=1),
        dict(model=small_classifier(seed=1)),
        dict(model=other_mean),
        dict(packed=other_data),
        dict(compute=Compute(CPU.device, torch.bfloat16)),
    ]
    changes += [
        dict(stage=dataclasses.replace(CROPPED_STAGE, **change))
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
        cached_features(**{"packed": packed, "cache": tmp_path, **change})
        assert len(folders(tmp_path)) == number + 1, change


@pytest.mark.parametrize("change", [dict(), dict(flip="alternating", crop_side=())])
def test_fewer_views_are_the_first_of_more_that_are_cached(
    packed, tmp_path, extracted_batches, change
):
    many = dataclasses.replace(CROPPED_STAGE, cached_epochs=3, **change)
    alone, of_many = (
        dataclasses.replace(many, cached_epochs=2),
        cached_features(packed, tmp_path / "both", stage=many),
    )
    done = extracted_batches.calls
    found = cached_features(packed, tmp_path / "both", stage=alone)
    assert len(folders(tmp_path / "both")) == 1 and extracted_batches.calls == done
    for array, more, expected in zip(
        found.arrays,
        of_many.arrays,
        cached_features(packed, tmp_path / "one", stage=alone).arrays,
        strict=True,
    ):
        assert (
            len(array) == 2 and np.array_equal(array, more[:2]) and np.array_equal(array, expected)
        )
    cached_features(
        packed,
        tmp_path / "both",
        Classifier(small_classifier().backbone, ("relu4_3:mean",), (16,), 6, 0.5, True),
        alone,
    )
    assert len(folders(tmp_path / "both")) == 2  # other depths were not kept of the three


@pytest.mark.parametrize("text", ["{}", '{"views": 3', None])
def test_what_holds_no_views_is_passed_over(packed, tmp_path, text):
    """Another kind of folder, one that is being written, and one whose arrays are gone."""
    cached_features(packed, tmp_path / "first")
    (whole,) = (tmp_path / "first").glob("features-*/manifest.json")
    (tmp_path / "again" / "features-other").mkdir(parents=True)
    more = json.dumps({**json.loads(whole.read_text()), "views": 9})
    (tmp_path / "again" / "features-other" / "manifest.json").write_text(
        more if text is None else text
    )
    found = cached_features(packed, tmp_path / "again")
    assert (
        len(folders(tmp_path / "again")) == 2
        and len(found.arrays[0]) == CROPPED_STAGE.cached_epochs
    )


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
            place = features.FeatureCache(small_classifier(), with_cache(packed, tmp_path), CPU)
            found = place.view_features(part, np.arange(10, 2, -1), view, CROPPED_STAGE)
            assert len(folders(tmp_path)) == before + 1
            images = in_floats(part.images[10:2:-1])
            with torch.inference_mode():
                expected = small_classifier().eval().features(view(images))
            torch.testing.assert_close(
                torch.cat(list(found.in_order(CPU.device, 3))), expected, rtol=1e-4, atol=1e-5
            )
            assert np.array_equal(found.labels, part.labels[10:2:-1])
    place.view_features(
        packed.val, np.arange(10, 2, -1), lambda anything: views[0](anything), CROPPED_STAGE
    )
    assert len(folders(tmp_path)) == 8


def test_the_cache_does_not_mind_what_features_do_not_depend_on(
    packed, tmp_path, extracted_batches
):
    cached_features(packed, tmp_path)
    done = extracted_batches.calls
    head = small_classifier()
    for layer in head.head:
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
    cached_features(
        packed,
        tmp_path,
        head,
        dataclasses.replace(CROPPED_STAGE, lr=0.7, epochs=9, ema=0.5, max_grad_norm=1.0),
    )
    assert len(folders(tmp_path)) == 1 and extracted_batches.calls == done == 6

    fixed = dataclasses.replace(CROPPED_STAGE, flip="alternating", crop_side=())
    cached_features(packed, tmp_path, None, fixed)
    done = extracted_batches.calls
    # chance plays no part in these
    cached_features(packed, tmp_path, None, dataclasses.replace(fixed, batch=12), seed=9)
    assert len(folders(tmp_path)) == 2 and extracted_batches.calls == done
