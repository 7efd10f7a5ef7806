"""The models room: depths, normalisation, statistics, freezing by part, and weights from
everywhere.
"""

import dataclasses
import functools
import hashlib
import http.server
import io
import threading

import numpy as np
import pytest
import torch
import torchvision
from support import needs_vnni, thin_network
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.transforms.v2.functional import normalize

from tinynet import compute as device
from tinynet.errors import InputError
from tinynet.models import int8, vgg
from tinynet.models.classifier import POOLINGS, Classifier, Head, feature_count, pooled_features
from tinynet.models.dense import Dense
from tinynet.models.int8 import Int8Backbone
from tinynet.models.vgg import IMAGENET_MEAN, IMAGENET_STD, Backbone, check_side
from tinynet.models.weights import load_backbone

# Depth -> how many of torchvision's layers make it, and its channels: table 1 of Simonyan &
# Zisserman, column D.
DEPTHS = {
    "relu1_1": (2, 64),
    "relu1_2": (4, 64),
    "pool1": (5, 64),
    "relu2_1": (7, 128),
    "relu2_2": (9, 128),
    "pool2": (10, 128),
    "relu3_1": (12, 256),
    "relu3_2": (14, 256),
    "relu3_3": (16, 256),
    "pool3": (17, 256),
    "relu4_1": (19, 512),
    "relu4_2": (21, 512),
    "relu4_3": (23, 512),
    "pool4": (24, 512),
    "relu5_1": (26, 512),
    "relu5_2": (28, 512),
    "relu5_3": (30, 512),
    "pool5": (31, 512),
}
WIDTHS = {
    "conv1": (3, 64, 64),
    "conv2": (64, 128, 128),
    "conv3": (128, 256, 256, 256),
    "conv4": (256, 512, 512, 512),
    "conv5": (512, 512, 512, 512),
}
PUBLISHED = {
    name: sum((9 * before + 1) * after for before, after in zip(widths, widths[1:], strict=False))
    for name, widths in WIDTHS.items()
}


@pytest.fixture
def thin():
    with thin_network():
        yield


@pytest.fixture
def small(thin):
    torch.manual_seed(0)
    return Classifier(Backbone(), ["pool5:grid2", "relu4_3:mean"], (16,), 5, 0.5, True)


def complaint(action, *words):
    """The message of the InputError that `action` raises: one line that holds all `words`."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert str(word) in message, message
    return message


def theirs(backbone):
    """torchvision's own features with the weights of `backbone`."""
    with torch.device("meta"):  # else its 120 million weights of the classifier are drawn
        features = torchvision.models.vgg16(weights=None).features
    features = features.to_empty(device="cpu")
    features.load_state_dict(backbone.features.state_dict())
    return features.eval()


# --- depths and normalisation ---------------------------------------------------------------------


@torch.inference_mode()
def test_depths_are_torchvisions_layers_of_known_number():
    torch.manual_seed(0)
    backbone = Backbone()
    features = theirs(backbone)
    images = torch.rand(2, 3, 32, 32)
    found = backbone(images, DEPTHS)
    maps = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert list(found) == list(DEPTHS) and list(backbone.channels) == list(DEPTHS)
    done = 0
    for name, (layers, channels) in DEPTHS.items():
        maps = features[done:layers](maps).clone()
        done = layers
        assert backbone.channels[name] == channels == maps.shape[1]
        torch.testing.assert_close(found[name], maps, rtol=1e-4, atol=1e-5)
    assert done == len(features)


@torch.inference_mode()
def test_a_depth_is_the_same_whichever_others_are_asked_for(thin):
    backbone, images = Backbone(), torch.rand(2, 3, 32, 32)
    together = backbone(images, DEPTHS)
    for name in DEPTHS:
        alone = backbone(images, [name])
        assert list(alone) == [name] and torch.equal(alone[name], together[name])


@torch.inference_mode()
def test_the_backbone_stops_at_the_deepest_depth_asked_for(thin):
    backbone, seen = Backbone(), []
    for index, module in enumerate(backbone.features):
        module.register_forward_hook(lambda *_, index=index: seen.append(index))
    backbone(torch.rand(1, 3, 32, 32), ["relu1_1", "pool2"])
    assert seen == list(range(DEPTHS["pool2"][0]))


