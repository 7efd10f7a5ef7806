"""The data room: labels, packing, splits, the dataset, the download, and what each says of bad
input.
"""

import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import complaint
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from tinynet import TinyImageNet
from tinynet.data import __main__ as data_command
from tinynet.data import download as download_module
from tinynet.data import packed as packed_module
from tinynet.data import verify as verify_module
from tinynet.data import workers as workers_module
from tinynet.data.download import download, find_data, get
from tinynet.data.packed import Packed, open_packed, pack
from tinynet.data.splits import split_train
from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import SPLITS, Archive, find_classes, locate
from tinynet.data.verify import verify
from tinynet.errors import InputError

ROOT = "tiny-imagenet-200/"


def annotations(contents):
    """val's file name -> wnid, read here without tinynet."""
    rows = [line.split("\t") for line in contents["val/val_annotations.txt"].decode().splitlines()]
    return {f"val/images/{row[0]}": row[1] for row in rows}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# --- labels ---------------------------------------------------------------------------------------


def test_val_labels_are_those_of_the_annotations(archive, contents):
    truth = annotations(contents)
    assert set(archive.val.files) == set(truth)
    assert [archive.wnids[label] for label in archive.val.labels] == [
        truth[file] for file in archive.val.files
    ]
    assert len(set(archive.val.labels)) == 6


def test_class_index_is_the_rank_of_the_sorted_wnid(archive, contents):
    listed = contents["wnids.txt"].decode().split()
    assert all(a != b for a, b in zip(listed, sorted(listed), strict=True))
    assert list(archive.wnids) == sorted(listed)
    for file, label in zip(archive.train.files, archive.train.labels, strict=True):
        assert file.split("/")[1] == sorted(listed)[label]


def test_boxes_are_those_of_the_files(archive, contents):
    for file, box in zip(archive.train.files, archive.train.boxes, strict=True):
        wnid, name = file.split("/")[1], file.split("/")[-1]
        assert (
            "\t".join(map(str, (name, *box)))
            in contents[f"train/{wnid}/{wnid}_boxes.txt"].decode().splitlines()
        )
    lines = contents["val/val_annotations.txt"].decode().splitlines()
    for file, label, box in zip(
        archive.val.files, archive.val.labels, archive.val.boxes, strict=True
    ):
        assert "\t".join(map(str, (file.split("/")[-1], archive.wnids[label], *box))) in lines


def test_names_are_those_of_words(archive, contents):
    assert not contents["words.txt"].endswith(b"\n")
    words = dict(line.split("\t") for line in contents["words.txt"].decode().splitlines())
    assert len(words) > 6 and archive.names == tuple(words[wnid] for wnid in archive.wnids)


def test_zip_and_folder_agree(archive, folder):
    other = Archive(folder)
    for name in ("train", "val", "test"):
        assert other.part(name).files == archive.part(name).files
        assert np.array_equal(other.part(name).labels, archive.part(name).labels)
        assert np.array_equal(other.part(name).boxes, archive.part(name).boxes)
    assert all(other.read(file) == archive.read(file) for file in archive.val.files)


def test_locate(archive_path, folder):
    assert locate(archive_path) == archive_path
    assert locate(folder) == locate(folder.parent) == folder
    lonely = archive_path.parent / "lonely"
    lonely.mkdir()
    shutil.copy(archive_path, lonely / "archive.zip")  # as Kaggle calls it
    assert locate(lonely) == lonely / "archive.zip"
    shutil.copy(archive_path, lonely / "other.zip")
    complaint(lambda: locate(lonely), "several data sets", "archive.zip", "other.zip")
    complaint(lambda: locate(folder / "nowhere"), folder / "nowhere", "get", "--data")
    complaint(
        lambda: locate(folder / "val"),
        folder / "val",
        "no Tiny ImageNet",
        "3 folders deep",
        "--data",
    )


# --- rearranged archives ---


def sort_val(folder, contents, inner=""):
    for file, wnid in annotations(contents).items():
        target = folder / "val" / wnid / inner / file.split("/")[-1]
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / file).rename(target)
    (folder / "val/images").rmdir()


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("annotated", [True, False])
def test_val_sorted_into_class_folders(folder, contents, inner, annotated):
    sort_val(folder, contents, inner)
    if not annotated:
        (folder / "val/val_annotations.txt").unlink()
    archive, truth = Archive(folder), annotations(contents)
    assert len(archive.val.files) == len(truth)
    for file, label in zip(archive.val.files, archive.val.labels, strict=True):
        assert archive.wnids[label] == truth["val/images/" + file.split("/")[-1]]


