"""The verification of images other than Tiny ImageNet: every row, and what makes it fail."""

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from image_folders import draw_noise
from PIL import Image, ImageEnhance
from support import call

from tinynet.data import __main__ as data_command
from tinynet.data import duplicates, workers
from tinynet.data.inspection import inspect
from tinynet.data.packed import Packed
from tinynet.data.sources import open_source
from tinynet.data.splits import split_train
from tinynet.data.tiny_imagenet import Archive
from tinynet.data.verify import verify
from tinynet.report import figures


def draw(root, counts, first_seed=0):
    """Images of noise: `counts` is folder -> number of images; every image differs."""
    seed = first_seed
    for folder, count in counts.items():
        for number in range(count):
            draw_noise(root / folder / f"{number}.png", (64, 64), seed)
            seed += 1
    return root


@pytest.fixture
def photos(tmp_path):
    """Two classes with train, val, and a test without labels."""
    counts = {"train/cat": 4, "train/dog": 5, "val/cat": 2, "val/dog": 2, "test": 3}
    return draw(tmp_path / "photos", counts)


def report_of(root, labels=None):
    return verify(open_source(root, labels))


def found_in(report):
    return {row.check: row.found for row in report.rows}


def wrong_in(report):
    """The rows that fail, and their figures."""
    assert report.ok == all(row.ok is not False for row in report.rows)
    return {row.check: row.found for row in report.rows if row.ok is False}


PAIRS = ("train-train", "train-val", "train-test", "val-val", "val-test", "test-test")
LABELLED = ("train-train", "train-val", "val-val")


def test_every_figure_of_images_in_order(photos):
    report = report_of(photos)
    assert report.ok and report.scope == "any" and not report.other_modes
    assert not report.faults and not report.pair_lines
    assert not report.duplicates and not report.near_duplicates
    assert found_in(report) == {
        "classes": 2,
        "train images": 9,
        "val images": 4,
        "test images": 3,
        "train images per class": "4 to 5",
        "train smallest classes": "cat (4), dog (5)",
        "train largest classes": "dog (5), cat (4)",
        "val images per class": 2,
        "val smallest classes": "cat (2), dog (2)",
        "val largest classes": "cat (2), dog (2)",
        "images that cannot be decoded": 0,
        "images below 32 px on a side": 0,
        "smallest image size": "64x64",
        "median image size": "64x64",
        "largest image size": "64x64",
        "image formats": "16 PNG",
        "images in other modes than RGB and L": 0,
        "images with an EXIF orientation": 0,
        **{f"{kind} pairs {pair}": 0 for kind in ("identical", "near-duplicate") for pair in PAIRS},
        **{
            f"{kind} pairs {pair} with different labels": 0
            for kind in ("identical", "near-duplicate")
            for pair in LABELLED
        },
    }
    judged = {row.check for row in report.rows if row.ok}
    assert judged == {
        "images that cannot be decoded",
        *(f"identical pairs {pair} with different labels" for pair in LABELLED),
        *(
            f"{kind} pairs {pair}"
            for kind in ("identical", "near-duplicate")
            for pair in ("train-val", "train-test", "val-test")
        ),
    }
    assert all(row.official is None for row in report.rows)


def test_a_folder_without_test_has_no_rows_about_its_pairs(tmp_path):
    draw(tmp_path, {"cat": 5, "dog": 5})
    figures = found_in(report_of(tmp_path))
    assert figures["train images"] == 8 and figures["val images"] == 2
    assert figures["test images"] == 0
    assert not any("-test" in check or "test images per" in check for check in figures)


def test_the_smallest_and_the_largest_classes_are_named(tmp_path):
    counts = {"a": 6, "b": 3, "c": 9, "d": 4, "e": 5}
    draw(tmp_path, {f"train/{name}": count for name, count in counts.items()})
    draw(tmp_path, {f"val/{name}": 1 for name in counts}, 100)
    draw(tmp_path, {"test/c": 2}, 200)
    figures = found_in(report_of(tmp_path))
    assert figures["train images per class"] == "3 to 9"
    assert figures["train smallest classes"] == "b (3), d (4), e (5)"
    assert figures["train largest classes"] == "c (9), a (6), e (5)"
    assert figures["val images per class"] == 1
    assert figures["test images per class"] == "0 to 2"
    assert figures["test smallest classes"] == "a (0), b (0), d (0)"


