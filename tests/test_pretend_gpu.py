"""The pretend GPU refuses what a GPU refuses, waits where a GPU waits, and computes what the CPU
computes.
"""

import copy
import io
import math

import numpy as np
import pytest
import torch
from pretend_gpu import CUDA, MEMORY_ERRORS, pretend_gpu
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@pytest.fixture
def gpu():
    with pretend_gpu() as there:
        yield there


def four():
    return torch.arange(4.0, device="cuda")


def one():
    return torch.ones((), device="cuda")


@pytest.mark.parametrize(
    "make",
    [
        four,
        lambda: torch.zeros(3, device="cuda:0"),
        lambda: torch.empty(3, device=CUDA),
        lambda: torch.full((3,), 2.0, device="cuda"),
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: torch.as_tensor(np.ones(3), device="cuda"),
        lambda: torch.from_numpy(np.ones(3)).cuda(),
        lambda: torch.ones(2).to("cuda", torch.float16),
        lambda: torch.ones(2).to(four()),
        lambda: four().half(),
        lambda: four().new_zeros(2),
        lambda: four().new_tensor([1.0]),
        lambda: torch.zeros_like(four()),
        lambda: torch.zeros_like(torch.ones(2), device="cuda"),
        lambda: torch.ones(2).type_as(four()),
        lambda: four()[1:],
        lambda: copy.deepcopy(four()),
        lambda: F.one_hot(four().long(), 5),
        lambda: torch.rand(3, device="cuda"),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator("cuda")),
        lambda: torch.randperm(3, device="cuda"),
        lambda: nn.Linear(4, 2).cuda()(four()),
        lambda: list(four())[0],
        lambda: torch.where(four() > 1, four(), 0),
    ],
)
def test_what_is_made_there_is_there(gpu, make):
    tensor = make()
    assert (
        tensor.device == CUDA and tensor.is_cuda and not tensor.is_cpu and tensor.get_device() == 0
    )
    assert tensor.cpu().device.type == "cpu"


@pytest.mark.parametrize(
    "mix",
    [
        lambda: four() + torch.ones(4),
        lambda: torch.stack([four(), torch.ones(4)]),
        lambda: torch.ones(4, 4) @ four(),
        lambda: torch.cat([torch.ones(4), four()]),
        lambda: torch.stack([one(), torch.ones(())]),
        lambda: torch.ones(4)[torch.tensor([0, 1], device="cuda")],
        lambda: four().gather(0, torch.tensor([0])),
        lambda: F.linear(four(), torch.ones(2, 4)),
        lambda: torch.where(four() > 1, four(), torch.ones(4)),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda: four().normal_(generator=torch.Generator()),
        lambda: torch.rand(3, generator=torch.Generator("cuda")),
        lambda: torch._foreach_lerp_([four()], [torch.ones(4)], 0.5),
    ],
)
def test_two_devices_do_not_mix(gpu, mix):
    with pytest.raises(RuntimeError, match="device"):
        mix()


def test_a_number_of_the_cpu_mixes_with_elementwise_operations(gpu):
    number = torch.tensor(2.0)
    assert (four() + number).tolist() == [2, 3, 4, 5]
    assert torch.where(four() > 2, four(), number).tolist() == [2, 2, 2, 3]
    assert four().masked_fill(four() > 2, number).tolist() == [0, 1, 2, 2]


def test_numpy_sees_the_cpu_alone(gpu):
    for read in (lambda: four().numpy(), lambda: np.asarray(four()), lambda: np.exp(four())):
        with pytest.raises(TypeError, match="numpy"):
            read()
    with pytest.raises(RuntimeError, match="pin"):
        four().pin_memory()


