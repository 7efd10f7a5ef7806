"""Weight files of common forms: wrappers stripped, reported, checked; for backbones and for whole
networks alike.
"""

import argparse
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from support import SMALL, argv, complaint, refused, succeed, thin_network

from tinynet import evaluate, train
from tinynet.models.checkpoint import load_model
from tinynet.models.classifier import Classifier
from tinynet.models.pretrained import load_pretrained
from tinynet.models.vgg import VGG16
from tinynet.models.weights import load_vgg16
from tinynet.runs import StageFolder

OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(7)}},
    "param_groups": [{"lr": 0.1}],
}


@pytest.fixture(scope="module")
def small():
    with thin_network() as patch:
        yield patch


@pytest.fixture
def backbone(small):
    """The state of a whole VGG16, thin, and how one is read from a file."""
    torch.manual_seed(1)
    state = {f"features.{name}": tensor for name, tensor in VGG16().features.state_dict().items()}
    return state | {"classifier.0.weight": torch.rand(3, 2)}, lambda path: load_vgg16(
        path
    ).features.state_dict()


@pytest.fixture
def whole():
    """The state of a whole network with batch norm, and how one is read from a file."""
    torch.manual_seed(1)
    state = torchvision.models.mobilenet_v3_small().state_dict()
    return state, lambda path: load_pretrained("mobilenet_v3_small", path)[0].network.state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def doubled(state):
    return {name: tensor * 2 for name, tensor in state.items()}


DRESSES = {
    "as it is": (lambda state: state, []),
    "DataParallel": (lambda state: prefixed(state, "module."), ["module."]),
    "compiled": (lambda state: prefixed(state, "_orig_mod."), ["_orig_mod."]),
    "both": (lambda state: prefixed(state, "_orig_mod.module."), ["_orig_mod.", "module."]),
    "both the other way": (
        lambda state: prefixed(state, "module._orig_mod."),
        ["_orig_mod.", "module."],
    ),
    "a part in DataParallel": (
        lambda state: {
            name.replace("features.", "features.module.", 1): tensor
            for name, tensor in state.items()
        },
        ["module."],
    ),
    "state_dict": (
        lambda state: {"state_dict": state, "optimizer": OPTIMIZER, "epoch": 3},
        ["'state_dict'"],
    ),
    "model": (
        lambda state: {"optimizer": OPTIMIZER, "model": state, "scaler": {}, "args": "text"},
        ["'model'"],
    ),
    "nested": (
        lambda state: {"checkpoint": {"net": prefixed(state, "module.")}},
        ["'checkpoint.net'", "module."],
    ),
    "a prefix": (lambda state: prefixed(state, "encoder.backbone."), ["'encoder.backbone.'"]),
    "other parts beside": (
        lambda state: {"head.weight": torch.rand(3), **prefixed(state, "model.")},
        ["'model.'"],
    ),
    "half": (
        lambda state: {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        ["float16"],
    ),
    "bfloat16": (
        lambda state: {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        ["bfloat16"],
    ),
    "averaged": (
        lambda state: {
            "model": doubled(state),
            "model_ema": {"n_averaged": torch.tensor(9), **prefixed(state, "module.")},
        },
        ["'model_ema'"],
    ),
    "averaged under a prefix": (
        lambda state: {**prefixed(doubled(state), "model."), **prefixed(state, "net_ema.module.")},
        ["'net_ema.'", "module."],
    ),
    "the same twice": (
        lambda state: {
            "last": state,
            "best": {name: tensor.clone() for name, tensor in state.items()},
        },
        ["'last'"],
    ),
    "a profiler's counts": (
        lambda state: (
            state | {"total_ops": torch.zeros(1), "features.total_params": torch.zeros(1)}
        ),
        [],
    ),
}


@pytest.mark.parametrize("kind", ["backbone", "whole"])
@pytest.mark.parametrize("dress", DRESSES)
def test_wrappers_are_stripped_and_reported(request, tmp_path, capsys, kind, dress):
    state, read = request.getfixturevalue(kind)
    put_on, words = DRESSES[dress]
    torch.save(put_on(state), tmp_path / "weights.pth")
    weights = read(str(tmp_path / "weights.pth"))
    for name, tensor in weights.items():
        wanted = state[name if kind == "whole" else f"features.{name}"]
        if dress in ("half", "bfloat16") and wanted.is_floating_point():
            wanted = wanted.to(getattr(torch, dress.replace("half", "float16"))).to(wanted.dtype)
        assert torch.equal(tensor, wanted) and tensor.dtype == wanted.dtype, name
    said = [line for line in capsys.readouterr().err.splitlines() if "are assumed" not in line]
    assert len(said) == bool(words) and all(word in "".join(said) for word in words)


@pytest.mark.parametrize("kind", ["backbone", "whole"])
@pytest.mark.parametrize(
    "put, words",
    [
        (
            lambda state: {**prefixed(state, "left."), **prefixed(doubled(state), "right.")},
            ["several networks", "left", "right"],
        ),
        (
            lambda state: {"model": state, "best_model": doubled(state)},
            ["several networks", "best_model", "torch.load('weights.pth')['model']"],
        ),
        (
            lambda state: {"last": state, "best": doubled(state)},
            ["several networks", "last", "best"],
        ),
        (
            lambda state: {**state, **prefixed(doubled(state), "module.")},
            ["with and without", "two networks"],
        ),
    ],
)
def test_two_different_networks_in_a_file_are_refused(request, tmp_path, kind, put, words):
    state, read = request.getfixturevalue(kind)
    torch.save(put(state), tmp_path / "weights.pth")
    complaint(lambda: read(str(tmp_path / "weights.pth")), "weights.pth", *words)


@pytest.mark.parametrize("kind", ["backbone", "whole"])
@pytest.mark.parametrize(
    "put",
    [
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, layers=[1, 2])},
        lambda state: {
            "state_dict": state,
            "best_acc": np.float64(0.5),
            "epoch": np.int64(3),
            "history": np.zeros(3),
        },
        lambda state: {
            name: tensor.numpy() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        },
        lambda state: {
            "student": prefixed(doubled(state), "module.backbone."),
            "teacher": prefixed(state, "backbone."),
        },
        lambda state: {**prefixed(state, "encoder_q."), **prefixed(doubled(state), "encoder_k.")},
        lambda state: {
            **prefixed(state, "online_encoder."),
            **prefixed(doubled(state), "target_encoder."),
        },
    ],
)
def test_checkpoints_of_common_training_scripts_are_read(request, tmp_path, kind, put):
    state, read = request.getfixturevalue(kind)
    torch.save(put(state), tmp_path / "weights.pth")
    for name, tensor in read(str(tmp_path / "weights.pth")).items():
        wanted = state[f"features.{name}" if kind == "backbone" else name]
        assert torch.equal(tensor, wanted), name


