"""Packing images of any size, and going on with a packing that was stopped."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_folders import draw_noise
from PIL import Image
from support import complaint

import tinynet
from tinynet.data import copies, packing, squares, workers
from tinynet.data.containers import list_files
from tinynet.data.copies import PackRequest, open_packed
from tinynet.data.decode import is_plain_jpeg
from tinynet.data.packing import pack
from tinynet.data.sources import open_source


@pytest.fixture
def photos(tmp_path):
    """Ten photographs of two classes, of different sizes and forms."""
    for number in range(10):
        place = tmp_path / "photos" / ("rose" if number % 2 else "tulip")
        sides = (60 + 7 * number, 50) if number % 3 else (40, 66 + number)
        ending = ("jpg", "png")[number % 2]
        draw_noise(place / f"{number}.{ending}", sides, number)
    return tmp_path / "photos"


def by_hand(path, side):
    """What Pillow makes of it; torch rounds differently."""
    image = Image.open(path).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box))


def apart(pixels, other):
    return np.abs(pixels.astype(int) - other).max()


def rows(packed):
    return [
        (file, pixels)
        for name in ("train", "val")
        for part in [packed.part(name)]
        for file, pixels in zip(part.files, part.images, strict=True)
    ]


def test_the_centre_square_is_packed_at_one_side(photos, capsys):
    packed = open_packed(photos, request=PackRequest(32))
    assert packed.side == 32 and packed.resized and len(rows(packed)) == 10
    for file, pixels in rows(packed):
        assert apart(pixels, by_hand(photos / file, 32)) <= 3, file
    said = capsys.readouterr().err
    assert "have different sizes; the centre square of each is stored at 32 px" in said
    assert open_packed(photos, request=PackRequest(32)).folder == packed.folder
    assert open_packed(photos).side == 258 and open_packed(photos).folder != packed.folder
    images, labels = tinynet.arrays(photos, "val", pack_size=32)
    assert np.array_equal(images, packed.val.images) and labels.tolist() == [0, 1]


def test_photographs_are_packed_upright(photos):
    image = Image.open(photos / "tulip/0.jpg")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(photos / "tulip/0.jpg", exif=exif, quality=95)
    packed = open_packed(photos, request=PackRequest(40))
    upright = Image.open(photos / "tulip/0.jpg").transpose(Image.Transpose.ROTATE_270)
    upright.save(photos.parent / "upright.png")
    pixels = dict(rows(packed))["tulip/0.jpg"]
    assert apart(pixels, by_hand(photos.parent / "upright.png", 40)) <= 3


def test_a_large_jpeg_is_decoded_at_reduced_size_and_looks_the_same(photos):
    draw_noise(photos / "rose/1.jpg", (900, 700), 1, quality=95)
    pixels = dict(rows(open_packed(photos, request=PackRequest(32))))["rose/1.jpg"]
    difference = pixels.astype(int) - by_hand(photos / "rose/1.jpg", 32)
    assert 0 < np.abs(difference).max() <= 24 and np.abs(difference).mean() < 3


@pytest.mark.parametrize(("side", "expected"), [(48, 48), (128, 128), (300, 64)])
def test_small_images_of_one_size_are_packed_as_they_are(tmp_path, side, expected):
    for number in range(8):
        draw_noise(tmp_path / "a" / "xy"[number % 2] / f"{number}.png", (side, side), number)
    request = PackRequest(64 if side == 300 else 32)
    packed = open_packed(tmp_path / "a", request=request)
    assert packed.side == expected and packed.resized == (side == 300)
    for file, pixels in rows(packed):
        if not packed.resized:
            assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a" / file)))


@pytest.mark.parametrize("size", [0, 7, 2049, 1.5, "64", True])
def test_sides_that_cannot_be(photos, size):
    complaint(lambda: open_packed(photos, request=PackRequest(size)), "pack_size")


def test_a_labelled_test_is_packed_with_its_labels(photos):
    for name in ("rose", "tulip"):
        shutil.copytree(photos / name, photos / "train" / name)
        shutil.copytree(photos / name, photos / "test" / name)
        shutil.rmtree(photos / name)
    packed = open_packed(photos, request=PackRequest(32))
    assert packed.test.labels.tolist() == [0] * 5 + [1] * 5
    assert packed.test.required_labels is packed.test.labels


def test_a_packing_goes_on_where_it_was_stopped(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "RESIZED_CHUNK", 2)
    whole = pack(open_source(photos), tmp_path / "whole", 32)
    monkeypatch.setattr(workers, "worker_count", lambda: 1)
    fit, decoded = squares.centre_square, []

    def stopped(data, name, side):
        if len(decoded) == 5:
            raise KeyboardInterrupt
        decoded.append(name)
        return fit(data, name, side)

    monkeypatch.setattr(squares, "centre_square", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(open_source(photos), tmp_path / "a", 32)
    assert [path.name for path in tmp_path.glob("a*")] == ["a.unfinished"]
    first, decoded = set(decoded[:4]), []
    monkeypatch.setattr(squares, "centre_square", lambda *a: (decoded.append(a[1]), fit(*a))[1])
    again = pack(open_source(photos), tmp_path / "a", 32)
    assert len(decoded) == 6 and not first & set(decoded)
    assert again.contents == whole.contents and "continuing" in capsys.readouterr().err
    for (_, ours), (_, theirs) in zip(rows(again), rows(whole), strict=True):
        assert np.array_equal(ours, theirs)
    assert not list(tmp_path.glob("*.unfinished")) and not list(again.folder.glob("chunks*"))


def test_finished_parts_whose_pixels_are_lost_are_packed_again(photos, tmp_path, monkeypatch):
    """As after a loss of power."""
    monkeypatch.setattr(packing, "RESIZED_CHUNK", 2)
    whole = pack(open_source(photos), tmp_path / "whole", 32)
    write = packing.write_json

    def interrupted(path, value):
        if value["kind"] == "packed":
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "write_json", interrupted)
        pack(open_source(photos), tmp_path / "a", 32)
    file = tmp_path / "a.unfinished/train.pictures.npy"
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    assert pack(open_source(photos), tmp_path / "a", 32).contents == whole.contents


def test_an_error_leaves_nothing_half_packed(photos, tmp_path):
    (photos / "rose/1.png").write_bytes(b"no image")
    complaint(
        lambda: open_packed(photos, request=PackRequest(32)),
        "rose/1.png",
        "replace or remove this image",
        "verify",
    )
    assert not list((photos.parent / "cache").glob("*pack*"))


@pytest.mark.parametrize("what", ["changes", "vanishes"])
def test_files_that_change_while_they_are_packed(photos, tmp_path, monkeypatch, what):
    fit = squares.centre_square

    def changing(data, name, side):
        pixels = fit(data, name, side)
        if name.endswith("9.png") or what == "vanishes":
            path = photos / "rose/9.png"
            if what == "changes":
                path.write_bytes(path.read_bytes() + b" ")
            else:
                path.unlink(missing_ok=True)
        return pixels

    monkeypatch.setattr(squares, "centre_square", changing)
    words = (
        ["9.png"] if what == "vanishes" else [photos, "has changed while its images were stored"]
    )
    complaint(lambda: pack(open_source(photos), tmp_path / "a", 32), *words)
    assert not list(tmp_path.glob("a*"))


def test_a_zip_is_packed_once_for_each_side_and_found_again(photos, tmp_path, monkeypatch):
    path = Path(shutil.make_archive(tmp_path / "z", "zip", photos))
    small = open_packed(path, request=PackRequest(32))
    large = open_packed(path, request=PackRequest(40))
    assert (small.side, large.side) == (32, 40)
    folder = open_packed(photos, request=PackRequest(32))
    assert folder.contents == small.contents
    monkeypatch.setattr(copies, "open_source", None)  # the zip is not read again
    assert open_packed(path, request=PackRequest(40)).folder == large.folder
    assert open_packed(path, request=PackRequest(32)).folder == small.folder


def test_labels_of_a_file_are_not_those_of_a_copy_without_it(photos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.*"):
        shutil.copy(path, flat / path.name)
    names = sorted(path.name for path in flat.iterdir())
    file = tmp_path / "labels.csv"
    file.write_text("".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)))
    path = Path(shutil.make_archive(tmp_path / "z", "zip", flat))
    packed = open_packed(path, request=PackRequest(32, str(file)))
    assert packed.wnids == ("a", "b")
    complaint(lambda: open_packed(path, request=PackRequest(32)), "outside of class folders")
    before = packed.contents
    file.write_text("".join(f"{name},{'ab'[n % 2 ^ 1]}\n" for n, name in enumerate(names)))
    assert open_packed(path, request=PackRequest(32, str(file))).contents != before
    source = open_source(list_files(path).container.path, str(file))
    assert source.labels_file == str(file)


def test_a_cache_inside_the_data_is_no_change_of_it(photos):
    packed = open_packed(photos, str(photos / "cache"), PackRequest(32))
    again = open_packed(photos, str(photos / "cache"), PackRequest(32))
    assert again.folder == packed.folder == photos / "cache" / packed.folder.name


def test_the_copy_does_not_depend_on_what_else_is_in_the_cache(tmp_path):
    for number in range(8):
        draw_noise(tmp_path / "a" / "xy"[number % 2] / f"{number}.png", (200, 200), number)
    sides = (150, 258, 150, 258)
    packed = [open_packed(tmp_path / "a", request=PackRequest(side)) for side in sides]
    assert [each.side for each in packed] == [150, 200, 150, 200]
    assert packed[0].images != packed[1].images  # of files, and of pixels


def test_runs_at_two_sizes_have_the_same_images(photos):
    small, large = (open_packed(photos, request=PackRequest(side)) for side in (32, 40))
    assert small.contents != large.contents and small.images == large.images


def test_stopping_at_the_very_end_loses_nothing(photos, tmp_path, monkeypatch):
    decoded, square = [], squares.centre_square
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr("os.replace", stopping(os.replace, lambda old, new: new == tmp_path / "a"))
        pack(open_source(photos), tmp_path / "a", 32)
    monkeypatch.setattr(workers, "worker_count", lambda: 1)
    monkeypatch.setattr(squares, "centre_square", lambda *a: (decoded.append(a), square(*a))[1])
    packed = pack(open_source(photos), tmp_path / "a", 32)
    assert not decoded and len(packed.train) == 8


def stopping(function, where):
    """The function, interrupted at a call."""

    def stopped(*given):
        if where(*given):
            raise KeyboardInterrupt
        return function(*given)

    return stopped


def test_an_unfinished_packing_of_what_the_data_was_is_removed(photos, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            squares, "centre_square", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        patch.setattr(workers, "worker_count", lambda: 1)
        open_packed(photos, request=PackRequest(32))
    cache = photos.parent / "cache"
    assert len(list(cache.glob("*.unfinished"))) == 1
    shutil.copy(photos / "rose/1.png", photos / "rose/11.png")
    open_packed(photos, request=PackRequest(32))
    assert not list(cache.glob("*.unfinished")) and len(list(cache.glob("*.packed"))) == 1


def test_stored_images_keep_the_labels_of_a_file_that_is_gone(photos, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.*"):
        shutil.copy(path, flat / path.name)
    file = tmp_path / "labels.csv"
    copies = []
    for border in "4", "5", "3":
        file.write_text("".join(f"{p.name},{p.name[0] > border}\n" for p in flat.iterdir()))
        copies.append(open_packed(flat, request=PackRequest(32, str(file))))
    file.unlink()
    for packed in copies:  # a run gets the labels that it was trained on
        request = PackRequest(32, str(file), packed.contents)
        assert open_packed(flat, request=request).folder == packed.folder
    assert "labels.csv: no such file; the labels stored with" in capsys.readouterr().err
    complaint(lambda: open_packed(flat, request=PackRequest(32, str(file))), "no such file")
    other = PackRequest(32, str(file), "0" * 16)
    complaint(lambda: open_packed(flat, request=other), "no such file")
    file.mkdir()
    request = PackRequest(32, str(file), copies[0].contents)
    complaint(lambda: open_packed(flat, request=request), "not a regular file")


def test_a_zip_of_the_same_size_and_time_is_read_again(photos, tmp_path):
    def write(path, swap):
        names = sorted(photos.rglob("*.*"))
        data = [name.read_bytes() for name in names]
        with zipfile.ZipFile(path, "w") as target:
            for name, content in zip(names, reversed(data) if swap else data, strict=True):
                target.writestr(zipfile.ZipInfo(str(name.relative_to(photos))), content)
        os.utime(path, (1e9, 1e9))

    write(tmp_path / "a.zip", False)
    size = (tmp_path / "a.zip").stat().st_size
    packed = open_packed(tmp_path / "a.zip", request=PackRequest(32))
    write(tmp_path / "a.zip", True)
    assert (tmp_path / "a.zip").stat().st_size == size
    assert open_packed(tmp_path / "a.zip", request=PackRequest(32)).contents != packed.contents


def test_a_tar_with_a_file_of_labels_is_not_read_again(photos, tmp_path, monkeypatch):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.*"):
        shutil.copy(path, flat / path.name)
    tar, file = shutil.make_archive(str(flat), "tar", flat), tmp_path / "labels.csv"
    file.write_text("".join(f"{path.name},{path.name[0] > '4'}\n" for path in flat.iterdir()))
    packed = open_packed(tar, request=PackRequest(32, str(file)))
    with monkeypatch.context() as patch:
        patch.setattr(copies, "open_source", None)
        assert open_packed(tar, request=PackRequest(32, str(file))).folder == packed.folder
    file.write_text(file.read_text().replace("True", "Yes"))
    assert open_packed(tar, request=PackRequest(32, str(file))).folder != packed.folder


def test_a_folder_has_one_copy_whatever_it_is_called(photos, monkeypatch):
    packed = open_packed(photos, request=PackRequest(32))
    monkeypatch.chdir(photos / "rose")
    assert open_packed("..", request=PackRequest(32)).folder == packed.folder
    monkeypatch.chdir(photos)
    assert open_packed(".", request=PackRequest(32)).folder == packed.folder


def test_an_orientation_in_xmp_is_seen(photos):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>'
    )
    image = Image.open(photos / "tulip/0.jpg").convert("RGB")
    image.save(photos / "tulip/0.jpg", xmp=xmp, quality=95)
    data = (photos / "tulip/0.jpg").read_bytes()
    expected = "XMP" if Image.open(photos / "tulip/0.jpg").getexif().get(0x0112) == 3 else "none"
    assert is_plain_jpeg(data, 1000) == (expected == "none")


def test_names_that_are_not_utf_8_are_packed(photos, tmp_path):
    folder = os.fsencode(photos) + b"/caf\xe9"
    os.rename(photos / "rose", os.fsdecode(folder))
    packed = open_packed(photos, request=PackRequest(32))
    assert packed.wnids == ("caf\udce9", "tulip") and len(packed.train) == 8
