"""Archives and folders as people have them: what is data, where it lies, and what is left out with
a word.
"""

import io
import json
import os
import shutil
import socket
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import complaint

from tinynet import TinyImageNet
from tinynet.data.containers import ZipSource
from tinynet.data.download import find_data
from tinynet.data.image_folder import expand, labelled_images
from tinynet.data.packed import open_packed
from tinynet.data.tiny_imagenet import Archive

CLASSES = ("cat", "dog")


def draw(path, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (colour, 90, 20)).save(path)
    return path


def names(folder):
    return [file.relative_to(folder).as_posix() for file in expand([str(folder)])]


# --- which files are data ---


def test_hidden_and_machine_made_files_are_left_out_at_any_depth_and_counted(tmp_path, capsys):
    for name in ("a.png", "deep/er/b.png"):
        draw(tmp_path / name)
    for place in (
        ".ipynb_checkpoints",
        "deep/.git",
        "deep/er/@eaDir",
        "__MACOSX/deep",
        "deep/er/$RECYCLE.BIN",
    ):
        draw(tmp_path / place / "copy.png")
    draw(tmp_path / "deep/._b.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep/IMG_1.HEIC").write_bytes(b"no image that can be read")
    assert names(tmp_path) == ["a.png", "deep/er/b.png"]
    (said,) = capsys.readouterr().err.splitlines()
    assert all(
        words in said
        for words in (
            "skipped 8 files",
            "3 hidden",
            "3 system files",
            "2 not images",
            ".ipynb_checkpoints",
            "IMG_1.HEIC",
        )
    )
    assert names(tmp_path / "deep/er") == ["b.png"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    draw(tmp_path / "a.png")
    assert names(tmp_path) == ["a.png"] and capsys.readouterr().err == ""


def test_links_to_folders_are_followed_once_each(tmp_path, capsys):
    folder, more = tmp_path / "images", tmp_path / "more"
    draw(folder / "cat/a.png")
    draw(folder / "dog/a.png")
    for k in range(3):
        draw(more / f"{k}.png")
    (folder / "cat/more").symlink_to(more)
    (folder / "dog/round").symlink_to(folder)
    (folder / "dog/gone").symlink_to(tmp_path / "nowhere")
    (folder / "dog/itself").symlink_to(folder / "dog/itself")
    labelled = labelled_images(folder, CLASSES)
    assert [file.relative_to(folder).as_posix() for file in labelled.files] == [
        "cat/a.png",
        "cat/more/0.png",
        "cat/more/1.png",
        "cat/more/2.png",
        "dog/a.png",
    ]
    assert labelled.labels == (0, 0, 0, 0, 1)
    said = capsys.readouterr().err
    assert "links not followed" in said and len(said.splitlines()) == 1
    assert all(name in said for name in ("dog/round", "dog/gone", "dog/itself"))


def test_real_folder_wins_over_link(tmp_path):
    draw(tmp_path / "images/dog/a.png")
    (tmp_path / "images/cat").symlink_to(tmp_path / "images/dog")
    assert labelled_images(tmp_path / "images", CLASSES).labels == (1,)


def test_a_link_to_a_folder_above_adds_no_image_twice(tmp_path, capsys):
    draw(tmp_path / "root/cat/a.png")
    draw(tmp_path / "beside.png")
    (tmp_path / "root/up").symlink_to("..")
    assert names(tmp_path / "root") == ["cat/a.png", "up/beside.png"]
    said = capsys.readouterr().err
    assert "links not followed: up/root (already included)" in said


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    draw(tmp_path / "cat/a.png")
    (tmp_path / "cat/b.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path) == ["cat/a.png", "cat/b.png"]
    assert expand([str(tmp_path / "cat/b.png")]) == (tmp_path / "cat/b.png",)


def test_pipes_and_sockets_are_never_opened(tmp_path, monkeypatch, capsys):
    draw(tmp_path / "images/a.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    monkeypatch.chdir(tmp_path / "images")  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        assert names(tmp_path / "images") == ["a.png"]
    assert "2 not regular files" in capsys.readouterr().err
    complaint(lambda: expand(["pipe.png"]), "pipe.png", "not a regular file")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "cat/a.png")
    scan = os.scandir

    def deny(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    complaint(
        lambda: labelled_images(tmp_path, CLASSES), "cat", "Permission denied", "make it readable"
    )


def test_an_archive_leaves_out_what_folders_leave_out(folder, packed, capsys):
    train = folder / "train" / packed.wnids[0]
    image = next((train / "images").iterdir())
    for name in (
        ".ipynb_checkpoints/copy.JPEG",
        "images/.ipynb_checkpoints/copy.JPEG",
        "@eaDir/copy.JPEG",
    ):
        (train / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, train / name)
    (train / "images/readme.md").write_text("no image")
    again = open_packed(folder)
    assert again.contents == packed.contents and len(again.train) == len(packed.train)
    said = capsys.readouterr().err
    assert all(
        words in said for words in ("skipped 4 files", "2 hidden", "1 system files", "readme.md")
    )


def test_an_archive_of_links_is_that_of_files(folder, packed, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in folder.iterdir():
        (linked / part.name).symlink_to(part)
    (linked / "train/again").symlink_to(folder / "train")
    assert open_packed(linked).contents == packed.contents


# --- layouts ---


def same_data(archive, packed):
    assert archive.wnids == packed.wnids
    for name in ("train", "val"):
        ours, theirs = archive.part(name), packed.part(name)
        stems = [[Path(file).stem for file in files] for files in (ours.files, theirs.files)]
        assert stems[0] == stems[1] and np.array_equal(ours.labels, theirs.labels)


def test_classes_come_from_the_folders_where_their_list_is_gone(folder, packed, capsys):
    (folder / "wnids.txt").unlink()
    archive = Archive(folder)
    same_data(archive, packed)
    assert archive.names == packed.names
    assert (
        "wnids.txt is missing; using the 6 folders in train/ as classes" in capsys.readouterr().err
    )
    shutil.rmtree(folder / "train")
    complaint(lambda: Archive(folder), "no Tiny ImageNet", "train/ and val/")


def test_archives_nested_twice_are_found(folder, packed, tmp_path):
    deep = tmp_path / "data/tiny-imagenet-200/tiny-imagenet-200"
    deep.parent.mkdir(parents=True)
    shutil.move(folder, deep)
    for place in (deep, deep.parent, tmp_path / "data"):
        same_data(Archive(place), packed)
    (deep / "wnids.txt").unlink()
    same_data(Archive(tmp_path / "data"), packed)
    shutil.copytree(deep, deep.parent / "copy")
    same_data(Archive(tmp_path / "data"), packed)  # the official name comes first
    (deep.parent / "other").mkdir()
    shutil.move(deep, deep.parent / "other/a")
    shutil.move(deep.parent / "copy", deep.parent / "other/b")
    complaint(lambda: Archive(tmp_path / "data"), "several", "--data")


def test_two_archives_in_one_zip_are_told_apart(contents, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as target:
        for name, data in contents.items():
            target.writestr(f"a/{name}", data)
            target.writestr(f"b/{name}", data)
    complaint(lambda: Archive(tmp_path / "two.zip"), "several", "a/, b/")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("file", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_byte_order_marks_are_ignored(folder, packed, file, encoding):
    path = folder / file
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding=encoding)
    archive = Archive(folder)
    same_data(archive, packed)
    assert archive.names == packed.names


def test_the_home_folder_is_written_with_a_tilde(archive_path, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(archive_path, tmp_path / "drawn.zip")
    assert open_packed("~/drawn.zip").contents == packed.contents
    assert open_packed("~/drawn.zip", "~/elsewhere").folder.parent == tmp_path / "elsewhere"
    monkeypatch.setenv("TINYNET_DATA", "~/drawn.zip")
    assert find_data(None) == tmp_path / "drawn.zip"
    assert len(TinyImageNet("~/drawn.zip", "val")) == 24
    complaint(lambda: open_packed("~nobody-of-this-name/a.zip"), "unknown user after ~")


def test_images_saved_again_have_the_labels_and_boxes_of_their_names(folder, packed):
    for path in [*folder.rglob("*.JPEG")]:
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    archive = Archive(folder)
    same_data(archive, packed)
    for name in ("train", "val"):
        assert np.array_equal(archive.part(name).boxes, packed.part(name).boxes)
        assert (packed.part(name).boxes >= 0).any()
    draw(folder / "val/images/val_3.JPEG")
    complaint(
        lambda: Archive(folder),
        "val_3.JPEG",
        "val_3.png",
        "the same line of val/val_annotations.txt",
    )


def test_a_line_that_contradicts_another_is_refused(folder):
    path = folder / "val/val_annotations.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    assert len(Archive(folder).val.files) == 24  # twice the same is no contradiction
    other = next(
        line.split("\t")[1] for line in lines if line.split("\t")[1] != lines[0].split("\t")[1]
    )
    path.write_text(
        "\n".join([*lines, "\t".join([lines[0].split("\t")[0], other, *"0011"])]) + "\n"
    )
    complaint(lambda: Archive(folder), "line 25", other, "an earlier line says")


def test_a_class_without_train_images_is_refused(folder, packed):
    shutil.rmtree(folder / "train" / packed.wnids[2])
    complaint(lambda: Archive(folder), "no images of 1 classes", packed.wnids[2])


def test_annotations_without_images_are_reported(folder, capsys):
    (folder / "val/images/val_3.JPEG").unlink()
    assert len(Archive(folder).val.files) == 23
    (said,) = capsys.readouterr().err.splitlines()
    assert "val/val_annotations.txt lists 24 images, but 23 exist" in said


@pytest.mark.parametrize(
    "box", ["0\t0\t70000\t9", "-3\t0\t5\t9", "9\t0\t5\t9", "nan\t0\t5\t9", "1\t2"]
)
def test_invalid_boxes_are_rejected(folder, box):
    path = folder / "val/val_annotations.txt"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join(["\t".join(first.split("\t")[:2] + [box]), *lines]) + "\n")
    complaint(lambda: Archive(folder), "line 1", "TAB")


@pytest.mark.parametrize(
    "ending, mode",
    [
        (".tar", "w:"),
        (".tar.gz", "w:gz"),
        (".tgz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".tar.xz", "w:xz"),
    ],
)
def test_a_tar_is_read_in_place(folder, packed, tmp_path, ending, mode):
    path = tmp_path / f"tiny-imagenet-200{ending}"
    with tarfile.open(path, mode) as target:
        target.add(folder, "./tiny-imagenet-200")
    shutil.rmtree(folder)
    assert open_packed(path).contents == open_packed(tmp_path).contents == packed.contents
    item, label = TinyImageNet(path, "val")[5]
    assert np.array_equal(np.asarray(item), packed.val.images[5]) and label == packed.val.labels[5]


def test_a_broken_tar_is_named(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as target:
        target.add(folder, "tiny-imagenet-200")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "short.tar.gz").write_bytes(whole[: len(whole) // 2])
    complaint(
        lambda: open_packed(tmp_path / "short.tar.gz"), "short.tar.gz", "cut short or damaged"
    )
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as target:
        info = tarfile.TarInfo("tiny-imagenet-200/train/n01/images/a.JPEG")
        info.size = 2**29
        target.addfile(info, Zeros(info.size))
    complaint(
        lambda: open_packed(tmp_path / "bomb.tar.gz"), "bomb.tar.gz", "decompresses to more than"
    )


class Zeros(io.RawIOBase):
    """As many zeros as are asked for."""

    def __init__(self, size):
        self.size = size

    def read(self, size=-1):
        return bytes(min(size, self.size))


def test_a_tar_that_ends_behind_one_of_its_files_is_refused(folder, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:") as target:
        for part in sorted(folder.iterdir(), key=lambda part: part.name == "test"):
            target.add(part, f"tiny-imagenet-200/{part.name}")
    assert len(Archive(path).test.files) == 18
    with tarfile.open(path) as source:
        last = source.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:last])
    complaint(lambda: Archive(path), "a.tar", "cut short", "end mark")


def test_a_tar_with_a_link_to_a_class_folder_is_refused(folder, packed, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:") as target:
        target.add(folder, "tiny-imagenet-200")
        link = tarfile.TarInfo("tiny-imagenet-200/train/again")
        link.type, link.linkname = tarfile.SYMTYPE, packed.wnids[0]
        target.addfile(link)
    complaint(
        lambda: Archive(tmp_path / "a.tar"),
        "a.tar",
        "train/again links to the folder",
        packed.wnids[0],
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_different_files_of_one_name_in_a_zip_are_refused(contents, packed, tmp_path):
    name, other = [
        name for name in contents if name.startswith("train/") and name.endswith(".JPEG")
    ][:2]
    for file, second in (("same.zip", name), ("different.zip", other)):
        with zipfile.ZipFile(tmp_path / file, "w") as target:
            for each, data in contents.items():
                target.writestr(each, data)
            target.writestr(name, contents[second])
    same_data(Archive(tmp_path / "same.zip"), packed)
    complaint(
        lambda: Archive(tmp_path / "different.zip"), "different.zip", "two different files", name
    )


def test_names_written_on_windows_are_read(contents, packed, tmp_path):
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as target:
        for name, data in contents.items():
            info = zipfile.ZipInfo("x")
            info.filename = "tiny-imagenet-200\\" + name.replace("/", "\\")
            target.writestr(info, data)
    assert open_packed(tmp_path / "windows.zip").contents == packed.contents


def hflip(packed, contents, folder, metadata=True, split_val=False):
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
    hflip(packed, contents, tmp_path / place, split_val=True)
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
    hflip(packed, contents, tmp_path / "bare", metadata=False)
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
    for file in sorted(hflip(packed, contents, tmp_path / "mirror").glob(pattern)):
        if change:
            describe(file, change)
        else:
            file.rename(file.with_name("train-00000-of-00002.parquet"))
    complaint(lambda: Archive(tmp_path / "mirror"), *words)


def test_file_names_with_newlines_are_rejected(contents, tmp_path):
    with zipfile.ZipFile(tmp_path / "lines.zip", "w") as target:
        for name, data in contents.items():
            target.writestr(name, data)
        target.writestr("test/images/a\nb.JPEG", next(iter(contents.values())))
    complaint(lambda: Archive(tmp_path / "lines.zip"), "contains a line break", r"a\nb.JPEG")


def test_a_member_that_would_fill_the_memory_is_refused(contents, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in contents.items():
            target.writestr(name, bytes(2**28 + 1) if name == "words.txt" else data)
    complaint(lambda: Archive(tmp_path / "bomb.zip"), "words.txt", "268,435,457 bytes")


def test_a_member_that_inflates_to_more_than_it_says_does_not_fill_memory(contents, tmp_path):
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in contents.items():
            target.writestr(name, bytes(2**26) if name == "words.txt" else data)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 1000)))
    tracemalloc.start()
    try:
        complaint(lambda: ZipSource(path).read("words.txt"), "liar.zip", "words.txt")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
