"""The verification of an archive."""

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import val_annotations

from tinynet.data import verify as verify_module
from tinynet.data.tiny_imagenet import SPLITS, Archive
from tinynet.data.verify import same_pixels, verify

# --- verify ---


def rows_of(report):
    return {row.check: row for row in report.rows}


def test_drawn_archive_is_in_order(archive, contents):
    report = verify(archive)
    assert report.ok and report.scope == "part" and not report.faults and not report.duplicates
    rows = rows_of(report)
    for name, each in (("train", 12), ("val", 4)):
        assert rows[f"{name} images per class"].found == each
        grey = sum(
            Image.open(io.BytesIO(contents[file])).mode == "L" for file in archive.part(name).files
        )
        assert rows[f"{name} images of one channel"].found == grey
    assert rows["image size"].found == "64x64"


def test_a_complete_archive_must_agree_with_the_official_one(archive, contents, monkeypatch):
    """The official figures are set to those of the drawn archive; each by one more is found."""
    greys = {
        name: sum(
            Image.open(io.BytesIO(contents[file])).mode == "L" for file in archive.part(name).files
        )
        for name in SPLITS
    }
    official = {
        "OFFICIAL_COUNTS": {name: len(archive.part(name).files) for name in SPLITS},
        "OFFICIAL_ONE_CHANNEL": greys,
        **{
            name: dict.fromkeys(getattr(verify_module, name), 0)
            for name in ("OFFICIAL_PAIRS", "OFFICIAL_CONFLICTS")
        },
    }
    monkeypatch.setattr(verify_module, "OFFICIAL_CLASSES", 6)
    for name, value in official.items():
        monkeypatch.setattr(verify_module, name, value)
    assert verify(archive).ok and verify(archive).scope == "complete"
    for name in ("OFFICIAL_ONE_CHANNEL", "OFFICIAL_PAIRS", "OFFICIAL_CONFLICTS"):
        for key, value in official[name].items():
            with monkeypatch.context() as patch:
                patch.setitem(official[name], key, value + 1)
                assert [row.ok for row in verify(archive).rows].count(False) == 1, (name, key)
    with monkeypatch.context() as patch:
        patch.setattr(verify_module, "OFFICIAL_SIZE", "65x65")
        assert not verify(archive).ok


@pytest.mark.parametrize("part", ["train", "val"])
def test_verify_finds_a_removed_image(folder, part):
    next((folder / part).rglob("*.JPEG")).unlink()
    report = verify(Archive(folder))
    wrong = {check: row.found for check, row in rows_of(report).items() if row.ok is False}
    assert wrong == {f"{part} images per class": "11 to 12" if part == "train" else "3 to 4"}
    assert not report.ok


def test_verify_finds_duplicates_and_their_labels(folder, contents):
    truth = val_annotations(contents)
    train = sorted(folder.glob("train/*/images/*"))[0]
    other = next(file for file, wnid in truth.items() if wnid != train.parts[-3])
    shutil.copy(train, folder / other)
    report = verify(Archive(folder))
    assert report.duplicates == ((str(train.relative_to(folder)), other, True),)
    rows = rows_of(report)
    assert (
        rows["identical pairs train-val"].found
        == rows["identical pairs train-val with different labels"].found
        == 1
    )
    # The official archive has such pairs between train and val, and none within val.
    assert report.ok
    same = [file for file, wnid in truth.items() if wnid == truth[other] and file != other][0]
    shutil.copy(folder / other, folder / same)
    report = verify(Archive(folder))
    rows = rows_of(report)
    assert not report.ok and rows["identical pairs train-val"].found == 2
    assert (
        rows["identical pairs val-val"].found == 1 and rows["identical pairs val-val"].ok is False
    )
    assert rows["identical pairs val-val with different labels"].found == 0


def test_verify_finds_every_broken_image(folder):
    broken = sorted(folder.glob("train/*/images/*"))[:22]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    report = verify(Archive(folder))
    assert rows_of(report)["images that cannot be decoded"].found == 22 and not report.ok
    assert len(report.faults) == 21 and report.faults[-1].startswith("and 2 more")
    for path, line in zip(broken[:20], report.faults[:20], strict=True):
        assert line.startswith(str(path.relative_to(folder)))


def test_verify_finds_another_size_and_false_colour(folder):
    train = sorted(folder.glob("train/*/images/*"))
    before = rows_of(verify(Archive(folder)))
    Image.new("RGB", (32, 32), (9, 9, 9)).save(train[0])
    rows = rows_of(verify(Archive(folder)))
    assert rows["image size"].found == "64x64, 32x32" and rows["image size"].ok is False
    grey = "train images of three grey channels"
    assert rows[grey].found == before[grey].found + 1


# --- twins ---


def test_twins_are_found_pixel_by_pixel(packed):
    images = {name: np.array(packed.part(name).images) for name in ("train", "val")}
    images["val"][3] = images["train"][5]
    twins = SimpleNamespace(part=lambda name: SimpleNamespace(images=images[name]))
    before = same_pixels(packed)
    assert set(same_pixels(twins)) - set(before) == {(("train", 5), ("val", 3))}
    assert same_pixels(packed) == before
