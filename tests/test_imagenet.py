"""Pretrained networks: any folder of pictures, ImageNet's procedure, Tiny ImageNet without
training, predictions.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support import call, complaint, in_floats, refused
from torch import nn
from torchvision.transforms import v2 as tv2
from torchvision.transforms.v2 import functional as tv

from tinynet import compare, predict
from tinynet import folder as folder_command
from tinynet import zero_shot as zero_shot_command
from tinynet.compute import Compute
from tinynet.data import decode as decode_module
from tinynet.data.image_folder import expand, imagenet_wnids, labelled_images, open_image
from tinynet.data.packed import open_packed
from tinynet.evaluation import evaluate as scoring
from tinynet.evaluation import folder as imagenet
from tinynet.evaluation import predict as prediction
from tinynet.evaluation import zero_shot
from tinynet.evaluation.evaluate import ScoreRequest
from tinynet.evaluation.folder import FolderRequest, evaluate_folder
from tinynet.evaluation.zero_shot import ZeroShot
from tinynet.models.pretrained import Pretrained, WeightsInfo, load_pretrained
from tinynet.records import to_json
from tinynet.score.probabilities import Probabilities
from tinynet.score.views import view_set

CPU = Compute(torch.device("cpu"), torch.float32)
WNIDS = imagenet_wnids()
CLASSES = [WNIDS[i] for i in (3, 500, 999)]
SMALL = "shufflenet_v2_x0_5"


def draw(path, sides=(90, 70), seed=0, **how):
    """A picture of coarse noise."""
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC).save(path, **how)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Class folders with pictures of several shapes and formats, and things that are none."""
    root = tmp_path_factory.mktemp("tree")
    sides = [(90, 70), (64, 64), (70, 120), (200, 65), (90, 70)]
    for number, wnid in enumerate(CLASSES):
        for k, side in enumerate(sides):
            draw(root / wnid / f"{wnid}_{k}{('.JPEG', '.png')[k % 2]}", side, seed=10 * number + k)
    (root / CLASSES[0] / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    return root


class Reader(nn.Module):
    """1000 logits that depend on every pixel: weighted means of a few cells of the picture."""

    def __init__(self, classes=1000):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(classes, 48, generator=torch.Generator().manual_seed(1))
        )
        if classes == 1000:  # most others are never said, so that some pictures are right
            self.weight.data[[k for k in range(1000) if k not in (3, 107, 500, 999)]] *= 0.01

    def forward(self, images):
        return 3 * nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.weight.T


@pytest.fixture
def reader(monkeypatch):
    """`--arch` names a Reader, for 56 pixels out of 64."""

    def load(arch, weights, classes=None):
        published = WeightsInfo(
            tuple(f"name {i}" for i in range(1000)), 64, 56, "bilinear", (0.25, 0.5)
        )
        return Pretrained(Reader(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), classes).eval(), published

    for module in (imagenet, prediction, zero_shot):
        monkeypatch.setattr(module, "load_pretrained", load)


# --- pictures and labels ---


def test_the_ids_are_those_of_ilsvrc():
    assert len(WNIDS) == 1000 == len(set(WNIDS)) and list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[1], WNIDS[281], WNIDS[999]) == (
        "n01440764",
        "n01443537",
        "n02123045",
        "n15075141",
    )


def test_class_folders_give_labels_by_wnid(tree):
    found = labelled_images(tree, WNIDS)
    assert len(found.files) == 15 and sorted(set(found.labels)) == [3, 500, 999]
    assert all(
        WNIDS[label] == file.parent.name
        for file, label in zip(found.files, found.labels, strict=True)
    )


