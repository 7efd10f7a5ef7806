"""Frozen networks in OpenVINO, where it is installed."""

import gc
import os
import signal
import time

import pytest
import torch
from support import CPU
from torch import nn

from tinynet.compute import Compute, choose_compute
from tinynet.interrupts import Interrupted, interrupt, interrupted_by
from tinynet.models.backbones import compute_for, make_backbone, runs_in_openvino
from tinynet.models.engines import OpenVinoBackbone, OpenVinoModule
from tinynet.models.pretrained import load_pretrained

pytest.importorskip("openvino")
OPENVINO = CPU.for_network(runs_in_int8=False)


@pytest.mark.parametrize(
    "arch", ["timm/tf_efficientnet_lite0", pytest.param("swin_t", marks=pytest.mark.slow)]
)
@torch.inference_mode()
def test_outputs_are_those_of_torch(arch):
    torch.manual_seed(0)
    backbone = make_backbone(arch)
    nodes = [name for name in backbone.channels if backbone.strides[name] >= 8]
    engine = OpenVinoBackbone(backbone, nodes, OPENVINO)
    for side, count in ((64, 3), (96, 2), (64, 1)):
        images = torch.rand(count, 3, side, side)
        ours, theirs = engine(images, nodes[-1:]), backbone(images, nodes[-1:])
        assert list(ours) == nodes[-1:]
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_a_signal_is_handled_after_a_network_is_gone():
    engine = OpenVinoModule(Twice(), OPENVINO, "twice")
    engine(torch.ones(2, 3, 8, 8))
    del engine
    gc.collect()
    with pytest.raises(Interrupted), interrupted_by((signal.SIGTERM,), interrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@torch.inference_mode()
def test_what_is_drawn_later_does_not_depend_on_it():
    """Dropout is the same whether features were cached or not."""
    before = torch.get_rng_state()
    OpenVinoModule(Twice(), OPENVINO, "twice")(torch.ones(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


@torch.inference_mode()
def test_results_outlive_the_next_batch():
    engine = OpenVinoModule(Twice(), OPENVINO, "twice")
    first, *_ = engine(torch.ones(2, 3, 8, 8))
    engine(torch.zeros(2, 3, 8, 8))
    assert torch.equal(first, torch.full((2, 3, 8, 8), 2.0))


class Twice(nn.Module):
    def forward(self, images):
        return (images * 2,)


class OnlyInTorch(nn.Module):
    """It asks whether Python runs it."""

    def forward(self, images):
        if torch.jit.is_tracing():
            raise NotImplementedError("an operation of torch alone")
        return (images.mean((2, 3)),)


def test_torch_runs_what_openvino_cannot_and_says_so_once(capsys):
    engine, images = OpenVinoModule(OnlyInTorch(), OPENVINO, "odd"), torch.rand(2, 3, 8, 8)
    for _ in range(2):
        assert torch.equal(engine(images)[0], images.mean((2, 3)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "OpenVINO cannot run odd" in line and "torch runs it" in line


@torch.inference_mode()
def test_pretrained_classifiers_run_in_it():
    torch.manual_seed(0)
    model, _ = load_pretrained("shufflenet_v2_x0_5", "none", [3, 1])
    images = torch.rand(2, 3, 64, 64)
    expected = model(images)
    torch.testing.assert_close(model.on(OPENVINO)(images), expected, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_networks_without_batch_norms_run_in_torch():
    assert not any(map(runs_in_openvino, ("vgg16", "convnext_tiny", "vit_b_16")))
    assert runs_in_openvino("resnet18") and runs_in_openvino("timm/tf_efficientnet_lite0")
    for arch, engine in (("convnext_tiny", "torch"), ("resnet18", "openvino")):
        assert compute_for(choose_compute("cpu", "float32"), arch).engine == engine
    model, _ = load_pretrained("vgg11", "none", [3, 1])
    network = model.network
    assert model.on(OPENVINO).network is network


def test_which_networks_run_in_it():
    chosen = choose_compute("cpu", "float32").for_frozen()
    assert chosen.for_network(runs_in_int8=True).engine == "torch"
    assert chosen.for_network(runs_in_int8=False).engine == "openvino"
    assert chosen.for_network(runs_in_int8=False).for_training().engine == "torch"
    assert chosen.for_network(runs_in_int8=False).facts()["engine"] == "openvino"
    assert "OpenVINO where frozen" in str(chosen.for_network(runs_in_int8=False))
    assert "engine" not in chosen.facts()
    gpu = Compute(torch.device("cuda"), torch.float16)
    assert gpu.for_network(runs_in_int8=False).engine == "torch"
