"""Extraction of features: interrupted, continued, rounded."""

import dataclasses

import numpy as np
import pytest
import torch
from small_runs import CROPPED_STAGE, cached_features, differences, folders, small_classifier
from support import complaint

from tinynet.training import features

pytestmark = pytest.mark.usefixtures("thin")


def test_only_features_that_are_not_cached_are_extracted(packed, tmp_path, extracted_batches):
    whole = cached_features(packed, tmp_path, small_classifier(("pool5:grid2", "relu4_3:max")))
    assert extracted_batches.calls == 6
    part = cached_features(packed, tmp_path, small_classifier(("relu4_3:max",)))
    swapped = cached_features(packed, tmp_path, small_classifier(("relu4_3:max", "pool5:grid2")))
    assert extracted_batches.calls == 6
    assert np.array_equal(part.arrays[0], whole.arrays[1]) and np.array_equal(
        swapped.arrays[1], whole.arrays[0]
    )
    more = cached_features(
        packed, tmp_path, small_classifier(("pool5:grid2", "relu3_3:mean", "relu4_3:max"))
    )
    assert extracted_batches.calls == 12 and len(folders(tmp_path)) == 1
    assert np.array_equal(more.arrays[0], whole.arrays[0]) and np.array_equal(
        more.arrays[2], whole.arrays[1]
    )
    alone = cached_features(packed, tmp_path / "other", small_classifier(("relu3_3:mean",)))
    assert np.array_equal(more.arrays[1], alone.arrays[0])


def final_arrays(cache_folder):
    return [path for path in cache_folder.rglob("*.npy") if ".partial" not in path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_extraction_goes_on_where_it_was_interrupted(packed, tmp_path, extracted_batches, error):
    whole = cached_features(packed, tmp_path / "whole").arrays
    assert extracted_batches.calls == 6
    extracted_batches.error = error
    for stop in range(6):
        cache_folder = tmp_path / f"stopped at {stop}"
        extracted_batches.calls, extracted_batches.limit = 0, stop
        with pytest.raises(error):
            cached_features(packed, cache_folder)
        assert not final_arrays(cache_folder)
        extracted_batches.calls, extracted_batches.limit = 0, None
        again = cached_features(packed, cache_folder).arrays
        stored = stop - (stop > 0)  # the last batch is still on its way
        assert extracted_batches.calls == (6 - stored if error is KeyboardInterrupt else 6)
        assert not differences(
            [torch.from_numpy(a.copy()) for a in again], [torch.from_numpy(a.copy()) for a in whole]
        )
        assert not list(cache_folder.rglob("*.partial*")) and not list(
            cache_folder.rglob("progress.json")
        )


def test_an_extraction_interrupted_in_other_batches_goes_on_in_those(
    packed, tmp_path, extracted_batches, monkeypatch
):
    """The batch size depends on the number of threads, which differs with the processes."""
    plain = dataclasses.replace(CROPPED_STAGE, flip="alternating", crop_side=())
    monkeypatch.setattr(features, "default_batch_size", lambda size, compute: 16)
    whole = cached_features(packed, tmp_path / "whole", None, plain).arrays
    calls, extracted_batches.calls, extracted_batches.limit = extracted_batches.calls, 0, 2
    with pytest.raises(KeyboardInterrupt):
        cached_features(packed, tmp_path, None, plain)
    extracted_batches.calls, extracted_batches.limit = 0, None
    monkeypatch.setattr(features, "default_batch_size", lambda size, compute: 32)
    again = cached_features(packed, tmp_path, None, plain).arrays
    assert extracted_batches.calls == calls - 1
    assert all(map(np.array_equal, again, whole))


def test_other_features_than_those_interrupted_are_extracted_from_the_start(
    packed, tmp_path, extracted_batches
):
    extracted_batches.limit = 4
    with pytest.raises(KeyboardInterrupt):
        cached_features(packed, tmp_path)
    extracted_batches.limit = None
    for feature_names in (("relu4_3:max",), ("pool5:grid2", "relu4_3:max")):
        found = cached_features(packed, tmp_path, small_classifier(feature_names)).arrays
        alone = cached_features(packed, tmp_path / "other", small_classifier(feature_names)).arrays
        assert all(map(np.array_equal, found, alone))


def test_features_that_float16_cannot_hold_are_refused(packed, tmp_path):
    model = small_classifier()
    with torch.no_grad():
        model.backbone.features[28].weight *= 1e8
    half = dataclasses.replace(CROPPED_STAGE, feature_dtype="float16")
    complaint(
        lambda: cached_features(packed, tmp_path, model, half), "float16", "feature_dtype float32"
    )
    assert not final_arrays(tmp_path) and not list(tmp_path.rglob("*partial*")) + list(
        tmp_path.rglob("progress*")
    )
    assert cached_features(packed, tmp_path, model).arrays[0].max() > 65504


def test_float16_rounds_what_float32_keeps(packed, tmp_path):
    exact = cached_features(packed, tmp_path).arrays
    rough = cached_features(
        packed, tmp_path, stage=dataclasses.replace(CROPPED_STAGE, feature_dtype="float16")
    ).arrays
    for one, other in zip(exact, rough, strict=True):
        assert one.dtype == np.float32 and other.dtype == np.float16
        assert np.array_equal(one.astype(np.float16), other)