def test_a_flat_folder_takes_its_labels_from_a_file(tree, tmp_path):
    flat = tmp_path / "flat"
    for k in range(4):
        draw(flat / f"val_{k}.JPEG", seed=k)
    expected = (3, 500, 999, 3)
    wnids = [WNIDS[i] for i in expected]
    for text in (
        "\n".join(wnids),
        "\n".join(map(str, expected)),
        "\n".join(f"ILSVRC/val_{k}.JPEG {wnids[k]}" for k in (2, 0, 3, 1)),
    ):
        (tmp_path / "labels.txt").write_text(text)
        assert labelled_images(flat, WNIDS, str(tmp_path / "labels.txt")).labels == expected


def test_labels_of_nested_folders_go_by_path(tmp_path):
    for k, name in enumerate(("x/1.png", "y/1.png", "y/a b.png")):
        draw(tmp_path / "flat" / name, seed=k)
    labels = tmp_path / "labels.txt"
    labels.write_text(
        "\ufeff" + f"y/1.png {WNIDS[5]}\nx/1.png {WNIDS[4]}\ny/a b.png 6\n", encoding="utf-8"
    )
    assert labelled_images(tmp_path / "flat", WNIDS, str(labels)).labels == (4, 5, 6)
    labels.write_text("1.png 4\na b.png 5\n")
    complaint(
        lambda: labelled_images(tmp_path / "flat", WNIDS, str(labels)),
        "occur in several folders",
        "relative to the image folder",
    )
    labels.write_bytes(b"\xff\xfe\x00\x81")
    complaint(lambda: labelled_images(tmp_path / "flat", WNIDS, str(labels)), "is not a text file")


def test_imagenets_devkit_numbers_its_classes_in_its_own_way(tmp_path):
    from scipy.io import savemat

    flat, kit = tmp_path / "val", tmp_path / "devkit"
    for k in range(3):
        draw(flat / f"ILSVRC2012_val_{k:08}.JPEG", seed=k)
    (kit / "data").mkdir(parents=True)
    synsets = np.array(
        [(1, "n02119789"), (2, WNIDS[0]), (3, WNIDS[999])],
        dtype=[("ILSVRC2012_ID", int), ("WNID", object)],
    )
    savemat(kit / "data" / "meta.mat", {"synsets": synsets})
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")
    assert labelled_images(flat, WNIDS, str(kit)).labels == (999, WNIDS.index("n02119789"), 0)
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n")
    complaint(lambda: labelled_images(flat, WNIDS, str(kit)), "2 labels for 3 images")
    (kit / "data" / "meta.mat").write_bytes(b"no matrix")
    complaint(lambda: labelled_images(flat, WNIDS, str(kit)), "devkit", "meta.mat")


def test_folders_and_labels_that_do_not_fit_are_refused(tree, tmp_path):
    labels = tmp_path / "labels.txt"
    empty = tmp_path / "empty"
    empty.mkdir()
    complaint(lambda: labelled_images(tmp_path / "nowhere", WNIDS), "nowhere", "no such folder")
    complaint(lambda: labelled_images(empty, WNIDS), "contains no folders of images", "--labels")
    complaint(lambda: labelled_images(tree, CLASSES[:2]), "1 of 3 class folders", CLASSES[2])
    complaint(lambda: labelled_images(tree, ["cat", "dog"]), "3 of 3 class folders", "'cat'")
    complaint(lambda: labelled_images(empty, WNIDS, str(labels)), "contains no images")
    complaint(lambda: labelled_images(tree, WNIDS, str(labels)), "labels.txt", "no such file")
    for text, words in (
        ("3\n" * 14, ["14 labels for 15"]),
        ("1000\n" * 15, ["index 1000 is", "0 to 999"]),
        ("n00000000\n" * 15, ["n00000000"]),
        ("1\n2 3\n" * 5, ["mixes line formats", "FILE LABEL"]),
        ("a.png 3\n", ["no label for 15 of 15"]),
    ):
        labels.write_text(text)
        complaint(lambda: labelled_images(tree, WNIDS, str(labels)), "labels.txt", *words)


