"""What does not fit into a device's memory goes in parts, and what fits is sent there once."""

import numpy as np
import pytest
import torch
from support import ON_CPU, SMALL, argv, call, complaint, succeed, thin_network

from tinynet import train
from tinynet.compute import AutoBatch, Compute, out_of_memory
from tinynet.data import batches as module
from tinynet.data.batches import batches
from tinynet.data.packed import Packed
from tinynet.score.probabilities import view_probabilities
from tinynet.training import features, loop
from tinynet.training.inputs import TrainingImages
from tinynet.training.recipes import TUNED

CPU = torch.device("cpu")


def scarce(most):
    """A function of images that runs out of memory where there are more than `most`, and the
    sizes it was given.
    """
    seen = []

    def work(images):
        seen.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return images.flatten(1).sum(1, keepdim=True)

    return work, seen


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so(capsys):
    work, seen = scarce(5)
    parts = AutoBatch(work)
    for _ in range(2):
        images = torch.rand(20, 3, 4, 6)
        assert torch.equal(parts(images), images.flatten(1).sum(1, keepdim=True))
    assert seen == [20, 10, 5, 5, 5, 5, 5, 5, 5, 5]
    assert capsys.readouterr().err.splitlines() == [
        f"out of memory with {most} images of 6x4 pixels at once; continuing with {most // 2} at a "
        "time"
        for most in (20, 10)
    ]


def test_one_image_that_does_not_fit_is_refused_and_other_errors_stay():
    complaint(lambda: AutoBatch(scarce(0)[0])(torch.rand(3, 3, 4, 6)), "a single image of 6x4")

    def wrong(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        AutoBatch(wrong)(torch.rand(2, 3, 4, 4))


def test_running_out_on_the_cpu_is_known_by_its_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value) and not out_of_memory(RuntimeError("something else"))


def test_scores_are_the_same_in_parts(packed, capsys):
    class Scarce(torch.nn.Module):
        def forward(self, images):
            return scarce(7)[0](images) * torch.arange(6.0) / 1000

    class Plenty(torch.nn.Module):
        def forward(self, images):
            return scarce(999)[0](images) * torch.arange(6.0) / 1000

    few, all_at_once = (
        view_probabilities(network, batches(packed.val, batch_size=24))
        for network in (Scarce(), Plenty())
    )
    assert (
        np.array_equal(few, all_at_once)
        and "continuing with 6 at a time" in capsys.readouterr().err
    )


def test_a_step_of_training_that_does_not_fit_is_reported_in_one_line(
    archive_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = (*SMALL, "--data", archive_path, "--cache", tmp_path / "cache")
    with thin_network() as patch:
        succeed(train, "--stage", "base", "--out", "run", *flags)

        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(loop.Training, "train_batch", fail)
        ran = call(
            train,
            *argv("--stage finetune --run run --epochs 1"),
            *argv("--batch 16 --crop-side 28 32 --size 32"),
            *ON_CPU,
        )
    assert ran.status == 2 and "--batch" in ran.err.splitlines()[-1] and "Traceback" not in ran.err


def test_images_that_fit_are_sent_once_and_are_the_same(packed, monkeypatch):
    again = Packed(packed.folder)
    stage = TUNED.finetune
    rows = np.random.RandomState(0).permutation(len(packed.train))[:40]
    images = TrainingImages(again.train, rows, stage, seed=0)
    from_disk, whole = list(images.epoch(0, CPU)), module.send_whole
    assert module.resident(again.train, CPU) is None
    sent = []
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * again.train.images.nbytes + 4)
    monkeypatch.setattr(module, "CHUNK_BYTES", 5000)  # so that several chunks are sent
    monkeypatch.setattr(
        module, "send_whole", lambda array, device: sent.append(array.shape) or whole(array, device)
    )
    resident = list(images.epoch(0, CPU))
    list(images.epoch(1, CPU))
    assert sent == [again.train.images.shape]
    for one, other in zip(from_disk, resident, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_that_do_not_fit_stay_where_they_are(packed, monkeypatch):
    again = Packed(packed.folder)
    monkeypatch.setattr(module, "free_bytes", lambda device: 4 * again.train.images.nbytes)
    assert module.resident(again.train, CPU) is None


def test_features_that_fit_are_sent_once_and_are_the_same(monkeypatch):
    draw = np.random.RandomState(0)
    arrays = tuple(draw.rand(2, 30, width).astype("float16") for width in (3, 5))
    kept = features.Features(arrays, draw.randint(0, 4, 30))
    sent = []
    monkeypatch.setattr(module, "CHUNK_BYTES", 50)  # so that several chunks are sent
    monkeypatch.setattr(
        features,
        "send_whole",
        lambda array, device: sent.append(array.shape) or module.send_whole(array, device),
    )

    def all_said(of):
        return [*of.epoch(0, 1, 8, CPU), *((said, said) for said in of.in_order(CPU, 7))]

    from_disk = all_said(kept)
    assert not sent
    monkeypatch.setattr(
        module, "free_bytes", lambda device: 4 * sum(array.nbytes for array in arrays) + 4
    )
    again = features.Features(arrays, kept.labels)
    for one, other in zip(from_disk, all_said(again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sent == [array.shape for array in arrays]


def test_gpus_and_other_networks_than_vgg16_get_more_images_at_once(monkeypatch):
    cpu, gpu = (Compute(torch.device(name), torch.float32) for name in ("cpu", "cuda"))

    def batch_sizes(compute):
        return [module.default_batch_size(size, compute) for size in (64, 128, 224, 4096)]

    assert batch_sizes(cpu) == [64, 16, 5, 1]
    assert module.default_batch_size(512, cpu) == 1
    assert batch_sizes(gpu) == [1024, 256, 83, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert batch_sizes(cpu) == [64, 16, 5, 1]
    assert batch_sizes(cpu.for_network(runs_in_int8=False)) == [128, 32, 16, 16]
    assert batch_sizes(gpu.for_network(runs_in_int8=False)) == [1024, 256, 83, 16]
