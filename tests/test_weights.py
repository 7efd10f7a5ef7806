"""Weight files and their downloads."""

import dataclasses
import functools
import hashlib
import http.server
import io
import threading

import pytest
import torch
import torchvision
from support import complaint
from torchvision.models import VGG16_Weights

from tinynet.models import vgg
from tinynet.models.backbone import IMAGENET_MEAN
from tinynet.models.vgg import VGG16
from tinynet.models.weights import load_vgg16

# --- weights ---


def saved(path, value):
    torch.save(value, path)
    return str(path)


@pytest.fixture
def state(thin):
    """A whole VGG16's state dict: the features and a classifier beside them."""
    torch.manual_seed(7)
    features = {f"features.{key}": value for key, value in VGG16().features.state_dict().items()}
    return features | {"classifier.0.weight": torch.rand(8, 8), "classifier.0.bias": torch.rand(8)}


def same_weights(backbone, state):
    found = backbone.features.state_dict()
    return len(found) == 26 and all(
        torch.equal(value, state[f"features.{key}"]) for key, value in found.items()
    )


def test_a_state_dict_is_read_with_and_without_its_classifier(state, tmp_path, capsys):
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    for name, content in (("whole.pth", state), ("features.pth", features)):
        assert same_weights(load_vgg16(saved(tmp_path / name, content)), state)
        assert "ImageNet's mean" in capsys.readouterr().err  # what is assumed is said
    assert same_weights(
        load_vgg16(saved(tmp_path / "half.pth", {k: v.half() for k, v in state.items()})),
        {k: v.half().float() for k, v in state.items()},
    )


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_a_file_with_a_published_name_is_normalised_as_published(state, tmp_path, name):
    backbone = load_vgg16(saved(tmp_path / VGG16_Weights[name].url.rsplit("/", 1)[1], state))
    preset = VGG16_Weights[name].transforms()
    assert same_weights(backbone, state)
    assert backbone.mean.flatten().tolist() == pytest.approx(preset.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(preset.std)


def test_no_weights_are_random_ones(state):
    torch.manual_seed(1)
    first = load_vgg16("none")
    torch.manual_seed(1)
    assert first.digest() == load_vgg16("None").digest() != load_vgg16("none").digest()
    assert first.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_weights_of_another_network_are_refused(state, tmp_path):
    resnet = torchvision.models.resnet18(num_classes=2).state_dict()
    complaint(
        lambda: load_vgg16(saved(tmp_path / "resnet18.pth", resnet)),
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
            lambda other=other: load_vgg16(saved(tmp_path / "vgg.pth", other)),
            "do not match the network",
            *words,
        )
    wide = state | {"features.5.weight": torch.rand(8, 5, 3, 3)}
    complaint(
        lambda: load_vgg16(saved(tmp_path / "wide.pth", wide)),
        "features.5.weight",
        "(8, 5, 3, 3)",
        "(8, 4, 3, 3)",
    )
    text = state | {"features.5.bias": "eight"}
    complaint(lambda: load_vgg16(saved(tmp_path / "text.pth", text)), "features.5.bias")


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
        complaint(lambda name=name: load_vgg16(str(tmp_path / name)), name, "torch.save")
    assert "has run code" not in "".join(capsys.readouterr())
    complaint(
        lambda: load_vgg16(saved(tmp_path / "tensor.pth", torch.rand(3))), "tensor.pth", "Tensor"
    )
    complaint(lambda: load_vgg16(saved(tmp_path / "list.pth", [state])), "list.pth", "list")
    complaint(
        lambda: load_vgg16("IMAGENET1K_V9"),
        "IMAGENET1K_V9",
        "IMAGENET1K_V1",
        "IMAGENET1K_FEATURES",
        "none",
    )
    complaint(lambda: load_vgg16(str(tmp_path)), tmp_path, "no such file")


# --- downloads ---


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
    backbone = load_vgg16(name)
    assert same_weights(backbone, state)
    preset = VGG16_Weights[name].transforms()
    assert backbone.mean.flatten().tolist() == pytest.approx(preset.mean)
    assert backbone.std.flatten().tolist() == pytest.approx(preset.std)
    assert (name == "IMAGENET1K_V1") == (tuple(preset.mean) == IMAGENET_MEAN)
    (tmp_path / "site").rename(tmp_path / "gone")
    assert same_weights(load_vgg16(name), state)  # now from torch's cache
    assert capsys.readouterr().out == ""  # standard output belongs to results


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "IMAGENET1K_FEATURES"])
def test_weights_of_another_digest_are_refused(site, state, tmp_path, name):
    url = site(name, state, "00000000")
    complaint(lambda: load_vgg16(name), name, "00000000", url, "use weights vgg16-00000000.pth")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_weights_that_cannot_be_had_are_asked_for_by_hand(site, state, tmp_path):
    url = site("IMAGENET1K_V1", state)
    (tmp_path / "site").rename(tmp_path / "gone")
    complaint(lambda: load_vgg16("IMAGENET1K_V1"), "404", url, "use weights ")


def test_weights_from_a_site_that_does_not_answer_are_asked_for_by_hand(
    thin, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url = "http://127.0.0.1:9/vgg16-12345678.pth"  # the discard port: nobody listens
    weights = VGG16_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=url))
    complaint(lambda: load_vgg16("IMAGENET1K_V1"), url, "use weights vgg16-12345678.pth")


def test_a_broken_file_in_torchs_cache_is_named(site, state, tmp_path):
    url = site("IMAGENET1K_V1", state)
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    whole = io.BytesIO()
    torch.save(state, whole)
    for content in (b"not what was fetched", b"", whole.getvalue()[:3000]):
        place.write_bytes(content)
        complaint(lambda: load_vgg16("IMAGENET1K_V1"), "IMAGENET1K_V1", place, "remove it")
