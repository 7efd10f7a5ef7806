"""The archive: labels, layouts, and what is refused."""

import shutil
import zipfile

import numpy as np
import pytest
from image_folders import draw_square
from PIL import Image
from support import complaint, same_data, val_annotations

from tinynet.data.copies import open_packed
from tinynet.data.tiny_imagenet import Archive, find_classes, locate

# --- labels ---


def test_val_labels_are_those_of_the_annotations(archive, contents):
    truth = val_annotations(contents)
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
    complaint(lambda: locate(folder / "nowhere"), folder / "nowhere", "get", "TINYNET_DATA")
    empty = folder / "val/empty"
    empty.mkdir()
    complaint(lambda: locate(empty), empty, "no images", "3 folders deep", "name the archive")


# --- rearranged archives ---


def sort_val(folder, contents, inner=""):
    for file, wnid in val_annotations(contents).items():
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
    archive, truth = Archive(folder), val_annotations(contents)
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
    file, wnid = next(iter(val_annotations(contents).items()))
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


# --- classes by name ---


def test_a_class_is_found_by_wnid_or_by_part_of_its_name():
    wnids, names = ["n01", "n02", "n03"], ["brain coral", "coral reef", "espresso"]
    assert find_classes("Coral", wnids, names) == [0, 1] and find_classes("n03", wnids, names) == [
        2
    ]
    complaint(
        lambda: find_classes("expresso", wnids, names), "'expresso'", "similar names are espresso"
    )
    complaint(lambda: find_classes("", wnids, names), "no class called ''")


# --- files that are left out ---


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


def test_classes_come_from_the_folders_where_their_list_is_gone(folder, packed, capsys):
    (folder / "wnids.txt").unlink()
    archive = Archive(folder)
    same_data(archive, packed)
    assert archive.names == packed.names
    assert (
        "wnids.txt is missing; using the 6 folders in train/ as classes" in capsys.readouterr().err
    )
    shutil.rmtree(folder / "train")
    complaint(lambda: Archive(folder), "not Tiny ImageNet", "train/ folder")


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
    complaint(lambda: Archive(tmp_path / "data"), "several", "name one")


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


def test_images_saved_again_have_the_labels_and_boxes_of_their_names(folder, packed):
    for path in [*folder.rglob("*.JPEG")]:
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    archive = Archive(folder)
    same_data(archive, packed)
    for name in ("train", "val"):
        assert np.array_equal(archive.part(name).boxes, packed.part(name).boxes)
        assert (packed.part(name).boxes >= 0).any()
    draw_square(folder / "val/images/val_3.JPEG")
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