def test_images_of_any_kind_become_rgb(tmp_path):
    for name, mode in (
        ("grey.png", "L"),
        ("alpha.png", "RGBA"),
        ("palette.gif", "P"),
        ("ink.jpg", "CMYK"),
        ("bits.bmp", "1"),
        ("deep.png", "I;16"),
    ):
        Image.new(mode, (20, 10)).save(tmp_path / name)
        assert (open_image(tmp_path / name).mode, open_image(tmp_path / name).size) == (
            "RGB",
            (20, 10),
        )


def test_exif_turns_a_image_where_that_is_asked_for(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (40, 20)
    upright = open_image(tmp_path / "turned.png", upright=True)
    assert upright.size == (20, 40) and upright.getpixel((19, 0)) == (255, 255, 255)


def test_unreadable_images_are_named(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    draw(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.new("RGB", (900, 2)).save(tmp_path / "thin.png")
    complaint(lambda: open_image(tmp_path / "thin.png"), "thin.png", "900x2")
    for name, why in (
        ("text.jpg", "is not an image"),
        ("short.png", "cannot be read"),
        ("missing.png", "cannot be read"),
    ):
        complaint(lambda name=name: open_image(tmp_path / name), name, why)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 90 * 70 - 1)
    complaint(lambda: open_image(tmp_path / "whole.png"), "whole.png", "90x70", "at most 6,299")


def test_files_and_folders_are_expanded(tree, tmp_path):
    one = next((tree / CLASSES[0]).glob("*.png"))
    assert expand([str(one), str(tree / CLASSES[1])])[0] == one
    assert len(expand([str(tree)])) == 15
    complaint(lambda: expand([str(tmp_path)]), "contains no images")
    complaint(lambda: expand(["nowhere.jpg"]), "nowhere.jpg")


# --- networks ---


def test_a_network_normalises_and_restricts_itself():
    inner, images = Reader(), torch.rand(4, 3, 32, 32)
    whole = Pretrained(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    torch.testing.assert_close(
        whole(images), inner(tv.normalize(images, [0.4, 0.5, 0.6], [0.2, 0.3, 0.2]))
    )
    some = Pretrained(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), [5, 2, 700])
    assert torch.equal(some(images), whole(images)[:, [5, 2, 700]])


def test_torchvision_says_what_it_publishes(tmp_path):
    model, published = load_pretrained(SMALL, "none")
    how = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()
    assert (published.resize, published.size, published.interpolation) == (256, 224, "bilinear")
    assert (
        how.resize_size == [256] and published.names[0] == "tench" and published.accuracies is None
    )
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.save(model.network.state_dict(), tmp_path / "weights.pth")
    again, _ = load_pretrained(SMALL, str(tmp_path / "weights.pth"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))


def test_published_weights_are_fetched_with_their_accuracy(monkeypatch):
    state = torchvision.models.get_model(SMALL, weights=None).state_dict()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    asked = {}
    monkeypatch.setattr(
        type(weights), "get_state_dict", lambda self, **how: asked.update(how) or state
    )
    _, published = load_pretrained(SMALL)
    assert published.accuracies == (pytest.approx(0.60552), pytest.approx(0.81746))
    assert asked["weights_only"] is True and asked["check_hash"] is True


def test_what_torchvision_sets_for_published_weights_is_set(tmp_path):
    """Networks whose published weights want more than the plain constructor: read from a file of
    their name.
    """
    network = torchvision.models.densenet121(weights=None)
    old = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in network.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert old.keys() != network.state_dict().keys()
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    model, published = load_pretrained("densenet121", str(tmp_path / "densenet121-a639ec97.pth"))
    assert published.accuracies == (pytest.approx(0.74434), pytest.approx(0.91972))
    images = torch.rand(1, 3, 64, 64)
    expected = network.eval()(tv.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert load_pretrained("googlenet", "none")[0].network.transform_input
    complaint(
        lambda: load_pretrained("vgg16", "IMAGENET1K_FEATURES"),
        "have no classifier",
        "IMAGENET1K_V1",
    )


def test_networks_and_weights_that_there_are_not_are_refused(tmp_path, monkeypatch):
    complaint(lambda: load_pretrained("resnet5"), "resnet5", "resnet50")
    complaint(lambda: load_pretrained("lraspp_mobilenet_v3_large"), "no such classifier")
    complaint(
        lambda: load_pretrained("resnet18", "IMAGENET1K_V9"), "IMAGENET1K_V9", "IMAGENET1K_V1"
    )
    (tmp_path / "text.pth").write_text("no weights")
    complaint(lambda: load_pretrained(SMALL, str(tmp_path / "text.pth")), "text.pth", "state dict")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    complaint(
        lambda: load_pretrained(SMALL, str(tmp_path / "other.pth")),
        "do not match the network",
        "2 unexpected (first: weight)",
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "torch.hub.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    complaint(
        lambda: load_pretrained(SMALL),
        "could not be downloaded",
        "no network",
        "https://",
        "--weights",
    )


def test_timm_is_asked_for_by_name(monkeypatch):
    timm = pytest.importorskip("timm")
    model, published = load_pretrained("timm/resnet18.a1_in1k", "none")
    how = timm.data.resolve_model_data_config(timm.create_model("resnet18.a1_in1k"))
    assert (published.size, published.interpolation) == (
        how["input_size"][-1],
        how["interpolation"],
    )
    assert (
        published.resize == math.floor(published.size / how["crop_pct"])
        and len(published.names) == 1000
    )
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1000)
    complaint(lambda: load_pretrained("timm/resnet5"), "timm/resnet5", "resnet50")


def test_without_timm_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    complaint(lambda: load_pretrained("timm/resnet18"), "timm/resnet18", "pip install")


# --- ImageNet's procedure ---


def scored(tree, **how):
    request = FolderRequest(**{"workers": 0, **how})
    return to_json(evaluate_folder(str(tree), None, "reader", "none", request, CPU))


def by_hand(
    tree, views, mode="shorter", interpolation=tv.InterpolationMode.BILINEAR, resize=64, size=56
):
    """Mean probabilities, one picture at a time, with torchvision's own transforms."""
    found = labelled_images(tree, WNIDS)
    model = Pretrained(Reader(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    rows = []
    for file in found.files:
        side = resize if mode == "shorter" else [resize, resize]
        image = tv.resize(Image.open(file).convert("RGB"), side, interpolation)
        crops = tv.ten_crop(image, size) if views == "ten" else [tv.center_crop(image, size)]
        with torch.inference_mode():
            seen = torch.stack([tv.to_dtype(tv.to_image(one), scale=True) for one in crops])
            rows.append(model(seen).softmax(1).mean(0))
    return torch.stack(rows), torch.tensor(found.labels)


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (dict(), dict()),
        (dict(resize_mode="squash"), dict(mode="squash")),
        (
            dict(interpolation="bicubic", resize=80),
            dict(interpolation=tv.InterpolationMode.BICUBIC, resize=80),
        ),
        (dict(size=48), dict(size=48)),
    ],
)
def test_a_folder_is_scored_as_torchvisions_transforms_would(tree, reader, flags, how):
    rows = scored(tree, tta=["ten"], **flags)
    assert [(row["views"], row["forwards"]) for row in rows] == [("none", 1), ("ten", 10)]
    for row in rows:
        expected, labels = by_hand(tree, row["views"], **how)
        assert row["n"] == 15 and row["top1"] == pytest.approx(
            (expected.argmax(1) == labels).double().mean().item()
        )
        assert 0 < row["top1"] < 1
        assert row["loss"] == pytest.approx(
            nn.functional.nll_loss(expected.log(), labels).item(), rel=2e-3
        )
    assert rows[1]["gain"] == pytest.approx(rows[1]["top1"] - rows[0]["top1"])
    assert rows[0]["documented"] == 0.25 and rows[1]["documented"] is None
    assert rows[0]["apart"] == pytest.approx(
        (rows[0]["top1"] - 0.25) / ((rows[0]["high"] - rows[0]["low"]) / 2)
    )


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_scores_do_not_depend_on_batches_and_workers(tree, reader, batch, monkeypatch):
    how = dict(tta=["ten", "flip+scales:56,72"], merges=["mean", "gmean", "vote"])
    monkeypatch.setattr(imagenet, "decode_batch_size", lambda views: 4)
    once = scored(tree, **how)
    monkeypatch.setattr(imagenet, "decode_batch_size", lambda views: batch)
    again = scored(tree, workers=batch % 2, **how)
    assert len(once) == 7
    for row, other in zip(once, again, strict=True):
        same = ("views", "merge", "n", "top1", "top5", "forwards")
        assert [row[key] for key in same] == [other[key] for key in same]
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5) and row["p"] == other["p"]


def test_scales_keep_the_aspect_ratio(tree, reader):
    rows = scored(tree, tta=["scales:60,90"])
    found = labelled_images(tree, WNIDS)
    model = Pretrained(Reader(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    losses = []
    for file, label in zip(found.files, found.labels, strict=True):
        image = tv.to_dtype(tv.to_image(Image.open(file).convert("RGB")), scale=True)[None]
        with torch.inference_mode():
            seen = [model(tv.resize(image, side, antialias=True)).softmax(1) for side in (60, 90)]
        losses.append(-((seen[0] + seen[1]) / 2)[0, label].log().item())
    assert rows[1]["loss"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_the_command_scores_a_folder_and_keeps_what_is_asked_for(
    tree, reader, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--data",
        tree,
        "--arch",
        "reader",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    ran = call(
        folder_command, *flags, "--tta", "ten", "--save-probabilities", "kept/ten.npz", "--json"
    )
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    kept = Probabilities.load(Path("kept/ten.npz"))
    assert [path.name for path in Path("kept").iterdir()] == ["ten.npz"]
    assert kept.log_probabilities.shape == (10, 15, 1000) and kept.wnids == WNIDS
    (again,) = json.loads(call(compare, "kept/ten.npz", "--json").out)
    assert again["top1"] == rows[1]["top1"] and again["loss"] == pytest.approx(rows[1]["loss"])
    assert "documented" in call(folder_command, *flags).out


def test_a_network_of_one_size_does_not_see_oblong_images():
    class Square(nn.Module):
        def forward(self, images):
            assert images.shape[-1] == images.shape[-2] == 32, "wrong size"
            return images.mean((2, 3))

    probe = torch.zeros(1, 3, 32, 32)
    imagenet.check_views(Square(), view_set("flip", 32, prepared=True), probe, "--arch square")
    complaint(
        lambda: imagenet.check_views(
            Square(), view_set("scales:32", 32, prepared=True), probe, "--arch square"
        ),
        "--arch square",
        "42x32",
        "wrong size",
    )


def test_a_folder_that_cannot_be_scored_is_refused(tree, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--arch", "reader", "--device", "cpu", "--workers", "1"]
    refused(folder_command, [*flags, "--data", tree, "--size", "80"], "--size 80", "64", "--resize")
    refused(folder_command, [*flags, "--data", tree, "--tta", "dense"], "dense")
    refused(folder_command, [*flags, "--data", tree, "--tta", "six"], "six")
    refused(folder_command, [*flags, "--data", "nowhere"], "nowhere")
    refused(folder_command, [*flags[:-1], "-1", "--data", tree], "--workers -1")
    assert refused(folder_command, [*flags, "--data", tree, "--precision", "int8"], "int8") == 1
    refused(folder_command, flags, "--data", "--arch")
    refused(folder_command, [*flags, "--data", tree, "--split", "val"], "--split")
    refused(
        folder_command,
        [*flags, "--data", tree, "--tta", "ten", "five", "--save-probabilities", "a.npz"],
        "one set",
    )
    broken = tmp_path / "broken"
    draw(broken / CLASSES[0] / "a.png")
    (broken / CLASSES[0] / "b.png").write_text("no picture")
    refused(
        folder_command,
        [*flags, "--data", broken, "--save-probabilities", "kept/a.npz"],
        "b.png",
        "is not an image",
    )
    assert not list(Path("kept").iterdir())


# --- Tiny ImageNet without training ---


@pytest.fixture
def renamed(packed, monkeypatch):
    """The drawn archive, its classes called like some of ImageNet's."""
    monkeypatch.setattr(
        packed, "wnids", tuple(WNIDS[100 * k + 7] for k in range(len(packed.wnids)))
    )
    return packed


def test_a_network_without_training_says_the_datas_classes_alone(renamed, reader):
    predictor = ZeroShot("reader", "none", renamed, CPU)
    assert predictor.size == 56 and len(predictor.images("holdout")[1]) > 0
    for split in ("holdout", "val"):
        part, rows = predictor.images(split)
        found = predictor.predict(split, view_set("flip", 48))
        images = in_floats(part.images[rows])
        seen = tv.resize(images, [48, 48], antialias=True)
        model = Pretrained(Reader(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
        with torch.inference_mode():
            expected = torch.log_softmax(
                model(seen)[:, [100 * k + 7 for k in range(len(renamed.wnids))]], 1
            )
        np.testing.assert_allclose(found.log_probabilities[0], expected, rtol=1e-3, atol=1e-3)
        assert np.array_equal(found.labels, part.labels[rows]) and found.views == (
            "plain",
            "mirror",
        )


def test_a_network_without_training_is_scored_at_the_size_that_is_named(renamed, reader):
    predictor = ZeroShot("reader", "none", renamed, CPU)
    (chosen,) = predictor.sets(["flip"], 48)  # a Reader says nearly the same of any size
    assert {seen.shape[-1] for seen in chosen(torch.zeros(1, 3, 64, 64)).values()} == {48}
    rows = list(scoring.evaluate(predictor, ScoreRequest(tta=["flip"], sizes=[48])))
    rows = [row.to_json() for row in rows]
    assert [(row["split"], row["views"], row["size"]) for row in rows] == [
        (split, views, 48) for split in ("holdout", "val") for views in ("none", "flip")
    ]
    images = in_floats(renamed.val.images)
    seen = tv.resize(images, [48, 48], antialias=True)
    model = Pretrained(Reader(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    with torch.inference_mode():
        said = model(seen)[:, [100 * k + 7 for k in range(len(renamed.wnids))]]
    expected = nn.functional.cross_entropy(said, torch.tensor(renamed.val.labels)).item()
    assert (
        rows[2]["loss"]
        == pytest.approx(expected, rel=2e-3)
        != pytest.approx(rows[3]["loss"], rel=2e-3)
    )


def test_a_network_without_training_needs_classes_that_it_knows(
    archive_path, reader, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", archive_path, "--cache", "cache", "--device", "cpu"]
    open_packed(archive_path, "cache")
    refused(zero_shot_command, flags, "classes are not among ImageNet's 1,000")
    assert refused(zero_shot_command, [*flags, "--run", "runs/a"], "--run") == 1


def test_a_network_with_other_classes_has_no_head_of_imagenet(renamed, monkeypatch):
    few = WeightsInfo(tuple("abc"), 64, 56, "bilinear", None)
    monkeypatch.setattr(
        zero_shot, "load_pretrained", lambda *_: (Pretrained(Reader(3), (0,) * 3, (1,) * 3), few)
    )
    complaint(lambda: ZeroShot("reader", "none", renamed, CPU), "has 3 classes", "1,000")


# --- predictions ---


def test_files_are_named_by_a_pretrained_network(tree, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = sorted((tree / CLASSES[0]).glob("*.JPEG"))[0]
    ran = call(
        predict,
        one,
        tree / CLASSES[1],
        "--arch",
        "reader",
        "--top",
        "3",
        "--tta",
        "ten",
        "--device",
        "cpu",
        "--json",
        "--explain",
        "views.png",
    )
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert (
        len(rows) == 18
        and rows[0]["file"] == str(one)
        and [row["rank"] for row in rows[:3]] == [1, 2, 3]
    )
    expected, _ = by_hand(tree, "ten")
    files = labelled_images(tree, WNIDS).files
    best = expected[files.index(one)].topk(3)
    assert [row["id"] for row in rows[:3]] == [WNIDS[i] for i in best.indices]
    assert [row["class"] for row in rows[:3]] == [f"name {i}" for i in best.indices]
    assert [row["probability"] for row in rows[:3]] == pytest.approx(best.values.tolist(), rel=1e-2)
    assert Image.open("views.png").size[0] > 400
    table = call(predict, one, "--arch", "reader", "--device", "cpu").out.splitlines()
    assert table[0].split() == ["file", "rank", "class", "id", "probability"] and len(table) == 6


def test_unreadable_files_are_named_and_the_others_still_predicted(tree, reader, tmp_path):
    draw(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    ran = call(predict, tmp_path, "--arch", "reader", "--device", "cpu", "--json")
    assert ran.status == 1 and "a.png: is not an image" in ran.err and "Traceback" not in ran.err
    assert {row["file"] for row in json.loads(ran.out)} == {str(tmp_path / "b.png")}
    ran = call(predict, tmp_path / "a.png", "--arch", "reader", "--device", "cpu")
    assert ran.status == 1 and ran.out == ""


def test_predictions_that_cannot_be_made_are_refused(tree, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(predict, ["nowhere.png", "--arch", "reader"], "nowhere.png")
    refused(predict, [tmp_path, "--arch", "reader"], "contains no images")
    refused(predict, [tree, "--arch", "reader", "--tta", "six"], "six")
    refused(predict, [tree, "--arch", "reader", "--merge", "six"], "six")
    refused(predict, [tree, "--arch", "reader", "--top", "0"], "--top")
    refused(predict, [tree, "--arch", "reader", "--out", "a.txt"], "--out")
    refused(predict, ["--arch", "reader"], "--arch")
    refused(predict, [tree], "no run")
    refused(predict, [tree, "--weights", "none"], "--weights")
    refused(predict, [tree, "--arch", "reader", "--data", "a.zip"], "--data")
    refused(predict, ["--top", "3"], "--top")
    refused(predict, [tree, "--arch", SMALL, "--weights", "none", "--size", "-5"], "--size")


def test_a_image_turned_by_exif_is_seen_upright(reader, tmp_path):
    draw(tmp_path / "upright.png", (60, 100), seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "upright.png").rotate(90, expand=True).save(
        tmp_path / "turned.png", exif=exif
    )
    rows = json.loads(
        call(
            predict,
            tmp_path / "upright.png",
            tmp_path / "turned.png",
            "--arch",
            "reader",
            "--device",
            "cpu",
            "--json",
            "--top",
            "1",
        ).out
    )
    assert rows[0]["id"] == rows[1]["id"] and rows[0]["probability"] == pytest.approx(
        rows[1]["probability"]
    )


def test_a_image_is_prepared_as_its_publisher_says():
    how = tv2.Compose([tv2.Resize(64), tv2.CenterCrop(56)])
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (75, 133, 3), np.uint8))
    expected = tv.to_image(how(image))
    shown = imagenet.DecodedImages([Path("a.png")], 64, "shorter", "bilinear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "open_image", lambda *_: image)
        _, found = shown[0]
    assert torch.equal(view_set("none", 56, prepared=True).views["plain"](found[None])[0], expected)
