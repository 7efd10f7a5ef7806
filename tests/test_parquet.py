"""Parquet files of a mirror."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support import complaint

from tinynet.data.copies import PackRequest, open_packed
from tinynet.data.tiny_imagenet import Archive


def mirror(packed, contents, folder, metadata=True, split_val=False):
    """The parquet files of a mirror on the Hub: images as bytes, labels as numbers, their names in
    the metadata.
    """
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(packed.wnids), "_type": "ClassLabel"},
    }
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "valid")):
        part = packed.part(split)
        images = [{"bytes": contents[file], "path": None} for file in part.files]
        table = pyarrow.table({"image": images, "label": part.labels})
        if metadata:
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        halves = [table.slice(0, 9), table.slice(9)] if split_val and split == "val" else [table]
        for number, half in enumerate(halves):
            parquet.write_table(
                half, folder / f"{name}-{number:05}-of-{len(halves):05}.parquet", row_group_size=7
            )
    return folder


@pytest.mark.parametrize("place", ["mirror", "mirror/data"])
def test_the_files_of_a_mirror_are_an_archive(packed, contents, tmp_path, place):
    mirror(packed, contents, tmp_path / place, split_val=True)
    again = open_packed(tmp_path / "mirror")
    assert again.wnids == packed.wnids and len(again.test) == 0
    for name in ("train", "val"):
        ours, theirs = again.part(name), packed.part(name)
        order = (
            np.argsort(theirs.labels, kind="stable") if name == "train" else np.arange(len(theirs))
        )
        assert np.array_equal(ours.images, theirs.images[order])
        assert np.array_equal(ours.labels, theirs.labels[order])
    one = next((tmp_path / place).glob("train-*.parquet"))
    assert open_packed(one).contents == again.contents


def test_parquet_files_that_are_no_mirror_are_refused(packed, contents, tmp_path, monkeypatch):
    mirror(packed, contents, tmp_path / "bare", metadata=False)
    complaint(lambda: open_packed(tmp_path / "bare"), "no class names in its metadata")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train-0.parquet").write_bytes(b"PAR1 is how they begin")
    complaint(
        lambda: open_packed(tmp_path / "broken"), "train-0.parquet", "cannot be read as parquet"
    )
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    complaint(lambda: open_packed(tmp_path / "bare"), "pip install pyarrow")


def describe(file, change):
    """Change what the metadata of a parquet file say of its columns; a column that it lacks gets
    zeros.
    """
    from pyarrow import parquet

    table = parquet.read_table(file)
    about = json.loads(table.schema.metadata[b"huggingface"])
    change(about["info"]["features"])
    for name in set(about["info"]["features"]) - set(table.column_names):
        table = table.append_column(name, [[0] * len(table)])
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)


@pytest.mark.parametrize(
    "pattern, change, words",
    [
        (
            "valid-*",
            lambda features: features["label"]["names"].reverse(),
            ["valid-0", "class names differ", "train-0"],
        ),
        (
            "*",
            lambda features: features.update(fine={"_type": "ClassLabel", "names": ["a", "b"]}),
            ["2 of ClassLabel"],
        ),
        ("train-*", None, ["train-00000-of-00002.parquet", "one of 2 files, but the folder has 1"]),
    ],
)
def test_parquet_files_that_do_not_fit_together_are_refused(
    packed, contents, tmp_path, pattern, change, words
):
    for file in sorted(mirror(packed, contents, tmp_path / "mirror").glob(pattern)):
        if change:
            describe(file, change)
        else:
            file.rename(file.with_name("train-00000-of-00002.parquet"))
    complaint(lambda: Archive(tmp_path / "mirror"), *words)


def photographs(folder, splits, paths=None):
    """Parquet files of six images of two classes for each split, of different sizes."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"names": ["b", "a"], "_type": "ClassLabel"}}
    folder.mkdir()
    for split in splits:
        rows = []
        for number in range(6):
            stream = io.BytesIO()
            pixels = np.random.RandomState(number).randint(0, 256, (20 + number, 30, 3), np.uint8)
            Image.fromarray(pixels).save(stream, "PNG")
            path = None if paths is None else paths[number]
            rows.append({"bytes": stream.getvalue(), "path": path})
        table = pyarrow.table({"image": rows, "label": [0, 1] * 3})
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        parquet.write_table(table.replace_schema_metadata(about), folder / f"{split}.parquet")
    return folder


def test_photographs_of_a_mirror_are_packed_and_get_a_val(tmp_path, capsys):
    packed = open_packed(photographs(tmp_path / "mirror", ["train"]), request=PackRequest(16))
    assert packed.side == 16 and packed.wnids == ("a", "b")
    assert (len(packed.train), len(packed.val)) == (4, 2)
    assert "has no val; 2 images of train are used as val" in capsys.readouterr().err


def test_the_names_of_a_mirror_give_its_images_the_order_of_the_archive(tmp_path):
    names = [f"folder/{letter}.png" for letter in "fedcba"]
    folder = photographs(tmp_path / "mirror", ["train", "valid"], names)
    packed = open_packed(folder, request=PackRequest(16))
    assert packed.val.files == [f"val/images/{letter}.png" for letter in "abcdef"]
    assert packed.val.labels.tolist() == [0, 1] * 3  # a.png is the last row, of class a
    assert packed.train.files[:3] == [f"train/a/images/{letter}.png" for letter in "ace"]


@pytest.mark.parametrize("names", [["a.png"] * 6, ["a.png", *[None] * 5], list("abcdef")])
def test_names_that_do_not_tell_images_apart_are_numbers_instead(tmp_path, names):
    folder = photographs(tmp_path / "mirror", ["train", "valid"], names)
    packed = open_packed(folder, request=PackRequest(16))
    assert packed.val.files == [f"val/images/val_{number:07}.JPEG" for number in range(6)]


def test_a_test_with_labels_keeps_them(tmp_path):
    folder = photographs(tmp_path / "mirror", ["train", "test"])
    packed = open_packed(folder, request=PackRequest(16))
    assert packed.test.labels.tolist() == [1, 0] * 3 and len(packed.val) == 2
