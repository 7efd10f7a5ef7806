"""Where data lies."""

import shutil

import pytest
from image_folders import draw_noise
from support import complaint

from tinynet import TinyImageNet
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.data.places import locate


def test_the_home_folder_is_written_with_a_tilde(archive_path, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(archive_path, tmp_path / "drawn.zip")
    assert open_packed("~/drawn.zip").contents == packed.contents
    assert open_packed("~/drawn.zip", "~/elsewhere").folder.parent == tmp_path / "elsewhere"
    monkeypatch.setenv("TINYNET_DATA", "~/drawn.zip")
    assert find_data(None) == tmp_path / "drawn.zip"
    assert len(TinyImageNet("~/drawn.zip", "val")) == 24
    complaint(lambda: open_packed("~nobody-of-this-name/a.zip"), "unknown user after ~")


def draw(root, *names):
    for seed, name in enumerate(names):
        draw_noise(root / name, (24, 20), seed)
    return root


FLOWERS = ("rose/a.png", "tulip/b.png")


@pytest.mark.parametrize(
    "names",
    [
        FLOWERS,
        ("flowers/rose/a.png", "flowers/tulip/b.png"),
        ("deep/er/rose/a.png", "deep/er/tulip/b.png"),
    ],
)
@pytest.mark.parametrize(
    "other, alone",
    [
        ("old.zip", "old.zip"),
        ("tiny-imagenet-200.zip", "tiny-imagenet-200.zip"),
        ("old.tar.gz", "old.tar.gz"),
        ("older/train/x/0.png", "older"),
        ("train.parquet", ""),
    ],
)
def test_another_data_set_beside_images_is_not_taken_in_silence(tmp_path, names, other, alone):
    place = draw(tmp_path / "photos", *names)
    if other.endswith(".png"):
        draw(place, other, other.replace("train", "val"))
    else:
        (place / other).write_bytes(b"PK")
    first = alone or "parquet files"
    complaint(lambda: locate(place), first, f" and other images (first: {names[0]})", "elsewhere")
    shutil.rmtree(place / names[0].split("/")[0])
    shutil.rmtree(place / names[1].split("/")[0], ignore_errors=True)
    assert locate(place) == place / alone


def test_flat_images_count_if_there_is_a_file_of_labels(tmp_path):
    place = draw(tmp_path / "photos", "a.png", "b.png")
    (place / "old.zip").write_bytes(b"PK")
    assert locate(place) == place / "old.zip"  # images without classes are no data set
    complaint(lambda: locate(place, labels="l.csv"), "old.zip", "images (first: a.png)")
    (place / "old.zip").unlink()
    assert locate(place, labels="l.csv") == place


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
def test_a_folder_of_training_images_comes_before_an_archive_beside_it(tmp_path, train):
    place = draw(tmp_path, f"{train}/rose/a.png", f"{train}/tulip/b.png")
    (place / "photos.zip").write_bytes(b"PK")
    assert locate(place) == place
    shutil.rmtree(place / train)
    (place / train).mkdir()
    assert locate(place) == place / "photos.zip"
    draw(place, f"{train}/a.png")  # a class like any other, where nothing is divided
    assert locate(place) == place / "photos.zip"
    draw(place, "lily/a.png")
    complaint(lambda: locate(place), "the archive photos.zip and other images")
    assert locate(place, labels="l.csv") == place


def test_what_is_no_data_set_of_its_own_is_no_reason_to_refuse(tmp_path):
    """The figures of a page, an extracted copy of the archive, its cache, and runs."""
    place = draw(
        tmp_path,
        "figures/a.png",
        "tiny-imagenet-200.extracted/train/x/images/a.png",
        "tiny-imagenet-200.extracted/train/y/images/a.png",
        "runs/a/base/curves.png",
        "runs/b/base/curves.png",
        ".hidden/a/a.png",
        "logo.png",
    )
    (place / "tiny-imagenet-200.zip").write_bytes(b"PK")
    complaint(lambda: locate(place), "(first: figures/a.png)")  # runs may be a class
    for run in ("a", "b"):
        (place / f"runs/{run}/base/recipe.json").write_text("{}")
    assert locate(place) == place / "tiny-imagenet-200.zip"


def test_images_anywhere_are_found_where_nothing_else_is_meant(tmp_path):
    draw(tmp_path, "tiny-imagenet-200-subset/rose/a.png", "runs/tulip/b.png")
    assert locate(tmp_path) == tmp_path


def test_tiny_imagenet_by_name_is_not_ambiguous(archive_path, tmp_path):
    draw(tmp_path, *FLOWERS)
    shutil.copy(archive_path, tmp_path / "tiny-imagenet-200.zip")
    assert len(TinyImageNet(tmp_path, "val")) == 24
    complaint(lambda: locate(tmp_path), "the archive tiny-imagenet-200.zip and other images")


def test_what_is_no_data_set_at_all(tmp_path):
    draw(tmp_path, "a.png")
    complaint(lambda: locate(tmp_path / "a.png"), "is one image; name the folder")
    complaint(lambda: locate("/dev/null"), "neither a file nor a folder")
    complaint(lambda: locate(tmp_path / "nowhere"), "nowhere: no such file")


def test_links_in_circles_end(tmp_path):
    draw(tmp_path / "photos", *FLOWERS)
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/self").symlink_to("self")
    assert locate(tmp_path / "photos") == tmp_path / "photos"
    (tmp_path / "photos/rose/a.png").unlink()
    (tmp_path / "photos/tulip/b.png").unlink()
    complaint(lambda: locate(tmp_path / "photos"), "contains no images and no archive")


def test_a_parquet_file_stands_for_its_mirror_and_for_nothing_else(tmp_path):
    place = draw(tmp_path / "photos", *FLOWERS)
    for name in ("data.parquet", "train.parquet"):
        (place / name).write_bytes(b"PAR1")
    complaint(lambda: locate(place / "train.parquet"), "parquet files", "first: rose/a.png")
    complaint(
        lambda: locate(place / "data.parquet"),
        "data.parquet: is not a file of a data set from the Hugging Face Hub",
    )
    shutil.rmtree(place / "rose")
    assert locate(place / "train.parquet") == place
    (place / "train.parquet").rename(place / "TRAIN-0.PARQUET")
    assert locate(place / "TRAIN-0.PARQUET") == place
    (place / "wnids.txt").write_text("n1")
    complaint(lambda: locate(place / "TRAIN-0.PARQUET"), "in a folder with an extracted archive")