def test_val_sorted_wrongly_is_refused(folder, contents):
    sort_val(folder, contents)
    first, second, *_ = sorted(p for p in (folder / "val").iterdir() if p.is_dir())
    image = next(first.iterdir())
    image.rename(second / image.name)
    complaint(lambda: Archive(folder), image.name, first.name, second.name)


def test_half_sorted_val_is_refused(folder, contents, archive):
    file, wnid = next(iter(annotations(contents).items()))
    (folder / "val" / wnid).mkdir()
    (folder / file).rename(folder / "val" / wnid / file.split("/")[-1])
    complaint(lambda: Archive(folder), "val/images", "class folders")


def test_what_macos_leaves_beside_images_is_no_image(folder, archive):
    for file in archive.train.files[0], archive.val.files[0]:
        (folder / file).with_name("._" + file.rsplit("/", 1)[1]).write_bytes(b"\0" * 4096)
    other = Archive(folder)
    assert other.train.files == archive.train.files and other.val.files == archive.val.files


def test_train_without_images_folders(folder, archive):
    for images in list(folder.glob("train/*/images")):
        for image in list(images.iterdir()):
            image.rename(images.parent / image.name)
        images.rmdir()
    other = Archive(folder)
    assert [f.replace("/images", "") for f in archive.train.files] == list(other.train.files)
    assert np.array_equal(other.train.labels, archive.train.labels)
    assert np.array_equal(other.train.boxes, archive.train.boxes)


def test_zip_without_its_root_folder(tmp_path, contents, archive):
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as target:
        for name, data in contents.items():
            target.writestr(name, data)
    assert Archive(tmp_path / "bare.zip").train.files == archive.train.files


# --- bad input ---


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
            target.writestr(ROOT + name, data)
        victim = next(i for i in target.infolist() if i.filename.endswith(".JPEG"))
    raw = bytearray(bad.read_bytes())
    start = victim.header_offset + 30 + len(victim.filename)
    raw[start : start + 40] = b"\xff" * 40
    bad.write_bytes(raw)
    archive = Archive(bad)
    complaint(lambda: archive.read(victim.filename.removeprefix(ROOT)), victim.filename)


ANNOTATIONS = "val/val_annotations.txt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: None, [ANNOTATIONS, "missing"]),
        (
            lambda text: text.split("\n", 1)[1],
            [ANNOTATIONS, "no line for val/images/val_0.JPEG", "all 24 images"],
        ),
        (lambda text: "val_0.JPEG n01 3 4 5 6\n" + text, [ANNOTATIONS, "line 1", "TAB"]),
        (lambda text: text.replace("\tn0", "\tn9", 1), [ANNOTATIONS, "line 1", "n9", "wnids.txt"]),
        (lambda text: text + "val_0.JPEG\tn", [ANNOTATIONS, "line 25"]),
    ],
)
def test_bad_annotations(folder, change, words):
    path = folder / ANNOTATIONS
    text = change(path.read_text())
    path.unlink() if text is None else path.write_text(text)
    complaint(lambda: Archive(folder), *words)


def test_class_that_is_not_listed(folder):
    first = (folder / "wnids.txt").read_text().split()[0]
    (folder / "wnids.txt").write_text(
        (folder / "wnids.txt").read_text().replace(first, "n00000001")
    )
    (folder / ANNOTATIONS).write_text(
        (folder / ANNOTATIONS).read_text().replace(first, "n00000001")
    )
    complaint(lambda: Archive(folder), f"train/{first}", "wnids.txt", "6 classes")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("wnids.txt", "", ["wnids.txt", "once"]),
        ("wnids.txt", "n01\nn01\n", ["wnids.txt", "once"]),
    ],
)
def test_bad_wnids(folder, name, text, words):
    (folder / name).write_text(text)
    complaint(lambda: Archive(folder), *words)


def test_no_train_images(folder):
    shutil.rmtree(folder / "train")
    complaint(lambda: Archive(folder), "train/<wnid>/images")


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