@torch.inference_mode()
def test_normalisation_inside_is_normalize_outside(thin):
    mean, std = (0.2, 0.4, 0.7), (0.1, 0.3, 0.05)
    inside, outside = Backbone(mean, std), Backbone((0, 0, 0), (1, 1, 1))
    outside.features.load_state_dict(inside.features.state_dict())
    images = torch.rand(3, 3, 32, 40)
    kept = images.clone()
    torch.testing.assert_close(
        inside(images, ["pool3"]), outside(normalize(images, mean, std), ["pool3"])
    )
    assert torch.equal(images, kept)


def test_normalisation_travels_with_the_weights(thin):
    state = Backbone((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).state_dict()
    other = Backbone()
    other.load_state_dict(state)
    assert other.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert other.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_digest_is_that_of_weights_and_normalisation(thin):
    torch.manual_seed(0)
    backbone = Backbone()
    digest = backbone.digest()
    assert digest == backbone.digest() == backbone.to(memory_format=torch.channels_last).digest()
    other = Backbone((0.5, 0.5, 0.5))
    other.features.load_state_dict(backbone.features.state_dict())
    assert other.digest() != digest
    with torch.no_grad():
        backbone.features[28].bias[3] += 1e-6
    assert backbone.digest() != digest


# --- statistics -----------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("side", [32, 48, 64])
def test_features_are_as_many_as_counted_whatever_the_side(thin, side):
    backbone, images = Backbone(), torch.rand(1, 3, side, side)
    channels = sum(width // 16 for _, width in DEPTHS.values())
    for statistic, each in {"mean": 1, "max": 1, "grid2": 4, "grid7": 49}.items():
        feature_names = [f"{node}:{statistic}" for node in DEPTHS]
        found = pooled_features(backbone, feature_names, images)
        assert found.shape == (1, feature_count(backbone, feature_names)) == (1, channels * each)
    feature_names = [
        f"{node}:{statistic}" for node in ("pool5", "relu2_1") for statistic in POOLINGS
    ]
    assert (
        pooled_features(backbone, feature_names, images).shape
        == (1, feature_count(backbone, feature_names))
        == (1, (32 + 8) * 55)
    )


@torch.inference_mode()
def test_statistics_are_what_they_are_called(thin):
    backbone, images = Backbone(), torch.rand(2, 3, 64, 64)
    maps = backbone(images, ["pool4"])["pool4"]
    numbers = maps.numpy()
    assert numbers.shape == (2, 32, 4, 4)
    quarters = numbers.reshape(2, 32, 2, 2, 2, 2).mean((3, 5)).reshape(2, -1)
    expected = {
        "mean": numbers.mean((2, 3)),
        "max": numbers.max((2, 3)),
        "grid2": quarters,
        "grid7": nn.AdaptiveAvgPool2d(7)(maps).flatten(1).numpy(),
    }
    assert set(expected) == set(POOLINGS)
    for name, values in expected.items():
        np.testing.assert_allclose(
            pooled_features(backbone, [f"pool4:{name}"], images), values, rtol=1e-5, atol=1e-6
        )


@torch.inference_mode()
def test_features_stand_in_the_order_of_the_taps(thin):
    backbone, images = Backbone(), torch.rand(2, 3, 32, 32)
    feature_names = ["pool5:max", "relu1_2:mean", "pool5:grid2", "relu4_3:max"]
    alone = [pooled_features(backbone, [feature], images) for feature in feature_names]
    assert torch.equal(pooled_features(backbone, feature_names, images), torch.cat(alone, 1))
    assert (
        pooled_features(backbone.to(torch.bfloat16), feature_names, images).dtype == torch.float32
    )


def test_a_tap_that_the_backbone_has_not_is_refused(thin):
    for feature in (
        "pool6:mean",
        "relu5_4:max",
        "pool5:median",
        "pool5",
        "",
        "pool5:",
        ":mean",
        "pool5:mean:max",
    ):
        complaint(
            lambda feature=feature: Classifier(Backbone(), [feature], (), 3, 0.0, False),
            repr(feature),
            "relu5_3",
            "grid2",
        )
    complaint(lambda: Classifier(Backbone(), [], (), 3, 0.0, False), "no features")


def test_the_least_side_is_the_one_below_which_nothing_is_left(thin):
    check_side(32)
    Backbone()(torch.rand(1, 3, 32, 32), ["pool5"])
    complaint(lambda: check_side(31), "--size 31", "32")
    complaint(lambda: check_side(-1, "--side"), "--side -1")
    with pytest.raises(RuntimeError):
        Backbone()(torch.rand(1, 3, 31, 31), ["pool5"])


@torch.inference_mode()
def test_a_dense_network_sees_a_window_as_the_maps_around_it_show_it(small):
    small.eval()
    feature_names, images = small.feature_names, torch.rand(3, 3, 96, 128)
    found = Dense(small, 64)(images)
    maps = small.backbone(images, ["pool5", "relu4_3"])
    expected = []
    for down in range(2):
        for right in range(3):
            window = {
                "pool5": maps["pool5"][..., down : down + 2, right : right + 2],
                "relu4_3": maps["relu4_3"][..., 4 * down : 4 * down + 8, 4 * right : 4 * right + 8],
            }
            seen = torch.cat(
                [
                    POOLINGS[feature.split(":")[1]](window[feature.split(":")[0]])
                    for feature in feature_names
                ],
                1,
            )
            expected.append(small.head(seen).softmax(1))
    torch.testing.assert_close(found.exp(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    whole = torch.rand(2, 3, 64, 64)  # one window: the picture
    torch.testing.assert_close(
        Dense(small, 64)(whole), torch.log_softmax(small(whole), 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("side", [32, 80, 110])
def test_a_dense_network_refuses_images_that_windows_do_not_fill(small, side):
    complaint(
        lambda: Dense(small, 64)(torch.rand(1, 3, side, side)), "64", f"{side}x{side}", "dense:96"
    )


# --- what learns ----------------------------------------------------------------------------------


def test_as_many_weights_learn_as_published():
    assert sum(PUBLISHED.values()) == 14_714_688
    with torch.device("meta"):
        model = Classifier(Backbone(), ["pool5:grid2", "relu3_3:max"], (16, 8), 5, 0.5, True)
    inputs = 512 * 4 + 256
    head = inputs * 16 + 16 + 2 * 16 + 16 * 8 + 8 + 2 * 8 + 8 * 5 + 5
    for name, count in PUBLISHED.items():
        assert model.train_only([name]) == count
    assert model.train_only(["head"]) == head
    assert (
        model.train_only(["conv5", "head", "conv4"])
        == PUBLISHED["conv4"] + PUBLISHED["conv5"] + head
    )
    assert model.train_only(WIDTHS) == 14_714_688
    assert model.train_only([]) == 0
    complaint(lambda: model.train_only(["conv6", "head"]), "conv6", "conv1", "head")


def test_frozen_parts_get_no_gradient_and_run_without_autograd(small):
    images = torch.rand(4, 3, 32, 32)
    small.train_only(["head"])
    assert not small.features(images).requires_grad
    small.train_only(["conv5", "head"])
    maps = small.backbone(images, ["pool4", "relu5_1"])
    assert maps["pool4"].grad_fn is None and maps["relu5_1"].grad_fn is not None
    small(images).square().sum().backward()
    for name, modules in small.groups.items():
        grads = [p.grad for module in modules for p in module.parameters()]
        assert grads and all((grad is not None) == (name in ("conv5", "head")) for grad in grads), (
            name
        )
    assert all(
        grad.abs().sum() > 0 for grad in (p.grad for p in small.backbone.features[24:].parameters())
    )


def test_a_frozen_head_keeps_its_running_statistics_and_drops_nothing(small):
    images = torch.rand(8, 3, 32, 32)
    norms = [module for module in small.head if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == 2

    def state():
        return [buffer.clone() for norm in norms for buffer in norm.buffers()]

    small.train_only(["conv5"])
    small.train()  # as the loop does at the start of every epoch
    before = state()
    assert torch.equal(small(images), small(images))
    assert all(map(torch.equal, before, state()))

    small.train_only(["head"])
    small.train()
    assert not torch.equal(small(images), small(images))
    assert not any(map(torch.equal, before, state()))
    small.eval()
    assert torch.equal(small(images), small(images))


def test_a_copy_for_inference_shares_nothing(small):
    small.train_only(["conv5", "head"])
    small.train()
    twin = small.for_inference(torch.device("cpu"), torch.bfloat16)
    ours = {tensor.untyped_storage().data_ptr() for tensor in small.state_dict().values()}
    copied = {tensor.untyped_storage().data_ptr() for tensor in twin.state_dict().values()}
    assert len(ours) == len(small.state_dict()) and not ours & copied
    assert small.head.training and small.head[1].weight.requires_grad
    assert not any(module.training for module in twin.modules())
    assert not any(p.requires_grad for p in twin.parameters())
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert {p.dtype for p in twin.backbone.parameters()} == {torch.bfloat16}
    # logits keep their precision
    assert twin.backbone.mean.dtype == twin.head[1].weight.dtype == torch.float32

    images = torch.rand(4, 3, 32, 32)
    exact = small.for_inference(torch.device("cpu"), torch.float32)(images)
    torch.testing.assert_close(exact, small.eval()(images), rtol=1e-4, atol=1e-5)
    rough = twin(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()


def test_a_model_is_made_again_from_its_shape(small):
    again = Classifier(Backbone(), **small.shape)
    again.load_state_dict(small.state_dict())
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(again.eval()(images), small.eval()(images))


def test_a_head_without_hidden_layers_is_one_linear_layer(thin):
    model = Classifier(Backbone(), ["pool5:mean"], (), 7, 0.5, False)
    assert [type(module) for module in model.head] == [nn.Linear] and model.head[
        0
    ].weight.shape == (7, 32)


def test_initial_weights_have_the_variance_of_he():
    torch.manual_seed(0)
    head = Head(2048, (1024,), 200, 0.5, True)
    for layer, inputs in ((head[1], 2048), (head[5], 1024)):
        assert layer.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        assert not layer.bias.any()
        assert layer.weight.abs().max() <= (6 / inputs) ** 0.5  # uniform, not normal


# --- 8-bit integers -------------------------------------------------------------------------------


@needs_vnni
@pytest.mark.parametrize("side", [32, 50, 64])
@torch.inference_mode()
def test_integers_say_nearly_what_floats_say(thin, side):
    torch.manual_seed(0)
    backbone = Backbone()
    whole = Int8Backbone(backbone, torch.rand(20, 3, side, side))
    images = torch.rand(4, 3, side, side)
    exact, found = backbone(images, DEPTHS), whole(images, DEPTHS)
    assert list(found) == list(DEPTHS) and whole.channels == backbone.channels
    for name in DEPTHS:
        assert found[name].shape == exact[name].shape and found[name].dtype == torch.float32
        error = (found[name] - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.05, name


@needs_vnni
@torch.inference_mode()
def test_what_integers_say_of_a_image_does_not_depend_on_its_company(thin):
    whole, images = Int8Backbone(Backbone(), torch.rand(8, 3, 32, 32)), torch.rand(5, 3, 32, 32)
    together = whole(images, ["pool5", "relu3_3"])
    for number in range(5):
        alone = whole(images[number : number + 1], ["relu3_3", "pool5"])
        for name in alone:
            assert torch.equal(alone[name][0], together[name][number])


@needs_vnni
@torch.inference_mode()
def test_an_integer_convolution_is_the_rounded_one_of_the_rounded_numbers():
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, padding=1)
    convolution.weight[3] = 0  # a channel without weights has no step of its own
    maps = torch.randint(0, 256, (2, 5, 9, 6), dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    found = int8._Int8Convolution(convolution, 0.02, 0.01)(maps)
    steps = convolution.weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-6) / 127
    rounded = (convolution.weight / steps).round() * steps
    exact = (
        nn.functional.conv2d(maps.float() * 0.02, rounded, convolution.bias, padding=1).relu()
        / 0.01
    )
    assert found.dtype == torch.uint8 and (found == 255).any() and (found == 0).any()
    assert (found.float() - exact.clamp(max=255)).abs().max() <= 0.501


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 5, 7), (3, 1, 2, 2)])
def test_pooling_of_integers_is_torchs_pooling(shape):
    maps = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(int8._MaxPool(1.0)(maps).float(), nn.functional.max_pool2d(maps.float(), 2))


@pytest.mark.parametrize(
    ("probes", "precision", "floats"),
    [
        ({}, "float32", torch.float32),
        ({"_is_vnni_supported"}, "int8", torch.float32),
        ({"_is_avx512_bf16_supported"}, "bfloat16", torch.bfloat16),
        ({"_is_vnni_supported", "_is_avx512_bf16_supported"}, "int8", torch.bfloat16),
        (
            {"_is_vnni_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"},
            "bfloat16",
            torch.bfloat16,
        ),
    ],
)
def test_a_processor_gets_the_precision_that_it_has(monkeypatch, probes, precision, floats):
    monkeypatch.setattr(device, "_processor_has", probes.__contains__)
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
            lambda: device.choose_compute("cpu", "int8"), "--precision int8", "float32, bfloat16"
        )


# --- weights --------------------------------------------------------------------------------------


def saved(path, value):
    torch.save(value, path)
    return str(path)


@pytest.fixture
def state(thin):
    """A whole VGG16's state dict: the features and a classifier beside them."""
    torch.manual_seed(7)
    features = {f"features.{key}": value for key, value in Backbone().features.state_dict().items()}
    return features | {"classifier.0.weight": torch.rand(8, 8), "classifier.0.bias": torch.rand(8)}


def same_weights(backbone, state):
    found = backbone.features.state_dict()
    return len(found) == 26 and all(
        torch.equal(value, state[f"features.{key}"]) for key, value in found.items()
    )


def test_a_state_dict_is_read_with_and_without_its_classifier(state, tmp_path, capsys):
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    for name, content in (("whole.pth", state), ("features.pth", features)):
        assert same_weights(load_backbone(saved(tmp_path / name, content)), state)
        assert "ImageNet's mean" in capsys.readouterr().err  # what is assumed is said
    assert same_weights(
        load_backbone(saved(tmp_path / "half.pth", {k: v.half() for k, v in state.items()})),
        {k: v.half().float() for k, v in state.items()},
    )


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_a_file_with_a_published_name_is_normalised_as_published(state, tmp_path, name):
    backbone = load_backbone(saved(tmp_path / VGG16_Weights[name].url.rsplit("/", 1)[1], state))
    preset = VGG16_Weights[name].transforms()
    assert same_weights(backbone, state)
    assert backbone.mean.flatten().tolist() == pytest.approx(preset.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(preset.std)


def test_no_weights_are_random_ones(state):
    torch.manual_seed(1)
    first = load_backbone("none")
    torch.manual_seed(1)
    assert first.digest() == load_backbone("None").digest() != load_backbone("none").digest()
    assert first.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_weights_of_another_network_are_refused(state, tmp_path):
    resnet = torchvision.models.resnet18(num_classes=2).state_dict()
    complaint(
        lambda: load_backbone(saved(tmp_path / "resnet18.pth", resnet)),
        "resnet18.pth",
        "do not match the network",
        "conv1.weight",
        "26 of 26 tensors missing",
        "features.0.weight",
    )
    for letter, words in (
        ("A", ("features.2.weight",)),
        ("E", ("features.17.weight", "12 unexpected")),
    ):
        layers = vgg.make_layers(
            [width if width == "M" else width // 16 for width in vgg.cfgs[letter]]
        )
        other = {f"features.{key}": value for key, value in layers.state_dict().items()}
        complaint(
            lambda other=other: load_backbone(saved(tmp_path / "vgg.pth", other)),
            "do not match the network",
            *words,
        )
    wide = state | {"features.5.weight": torch.rand(8, 5, 3, 3)}
    complaint(
        lambda: load_backbone(saved(tmp_path / "wide.pth", wide)),
        "features.5.weight",
        "(8, 5, 3, 3)",
        "(8, 4, 3, 3)",
    )
    text = state | {"features.5.bias": "eight"}
    complaint(lambda: load_backbone(saved(tmp_path / "text.pth", text)), "features.5.bias")


class Harmful:
    def __reduce__(self):
        return print, ("a pickle has run code",)


def test_files_that_are_no_state_dict_are_refused(state, tmp_path, capsys):
    (tmp_path / "text.pth").write_text("these are no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    whole = io.BytesIO()
    torch.save(state, whole)
    (tmp_path / "short.pth").write_bytes(whole.getvalue()[:3000])
    saved(tmp_path / "harmful.pth", {"features.0.weight": Harmful()})
    for name in ("text.pth", "empty.pth", "short.pth", "harmful.pth"):
        complaint(lambda name=name: load_backbone(str(tmp_path / name)), name, "torch.save")
    assert "has run code" not in "".join(capsys.readouterr())
    complaint(
        lambda: load_backbone(saved(tmp_path / "tensor.pth", torch.rand(3))), "tensor.pth", "Tensor"
    )
    complaint(lambda: load_backbone(saved(tmp_path / "list.pth", [state])), "list.pth", "list")
    complaint(
        lambda: load_backbone("IMAGENET1K_V9"),
        "IMAGENET1K_V9",
        "IMAGENET1K_V1",
        "IMAGENET1K_FEATURES",
        "none",
    )
    complaint(lambda: load_backbone(str(tmp_path)), tmp_path, "no such file")


# --- downloads ------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder served on the loopback, and torch's cache in a folder of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    handler = type(
        "Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}
    )
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def publish(name, content, prefix=None):
            """Let the weights `name` be `content`, in a file named after `prefix` (default: its
            true digest).
            """
            data = io.BytesIO()
            torch.save(content, data)
            prefix = prefix or hashlib.sha256(data.getvalue()).hexdigest()[:8]
            (folder / f"vgg16-{prefix}.pth").write_bytes(data.getvalue())
            url = f"http://127.0.0.1:{server.server_port}/vgg16-{prefix}.pth"
            weights = VGG16_Weights[name]
            monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))
            return url

        yield publish
        server.shutdown()


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_weights_are_fetched_once_and_normalised_as_their_metadata_say(
    site, state, tmp_path, name, capsys
):
    site(name, state)
    backbone = load_backbone(name)
    assert same_weights(backbone, state)
    preset = VGG16_Weights[name].transforms()
    assert backbone.mean.flatten().tolist() == pytest.approx(preset.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(preset.std)
    assert (name == "IMAGENET1K_V1") == (tuple(preset.mean) == IMAGENET_MEAN)
    (tmp_path / "site").rename(tmp_path / "gone")
    assert same_weights(load_backbone(name), state)  # now from torch's cache
    assert capsys.readouterr().out == ""  # standard output belongs to results


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_weights_of_another_digest_are_refused(site, state, tmp_path, name):
    url = site(name, state, "00000000")
    complaint(lambda: load_backbone(name), name, "00000000", url, "--weights vgg16-00000000.pth")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_weights_that_cannot_be_had_are_asked_for_by_hand(site, state, tmp_path):
    url = site("IMAGENET1K_V1", state)
    (tmp_path / "site").rename(tmp_path / "gone")
    complaint(lambda: load_backbone("IMAGENET1K_V1"), "404", url, "--weights")


def test_weights_from_a_site_that_does_not_answer_are_asked_for_by_hand(
    thin, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url = "http://127.0.0.1:9/vgg16-12345678.pth"  # the discard port: nobody listens
    weights = VGG16_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))
    complaint(lambda: load_backbone("IMAGENET1K_V1"), url, "--weights vgg16-12345678.pth")


def test_a_broken_file_in_torchs_cache_is_said_to_be_one(site, state, tmp_path):
    url = site("IMAGENET1K_V1", state)
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    whole = io.BytesIO()
    torch.save(state, whole)
    for content in (b"not what was fetched", b"", whole.getvalue()[:3000]):
        place.write_bytes(content)
        complaint(lambda: load_backbone("IMAGENET1K_V1"), "IMAGENET1K_V1", place, "remove it")