def test_sizes_formats_and_modes_are_counted(tmp_path):
    draw(tmp_path, {"cat": 4, "dog": 4})
    draw_noise(tmp_path / "cat/a.jpg", (200, 31), 50)
    draw_noise(tmp_path / "cat/b.jpg", (32, 300), 51)
    draw_noise(tmp_path / "dog/c.bmp", (20, 90), 52)
    modes = (("cat/d.png", "RGBA"), ("dog/e.png", "RGBA"), ("dog/f.png", "P"))
    for seed, (name, mode) in enumerate(modes, 60):
        draw_noise(tmp_path / name, (64, 64), seed)
        Image.open(tmp_path / name).convert(mode).save(tmp_path / name)
    draw_noise(tmp_path / "dog/g.png", (64, 64), 53)
    Image.open(tmp_path / "dog/g.png").convert("L").save(tmp_path / "dog/g.png")
    report = report_of(tmp_path)
    figures = found_in(report)
    assert report.ok
    assert figures["images below 32 px on a side"] == 2
    assert figures["smallest image size"] == "20x90"
    assert figures["median image size"] == "64x64"
    assert figures["largest image size"] == "32x300"
    assert figures["image formats"] == "12 PNG, 2 JPEG, 1 BMP"
    assert figures["images in other modes than RGB and L"] == "2 RGBA, 1 P" == report.other_modes


def test_transparent_palettes_cause_no_warning(photos, recwarn):
    """Pillow warns where it converts such an image a second time."""
    image = Image.open(photos / "train/cat/0.png").convert("P")
    image.save(photos / "train/cat/0.png", transparency=bytes(range(256)))
    assert report_of(photos).ok and not recwarn.list


def test_sizes_are_those_of_the_files_even_of_a_large_jpeg(tmp_path):
    draw(tmp_path, {"cat": 4, "dog": 4})
    draw_noise(tmp_path / "cat/large.jpg", (2400, 1800), 50)
    assert found_in(report_of(tmp_path))["largest image size"] == "2400x1800"