# --- packed ---


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
            assert np.array_equal(arrays.images[row], pixels(contents[file]))
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
    monkeypatch.setattr(packed_module, "CHUNK", 7)
    monkeypatch.setattr(workers_module, "_FEW", 0)
    monkeypatch.setattr(workers_module.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    other = pack(archive, tmp_path / "other")
    for name in ("train", "val", "test"):
        assert np.array_equal(other.part(name).images, packed.part(name).images)


def test_the_digest_of_contents_is_that_of_names_labels_and_pixels(
    packed, folder, tmp_path, monkeypatch
):
    assert open_packed(folder).contents == packed.contents
    monkeypatch.setattr(packed_module, "CHUNK", 7)
    alone = pack(Archive(folder), tmp_path / "alone").contents
    monkeypatch.setattr(workers_module, "_FEW", 0)
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
    monkeypatch.setattr(packed_module, "pack", lambda *given: made.append(1) or pack(*given))
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
    older = json.dumps(second.manifest | {"format": packed_module.FORMAT - 1})
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
    assert after.val.images[0][30, 30].tolist() == pixels(victim.read_bytes())[30, 30].tolist()


def test_crash_while_packing_leaves_nothing(archive, tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("the power went")

    monkeypatch.setattr(packed_module, "write_json", fail)
    with pytest.raises(RuntimeError):
        pack(archive, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


# --- splits ---


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_stratified_split(counts, fraction, seed):
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    split = split_train(labels, fraction=fraction, seed=seed)
    assert sorted([*split.train, *split.holdout]) == list(range(len(labels)))
    held = Counter(labels[split.holdout].tolist())
    for label, count in enumerate(counts):
        assert 1 <= held[label] <= count - 1
        assert abs(held[label] - fraction * count) < 1 or held[label] in (1, count - 1)
    assert split.digest == split_train(labels, fraction=fraction, seed=seed).digest


@settings(max_examples=20, deadline=None)
@given(per_class=st.integers(2, 30), seed=st.integers(0, 1000))
def test_per_class_keeps_so_many_of_each(per_class, seed):
    labels = np.repeat(np.arange(5), 30)
    split = split_train(labels, seed=seed, per_class=per_class)
    kept = np.concatenate([split.train, split.holdout])
    assert len(set(kept.tolist())) == len(kept)
    assert np.bincount(labels[kept]).tolist() == [per_class] * 5


# Results are compared across runs and machines by this digest: it must never change.
@pytest.mark.parametrize(
    ("kind", "digest"), [("stratified", "c2ad4a6fd6a3b6f9"), ("random_split", "a72620a74af9889c")]
)
def test_split_of_the_official_labels_stays(kind, digest):
    split = split_train(np.repeat(np.arange(200), 500), kind)
    assert (len(split.train), len(split.holdout)) == (95_000, 5_000)
    assert split.digest == digest


def test_random_split_is_torchs():
    generator = torch.Generator().manual_seed(42)
    train, holdout = torch.utils.data.random_split(range(100_000), [95_000, 5_000], generator)
    split = split_train(np.repeat(np.arange(200), 500), "random_split")
    assert split.train.tolist() == sorted(train.indices)
    assert split.holdout.tolist() == sorted(holdout.indices)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"fraction": 0.0}, ["0.0", "above 0 and below 1"]),
        ({"fraction": 1.0}, ["1.0", "above 0 and below 1"]),
        ({"kind": "other"}, ["other", "stratified", "random_split"]),
        ({"per_class": 1}, ["--per-class 1", "2 to 4"]),
        ({"per_class": 5}, ["--per-class 5", "2 to 4"]),
        ({"per_class": 2, "kind": "random_split"}, ["--per-class", "stratified"]),
    ],
)
def test_bad_split(given_, words):
    complaint(lambda: split_train(np.repeat([0, 1], 4), **given_), *words)


def test_class_with_one_image_cannot_be_split():
    complaint(lambda: split_train(np.array([0, 0, 1])), "class 1", "at least 2")


# --- dataset ---


def test_items_are_those_of_the_archive(archive_path, contents):
    truth = annotations(contents)
    data = TinyImageNet(archive_path, "val")
    assert len(data) == 24 == len(data.targets)
    for (image, target), file in zip(data, data.files, strict=True):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels(contents[file]))
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


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(archive_path, start):
    data = TinyImageNet(archive_path, "val", transform=PILToTensor())
    alone = [data[i] for i in range(len(data))]
    batches = list(DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=start))
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