def test_what_is_no_state_dict_is_named(tmp_path, whole):
    _, read = whole
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    complaint(
        lambda: read(str(tmp_path / "module.pth")),
        "torch.nn.modules.linear.Linear",
        "cannot be read safely",
    )
    (tmp_path / "pointer.pth").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )
    complaint(lambda: read(str(tmp_path / "pointer.pth")), "Git LFS", "git lfs pull")


def test_a_wrapped_checkpoint_keeps_its_mean_and_std(small, tmp_path):
    model = Classifier(VGG16((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ["pool5:mean"], [4], 3, 0.0, True)
    torch.save(prefixed(model.state_dict(), "net."), tmp_path / "weights.pth")
    again = load_vgg16(str(tmp_path / "weights.pth"))
    assert again.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert again.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_compressed_weights_are_refused(backbone, tmp_path):
    state, read = backbone
    torch.save(state, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    complaint(lambda: read(str(tmp_path / "packed.pth")), "packed.pth", "torch.save")


def test_names_without_features_are_read(backbone, tmp_path):
    state, read = backbone
    bare = {
        name.removeprefix("features."): tensor
        for name, tensor in state.items()
        if name.startswith("features.")
    }
    torch.save(bare, tmp_path / "bare.pth")
    weights = read(str(tmp_path / "bare.pth"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in bare.items())


def test_a_checkpoint_of_tinynet_gives_its_backbone_and_its_normalisation(
    archive_path, tmp_path, monkeypatch, small
):
    monkeypatch.chdir(tmp_path)
    small.setattr(
        "tinynet.models.weights.VGG16", lambda *given: VGG16((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    )
    succeed(
        train,
        "--stage",
        "all",
        "--data",
        archive_path,
        *SMALL,
        *argv("--crop-side 28 32 --learn head --views 0 --out run"),
    )
    small.undo()
    with thin_network():
        best = StageFolder("run", "finetune").best
        model, _ = load_model(best, tuple(torch.load(best, weights_only=True)["wnids"]))
        for path in (best, StageFolder("run", "finetune").last):
            again = load_vgg16(str(path))
            assert again.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
            assert all(
                torch.equal(a, b)
                for a, b in zip(
                    again.features.state_dict().values(),
                    model.backbone.features.state_dict().values(),
                    strict=True,
                )
            )


@pytest.mark.parametrize("kind", ["backbone", "whole"])
def test_mismatched_weights_are_reported(request, tmp_path, kind):
    state, read = request.getfixturevalue(kind)
    first, last = (
        [name for name in state if name.startswith("features") and name.endswith("weight")][0:15:14]
        if kind == "whole"
        else ("features.0.weight", "features.28.weight")
    )
    count = len(state) if kind == "whole" else 26

    def refusal(content, *words):
        torch.save(content, tmp_path / "weights.pth")
        return complaint(lambda: read(str(tmp_path / "weights.pth")), "weights.pth", *words)

    lacking = {name: tensor for name, tensor in state.items() if name != last}
    refusal(lacking, f"1 of {count} tensors missing (first: {last})")
    foreign = last.replace(".weight", ".strange") if kind == "whole" else "features.31.weight"
    refusal(
        lacking | {foreign: torch.rand(2)},
        f"missing (first: {last})",
        f"1 unexpected (first: {foreign})",
    )
    refusal(state | {last: torch.rand(2, 3)}, last, "(2, 3)")
    refusal(state | {last: state[last].to(torch.int8)}, last, "int8")
    refusal(state | {last: state[last].to_sparse()}, last)
    refusal(
        state | {last: torch.zeros(1).expand(state[last].shape)},
        last,
        "more values than the file contains",
    )
    for number in (float("nan"), float("inf"), -float("inf")):
        broken = state[last].clone()
        broken.view(-1)[3] = number
        refusal(state | {last: broken}, last, "1 of its", "NaN or infinite")
        refusal(
            {"state_dict": prefixed(state | {last: broken}, "module.")}, last, "NaN or infinite"
        )
    for content, word in (
        ([1, 2], "list"),
        ({}, "no named tensors"),
        ({"epoch": 3}, "no named tensors"),
        (torch.ones(3), "Tensor"),
    ):
        refusal(content, word)
    refusal({"model": {"conv1.weight": torch.rand(3)}}, f"missing (first: {first})")


def test_a_whole_module_is_refused_unread(backbone, tmp_path):
    _, read = backbone
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pth")
    complaint(lambda: read(str(tmp_path / "module.pth")), "module.pth", "safely", "state_dict()")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"features.0.weight": 3}))
    complaint(lambda: read(str(tmp_path / "plain.pth")), "plain.pth")


def test_safetensors_are_read(backbone, tmp_path, monkeypatch):
    state, read = backbone
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    assert all(
        torch.equal(tensor, state[f"features.{name}"])
        for name, tensor in read(str(tmp_path / "weights.safetensors")).items()
    )
    (tmp_path / "broken.safetensors").write_bytes(b"\x09" * 40)
    complaint(lambda: read(str(tmp_path / "broken.safetensors")), "broken.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    complaint(lambda: read(str(tmp_path / "weights.safetensors")), "pip install safetensors")


def test_loading_does_not_consume_rng(backbone, tmp_path):
    """A head's initial weights depend on the draws before."""
    state, read = backbone
    torch.save(state, tmp_path / "weights.pth")
    torch.manual_seed(0)
    VGG16()
    wanted = torch.rand(3)
    torch.manual_seed(0)
    read(str(tmp_path / "weights.pth"))
    assert torch.equal(torch.rand(3), wanted)


def test_a_nan_neither_trains_nor_scores(archive_path, tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    with thin_network():
        state = prefixed(VGG16().features.state_dict(), "features.")
        state["features.5.weight"][0, 0, 0, 0] = float("nan")
        torch.save(state, "nan.pth")
        flags = [*SMALL, "--data", archive_path, "--out", "run"]
        for precision in ("float32", "auto"):
            refused(
                train,
                ["--stage", "base", *flags, "--weights", "nan.pth", "--precision", precision],
                "nan.pth",
                "features.5.weight",
                "NaN",
            )
        succeed(train, "--stage", "base", *flags)
        stored = torch.load("run/base/best.pt", weights_only=True)
        stored["weights"]["head.0.running_mean"][2] = float("nan")
        torch.save(stored, "run/base/best.pt")
        refused(evaluate, ["--run", "run"], "best.pt", "head.0.running_mean", "NaN")


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, small):
    with thin_network():
        model = Classifier(VGG16(), ["pool5:mean"], [4], 3, 0.0, True)
        content = {
            "format": 1,
            "kind": "model",
            "wnids": ["a", "b", "c"],
            "network": model.shape,
            "weights": model.state_dict(),
            "size": 32,
        }
        for change in (
            dict(network={}),
            dict(network=model.shape | dict(hidden=[10**9])),
            dict(size="64"),
            dict(size=-1),
            dict(network=model.shape | dict(features=["pool9:mean"])),
            dict(weights={}),
            dict(wnids=None),
            dict(network=3),
            dict(weights=model.state_dict() | {"head.1.weight": torch.rand(4)}),
        ):
            torch.save(content | change, tmp_path / "best.pt")
            complaint(lambda: load_model(tmp_path / "best.pt", ("a", "b", "c")), "best.pt")


@pytest.mark.parametrize(
    "change, wnids, words",
    [
        (lambda weights: weights, "abcd", "3 outputs for 4 classes"),
        (lambda weights: weights, "aab", "no list of classes"),
        (
            lambda weights: weights | {"head.0.running_var": -weights["head.0.running_var"]},
            "abc",
            "running_var is below 0",
        ),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path, small, change, wnids, words):
    model = Classifier(VGG16(), ["pool5:mean"], [4], 3, 0.0, True)
    torch.save(
        {
            "format": 1,
            "kind": "model",
            "wnids": list(wnids),
            "network": model.shape,
            "size": 32,
            "weights": change(model.state_dict()),
        },
        tmp_path / "best.pt",
    )
    complaint(lambda: load_model(tmp_path / "best.pt", tuple(wnids)), "best.pt", words)
