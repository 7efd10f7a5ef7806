"""The PyTorch dataset."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from image_folders import draw_noise
from PIL import Image
from support import complaint, rgb_pixels, val_annotations
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from tinynet import Images, TinyImageNet
from tinynet.data import download as download_module
from tinynet.data.image_folder import imagenet_wnids


def test_items_are_those_of_the_archive(archive_path, contents):
    truth = val_annotations(contents)
    data = TinyImageNet(archive_path, "val")
    assert len(data) == 24 == len(data.targets)
    for (image, target), file in zip(data, data.files, strict=True):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), rgb_pixels(contents[file]))
        assert data.classes[target] == truth[file] and data.class_to_idx[truth[file]] == target
    assert "Split: val" in repr(data) and data.boxes.shape == (24, 4) and len(data.class_names) == 6


def test_train_and_holdout_never_overlap(archive_path, archive):
    train, holdout = TinyImageNet(archive_path), TinyImageNet(archive_path, "holdout")
    assert sorted(train.files + holdout.files) == sorted(archive.train.files)
    assert Counter(holdout.targets) == dict.fromkeys(range(6), 1)
    whole = TinyImageNet(archive_path, holdout=0)
    assert (
        whole.files == list(archive.train.files) and whole.targets == archive.train.labels.tolist()
    )
    quarter = TinyImageNet(archive_path, "holdout", holdout=0.25, split_seed=7)
    assert Counter(quarter.targets) == dict.fromkeys(range(6), 3)
    rows = {file: row for row, file in enumerate(archive.train.files)}
    assert np.array_equal(train.boxes, archive.train.boxes[[rows[file] for file in train.files]])


def test_each_split_has_its_own_transforms(archive_path):
    train = TinyImageNet(
        archive_path, "train", transform=PILToTensor(), target_transform=lambda label: -label
    )
    holdout = TinyImageNet(archive_path, "holdout", transform=lambda image: image.size)
    assert train[0][0].shape == (3, 64, 64) and train[len(train) - 1][1] == -5
    assert holdout[0] == ((64, 64), 0)


def test_test_split_has_images_alone(archive_path):
    data = TinyImageNet(archive_path, "test", transform=PILToTensor())
    assert data.targets is None
    assert next(iter(DataLoader(data, batch_size=5))).shape == (5, 3, 64, 64)


def test_unknown_split(archive_path):
    complaint(lambda: TinyImageNet(archive_path, "valid"), "'valid'", "train, holdout, val, test")
    complaint(lambda: TinyImageNet(archive_path, "holdout", holdout=0), "above 0")


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_what_the_parent_reads(archive_path, start):
    data = TinyImageNet(archive_path, "val", transform=PILToTensor())
    alone = [data[i] for i in range(len(data))]
    count = {"fork": 2, "spawn": 1}[start]  # one that is spawned imports torch
    batches = list(DataLoader(data, batch_size=4, num_workers=count, multiprocessing_context=start))
    assert torch.equal(
        torch.cat([images for images, _ in batches]), torch.stack([p for p, _ in alone])
    )
    assert torch.cat([labels for _, labels in batches]).tolist() == data.targets


def test_dataset_pickles_small(archive_path):
    pickled = pickle.dumps(TinyImageNet(archive_path, "val"))
    data = pickle.loads(pickled)
    assert b"Archive" not in pickled  # nor its table of 120,000 files, in every worker
    assert np.array_equal(
        np.asarray(data[3][0]), np.asarray(TinyImageNet(archive_path, "val")[3][0])
    )


def test_dataset_downloads_where_nothing_is(tmp_path, archive_path, monkeypatch):
    complaint(lambda: TinyImageNet(tmp_path / "new"), tmp_path / "new")
    monkeypatch.setattr(
        download_module, "download", lambda target: shutil.copy(archive_path, target)
    )
    (tmp_path / "new").mkdir()
    assert len(TinyImageNet(tmp_path / "new", "val", download=True)) == 24
    assert (tmp_path / "new/tiny-imagenet-200.zip").is_file()
    monkeypatch.setattr(download_module, "download", None)
    assert len(TinyImageNet(tmp_path / "new", "val", download=True)) == 24


def flowers(folder, counts, names=("rose", "tulip")):
    for name, count in zip(names, counts, strict=True):
        for number in range(count):
            draw_noise(folder / f"{name}/{number}.png", (30 + number, 24), number)
    return folder


def test_images_of_any_folder(tmp_path):
    root = flowers(tmp_path / "photos", (10, 20))
    parts = {split: Images(root, split) for split in ("train", "holdout", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 7 + 15,
        "holdout": 1 + 1,
        "val": 2 + 4,
        "test": 0,
    }
    files = [file for part in parts.values() for file in part.files]
    assert sorted(files) == sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    for image, target in parts["val"]:
        assert image.mode == "RGB" and image.size[1] == 24 and target in (0, 1)
    assert parts["val"].classes == parts["val"].class_names == ["rose", "tulip"]
    loader = DataLoader(Images(root, "val", transform=PILToTensor()), num_workers=1)
    assert sum(len(targets) for _, targets in loader) == 6
    assert Images(root, holdout=0).targets == [0] * 8 + [1] * 16


def test_photographs_are_upright(tmp_path):
    flowers(tmp_path, (3, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_noise(tmp_path / "rose/0.jpg", (40, 20), exif=exif)
    sizes = {
        file: image.size
        for split in ("train", "holdout", "val")
        for data in [Images(tmp_path, split, holdout=0.3)]
        for file, (image, _) in zip(data.files, data, strict=True)
    }
    assert sizes["rose/0.jpg"] == (20, 40)


def test_labels_are_those_of_imagenet_where_the_classes_are(tmp_path, archive_path):
    names = ("n01443537", "n01440764")  # goldfish and tench, the first two of ImageNet
    root = flowers(tmp_path / "fish", (4, 4), names)
    data = Images(root, "val", labels="imagenet")
    assert sorted(set(data.targets)) == [0, 1] and data.class_to_idx == {names[0]: 1, names[1]: 0}
    assert [target for _, target in data] == data.targets
    assert all(
        (names[1] in file) == (target == 0)
        for file, target in zip(data.files, data.targets, strict=True)
    )
    flowers(root, (4, 4))
    complaint(lambda: Images(root, labels="imagenet"), "2 classes", "'rose'", "leave labels out")
    data = TinyImageNet(archive_path, "val")
    foreign = len(set(data.classes) - set(imagenet_wnids()))
    complaint(
        lambda: TinyImageNet(archive_path, labels="imagenet"), f"{foreign} classes", "ImageNet-1k"
    )
    complaint(lambda: TinyImageNet(archive_path, labels="other"), "'other'", "'imagenet'")


def test_labels_from_a_file(tmp_path):
    flowers(tmp_path / "flat", (4, 4), ("a", "b"))
    flat = tmp_path / "flat"
    for path in [*flat.rglob("*.png")]:
        path.rename(flat / f"{path.parent.name}{path.name}")
    file = tmp_path / "labels.csv"
    file.write_text("".join(f"{p.name},{p.name[0] * 3}\n" for p in flat.glob("*.png")))
    data = Images(flat, holdout=0, labels=file)
    assert data.classes == ["aaa", "bbb"] and len(data) == 6
    assert all(
        data.classes[target][0] == name[0]
        for name, target in zip(data.files, data.targets, strict=True)
    )
