"""Parquet files of a mirror."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import complaint

from tinynet.data.copies import PackRequest, open_packed
from tinynet.data.sources import open_source
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


def table_of(folder, names=("b", "a"), **columns):
    """A mirror of 10 images of two classes, some of whose columns are replaced."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (90, 9, 9)).save(stream, "PNG")
    image = [{"bytes": stream.getvalue(), "path": None}] * 10
    columns = {"image": image, "label": [0, 1] * 5, **columns}
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [*names]}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({name: value for name, value in columns.items() if value is not None})
    folder.mkdir()
    parquet.write_table(table.replace_schema_metadata(about), folder / "train.parquet")
    return folder


@pytest.mark.parametrize(
    "change, words",
    [
        ({"label": [0.0, 1.0] * 5}, ["row 0 has label 0.0", "must be an integer from 0 to 1"]),
        ({"label": ["0", "1"] * 5}, ["row 0 has label 0; a label"]),
        ({"label": [[0], [1]] * 5}, ["row 0 has label [0]"]),
        ({"label": [False, True] * 5}, ["row 0 has label False"]),
        ({"label": [None, 1] * 5}, ["row 0 has no label; a label must"]),
        ({"label": None}, ["has no column 'label'"]),
        ({"image": None}, ["has no column 'image'"]),
        ({"names": ("a", "A")}, ["'A' and 'a' differ only in case"]),
        ({"names": ("a", "b\x1b")}, ["contains a control character"]),
        ({"names": ("a",), "label": [0] * 10}, ["has only one class, 'a'"]),
        ({"names": ("a", "b", "c")}, ["without images in train: 1 (first: 'c')"]),
        ({"label": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]}, ["fewer than 3 images: 'a' (2)"]),
    ],
)
def test_a_mirror_with_other_labels_or_classes_takes_one_line(tmp_path, change, words):
    complaint(lambda: open_source(table_of(tmp_path / "mirror", **change)), "mirror", *words)


def test_two_data_sets_in_one_folder_are_not_joined(tmp_path):
    folder = table_of(tmp_path / "mirror")
    for name in ("validation.parquet", "validation_small.parquet"):
        shutil.copy(folder / "train.parquet", folder / name)
    complaint(
        lambda: open_source(folder),
        "validation.parquet: is val of another data set than validation_small",
    )
    (folder / "validation_small.parquet").unlink()
    for number in range(2):
        name = f"train-{number:05d}-of-00002-1a2b.parquet"
        shutil.copy(folder / "validation.parquet", folder / name)
    (folder / "train.parquet").unlink()
    assert len(open_source(folder).train.files) == 20


def test_names_with_spaces_or_one_stem(tmp_path):
    image = table_of(tmp_path / "first", names=(" rose", "tulip ")) / "train.parquet"
    assert open_source(tmp_path / "first").wnids == ("rose", "tulip")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(image)["image"].to_pylist()
    paths = [f"{number // 2}.{'jpg' if number % 2 else 'png'}" for number in range(10)]
    named = [row | {"path": path} for row, path in zip(rows, paths, strict=True)]
    folder = table_of(tmp_path / "second", image=named)
    shutil.copy(folder / "train.parquet", folder / "val.parquet")
    assert len(open_source(folder).val.files) == 10


def test_damaged_pages_are_no_trouble_of_the_disk(tmp_path):
    file = table_of(tmp_path / "mirror") / "train.parquet"
    parquet = pytest.importorskip("pyarrow.parquet")
    row_group = parquet.ParquetFile(file).metadata.row_group(0)
    data = bytearray(file.read_bytes())
    for column in (row_group.num_columns - 1, 0):
        about = row_group.column(column)
        start = about.dictionary_page_offset or about.data_page_offset
        data[start : start + 12] = b"\xff" * 12
        file.write_bytes(data)
        complaint(lambda: packed_of(tmp_path), "train.parquet: cannot be read as parquet")
        data = bytearray((table_of(tmp_path / f"again{column}") / "train.parquet").read_bytes())


def packed_of(tmp_path):
    return open_packed(tmp_path / "mirror", request=PackRequest(16))


def test_metadata_in_circles_of_brackets(tmp_path):
    file = table_of(tmp_path / "mirror") / "train.parquet"
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(file)
    parquet.write_table(table.replace_schema_metadata({"huggingface": "[" * 100_000}), file)
    complaint(lambda: packed_of(tmp_path), "no class names in its metadata")
