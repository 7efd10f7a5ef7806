"""Devices and precision."""

from dataclasses import replace

import pytest
import torch
from support import SMALL, complaint, refused

from tinynet import compute as device
from tinynet import evaluate, predict, train

pytestmark = pytest.mark.usefixtures("thin")


# --- devices ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has cuda")
def test_a_device_that_is_not_there_is_refused(run_folder):
    assert (
        refused(train, [*SMALL, *run_folder.flags, "--device", "cuda"], "--device cuda", "cpu") == 1
    )
    refused(evaluate, ["--device", "cuda"], "--device cuda", "cpu")
    refused(predict, ["--device", "cuda"], "--device cuda", "cpu")


# --- precision ---


def test_int8_that_the_user_named_is_for_vgg16_alone():
    automatic = device.Compute(torch.device("cpu"), torch.float32, int8=True)
    automatic.check_network(runs_in_int8=False)
    assert not automatic.for_network(runs_in_int8=False).int8
    named = replace(automatic, named=True)
    named.check_network(runs_in_int8=True)
    complaint(lambda: named.check_network(False), "int8", "VGG16", "auto, float32, bfloat16")
    assert device.choose_compute("cpu", "float32").named
    assert not device.choose_compute("cpu").named


# torch has no public ones.
PROBES = ("_is_vnni_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("probes", "precision", "floats"),
    [
        ({}, "float32", torch.float32),
        ({"_is_vnni_supported"}, "int8", torch.float32),
        ({"_is_avx512_bf16_supported"}, "bfloat16", torch.bfloat16),
        ({"_is_vnni_supported", "_is_avx512_bf16_supported"}, "int8", torch.bfloat16),
        (
            {"_is_vnni_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"},
            "int8",
            torch.bfloat16,
        ),
    ],
)
def test_a_processor_gets_the_precision_that_it_has(monkeypatch, probes, precision, floats):
    for probe in PROBES:
        monkeypatch.setattr(torch.cpu, probe, lambda probe=probe: probe in probes, raising=False)
    chosen = device.choose_compute("cpu")
    assert chosen.precision == precision and chosen.int8 == (precision == "int8")
    assert chosen.dtype == device.choose_compute("cpu", int8=False).dtype == floats
    assert (
        str(floats).removeprefix("torch.") in str(chosen)
        and ("int8 where frozen" in str(chosen)) == chosen.int8
    )
    if chosen.int8:
        assert chosen.facts()["floats"] == str(floats).removeprefix("torch.")
        assert device.choose_compute("cpu", "int8", floats="float32").dtype == torch.float32
    else:
        assert (
            "floats" not in chosen.facts()
            and device.choose_compute("cpu", floats="float32") == chosen
        )
    if "_is_vnni_supported" not in probes:
        complaint(
            lambda: device.choose_compute("cpu", "int8"), "precision int8", "float32, bfloat16"
        )
