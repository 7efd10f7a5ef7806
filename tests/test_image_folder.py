"""Image folders: class folders, labels from a file, image files of any kind."""

from image_folders import IMAGENET_WNIDS, TREE_CLASSES, draw_noise
from PIL import Image
from support import complaint

from tinynet.data import decode as decode_module
from tinynet.data.image_folder import expand, labelled_images, open_image


def test_the_ids_are_those_of_ilsvrc():
    assert len(IMAGENET_WNIDS) == 1000 == len(set(IMAGENET_WNIDS)) and list(
        IMAGENET_WNIDS
    ) == sorted(IMAGENET_WNIDS)
    assert (IMAGENET_WNIDS[0], IMAGENET_WNIDS[1], IMAGENET_WNIDS[281], IMAGENET_WNIDS[999]) == (
        "n01440764",
        "n01443537",
        "n02123045",
        "n15075141",
    )


def test_class_folders_give_labels_by_wnid(tree):
    found = labelled_images(tree, IMAGENET_WNIDS)
    assert len(found.files) == 15 and sorted(set(found.labels)) == [3, 500, 999]
    assert all(
        IMAGENET_WNIDS[label] == file.parent.name
        for file, label in zip(found.files, found.labels, strict=True)
    )


def test_a_flat_folder_takes_its_labels_from_a_file(tree, tmp_path):
    flat = tmp_path / "flat"
    for k in range(4):
        draw_noise(flat / f"val_{k}.JPEG", seed=k)
    expected = (3, 500, 999, 3)
    wnids = [IMAGENET_WNIDS[i] for i in expected]
    for text in (
        "\n".join(wnids),
        "\n".join(map(str, expected)),
        "\n".join(f"ILSVRC/val_{k}.JPEG {wnids[k]}" for k in (2, 0, 3, 1)),
    ):
        (tmp_path / "labels.txt").write_text(text)
        assert (
            labelled_images(flat, IMAGENET_WNIDS, str(tmp_path / "labels.txt")).labels == expected
        )


def test_labels_of_nested_folders_go_by_path(tmp_path):
    for k, name in enumerate(("x/1.png", "y/1.png", "y/a b.png")):
        draw_noise(tmp_path / "flat" / name, seed=k)
    labels = tmp_path / "labels.txt"
    labels.write_text(
        "\ufeff" + f"y/1.png {IMAGENET_WNIDS[5]}\nx/1.png {IMAGENET_WNIDS[4]}\ny/a b.png 6\n",
        encoding="utf-8",
    )
    assert labelled_images(tmp_path / "flat", IMAGENET_WNIDS, str(labels)).labels == (4, 5, 6)
    labels.write_text("1.png 4\na b.png 5\n")
    complaint(
        lambda: labelled_images(tmp_path / "flat", IMAGENET_WNIDS, str(labels)),
        "occur in several folders",
        "relative to the image folder",
    )
    labels.write_bytes(b"\xff\xfe\x00\x81")
    complaint(
        lambda: labelled_images(tmp_path / "flat", IMAGENET_WNIDS, str(labels)),
        "is not a text file",
    )


def test_folders_and_labels_that_do_not_fit_are_refused(tree, tmp_path):
    labels = tmp_path / "labels.txt"
    empty = tmp_path / "empty"
    empty.mkdir()
    complaint(
        lambda: labelled_images(tmp_path / "nowhere", IMAGENET_WNIDS), "nowhere", "no such folder"
    )
    complaint(
        lambda: labelled_images(empty, IMAGENET_WNIDS),
        "contains no folders of images",
        "file of labels",
    )
    complaint(
        lambda: labelled_images(tree, TREE_CLASSES[:2]), "1 of 3 class folders", TREE_CLASSES[2]
    )
    complaint(lambda: labelled_images(tree, ["cat", "dog"]), "3 of 3 class folders", "'cat'")
    complaint(lambda: labelled_images(empty, IMAGENET_WNIDS, str(labels)), "contains no images")
    complaint(
        lambda: labelled_images(tree, IMAGENET_WNIDS, str(labels)), "labels.txt", "no such file"
    )
    for text, words in (
        ("3\n" * 14, ["14 labels for 15"]),
        ("1000\n" * 15, ["index 1000 is", "0 to 999"]),
        ("n00000000\n" * 15, ["n00000000"]),
        ("1\n2 3\n" * 5, ["mixes line formats", "FILE LABEL"]),
        ("a.png 3\n", ["no label for 15 of 15"]),
    ):
        labels.write_text(text)
        complaint(lambda: labelled_images(tree, IMAGENET_WNIDS, str(labels)), "labels.txt", *words)


def test_images_of_any_kind_become_rgb(tmp_path):
    for name, mode in (
        ("grey.png", "L"),
        ("alpha.png", "RGBA"),
        ("palette.gif", "P"),
        ("ink.jpg", "CMYK"),
        ("bits.bmp", "1"),
        ("deep.png", "I;16"),
    ):
        Image.new(mode, (20, 10)).save(tmp_path / name)
        assert (open_image(tmp_path / name).mode, open_image(tmp_path / name).size) == (
            "RGB",
            (20, 10),
        )


def test_exif_turns_an_image_where_that_is_requested(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (40, 20)
    upright = open_image(tmp_path / "turned.png", upright=True)
    assert upright.size == (20, 40) and upright.getpixel((19, 0)) == (255, 255, 255)


def test_unreadable_images_are_named(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    draw_noise(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    Image.new("RGB", (900, 2)).save(tmp_path / "thin.png")
    complaint(lambda: open_image(tmp_path / "thin.png"), "thin.png", "900x2")
    for name, why in (
        ("text.jpg", "is not an image"),
        ("short.png", "cannot be read"),
        ("missing.png", "cannot be read"),
    ):
        complaint(lambda name=name: open_image(tmp_path / name), name, why)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 90 * 70 - 1)
    complaint(lambda: open_image(tmp_path / "whole.png"), "whole.png", "90x70", "at most 6,299")


def test_files_and_folders_are_expanded(tree, tmp_path):
    one = next((tree / TREE_CLASSES[0]).glob("*.png"))
    assert expand([str(one), str(tree / TREE_CLASSES[1])])[0] == one
    assert len(expand([str(tree)])) == 15
    complaint(lambda: expand([str(tmp_path)]), "contains no images")
    complaint(lambda: expand(["nowhere.jpg"]), "nowhere.jpg")