@pytest.mark.parametrize(
    "read",
    [
        lambda: bool(one()),
        lambda: one().item(),
        lambda: float(one()),
        lambda: int(one()),
        lambda: [1, 2][one().long()],
        lambda: four()[: one().long()],
        lambda: four()[one().long()],
        lambda: 1.0 in four(),
        lambda: max(four()),
        lambda: four().tolist(),
        lambda: four().cpu(),
        lambda: four().to("cpu"),
        lambda: repr(four()),
        lambda: f"{one():.2f}",
        lambda: torch.equal(four(), four()),
        lambda: torch.allclose(four(), four()),
        lambda: torch.unique(four()),
        lambda: four().nonzero(),
        lambda: torch.where(four() > 1),
        lambda: four()[four() > 1],
        lambda: four()[[0, 1]],
        lambda: torch.ones(4).copy_(four()),
        lambda: four().copy_(torch.ones(4)),
        lambda: torch.ones(4).cuda(),
        lambda: torch.ones(4).to("cuda", non_blocking=True),
        lambda: torch.tensor(1, device="cuda"),
        lambda: torch.cuda.synchronize(),
    ],
)
def test_reading_and_sending_wait(gpu, read):
    read()
    assert gpu.waits


@pytest.mark.parametrize(
    "work",
    [
        lambda: len(four()),
        lambda: four().shape,
        lambda: four() @ four(),
        lambda: torch.where(four() > 1, four(), 0),
        lambda: four()[torch.zeros(2, dtype=torch.long, device="cuda")],
        lambda: four().__setitem__(0, 3.0),
        lambda: list(four()),
        lambda: torch.ones(4).pin_memory().to("cuda", non_blocking=True),
        lambda: four().to("cpu", non_blocking=True),
        lambda: F.cross_entropy(
            four()[None], torch.zeros(1, dtype=torch.long, device="cuda"), label_smoothing=0.1
        ),
    ],
)
def test_other_work_waits_for_nothing(gpu, work):
    work()
    assert not gpu.waits


def test_more_than_one_number_is_neither_true_nor_false(gpu):
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(four())
    with pytest.raises(RuntimeError, match="ambiguous"):
        assert four() or True


def test_a_late_copy_is_garbage_until_somebody_waits(gpu):
    first, mark = four().to("cpu", non_blocking=True), torch.cuda.Event()
    mark.record()
    second = four().long().to("cpu", non_blocking=True)
    assert first.isnan().all() and second.tolist() == [77] * 4 and not mark.query()
    mark.synchronize()
    assert first.tolist() == [0, 1, 2, 3] and second.tolist() == [77] * 4 and mark.query()
    one().item()
    assert second.tolist() == [0, 1, 2, 3]


def test_chance_comes_from_the_state_of_the_device(gpu):
    def drawn():
        return F.dropout(torch.ones(64, device="cuda")).tolist()

    torch.manual_seed(1)
    cpu, state = torch.get_rng_state(), torch.cuda.get_rng_state()
    draws = [drawn(), drawn()]
    assert draws[0] != draws[1] and torch.equal(cpu, torch.get_rng_state())
    assert (state.dtype, state.shape, state.device.type) == (torch.uint8, (16,), "cpu")
    torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert [drawn(), drawn()] == draws
    torch.manual_seed(1)
    assert drawn() == draws[0]
    with pytest.raises(RuntimeError, match="wrong size"):
        torch.cuda.set_rng_state(torch.get_rng_state())
    with pytest.raises(TypeError, match="ByteTensor"):
        torch.cuda.set_rng_state(state.cuda())


@pytest.mark.parametrize("mode, factor", [("bilinear", 95), ("bicubic", 48)])
def test_antialias_shrinks_only_so_far(gpu, mode, factor):
    def shrunk(by, device="cuda"):
        return F.interpolate(
            torch.rand(1, 1, 2 * by, 2 * by, device=device), (2, 2), mode=mode, antialias=True
        )

    assert shrunk(factor - 1).shape == (1, 1, 2, 2) == shrunk(factor, "cpu").shape
    with pytest.raises(RuntimeError, match="Too much shared memory required: .* vs 49152"):
        shrunk(factor)


def test_files_remember_the_device(gpu, tmp_path):
    linear = nn.Linear(2, 2).cuda()
    torch.save(
        {"there": four()[1:], "here": torch.ones(2), **linear.state_dict()}, tmp_path / "a.pt"
    )

    def devices(**where):
        state = torch.load(tmp_path / "a.pt", weights_only=True, **where)
        assert state["there"].tolist() == [1, 2, 3] and torch.equal(
            state["weight"].cpu(), linear.weight.detach().cpu()
        )
        return [state[name].device.type for name in ("there", "weight", "here")]

    assert devices() == ["cuda", "cuda", "cpu"]
    assert devices(map_location="cpu") == ["cpu"] * 3
    assert devices(map_location="cuda") == devices(map_location=CUDA) == ["cuda"] * 3