def test_orientations_are_counted(tmp_path):
    draw(tmp_path, {"cat": 4, "dog": 4})
    for name, orientation in (("a.jpg", 6), ("b.png", 3), ("c.jpg", 1), ("d.jpg", 9)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        draw_noise(tmp_path / "cat" / name, (64, 40), orientation + 50, exif=exif)
    report = report_of(tmp_path)
    assert found_in(report)["images with an EXIF orientation"] == 2 and report.ok


@pytest.mark.parametrize("count", [20, 22])
def test_broken_images_are_listed(photos, count):
    draw(photos, {"train/cat": 25}, 100)
    broken = sorted(photos.glob("train/cat/*"), key=str)[:count]
    for path in broken[1:]:
        path.write_bytes(path.read_bytes()[:200])
    broken[0].write_bytes(b"")
    report = report_of(photos)
    assert wrong_in(report) == {"images that cannot be decoded": count}
    assert report.faults[20:] == (("and 2 more that cannot be decoded",) if count > 20 else ())
    for path, line in zip(broken, report.faults[:20], strict=False):
        assert line.startswith(f"{path.relative_to(photos)}: ")
    assert found_in(report)["image formats"] == f"{16 + 21 - count} PNG"
    # They count as images of their class, but not as duplicates.
    assert found_in(report)["train images"] == 30
    assert found_in(report)["identical pairs train-train"] == 0


def test_a_folder_whose_images_are_all_broken_has_a_report(tmp_path):
    for name in ("cat", "dog"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").write_bytes(b"")
    report = report_of(tmp_path)
    assert wrong_in(report) == {"images that cannot be decoded": 6}
    assert found_in(report)["median image size"] == found_in(report)["image formats"] == "none"


# --- identical files ---


@pytest.mark.parametrize(
    "source, target, wrong",
    [
        ("train/cat/0.png", "train/cat/copy.png", []),
        ("test/0.png", "test/copy.png", []),
        (
            "train/cat/0.png",
            "train/dog/copy.png",
            ["identical pairs train-train with different labels"],
        ),
        ("train/cat/0.png", "val/cat/copy.png", ["identical pairs train-val"]),
        (
            "train/cat/0.png",
            "val/dog/copy.png",
            ["identical pairs train-val", "identical pairs train-val with different labels"],
        ),
        ("val/cat/0.png", "test/copy.png", ["identical pairs val-test"]),
        ("train/cat/0.png", "test/copy.png", ["identical pairs train-test"]),
    ],
)
def test_identical_files(photos, source, target, wrong):
    shutil.copy(photos / source, photos / target)
    report = report_of(photos)
    assert wrong_in(report) == dict.fromkeys(wrong, 1)
    subsets = [path.split("/")[0] for path in (source, target)]
    assert found_in(report)[f"identical pairs {subsets[0]}-{subsets[1]}"] == 1
    # They look alike, too, but count once.
    assert not any(
        row.found for row in report.rows if "near" in row.check and isinstance(row.found, int)
    )
    labels = [path.split("/")[1] if "test" not in path else "" for path in (source, target)]
    differ = None if "" in labels else labels[0] != labels[1]
    assert report.duplicates == (((source, target, differ),) if wrong else ())
    texts = [
        f"{path} ({', '.join(filter(None, (subset, label)))})"
        for path, subset, label in zip((source, target), subsets, labels, strict=True)
    ]
    assert report.pair_lines == ((f"identical: {texts[0]} and {texts[1]}",) if wrong else ())


def test_broken_images_move_no_other_name_or_label(photos):
    (photos / "train/cat/0.png").write_bytes(b"")
    (photos / "train/dog/4.png").write_bytes(b"")
    shutil.copy(photos / "val/cat/0.png", photos / "val/dog/0.png")
    recompressed(Image.open(photos / "val/dog/1.png")).save(photos / "test/0.png")
    report = report_of(photos)
    assert wrong_in(report) == {
        "images that cannot be decoded": 2,
        "identical pairs val-val with different labels": 1,
        "near-duplicate pairs val-test": 1,
    }
    assert report.pair_lines == (
        "identical: val/cat/0.png (val, cat) and val/dog/0.png (val, dog)",
        "near duplicates: val/dog/1.png (val, dog) and test/0.png (test)",
    )


@pytest.mark.parametrize("limit", [22, 100])
def test_twenty_pairs_are_listed_and_the_others_counted(photos, monkeypatch, limit):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", limit)
    for number in range(5):
        shutil.copy(photos / "train/cat/0.png", photos / f"train/cat/copy{number}.png")
    for number in range(4):
        shutil.copy(photos / "train/cat/0.png", photos / f"val/cat/copy{number}.png")
    report = report_of(photos)
    assert wrong_in(report) == {"identical pairs train-val": 24}
    assert found_in(report)["identical pairs train-train"] == 15
    assert len(report.duplicates) == min(24, limit) and len(report.pair_lines) == 21
    assert report.pair_lines[-1] == "and 4 more that are identical"


# --- near duplicates ---


def recompressed(image):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=60)
    return Image.open(stream)


def cropped(image):
    width, height = image.size
    edge = max(1, round(0.01 * width))
    return image.crop((edge, edge, width - edge, height - edge))


CHANGES = {
    "recompressed": recompressed,
    "smaller": lambda image: image.resize([round(0.8 * side) for side in image.size]),
    "much larger": lambda image: image.resize([20 * side for side in image.size]),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "cropped": cropped,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_copies_are_recognized(photos, change):
    change(Image.open(photos / "train/cat/1.png")).save(photos / "val/cat/copy.png")
    report = report_of(photos)
    assert wrong_in(report) == {"near-duplicate pairs train-val": 1}
    assert report.near_duplicates == (("train/cat/1.png", "val/cat/copy.png", False),)
    assert report.pair_lines == (
        "near duplicates: train/cat/1.png (train, cat) and val/cat/copy.png (val, cat)",
    )


def test_a_photo_and_its_copy_that_exif_turns_are_recognized(photos):
    draw_noise(photos / "train/cat/flat.png", (90, 60), 77)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = Image.open(photos / "train/cat/flat.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(photos / "val/cat/turned.jpg", exif=exif, quality=90)
    assert wrong_in(report_of(photos)) == {"near-duplicate pairs train-val": 1}


def test_other_colours_and_mirrored_copies_are_other_images(photos):
    image = Image.open(photos / "train/cat/1.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "val/cat/mirrored.png")
    red, green, blue = image.split()
    # As a grey image it is the same, so the hash of its greys is.
    grey = image.convert("L")
    Image.merge("RGB", (grey, grey, grey)).save(photos / "val/cat/grey.png")
    Image.merge("RGB", (blue, green, red)).save(photos / "val/cat/blue.png")
    assert report_of(photos).ok


@pytest.mark.parametrize(
    "source, target, row, wrong",
    [
        ("train/cat/1.png", "train/cat/copy.png", "train-train", False),
        ("train/cat/1.png", "train/dog/copy.png", "train-train with different labels", False),
        ("train/cat/1.png", "val/dog/copy.png", "train-val with different labels", True),
        ("val/cat/1.png", "test/copy.png", "val-test", True),
        ("test/1.png", "test/copy.png", "test-test", False),
    ],
)
def test_near_duplicates_in_every_place(photos, source, target, row, wrong):
    recompressed(Image.open(photos / source)).save(photos / target)
    report = report_of(photos)
    assert found_in(report)[f"near-duplicate pairs {row}"] == 1
    name = f"near-duplicate pairs {row.split()[0]}"
    assert wrong_in(report) == ({name: 1} if wrong else {})
    assert len(report.near_duplicates) == len(report.pair_lines) == wrong


def test_without_the_library_a_note_tells_how_to_get_it(photos, monkeypatch, capsys):
    recompressed(Image.open(photos / "train/cat/1.png")).save(photos / "val/cat/copy.png")
    shutil.copy(photos / "train/dog/0.png", photos / "val/dog/copy.png")
    monkeypatch.setitem(sys.modules, "imagehash", None)
    report = report_of(photos)
    assert wrong_in(report) == {"identical pairs train-val": 1}
    assert not any("near" in row.check for row in report.rows)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {photos}: install imagehash to find near duplicates (pip install imagehash)"
    ]
    monkeypatch.undo()
    report_of(photos)
    assert "imagehash" not in capsys.readouterr().err


def test_a_crowd_of_images_that_look_alike_is_reported(photos, monkeypatch):
    monkeypatch.setattr(duplicates, "CROWD", 3)
    for number in range(5):
        level = 100 + number
        Image.new("RGB", (64, 64), (level, level, level)).save(
            photos / f"train/cat/flat{number}.png"
        )
    report = report_of(photos)
    row = report.rows[-1]
    assert row.check == "images with too many look-alikes to compare all pairs"
    assert 5 <= row.found < 21 and row.ok is None and report.ok
    monkeypatch.undo()
    assert found_in(report_of(photos))["near-duplicate pairs train-train"] == 10


# --- sources ---


def test_workers_report_the_same(tmp_path, monkeypatch):
    draw(tmp_path, {"cat": 90, "dog": 80})
    (tmp_path / "dog/7.png").write_bytes(b"")
    shutil.copy(tmp_path / "dog/0.png", tmp_path / "cat/copy.png")
    monkeypatch.setattr(workers, "worker_count", lambda: 2)
    report = report_of(tmp_path)
    monkeypatch.setattr(workers, "worker_count", lambda: 1)
    assert report == report_of(tmp_path)
    assert len(report.faults) == 1 and len(report.duplicates) == 1


def test_labels_of_a_file(tmp_path):
    draw(tmp_path / "flat", {".": 8})
    shutil.copy(tmp_path / "flat/0.png", tmp_path / "flat/copy.png")
    names = [*(f"{number}.png" for number in range(8)), "copy.png"]
    rows = [f"{name},{'cat' if number < 4 else 'dog'}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(("file,label", *rows)) + "\n")
    report = report_of(tmp_path / "flat", str(tmp_path / "labels.csv"))
    assert found_in(report)["classes"] == 2 and not report.ok
    assert [pair[2] for pair in report.duplicates] == [True]


def test_parquet_files_of_any_data_set_are_no_official_archive(archive_path):
    """Parquet files alone are read as an archive whose images have any size."""
    archive = Archive(archive_path)
    archive.one_size = False
    report = verify(archive)
    assert report.scope == "any" and found_in(report)["train images"] == 72
    assert "train smallest classes" in found_in(report)
    assert verify(Archive(archive_path)).scope == "part"


def test_what_is_kept_of_an_image_is_small(tmp_path):
    draw(tmp_path, {"cat": 4, "dog": 4})
    draw_noise(tmp_path / "cat/0.png", (1500, 1500))
    for properties in inspect(open_source(tmp_path), looks=True)["train"]:
        assert properties.word and len(pickle.dumps(properties)) < 500


# --- commands ---


def command(*words):
    return call(data_command, *words)


def test_verify_prints_rows_and_lines_and_ends_with_status_1(photos):
    good = command("verify", "--data", photos)
    assert (
        good.status == 0 and "checked for damaged images and for duplicates: no errors" in good.err
    )
    shutil.copy(photos / "train/cat/0.png", photos / "val/cat/copy.png")
    recompressed(Image.open(photos / "train/cat/1.png")).save(photos / "val/dog/copy.png")
    (photos / "test/0.png").write_bytes(b"")
    bad = command("verify", "--data", photos)
    assert bad.status == 1 and bad.out.count("WRONG") == 3
    lines = bad.err.splitlines()
    assert "test/0.png: is not an image (0 bytes)" in lines
    assert "identical: train/cat/0.png (train, cat) and val/cat/copy.png (val, cat)" in lines
    assert "near duplicates: train/cat/1.png (train, cat) and val/dog/copy.png (val, dog)" in lines
    assert "None" not in bad.out and "errors in the rows marked WRONG" in lines[-1]
    rows = json.loads(command("verify", "--data", photos, "--json").out)
    assert [tuple(row) for row in rows] == [("check", "found", "official", "ok")] * len(rows)
    assert {row["check"]: row["found"] for row in rows} == found_in(report_of(photos))
    assert {row["official"] for row in rows} == {None}


def test_images_without_class_folders_need_a_file_of_labels(tmp_path):
    draw(tmp_path / "flat", {".": 8})
    rows = [f"{number}.png {'cat' if number < 4 else 'dog'}" for number in range(8)]
    (tmp_path / "labels.txt").write_text("\n".join(rows) + "\n")
    flags = ["--data", tmp_path / "flat"]
    labels = ["--labels", tmp_path / "labels.txt"]
    for name in ("verify", "info", "pack"):
        bad = command(name, *flags)
        assert bad.status == 2 and len(bad.err.splitlines()) == 1 and "--labels" in bad.err
        assert command(name, *flags, *labels).status == 0
    sheet = ["show", *flags, "--out", tmp_path / "s.png"]
    assert command(*sheet).status == 2 and not (tmp_path / "s.png").exists()
    assert command(*sheet, *labels, "--class", "dog").status == 0
    assert Image.open(tmp_path / "s.png").format == "PNG"


def test_names_that_are_not_text_are_printed(tmp_path):
    for seed, name in enumerate((b"cat", b"caf\xe9")):
        folder = tmp_path / "photos" / os.fsdecode(name)
        draw(folder, {".": 4}, 10 * seed)
        shutil.copy(folder / "0.png", tmp_path / "photos" / "cat" / f"copy{seed}.png")
    for more in ([], ["--json"]):
        ran = command("verify", "--data", tmp_path / "photos", *more)
        assert ran.status == 1 and "caf? (3)" in ran.out, ran.err
        assert "caf?/0.png" in ran.err


def test_verify_of_one_class_ends_with_one_line(tmp_path):
    draw(tmp_path / "photos", {"cat": 5})
    bad = command("verify", "--data", tmp_path / "photos")
    assert bad.status == 2 and not bad.out
    assert "has one class, 'cat'" in bad.err and len(bad.err.splitlines()) == 1


def test_pack_takes_the_side(photos):
    draw_noise(photos / "train/cat/wide.png", (200, 150), 90)
    packed = command("pack", "--data", photos, "--pack-size", 40)
    assert packed.status == 0, packed.err
    assert Packed(Path(packed.out.strip())).side == 40
    bad = command("pack", "--data", photos, "--pack-size", 1)
    assert bad.status == 2 and "--pack-size 1" in bad.err


def facts_of(*words):
    rows = json.loads(command("info", "--json", *words).out)
    return {row["what"]: row["value"] for row in rows}


def test_info_of_any_folder(photos):
    source = open_source(photos)
    split = split_train(source.train.labels)
    assert facts_of("--data", photos) == {
        "path": str(photos),
        "digest": source.digest(),
        "classes": 2,
        "sizes of 9 train images": "64x64",
        "train images": 9,
        "val images": 4,
        "test images": 3,
        "of train, without hold-out": len(split.train),
        "of train, hold-out": len(split.holdout),
        "split digest": split.digest,
    }
    draw_noise(photos / "train/cat/wide.png", (200, 150), 90)
    draw_noise(photos / "train/cat/thin.png", (20, 150), 90)
    (photos / "train/cat/0.png").write_bytes(b"")
    assert facts_of("--data", photos)["sizes of 10 train images"] == "20x150 to 200x150"
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"")
    assert facts_of("--data", photos)["sizes of 0 train images"] == "none can be read"


def pictures_of(monkeypatch, *words):
    """The images and titles that `show` draws."""
    sheets = []
    draw_sheet = figures.contact_sheet
    monkeypatch.setattr(
        figures, "contact_sheet", lambda *sheet: sheets.append(sheet) or draw_sheet(*sheet)
    )
    ran = command("show", *words)
    assert ran.status == 0, ran.err
    monkeypatch.undo()
    images, titles, boxes = sheets[0]
    assert boxes is None
    return [image.shape for image in images], titles


def test_show_draws_images_of_any_size(photos, monkeypatch, tmp_path):
    flags = ["--data", photos, "--out", tmp_path / "s.png"]
    draw_noise(photos / "val/cat/wide.png", (2000, 1000), 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_noise(photos / "val/dog/turned.jpg", (60, 40), 91, exif=exif)
    shapes, titles = pictures_of(monkeypatch, *flags, "--split", "val")
    assert sorted(shapes) == [(60, 40, 3), *[(64, 64, 3)] * 4, (128, 256, 3)]
    assert sorted(titles) == ["cat"] * 3 + ["dog"] * 3
    shapes, titles = pictures_of(monkeypatch, *flags, "--split", "test")
    assert titles == [""] * 3
    shapes, _ = pictures_of(monkeypatch, *flags, "--split", "val", "--recipe", "tuned")
    assert shapes == [(96, 96, 3)] * 6
    (photos / "val/cat/wide.png").write_bytes(b"")
    for more in ([], ["--recipe", "tuned"]):
        bad = command("show", *flags, "--split", "val", *more)
        assert bad.status == 2 and "wide.png" in bad.err and "replace or remove" in bad.err


def test_class_names_are_no_formulas(tmp_path, monkeypatch):
    draw(tmp_path / "photos", {"$x_$": 4, "A, b": 4})
    flags = ["--data", tmp_path / "photos", "--out", tmp_path / "s.png"]
    _, titles = pictures_of(monkeypatch, *flags)
    assert set(titles) == {r"\$x_\$", "A, b"}
