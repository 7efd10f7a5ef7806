"""Packed copies of an archive."""

import io
import json
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from support import complaint, rgb_pixels

from tinynet.data import copies, packing
from tinynet.data import workers as workers_module
from tinynet.data.copies import open_packed
from tinynet.data.packed import Packed
from tinynet.data.packing import pack
from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import SPLITS, Archive
from tinynet.errors import InputError

# --- images that cannot be packed ---


@pytest.mark.parametrize("data", [b"no picture", b""])
def test_undecodable_image_is_named(folder, tmp_path, data):
    victim = sorted(folder.glob("val/images/*"))[3]
    victim.write_bytes(data)
    complaint(
        lambda: pack(Archive(folder), tmp_path / "packed"),
        f"val/images/{victim.name}",
        "not an image",
    )
    assert not list(tmp_path.glob("*packed*"))


def test_half_a_jpeg_is_named(folder, tmp_path):
    victim = sorted(folder.glob("train/*/images/*"))[0]
    victim.write_bytes(victim.read_bytes()[:700])
    complaint(lambda: pack(Archive(folder), tmp_path / "packed"), victim.name, "truncated")


@pytest.mark.parametrize("size, wanted", [((32, 32), "64x64"), ((64, 48), "square")])
def test_image_of_another_size_is_named(folder, tmp_path, size, wanted):
    victim = sorted(folder.glob("test/images/*"))[0]
    Image.new("RGB", size).save(victim)
    complaint(
        lambda: pack(Archive(folder), tmp_path / "packed"),
        victim.name,
        f"{size[0]}x{size[1]}",
        wanted,
    )


# --- packed copies ---


def test_packed_is_what_pil_decodes(packed, archive, contents):
    for name in ("train", "val", "test"):
        part, arrays = archive.part(name), packed.part(name)
        assert arrays.files == list(part.files)
        assert np.array_equal(arrays.boxes, part.boxes)
        assert (
            (arrays.labels is None)
            if name == "test"
            else np.array_equal(arrays.labels, part.labels)
        )
        for row, file in enumerate(part.files):
            assert np.array_equal(arrays.images[row], rgb_pixels(contents[file]))
    assert packed.wnids == archive.wnids and packed.names == archive.names and packed.side == 64


def test_one_channel_becomes_three_equal(packed, contents):
    for name in ("train", "val", "test"):
        grey = [
            row
            for row, file in enumerate(packed.part(name).files)
            if Image.open(io.BytesIO(contents[file])).mode == "L"
        ]
        assert grey
        for row in grey:
            image = packed.part(name).images[row]
            assert (image == image[..., :1]).all()


def test_worker_processes_pack_the_same(archive, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 7)
    monkeypatch.setattr(workers_module, "SERIAL_LIMIT", 0)
    monkeypatch.setattr(workers_module.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    other = pack(archive, tmp_path / "other")
    for name in ("train", "val", "test"):
        assert np.array_equal(other.part(name).images, packed.part(name).images)


def test_the_digest_of_contents_is_that_of_names_labels_and_pixels(
    packed, folder, tmp_path, monkeypatch
):
    assert open_packed(folder).contents == packed.contents
    monkeypatch.setattr(packing, "CHUNK", 7)
    alone = pack(Archive(folder), tmp_path / "alone").contents
    monkeypatch.setattr(workers_module, "SERIAL_LIMIT", 0)
    monkeypatch.setattr(workers_module.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert pack(Archive(folder), tmp_path / "workers").contents == alone
    monkeypatch.undo()
    notes = folder / "val/val_annotations.txt"
    lines = [line.split("\t") for line in notes.read_text().splitlines()]
    other = next(line for line in lines if line[1] != lines[0][1])
    lines[0][1], other[1] = other[1], lines[0][1]
    notes.write_text("".join("\t".join(line) + "\n" for line in lines))
    relabelled = open_packed(folder).contents
    Image.new("RGB", (64, 64), "red").save(folder / "test/images/test_0.JPEG")
    assert len({packed.contents, relabelled, open_packed(folder).contents}) == 3


def test_packed_is_reused_only_where_it_fits(archive_path, tmp_path, monkeypatch):
    source = shutil.copy(archive_path, tmp_path / "a.zip")
    made = []
    monkeypatch.setattr(copies, "pack", lambda *given: made.append(1) or pack(*given))
    first = open_packed(source)
    assert (
        first.folder == tmp_path / "cache" / f"a-{Archive(source).digest()[:8]}.packed"
        and len(made) == 1
    )
    open_packed(source)
    assert len(made) == 1
    # Touched, but the same files: the digest of the contents decides.
    source.touch()
    open_packed(source)
    assert len(made) == 1
    synthetic(tmp_path / "b.zip", classes=3, train=3, val=1, test=1, seed=1)
    (tmp_path / "b.zip").replace(source)
    second = open_packed(source)
    assert len(second.wnids) == 3 and len(made) == 2
    # who reads it still does
    assert np.array_equal(first.val.images, Packed(first.folder).val.images)
    older = json.dumps(second.manifest | {"format": packing.FORMAT - 1})
    for number, broken in enumerate(("{", "[1]", older), 3):
        (second.folder / "manifest.json").write_text(broken)
        assert len(open_packed(source).wnids) == 3 and len(made) == number


@pytest.mark.parametrize(
    "file",
    ["train.files.txt", "val.files.txt", "val.labels.npy", "test.boxes.npy", "train.pictures.npy"],
)
def test_a_packed_copy_without_one_of_its_files_is_refused(archive_path, tmp_path, file):
    folder = open_packed(archive_path, tmp_path).folder
    (folder / file).unlink()
    complaint(lambda: [Packed(folder).part(name) for name in SPLITS], file, f"delete {folder}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize(
    "file", ["manifest.json", "val.boxes.npy", "val.pictures.npy", "val.files.txt"]
)
def test_a_pipe_in_a_packed_copy_is_not_waited_for(archive_path, tmp_path, packed, file):
    pipe = open_packed(archive_path, tmp_path).folder / file
    pipe.unlink()
    os.mkfifo(pipe)
    outcome = []

    def look():
        try:
            again = open_packed(archive_path, tmp_path)
            outcome.append((again.contents, len(again.val.files), len(again.val)))
        except InputError as error:
            outcome.append(str(error))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(20)
    assert outcome, "waits for the pipe"
    if file == "manifest.json":  # without it the folder is none of tinynet's, and is made again
        assert outcome == [(packed.contents, 24, 24)]
    else:
        assert file in outcome[0] and f"delete {pipe.parent}" in outcome[0]


def test_changed_file_in_a_folder_is_noticed(folder):
    before = open_packed(folder).manifest["digest"]
    victim = sorted(folder.glob("val/images/*"))[0]
    Image.new("RGB", (64, 64), "red").save(victim)
    after = open_packed(folder)
    assert after.manifest["digest"] != before
    assert after.val.images[0][30, 30].tolist() == rgb_pixels(victim.read_bytes())[30, 30].tolist()


def test_crash_while_packing_leaves_nothing(archive, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("the power went")

    monkeypatch.setattr(packing, "write_json", fail)
    with pytest.raises(RuntimeError):
        pack(archive, tmp_path / "packed")
    assert not list(tmp_path.iterdir())