def test_files_of_a_gpu_are_read_elsewhere_with_map_location_alone(tmp_path):
    stream = io.BytesIO()
    with pretend_gpu():
        tensor = four()
        torch.save(tensor, stream)
    stream.seek(0)
    assert torch.load(stream, map_location="cpu", weights_only=True).tolist() == [0, 1, 2, 3]
    stream.seek(0)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(stream, weights_only=True)
    with pytest.raises(RuntimeError, match="outside"):
        tensor + 1


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_memory_runs_out_where_a_test_says_so(gpu, error):
    network, images = nn.Conv2d(3, 4, 3).cuda(), torch.rand(4, 3, 8, 8, device="cuda")
    with gpu.short_of_memory(3, error):
        with pytest.raises(RuntimeError):
            network(images)
        network(images[:3])
    network(images)
    with torch.autocast("cuda", torch.float16):
        network(images)
    assert gpu.convolutions == {torch.float32: 2, torch.float16: 1}


def test_inference_is_like_other_work(gpu):
    """There torch hands over whole functions, such as `conv2d`, and not what they are made of."""
    network, images = nn.Conv2d(3, 4, 3).cuda(), torch.rand(4, 3, 8, 8, device="cuda")
    with torch.inference_mode():
        assert torch.equal(network(images).float().cpu(), network(images).detach().cpu())
        gpu.waits.clear()
        assert one().item() and bool(one()) and len(network(images)) == 4
        assert dict(gpu.waits) == {"_local_scalar_dense": 2} and gpu.convolutions == {
            torch.float32: 3
        }
        for mix in (lambda: network(images.cpu()), lambda: F.linear(four(), torch.ones(2, 4))):
            with pytest.raises(RuntimeError, match="device"):
                mix()
        with gpu.short_of_memory(3), pytest.raises(torch.OutOfMemoryError):
            network(images)


def test_a_module_that_is_moved_keeps_its_parameters(gpu):
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = list(network.parameters())
    optimizer = torch.optim.AdamW(before, fused=True)
    twin = copy.deepcopy(network.cuda())
    assert all(one is other for one, other in zip(before, network.parameters(), strict=True))
    assert {p.device for p in (*twin.parameters(), *twin.buffers(), *network.parameters())} == {
        CUDA
    }
    network(torch.rand(4, 3, device="cuda")).sum().backward()
    optimizer.step()
    assert not torch.equal(before[0], next(twin.parameters()))


def learnt(device):
    """The weights of a network after three steps, with scaled and clipped gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(
        device
    )
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scaler = torch.amp.GradScaler(device, init_scale=8.0)
    for _ in range(3):
        images, labels = torch.rand(6, 5).to(device), torch.randint(3, (6,)).to(device)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(network(images), labels)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return torch.cat([p.detach().cpu().flatten() for p in network.parameters()])


def test_it_trains_as_the_cpu_does(gpu):
    assert torch.equal(learnt("cuda"), learnt("cpu"))


def test_the_average_of_torch_itself_waits(gpu):
    """It sends its count to the device at every step."""
    network = nn.Linear(3, 2).cuda()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(network)
    gpu.waits.clear()
    average.update_parameters(network)
    assert gpu.waits["sent"]


def test_it_is_gone_afterwards():
    before = torch.tensor, torch.Tensor.to, torch.Generator, torch.autocast, torch.cuda.is_available
    with pretend_gpu((8, 0), free=1000):
        assert torch.cuda.get_device_capability() == (8, 0) and torch.cuda.mem_get_info() == (
            1000,
            1000,
        )
        assert torch.cuda.is_available() and math.isclose(one().item(), 1)
    assert before == (
        torch.tensor,
        torch.Tensor.to,
        torch.Generator,
        torch.autocast,
        torch.cuda.is_available,
    )
