"""Zip and tar files: damaged, hostile, of other systems."""

import io
import shutil
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from support import complaint, same_data

from tinynet import TinyImageNet
from tinynet.data import containers
from tinynet.data.containers import TarContainer, ZipContainer
from tinynet.data.copies import open_packed
from tinynet.data.tiny_imagenet import Archive
from tinynet.data.walk import NO_FILES

ARCHIVE_ROOT = "tiny-imagenet-200/"


# --- zip ---


def test_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as target:
        target.writestr("cats/1.jpg", b"")
    complaint(
        lambda: Archive(tmp_path / "other.zip"), "not Tiny ImageNet", "wnids.txt", "cats/1.jpg"
    )


def test_truncated_zip(archive_path, tmp_path):
    short = tmp_path / "short.zip"
    short.write_bytes(archive_path.read_bytes()[:-2000])
    complaint(lambda: Archive(short), short, "cut short", "get")


def test_damaged_bytes_in_a_zip_are_named(contents, tmp_path):
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in contents.items():
            target.writestr(ARCHIVE_ROOT + name, data)
        victim = next(i for i in target.infolist() if i.filename.endswith(".JPEG"))
    raw = bytearray(bad.read_bytes())
    start = victim.header_offset + 30 + len(victim.filename)
    raw[start : start + 40] = b"\xff" * 40
    bad.write_bytes(raw)
    archive = Archive(bad)
    complaint(lambda: archive.read(victim.filename.removeprefix(ARCHIVE_ROOT)), victim.filename)


# --- tar and zip ---


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


def test_a_broken_tar_is_named(folder, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as target:
        target.add(folder, "tiny-imagenet-200")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "short.tar.gz").write_bytes(whole[: len(whole) // 2])
    complaint(
        lambda: open_packed(tmp_path / "short.tar.gz"), "short.tar.gz", "cut short or damaged"
    )
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as target:
        info = tarfile.TarInfo("tiny-imagenet-200/train/n01/images/a.JPEG")
        info.size = 2**26
        target.addfile(info, Zeros(info.size))
    monkeypatch.setattr(containers, "MAX_FILE_SIZE", 2**25)
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
        complaint(lambda: ZipContainer(path).read("words.txt"), "liar.zip", "words.txt")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_names_are_the_same_however_they_are_written(contents, packed, tmp_path):
    with zipfile.ZipFile(tmp_path / "dots.zip", "w") as target:
        for number, (name, data) in enumerate(contents.items()):
            target.writestr(f"{('', './', './/')[number % 3]}{name}", data)
    same_data(open_packed(tmp_path / "dots.zip"), packed)


def test_an_encrypted_zip_is_refused_for_what_it_is(contents, tmp_path):
    path = tmp_path / "secret.zip"
    with zipfile.ZipFile(path, "w") as target:
        for name, data in contents.items():
            target.writestr(name, data)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + offset] |= 1
    path.write_bytes(data)
    complaint(lambda: Archive(path), path, "is encrypted; extract the zip")


def test_an_encrypted_file_beside_the_data_is_not_read(contents, packed, tmp_path):
    path = tmp_path / "beside.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("secret.txt", "x" * 20)
        for name, data in contents.items():
            target.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\3\4") + 6] |= 1  # the first file alone
    data[data.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    same_data(open_packed(path), packed)


def small_tar(path, *files):
    """A tar of files (name, bytes), all with the time 0."""
    with tarfile.open(path, "w") as target:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return path


def test_the_last_version_of_a_file_in_a_tar_counts_and_is_noted(tmp_path, capsys, monkeypatch):
    files = (("a/1", b"one"), ("a/2", b"two"), ("./a/1", b"new"), ("a/2", b"two"))
    tar = TarContainer(small_tar(tmp_path / "versions.tar", *files))
    assert tar.read("a/1") == b"new" and len(tar.table()) == 2
    assert "several versions of some files: 1 (first: a/1)" in capsys.readouterr().err
    monkeypatch.setattr(containers, "MAX_FILE_SIZE", 2)  # files that nobody reads may be larger
    TarContainer(tmp_path / "versions.tar")
    TarContainer(small_tar(tmp_path / "hidden.tar", (".a", b"one"), (".a", b"two")))
    assert "hidden" not in capsys.readouterr().err


def test_a_tar_is_known_by_its_content(tmp_path):
    """Times of its members may all be 0, and sizes the same."""
    tar = TarContainer(small_tar(tmp_path / "a.tar", ("a", b"one"), ("b", b"two")))
    other = TarContainer(small_tar(tmp_path / "b.tar", ("a", b"two"), ("b", b"one")))
    again = TarContainer(small_tar(tmp_path / "c.tar", ("a", b"one"), ("b", b"two")))
    assert tar.table() == other.table() and tar.seal() == again.seal() != other.seal()


def test_pipes_in_a_tar_are_counted(tmp_path):
    small_tar(tmp_path / "pipe.tar", ("a", b"one"))
    with tarfile.open(tmp_path / "pipe.tar", "a") as target:
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        target.addfile(pipe)
    tar = TarContainer(tmp_path / "pipe.tar")
    assert [name for name, _, _ in tar.table()] == ["a"]
    assert tar.skipped.examples == {NO_FILES: ["pipe.png"]}


def test_a_link_out_of_a_tar_is_noted(tmp_path):
    small_tar(tmp_path / "link.tar", ("a", b"one"))
    with tarfile.open(tmp_path / "link.tar", "a") as target:
        link = tarfile.TarInfo("lily")
        link.type, link.linkname = tarfile.SYMTYPE, "/data/rose"
        target.addfile(link)
    tar = TarContainer(tmp_path / "link.tar")
    tar.table()
    assert tar.skipped.links == ["lily (to /data/rose, outside the tar)"]


def test_a_sparse_file_in_a_tar_is_refused(tmp_path, monkeypatch):
    tar = TarContainer(small_tar(tmp_path / "a.tar", ("a", b"one")))
    monkeypatch.setattr(tarfile.TarInfo, "issparse", lambda self: True)
    complaint(lambda: tar.read("a"), "a is stored as a sparse file; extract the tar")


@pytest.mark.parametrize("name", ["a.7z", "a.tar.zst", "labels.csv"])
def test_other_archives_are_told_to_be_extracted(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    complaint(lambda: containers.list_files(tmp_path / name), "neither a zip nor a tar")