# --- download ---

BODY = bytes(range(256)) * 4000
GOOD = {"size": len(BODY), "md5": hashlib.md5(BODY).hexdigest(), "pause": 0.01}


class Site(http.server.BaseHTTPRequestHandler):
    """Answers each request by the next of `server.script`; its last answer stays."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        script = self.server.script
        script[min(len(self.server.asked), len(script)) - 1](self)

    def whole(self, body=BODY):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:600_000])

    def rest(self):
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:])

    def busy(self):
        self.send_error(503)

    def absent(self):
        self.send_error(404)

    def log_message(self, *given):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.script = [], [Site.whole]
    server.url = f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ([Site.whole], [None]),
        ([Site.busy, Site.busy, Site.whole], [None] * 3),
        ([Site.cut, Site.rest], [None, "bytes=600000-"]),
        ([Site.cut, Site.busy, Site.rest], [None, "bytes=600000-", "bytes=600000-"]),
        ([Site.cut, Site.whole], [None, "bytes=600000-"]),
    ],
)
def test_download_arrives_whole(site, tmp_path, script, asked):
    site.script = script
    target = tmp_path / "new" / "a.zip"
    assert download(target, site.url, **GOOD) == target
    assert target.read_bytes() == BODY and list(target.parent.iterdir()) == [target]
    assert site.asked == asked


@pytest.mark.parametrize(
    ("script", "requests", "words"),
    [
        ([Site.busy], 4, ["503"]),
        ([Site.absent], 1, ["404"]),
        ([Site.cut], 4, ["cut short at 600,000 of 1,024,000 bytes"]),
        ([lambda site: site.whole(BODY[:-1])], 1, ["1,023,999", "1,024,000"]),
        ([lambda site: site.whole(BODY[::-1])], 1, ["MD5", GOOD["md5"]]),
    ],
)
def test_failed_download_leaves_nothing(site, tmp_path, script, requests, words):
    site.script = script
    complaint(
        lambda: download(tmp_path / "a.zip", site.url, **GOOD),
        site.url,
        f"put it at {tmp_path / 'a.zip'}",
        "--data",
        *words,
    )
    assert len(site.asked) == requests and not list(tmp_path.iterdir())


def test_refused_connection(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
    complaint(lambda: download(tmp_path / "a.zip", url, **GOOD), "refused", "--data")
    assert not list(tmp_path.iterdir())


def test_interrupted_download_leaves_nothing_and_keeps_what_was(site, tmp_path, monkeypatch):
    def interrupt(*given, **named):
        raise KeyboardInterrupt

    (tmp_path / "a.zip").write_bytes(b"before")
    monkeypatch.setattr(download_module, "progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path / "a.zip", site.url, **GOOD)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.zip", b"before")]


def test_get_replaces_what_is_broken_and_keeps_what_is_not(tmp_path, archive_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        download_module, "download", lambda target: fetched.append(target) or target
    )
    assert get(archive_path) == archive_path and not fetched
    assert get(archive_path, force=True) == archive_path and fetched == [archive_path]
    (tmp_path / "a.zip").write_bytes(archive_path.read_bytes()[:3000])
    get(tmp_path / "a.zip")
    get(tmp_path)
    assert fetched[1:] == [tmp_path / "a.zip", tmp_path / "tiny-imagenet-200.zip"]
    monkeypatch.setattr(download_module, "SIZE", archive_path.stat().st_size)
    monkeypatch.setattr(download_module, "MD5", hashlib.md5(archive_path.read_bytes()).hexdigest())
    assert get(archive_path) == archive_path and len(fetched) == 3


def test_find_data(tmp_path, archive_path, folder, monkeypatch):
    monkeypatch.setattr(download_module, "download", lambda target: ("fetched", target))
    monkeypatch.delenv("TINYNET_DATA", raising=False)
    (tmp_path / "home/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home")
    assert find_data(archive_path) == archive_path
    with monkeypatch.context() as patch:
        patch.setenv("TINYNET_DATA", str(folder))
        assert find_data(None) == folder and find_data(archive_path) == archive_path
    assert find_data(None) == ("fetched", download_module.DEFAULT_PATH)
    folder.rename("data/tiny-imagenet-200")
    assert find_data(None) == download_module.DEFAULT_PATH.with_suffix("")
    shutil.copy(archive_path, "data/tiny-imagenet-200.zip")
    assert find_data(None) == download_module.DEFAULT_PATH


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
        "_COUNTS": {name: len(archive.part(name).files) for name in SPLITS},
        "_ONE_CHANNEL": greys,
        **{
            name: dict.fromkeys(getattr(verify_module, name), 0)
            for name in ("_PAIRS", "_CONFLICTS")
        },
    }
    monkeypatch.setattr(verify_module, "_CLASSES", 6)
    for name, value in official.items():
        monkeypatch.setattr(verify_module, name, value)
    assert verify(archive).ok and verify(archive).scope == "complete"
    for name in ("_ONE_CHANNEL", "_PAIRS", "_CONFLICTS"):
        for key, value in official[name].items():
            with monkeypatch.context() as patch:
                patch.setitem(official[name], key, value + 1)
                assert [row.ok for row in verify(archive).rows].count(False) == 1, (name, key)
    with monkeypatch.context() as patch:
        patch.setattr(verify_module, "_SIZE", "65x65")
        assert not verify(archive).ok


@pytest.mark.parametrize("part", ["train", "val"])
def test_verify_finds_a_removed_image(folder, part):
    next((folder / part).rglob("*.JPEG")).unlink()
    report = verify(Archive(folder))
    wrong = {check: row.found for check, row in rows_of(report).items() if row.ok is False}
    assert wrong == {f"{part} images per class": "11 to 12" if part == "train" else "3 to 4"}
    assert not report.ok


def test_verify_finds_duplicates_and_their_labels(folder, contents):
    truth = annotations(contents)
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


# --- synthetic ---


def test_synthetic_repeats(archive_path, tmp_path):
    same = synthetic(tmp_path / "a.zip", classes=6, train=12, val=4, test=3)
    assert same.read_bytes() == archive_path.read_bytes()
    other = synthetic(tmp_path / "b.zip", classes=6, train=12, val=4, test=3, seed=1)
    assert Archive(other).wnids != Archive(same).wnids


def test_synthetic_folder_is_the_zip_extracted(folder, tmp_path):
    made = synthetic(tmp_path / "made", classes=6, train=12, val=4, test=3)
    files = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert all((made / file).read_bytes() == (folder / file).read_bytes() for file in files)


def test_synthetic_boxes_bound_the_object(tmp_path):
    # Without noise and ground only the object differs between two classes drawn from the same
    # numbers.
    from tinynet.data import synthetic as module

    for kind in range(12):
        image, (x0, y0, x1, y1) = module._draw(np.random.RandomState(kind), kind, 64)
        other, _ = module._draw(np.random.RandomState(kind), kind + 5 * 7, 64)
        changed = np.abs(image.astype(int) - other).max(2) > 8
        changed[y0 - 1 if y0 else 0 : y1 + 2, x0 - 1 if x0 else 0 : x1 + 2] = False
        assert not changed.any()


@pytest.mark.parametrize(
    "given_",
    [{"classes": 1}, {"classes": 421}, {"train": 0}, {"val": -1}, {"side": 8}, {"seed": -1}],
)
def test_bad_synthetic(tmp_path, given_):
    ((name, value),) = given_.items()
    complaint(lambda: synthetic(tmp_path / "a.zip", **given_), f"{name} {value}", "it can be")
    assert not list(tmp_path.iterdir())


def test_synthetic_replaces_nothing(archive_path, folder):
    complaint(lambda: synthetic(archive_path), archive_path, "exists")
    complaint(lambda: synthetic(folder), folder, "exists")


# --- commands ---


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "tinynet.data", *map(str, words)], capture_output=True, text=True
    )


def test_commands(archive_path, tmp_path):
    drawn = tmp_path / "d.zip"
    made = command(
        "synthetic", drawn, "--classes", 3, "--train", 4, "--val", 2, "--test", 1, "--side", 32
    )
    assert (made.returncode, made.stdout) == (0, f"{drawn}\n"), made.stderr
    checked = command("verify", "--data", drawn, "--json")
    assert checked.returncode == 0, checked.stderr
    assert {row["check"]: row["found"] for row in json.loads(checked.stdout)}["train images"] == 12
    packed = command("pack", "--data", drawn)
    assert packed.stdout == f"{tmp_path / 'cache' / f'd-{Archive(drawn).digest()[:8]}.packed'}\n"
    facts = {
        row["what"]: row["value"]
        for row in json.loads(command("info", "--data", drawn, "--json").stdout)
    }
    assert (
        facts["side"] == 32
        and facts["of train, hold-out"] == 3
        and facts["digest"] == Archive(drawn).digest()
    )
    shown = command("show", "--data", drawn, "--out", tmp_path / "s.png", "--split", "train")
    assert shown.returncode == 0 and shown.stdout == f"{tmp_path / 's.png'}\n", shown.stderr
    assert Image.open(tmp_path / "s.png").format == "PNG"


def test_what_is_written_is_named_in_json(tmp_path, capsys):
    drawn, sheet = tmp_path / "d.zip", tmp_path / "s.png"

    def named(*words):
        data_command.main([*map(str, words), "--json"])
        (row,) = json.loads(capsys.readouterr().out)
        return row["path"]

    assert named("synthetic", drawn, "--classes", 2, "--train", 2, "--val", 1, "--test", 1) == str(
        drawn
    )
    assert named("get", "--data", drawn) == str(drawn)
    assert named("show", "--data", drawn, "--out", sheet) == str(sheet)
    assert named("pack", "--data", drawn) == str(open_packed(drawn).folder)


def test_images_of_a_class_are_shown_by_part_of_its_name_and_as_they_are_learnt_from(tmp_path):
    drawn = synthetic(tmp_path / "d.zip", classes=3, train=4, val=2, test=1)
    archive = Archive(drawn)
    name = archive.names[1].split(",")[0]
    for flags in (["--class", name.upper()], ["--class", archive.wnids[1]], ["--recipe", "tuned"]):
        shown = command("show", "--data", drawn, "--out", tmp_path / "s.png", "--count", 2, *flags)
        assert shown.returncode == 0 and Image.open(tmp_path / "s.png").format == "PNG", (
            shown.stderr
        )
    for flags, words in (
        (["--class", name[:-1] + "zz"], name),
        (["--class", name, "--split", "test"], "no class"),
        (["--class", name, "--count", 5], "3 images"),
    ):
        bad = command("show", "--data", drawn, "--out", tmp_path / "no.png", *flags)
        assert bad.returncode == 2 and words in bad.stderr and len(bad.stderr.splitlines()) == 1, (
            bad.stderr
        )
    assert not (tmp_path / "no.png").exists()


def test_a_class_is_found_by_wnid_or_by_part_of_its_name():
    wnids, names = ["n01", "n02", "n03"], ["brain coral", "coral reef", "espresso"]
    assert find_classes("Coral", wnids, names) == [0, 1] and find_classes("n03", wnids, names) == [
        2
    ]
    complaint(
        lambda: find_classes("expresso", wnids, names), "'expresso'", "similar names are espresso"
    )
    complaint(lambda: find_classes("", wnids, names), "no class called ''")


def test_cache_lists_and_clears_only_its_own(tmp_path):
    synthetic(tmp_path / "d.zip", classes=2, train=2, val=1, test=1)
    kept = open_packed(tmp_path / "d.zip").folder.name
    (tmp_path / "cache/other").mkdir()
    (tmp_path / "cache/other/manifest.json").write_text('{"manifest_version": 3}')
    listed = json.loads(command("cache", "--data", tmp_path / "d.zip", "--json").stdout)
    assert [(row["name"], row["kind"]) for row in listed] == [(kept, "packed")]
    cleared = command("cache", "--cache", tmp_path / "cache", "--clear")
    assert "1 folder removed" in cleared.stderr and kept in cleared.stdout
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["other"]


def test_command_statuses(folder, tmp_path):
    victim = sorted(folder.glob("val/images/*"))[0]
    victim.write_bytes(b"")
    wrong = command("verify", "--data", folder)
    assert wrong.returncode == 1 and victim.name in wrong.stderr and "WRONG" in wrong.stdout
    for words in (
        ["info", "--data", tmp_path / "none.zip"],
        ["get", "--fource"],
        [],
        ["show", "--data", folder, "--count", 1000, "--out", tmp_path / "no.png"],
    ):
        bad = command(*words)
        assert bad.returncode == 2 and not bad.stdout and len(bad.stderr.splitlines()) == 1, (
            bad.stderr
        )
    assert not (tmp_path / "no.png").exists()
