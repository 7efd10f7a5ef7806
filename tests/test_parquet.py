"""Parquet files of a mirror."""

import json

import numpy as np
import pytest
from support import complaint

from tinynet.data.packing import open_packed
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
