"""A run at other sizes."""

import json

import numpy as np
import pytest
import torch
from support import ON_CPU, call

from tinynet import evaluate
from tinynet.compute import choose_compute
from tinynet.evaluation.predictor import Predictor
from tinynet.resolution.activations import distances
from tinynet.resolution.corrections import quantile_mapping
from tinynet.resolution.study import Study
from tinynet.runs import StageFolder
from tinynet.score.metrics import score

pytestmark = pytest.mark.usefixtures("thin")


def study_of(sized_runs, run, stage="base", method="antialias"):
    folder = StageFolder(sized_runs.folder / "runs" / run, stage)
    return Study(Predictor(folder, sized_runs.packed, choose_compute("cpu", "float32")), method)


@pytest.mark.parametrize("run, stage", [("base", "base"), ("done", "finetune")])
def test_at_the_training_size_a_study_has_the_scores_of_evaluate(sized_folder, run, stage):
    ran = call(evaluate, "--run", f"runs/{run}", "--json", *ON_CPU, *sized_folder.flags)
    evaluated = {row["split"]: row for row in json.loads(ran.out)}
    study = study_of(sized_folder, run, stage)
    for split, row in evaluated.items():
        part, rows = study.predictor.images(split)
        found = score(study.predict(split, 32), part.labels[rows])
        assert (found.n, found.top1, found.top5) == (row["n"], row["top1"], row["top5"])
        assert found.loss == pytest.approx(row["loss"], rel=1e-5)


def test_corrections_change_features_alone_and_leave_the_training_size_as_it_is(sized_folder):
    study = study_of(sized_folder, "base")
    for name in ("frechet", "quantile"):
        corrected = study.predict("val", 32, name)
        assert np.allclose(corrected, study.predict("val", 32), atol=2e-3), name
    at_other = study.predict("val", 64)
    assert all(
        np.abs(study.predict("val", 64, name) - at_other).max() > 1e-3 for name in study.corrections
    )


def quantile_mappings(study, size):
    """(mapping, values, target) of each feature of the sample, from `size` to the training size."""
    values, targets = (study.features("sample", side) for side in (size, study.predictor.size))
    for ours, theirs in zip(values.arrays, targets.arrays, strict=True):
        yield quantile_mapping(ours[0], theirs[0]), ours[0], theirs[0]


def test_quantile_corrected_features_have_the_distribution_of_the_training_size(sized_folder):
    study = study_of(sized_folder, "base")
    rows = list(study.activations(64))
    after = [
        distances(mapping(torch.from_numpy(np.float32(ours))).numpy(), theirs).ks
        for mapping, ours, theirs in quantile_mappings(study, 64)
    ]
    assert max(row.distances.ks for row in rows) > 0.1
    for row, apart in zip(rows, after, strict=True):  # what is equal, zero, stays equal
        zeros, before = row.distribution.zeros, row.distances.ks
        assert apart < 0.02 + zeros and (apart < before or before < 0.02), row.feature


def test_batch_norms_are_those_of_the_sample_at_the_size_itself(sized_folder):
    study = study_of(sized_folder, "base")
    head = study.with_bn_of(64).head
    kept = study.features("sample", 64)
    means = np.concatenate([array[0].mean(0, dtype=np.float64) for array in kept.arrays])
    np.testing.assert_allclose(head[0].running_mean, means, rtol=1e-4, atol=1e-6)
    assert kept.arrays[0].shape[1] == len(study.sample)


def test_each_mapping_is_that_of_its_own_feature(sized_folder):
    study = study_of(sized_folder, "base")
    mappings = [mapping for mapping, *_ in quantile_mappings(study, 64)]
    shown = study.features("val", 64)
    mapped = [
        mapping(torch.from_numpy(np.float32(array[0])))
        for array, mapping in zip(shown.arrays, mappings, strict=True)
    ]
    head = study.predictor.model.head.eval()
    with torch.inference_mode():
        expected = torch.log_softmax(head(torch.cat(mapped, 1)), 1)
    np.testing.assert_allclose(study.predict("val", 64, "quantile"), expected, atol=1e-4)
    # swapped, they would not fit
    assert len({array.shape[2] for array in shown.arrays}) == len(mappings) == 2


def test_the_sample_that_corrections_are_fitted_on_is_not_held_out(sized_folder):
    study = study_of(sized_folder, "base")
    _, held = study.predictor.images("holdout")
    assert not set(study.sample) & set(held)
