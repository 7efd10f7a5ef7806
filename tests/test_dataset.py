"""The PyTorch dataset."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from support import complaint, rgb_pixels, val_annotations
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from tinynet import TinyImageNet
from tinynet.data import download as download_module


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
