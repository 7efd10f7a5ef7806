"""The command zero-shot: a pretrained network on Tiny ImageNet, without training."""

import numpy as np
import pytest
import torch
from image_folders import IMAGENET_WNIDS, CellMeans
from support import CPU, complaint, in_floats, refused
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet import zero_shot as zero_shot_command
from tinynet.data.copies import open_packed
from tinynet.evaluation import evaluate as scoring
from tinynet.evaluation import zero_shot
from tinynet.evaluation.evaluate import ScoreRequest
from tinynet.evaluation.zero_shot import ZeroShot
from tinynet.models.pretrained import Pretrained, WeightsInfo
from tinynet.score.views import view_set


@pytest.fixture
def renamed(packed, monkeypatch):
    """The drawn archive, its classes called like some of ImageNet's."""
    monkeypatch.setattr(
        packed, "wnids", tuple(IMAGENET_WNIDS[100 * k + 7] for k in range(len(packed.wnids)))
    )
    return packed


def test_a_network_without_training_predicts_only_classes_of_the_data(renamed, cell_means):
    predictor = ZeroShot("reader", "none", renamed, CPU)
    assert predictor.size == 56 and len(predictor.images("holdout")[1]) > 0
    for split in ("holdout", "val"):
        part, rows = predictor.images(split)
        found = predictor.predict(split, view_set("flip", 48))
        images = in_floats(part.images[rows])
        seen = tv.resize(images, [48, 48], antialias=True)
        model = Pretrained(CellMeans(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
        with torch.inference_mode():
            expected = torch.log_softmax(
                model(seen)[:, [100 * k + 7 for k in range(len(renamed.wnids))]], 1
            )
        np.testing.assert_allclose(found.log_probabilities[0], expected, rtol=1e-3, atol=1e-3)
        assert np.array_equal(found.labels, part.labels[rows]) and found.views == (
            "plain",
            "mirror",
        )


def test_a_network_without_training_is_scored_at_the_size_that_is_named(renamed, cell_means):
    predictor = ZeroShot("reader", "none", renamed, CPU)
    (chosen,) = predictor.sets(["flip"], 48)  # a Reader says nearly the same of any size
    assert {seen.shape[-1] for seen in chosen(torch.zeros(1, 3, 64, 64)).values()} == {48}
    rows = list(scoring.evaluate(predictor, ScoreRequest(tta=["flip"], sizes=[48])))
    rows = [row.to_json() for row in rows]
    assert [(row["split"], row["views"], row["size"]) for row in rows] == [
        (split, views, 48) for split in ("holdout", "val") for views in ("none", "flip")
    ]
    names = [f"{wnid} {name}" for wnid, name in zip(renamed.wnids, renamed.names, strict=True)]
    assert {row["worst_class"] for row in rows} <= set(names)
    images = in_floats(renamed.val.images)
    seen = tv.resize(images, [48, 48], antialias=True)
    model = Pretrained(CellMeans(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    with torch.inference_mode():
        said = model(seen)[:, [100 * k + 7 for k in range(len(renamed.wnids))]]
    expected = nn.functional.cross_entropy(said, torch.tensor(renamed.val.labels)).item()
    assert (
        rows[2]["loss"]
        == pytest.approx(expected, rel=2e-3)
        != pytest.approx(rows[3]["loss"], rel=2e-3)
    )


def test_a_network_without_training_needs_classes_that_it_knows(
    archive_path, cell_means, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", archive_path, "--cache", "cache", "--device", "cpu"]
    open_packed(archive_path, "cache")
    refused(zero_shot_command, flags, "classes are not among ImageNet's 1,000")
    assert refused(zero_shot_command, [*flags, "--run", "runs/a"], "--run") == 1


def test_a_network_with_other_classes_has_no_head_of_imagenet(renamed, monkeypatch):
    few = WeightsInfo(tuple("abc"), 64, 56, "bilinear", None)
    monkeypatch.setattr(
        zero_shot, "load_pretrained", lambda *_: (Pretrained(CellMeans(3), (0,) * 3, (1,) * 3), few)
    )
    complaint(lambda: ZeroShot("reader", "none", renamed, CPU), "has 3 classes", "1,000")
