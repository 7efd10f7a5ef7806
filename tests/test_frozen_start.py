"""The frozen first layers of a network that is trained, in 8-bit integers."""

import copy
import dataclasses

import pytest
import torch
from small_runs import differences, interrupt_at, run_config
from support import CPU, DEPTHS, needs_vnni
from torch.nn import functional as F

from tinynet.models.classifier import Classifier
from tinynet.models.int8 import Int8Backbone
from tinynet.models.vgg import VGG16
from tinynet.runs import StageFolder
from tinynet.training import stages
from tinynet.training.plan import Device

pytestmark = pytest.mark.usefixtures("thin")
INT8 = dataclasses.replace(CPU, int8=True)
LATE = ("conv4", "conv5", "head")


@pytest.mark.parametrize(
    "trained, last",
    [
        (("conv1", "head"), ""),
        (("conv2",), "pool1"),
        (LATE, "pool3"),
        (("conv5",), "pool4"),
        (("head",), "pool5"),
        ((), "pool5"),
    ],
)
def test_the_frozen_start_ends_before_the_first_trained_layer(trained, last):
    assert VGG16().frozen_start(trained) == last


@needs_vnni
@pytest.mark.parametrize("trained", [LATE, ("conv5", "head"), ("head",)])
def test_features_and_gradients_are_near_those_without_a_start(trained):
    torch.manual_seed(0)
    names = [f"{node}:mean" for node in DEPTHS]
    model = Classifier(VGG16(), names, (8,), 3, 0.0, True).eval()
    images, labels = torch.rand(8, 3, 64, 64), torch.arange(8) % 3
    model.train_only(trained)
    fast = copy.deepcopy(model)
    last = model.backbone.frozen_start(trained)
    fast.start_with(Int8Backbone(model.backbone, images, last), last)
    exact, close = model.features(images), fast.features(images)
    assert 0 < (exact - close).norm() / exact.norm() < 0.05
    for each in (model, fast):
        F.cross_entropy(each(images), labels).backward()
    pairs = zip(model.named_parameters(), fast.parameters(), strict=True)
    for (name, weight), other in pairs:
        assert (weight.grad is None) == (other.grad is None) == (not weight.requires_grad), name
        if weight.grad is not None:
            angle = F.cosine_similarity(weight.grad.flatten(), other.grad.flatten(), 0)
            assert angle > 0.95, name


@needs_vnni
def test_the_start_is_no_part_of_the_network():
    model = Classifier(VGG16(), ["pool5:mean"], (), 3, 0.0, False).eval()
    images, keys = torch.rand(2, 3, 32, 32), list(model.state_dict())
    exact = model.features(images)
    model.start_with(Int8Backbone(model.backbone, images, "pool3"), "pool3")
    assert list(model.state_dict()) == keys and not torch.equal(model.features(images), exact)
    copied = copy.deepcopy(model)
    assert torch.equal(copied.features(images), model.features(images))
    plain = model.for_inference(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(plain.features(images), exact)


def late_config(archive_path, cache_folder, run, trainable=LATE):
    """A finetune of the last layers from the base of `run`."""
    config = run_config(archive_path, cache_folder)
    finetune = dataclasses.replace(config.recipe.finetune, trainable=trainable)
    recipe = dataclasses.replace(config.recipe, finetune=finetune)
    return dataclasses.replace(config, recipe=recipe, stages=("finetune",), start_run=str(run))


def last_state(run):
    return torch.load(StageFolder(run, "finetune").last, weights_only=True)


@needs_vnni
def test_a_stopped_stage_ends_as_if_it_had_not_been(
    whole_run, archive_path, cache_folder, tmp_path, monkeypatch
):
    config = late_config(archive_path, cache_folder, whole_run)
    stages.train(tmp_path / "whole", config, INT8)
    facts = StageFolder(tmp_path / "whole", "finetune").read_recipe()["device"]
    assert (facts["precision"], facts["start"]) == ("float32", "int8")
    assert "float32, int8 where frozen" in facts["name"]
    resumed = Device().as_started(StageFolder(tmp_path / "whole", "finetune"))
    assert (resumed.precision, resumed.floats) == ("int8", "float32")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            stages.train(tmp_path / "stopped", config, INT8)
    stages.train(tmp_path / "stopped", config, INT8, resume=True)
    assert not differences(last_state(tmp_path / "whole"), last_state(tmp_path / "stopped"))
    stages.train(tmp_path / "floats", config, CPU)
    assert "start" not in StageFolder(tmp_path / "floats", "finetune").read_recipe()["device"]
    assert differences(last_state(tmp_path / "whole"), last_state(tmp_path / "floats"))


def test_a_head_on_cached_features_has_no_start(whole_run, archive_path, cache_folder, tmp_path):
    """Its features are in int8, and it resumes with them."""
    config = late_config(archive_path, cache_folder, whole_run)
    stages.train(tmp_path / "run", config, INT8)
    head = dataclasses.replace(config, stages=("fixres",), start_run=None, start_stage="finetune")
    stages.train(tmp_path / "run", head, INT8)
    folder = StageFolder(tmp_path / "run", "fixres")
    facts = folder.read_recipe()["device"]
    assert "start" not in facts and Device().as_started(folder).precision == "int8"


def test_a_network_that_is_trained_from_its_first_layer_has_no_start(
    whole_run, archive_path, cache_folder, tmp_path
):
    config = late_config(archive_path, cache_folder, whole_run, ("conv1", "head"))
    stages.train(tmp_path / "run", config, INT8)
    folder = StageFolder(tmp_path / "run", "finetune")
    facts = folder.read_recipe()["device"]
    assert "start" not in facts and facts["after"] == "int8"
    resumed = Device().as_started(folder)  # int8 where the machine has it
    assert (resumed.precision, resumed.floats) == ("auto", "float32")
