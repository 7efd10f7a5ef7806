"""Any folder of images as a source."""

import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import draw_noise
from support import complaint

from tinynet.data.containers import list_files
from tinynet.data.image_folder import expand
from tinynet.data.sources import open_source


def draw(root, *names):
    for seed, name in enumerate(names):
        draw_noise(root / name, (24, 20), seed)


def flowers(root, count=5, classes=("rose", "tulip"), prefix=""):
    """A folder of each class, with `count` images in each."""
    draw(root, *(f"{prefix}{name}/{number}.png" for name in classes for number in range(count)))
    return root


def classes_by_file(source):
    """Every file of the source -> its subset and class."""
    return {
        file: (name, source.wnids[label])
        for name in ("train", "val", "test")
        for part in [source.part(name)]
        if part.labels is not None
        for file, label in zip(part.files, part.labels, strict=True)
    }


def test_class_folders_without_val_get_one_from_each_class(tmp_path, capsys):
    flowers(tmp_path / "photos", 10)
    source = open_source(tmp_path / "photos")
    assert source.wnids == source.names == ("rose", "tulip") and not source.one_size
    assert Counter(classes_by_file(source).values()) == {
        ("train", "rose"): 8,
        ("val", "rose"): 2,
        ("train", "tulip"): 8,
        ("val", "tulip"): 2,
    }
    assert all(file.startswith(f"{name}/") for file, (_, name) in classes_by_file(source).items())
    assert "has no val; 4 images of train are used as val, 20% of" in capsys.readouterr().err
    again = open_source(tmp_path / "photos")
    assert again.val.files == source.val.files and again.digest() == source.digest()


def test_val_hardly_changes_with_the_images(tmp_path):
    flowers(tmp_path, 50, ("rose", "tulip", "lily"))
    before = set(open_source(tmp_path).val.files)
    draw(tmp_path, "rose/new.png", "rose/newer.png")
    (tmp_path / "lily/7.png").unlink()
    after = set(open_source(tmp_path).val.files)
    assert len(before) == 30 and len(before & after) >= 27
    assert {file for file in before if "tulip" in file} == {
        file for file in after if "tulip" in file
    }
    names = {file.split("/")[-1] for file in before if "tulip" in file}
    (tmp_path / "tulip" / min(names)).rename(tmp_path / "lily/moved.png")
    kept = {f for f in open_source(tmp_path).val.files if "tulip" in f}
    assert len(kept & before) >= 8


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize("prefix", ["", "deep/er/"])
def test_train_val_and_test(tmp_path, val, prefix):
    for name, count in (("train", 4), (val, 2), ("test", 3)):
        flowers(tmp_path, count, prefix=f"{prefix}{name}/")
    source = open_source(tmp_path)
    assert Counter(subset for subset, _ in classes_by_file(source).values()) == {
        "train": 8,
        "val": 4,
        "test": 6,
    }
    for file, (_, name) in classes_by_file(source).items():
        assert file.split("/")[1] == name and len(source.read(file)) > 100


def test_a_test_folder_may_have_no_classes(tmp_path):
    flowers(tmp_path, 4, prefix="train/")
    draw(tmp_path, "test/a.png", "test/b.png")
    source = open_source(tmp_path)
    assert source.test.labels is None and source.test.files == ("test/a.png", "test/b.png")
    assert len(source.train.files) + len(source.val.files) == 8


def test_the_topmost_folder_with_images_is_the_class(tmp_path):
    names = ["cat/a.png", "cat/2021/b.png", "cat/2021/c.png", "bird/gull/a.png", "bird/gull/b.png"]
    draw(tmp_path, *names, "bird/gull/c.png", "bird/owl/a.png", "bird/owl/b.png", "bird/owl/c.png")
    classes = classes_by_file(open_source(tmp_path))
    assert {name for _, name in classes.values()} == {"cat", "bird/gull", "bird/owl"}
    assert classes["cat/2021/b.png"][1] == "cat" and classes["bird/owl/a.png"][1] == "bird/owl"


@pytest.mark.parametrize("inner", ["", "images/"])
def test_what_all_class_folders_share_is_no_part_of_their_names(tmp_path, inner):
    draw(tmp_path, *(f"flowers/{name}/{inner}{n}.png" for name in "ab" for n in range(3)))
    assert open_source(tmp_path).wnids == ("a", "b")


def test_a_zip_and_a_tar_are_as_their_folder(tmp_path):
    flowers(tmp_path / "photos", 4)
    folder = open_source(tmp_path / "photos")
    for form in ("zip", "gztar"):
        path = shutil.make_archive(tmp_path / "packed", form, tmp_path, "photos")
        source = open_source(list_files(tmp_path / path).container.path)
        assert source.root == "photos/"
        assert source.wnids == folder.wnids and source.train.files == folder.train.files
        assert source.val.labels.tolist() == folder.val.labels.tolist()


LABEL_FILES = {
    "pairs.txt": "a.png rose\nb.png tulip\n",
    "tabs.txt": "a.png\tred rose\nb.png\ttulip\n",
    "header.csv": "image,fold,label\na.png,1,red rose\nb.png,2,tulip\n",
    "stems.csv": "id,label\na,rose\nb,tulip\n",
    "numbers.csv": "file;class\na.png;10\nb.png;9\n",
    "one.txt": "rose\ntulip\n",
}
NAMES = [f"{letter}.png" for letter in "abcdefgh"]


@pytest.mark.parametrize("name", LABEL_FILES)
def test_a_flat_folder_with_a_file_of_labels(tmp_path, name):
    draw(tmp_path / "flat", *NAMES)
    text = LABEL_FILES[name]
    first = text[: text.index("\n") + 1] if name.endswith("csv") else ""
    lines = text.removeprefix(first).splitlines()
    rows = [
        lines[n % 2].replace("ab"[n % 2], NAMES[n][0], 1)
        if len(lines[0].split()) > 1 or first
        else lines[n % 2]
        for n in range(8)
    ]
    file = tmp_path / name
    file.write_text(first + "\n".join(rows) + "\n")
    source = open_source(tmp_path / "flat", str(file))
    classes = {file: label for file, (_, label) in classes_by_file(source).items()}
    words = {"numbers.csv": ("10", "9"), "tabs.txt": ("red rose", "tulip")}
    words["header.csv"] = words["tabs.txt"]
    pair = words.get(name, ("rose", "tulip"))
    assert classes == {each: pair[number % 2] for number, each in enumerate(NAMES)}
    before = source.digest()
    file.write_text(file.read_text() + "\n")
    assert open_source(tmp_path / "flat", str(file)).digest() != before


def test_numbers_are_classes_in_the_order_of_their_values(tmp_path):
    draw(tmp_path / "flat", *NAMES)
    (tmp_path / "labels.txt").write_text("".join(f"{n} {9 + i % 2}\n" for i, n in enumerate(NAMES)))
    source = open_source(tmp_path / "flat", str(tmp_path / "labels.txt"))
    assert source.wnids == ("9", "10")
    assert classes_by_file(source)["a.png"][1] == "9"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["rose/0.png", "rose/1.png", "rose/2.png"], ["one class, 'rose'", "at least 2"]),
        (["0.png", "1.png"], ["outside of class folders; move each"]),
        (["rose/0.png", "rose/1.png", "rose/2.png", "a.png"], ["(1 of 4 images)"]),
        (
            ["rose/0.png", "tulip/0.png", "tulip/1.png", "tulip/2.png"],
            ["fewer than 3 images: 'rose' (1);"],
        ),
        ([f"{name}/{n}.png" for name in ("Rose", "rose") for n in range(3)], ["'Rose'", "'rose'"]),
        (
            [f"{name}/{n}.png" for name in ("caf\u00e9", "cafe\u0301") for n in range(3)],
            ["how an accented letter is encoded"],
        ),
        ([f"{name}/{n}.png" for name in ("a\x07b", "c") for n in range(3)], ["control character"]),
        (["val/rose/0.png", "rose/0.png"], ["val/", "no train/"]),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png", "valid/b/0.png"], ["both mean val"]),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, names, words):
    draw(tmp_path / "x", *names)
    complaint(lambda: open_source(tmp_path / "x"), tmp_path / "x", *words)


def test_val_and_test_must_have_the_classes_of_train(tmp_path):
    flowers(tmp_path, 3, prefix="train/")
    flowers(tmp_path, 2, ("rose",), "val/")
    complaint(lambda: open_source(tmp_path), "no images of 1 classes of train", "'tulip'")
    flowers(tmp_path, 2, ("tulip", "lily"), "val/")
    complaint(lambda: open_source(tmp_path), "val has the class 'lily', but train does not")
    shutil.rmtree(tmp_path / "val/lily")
    assert len(open_source(tmp_path).val.files) == 4
    flowers(tmp_path, 1, ("daisy",), "test/")
    complaint(lambda: open_source(tmp_path), "test has the class 'daisy'")
    shutil.rmtree(tmp_path / "test/daisy")
    draw(tmp_path, "val/lost.png")
    complaint(lambda: open_source(tmp_path), "val has images outside of class folders")


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_an_empty_class_folder_is_no_mistake_to_pass_over(tmp_path, prefix):
    flowers(tmp_path, 3, prefix=prefix)
    empty = tmp_path / f"{prefix}lily"
    empty.mkdir()
    complaint(lambda: open_source(tmp_path), f"{prefix}lily contains no images")
    (empty / "notes.txt").write_text("soon")
    complaint(lambda: open_source(tmp_path), f"{prefix}lily contains no images")
    empty.rename(tmp_path / f"{prefix}.hidden")
    assert open_source(tmp_path).wnids == ("rose", "tulip")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("name", ["val", "Validation", "test"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_subset_without_images_is_not_drawn_from_train(tmp_path, kind, name, labels):
    place = flowers(tmp_path / "photos", 4, prefix="train/")
    (place / name / "rose").mkdir(parents=True)
    (place / name / "rose/a.heic").write_bytes(b"no image that can be read")
    (tmp_path / "l.csv").write_text(
        "".join(f"train/{c}/{k}.png,{c}\n" for c in ("rose", "tulip") for k in range(4))
    )
    file = str(tmp_path / "l.csv") if labels else None
    path = packed_as(place, kind)
    complaint(lambda: open_source(path, file), f"{name} contains no images that can", "1 .heic")
    shutil.rmtree(place / name)
    (place / name).mkdir()
    path = packed_as(place, kind)
    if name == "test":  # nothing takes the place of its images
        assert len(open_source(path, file).test.files) == 0
    else:
        complaint(lambda: open_source(path, file), f"{name} contains no images; add some")


def zipped_on_windows(place, names):
    with zipfile.ZipFile(place, "w") as target:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")  # the constructor would replace it
            target.writestr(info, b"")
    return place


def test_empty_folders_of_windows_are_no_files(tmp_path):
    zipped_on_windows(tmp_path / "a.zip", ("rose/", "rose/a.png", "tulip/b.png", "lily/"))
    complaint(lambda: open_source(tmp_path / "a.zip"), "the folder lily contains no images; add")


def packed_as(place, kind):
    """`place` itself, or all of it, with its empty folders, in a zip or tar."""
    return place if kind == "folder" else Path(shutil.make_archive(str(place), kind, place))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_empty_class_folder_is_named_in_any_container(tmp_path, kind):
    place = flowers(tmp_path / "photos", 3)
    (place / "lily").mkdir()
    complaint(lambda: open_source(packed_as(place, kind)), "lily contains no images")
    (place / "lily/a.heic").write_bytes(b"no image that can be read")
    complaint(lambda: open_source(packed_as(place, kind)), "lily contains no images that can")


def test_an_empty_folder_beside_nested_classes_is_named(tmp_path):
    place = flowers(tmp_path / "photos", 3, ("birds/gull", "birds/owl", "fish"))
    (place / "fish/more/er").mkdir(parents=True)  # inside a class
    assert len(open_source(place).wnids) == 3
    (place / "birds/crow").mkdir()
    complaint(lambda: open_source(place), "the folder birds/crow contains no images")
    (place / "birds/crow").rename(place / "crow")
    complaint(lambda: open_source(place), "the folder crow contains no images")


def test_links_to_class_folders_are_no_empty_classes(tmp_path, capsys):
    place = flowers(tmp_path / "photos", 3)
    (place / "rosa").symlink_to("rose")
    (place / "latest").symlink_to(".")
    (place / "self").symlink_to("self")
    assert open_source(place).wnids == ("rose", "tulip")
    said = capsys.readouterr().err
    assert all(name in said for name in ("rosa (already", "latest (already", "self (broken"))


def test_what_tinynet_writes_among_the_images_is_not_read(tmp_path, capsys):
    place = flowers(tmp_path / "photos", 4)
    before = open_source(place).digest()
    for run in ("runs/first", "out", "tulip"):
        draw(place, f"{run}/base/curves.png", f"{run}/report/a.png")
        (place / run / "base/recipe.json").write_text("{}")
        (place / run / "report.html").write_text("")
    draw(place, "runs/both/first/b.png")
    for page in ("comparison", "first"):
        (place / f"runs/both/{page}.html").write_text("")
    for folder in ("mycache/photos-1234.packed", "mycache/features-12ab", "cache/x.unfinished"):
        (place / folder).mkdir(parents=True)
        (place / folder / "manifest.json").write_text("{}")
        (place / folder / "x.npy").write_bytes(b"")
    (place / "runs/new").mkdir()
    capsys.readouterr()
    source = open_source(place)
    assert source.digest() == before and source.wnids == ("rose", "tulip")
    assert "21 written by tinynet (cache/x.unfinished" in capsys.readouterr().err
    assert len(expand([str(place)])) == 8
    (place / "rose/comparison.html").write_text("")  # of another program
    assert open_source(place).wnids == ("rose", "tulip")
    (place / "tulip/base/recipe.json").unlink()  # then these are images of a user
    assert len(open_source(place).train.files) + len(open_source(place).val.files) == 10


def test_a_run_in_the_folder_of_the_images_itself(tmp_path):
    place = flowers(tmp_path / "photos", 4, ("rose", "tulip"))
    before = open_source(place).digest()
    draw(place, "base/curves.png")
    (place / "base/recipe.json").write_text("{}")
    assert open_source(place).digest() == before
    draw(place, "report/curves.png")  # without the page, it is a class
    complaint(lambda: open_source(place), "'report' (1)")
    (place / "report.html").write_text("")
    assert open_source(place).digest() == before
    (place / "base/recipe.json").unlink()
    complaint(lambda: open_source(place), "'base' (1), 'report' (1)")


def test_the_cache_is_no_class_below_the_given_folder_either(tmp_path):
    flowers(tmp_path / "photos", 4)
    (tmp_path / "photos/cache").mkdir()
    assert open_source(tmp_path).wnids == open_source(tmp_path / "photos").wnids


def test_images_of_val_alone_are_no_training_images(tmp_path):
    flowers(tmp_path / "photos", 4, prefix="val/")
    complaint(lambda: open_source(tmp_path / "photos"), "has a folder val/ but no train/")
    assert len(open_source(tmp_path / "photos/val").train.files) == 6
    flowers(tmp_path / "deep", 4, prefix="val/flowers/")
    complaint(lambda: open_source(tmp_path / "deep"), "has a folder val/ but no train/")


def test_images_that_change_places_are_other_data(tmp_path):
    """Bitmaps have one size, and the files of an archive may have one time."""
    place = tmp_path / "photos"
    for name in ("rose", "tulip"):
        draw(place, *(f"{name}/{k}.bmp" for k in range(4)))
    draw_noise(place / "tulip/0.bmp", (24, 20), 9)
    for file in place.rglob("*.bmp"):
        os.utime(file, (1e9, 1e9))
    before = open_source(place).digest()
    assert open_source(place).digest() == before
    (place / "rose/0.bmp").rename(place / "x")
    (place / "tulip/0.bmp").rename(place / "rose/0.bmp")
    (place / "x").rename(place / "tulip/0.bmp")
    assert open_source(place).digest() != before
    before = open_source(place).digest()
    (place / "rose").rename(place / "x")
    (place / "tulip").rename(place / "rose")
    (place / "x").rename(place / "tulip")
    assert open_source(place).digest() != before


def test_what_is_no_image_or_no_subset_is_named(tmp_path, capsys):
    flowers(tmp_path, 3, prefix="train/")
    draw(tmp_path, "extra/a.png")
    (tmp_path / "train/rose/readme.txt").write_text("about")
    source = open_source(tmp_path)
    assert len(classes_by_file(source)) == 6
    said = capsys.readouterr().err
    assert "readme.txt" in said and "1 images in extra are not used" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x.png rose\ny.png tulip\n", ["names none of the 8 images", "a.png"]),
        ("a.png rose\nb.png tulip\n", ["no label for 6 of 8 images"]),
        ("file,u,v\na.png,1,2\nb.png,1,2\n", ["which of its columns 2, 3 is the label"]),
        ("\x00\x01\x02", ["is not a text file"]),
        ("a.png,rose\nb.png,\n", ["has no label for b.png"]),
        ("", ["is empty"]),
        (
            "file,label\na.png,cat, tabby\nb.png,cat, grey\n",
            ["the line of a.png has 3 cells, but the first has 2", "quotation"],
        ),
        ("file,label,split\na.png,u,val\nb.png,v,train\n", ["a column 'split', which is not"]),
        ("rose\n" * 4 + "tulip\n" * 5, ["has 9 labels for 8 images"]),
        ("rose\n" + "tulip\n" * 8, ["has 9 labels for 8 images"]),
        ("label\n" + "rose\n" * 3 + "tulip\n" * 4, ["has 7 labels for 8 images"]),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, text, words):
    draw(tmp_path / "flat", *NAMES)
    (tmp_path / "labels").write_text(text)
    complaint(
        lambda: open_source(tmp_path / "flat", str(tmp_path / "labels")),
        tmp_path / "labels",
        *words,
    )


@pytest.mark.parametrize(
    "titles, row",
    [
        ("file,x,y,label", "{0},1,2,{1}"),
        ("file,x,label,y", "{0},1,{1},2"),
        ("file,label,label_name", "{0},{1},a flower"),
        ("file,y", "{0},{1}"),
    ],
)
def test_the_column_of_labels_among_others(tmp_path, titles, row):
    draw(tmp_path / "flat", *NAMES)
    rows = [
        row.format(name, "rose" if number % 2 else "tulip") for number, name in enumerate(NAMES)
    ]
    (tmp_path / "labels").write_text("\n".join([titles, *rows]))
    assert open_source(tmp_path / "flat", str(tmp_path / "labels")).wnids == ("rose", "tulip")
    if "label" not in titles:
        return
    (tmp_path / "labels").write_text("\n".join([titles.replace("label", "breed"), *rows]))
    complaint(
        lambda: open_source(tmp_path / "flat", str(tmp_path / "labels")), "which of its columns"
    )


def test_a_list_of_labels_in_quotation_marks(tmp_path):
    draw(tmp_path / "flat", *NAMES)
    (tmp_path / "labels").write_text("label\n" + '"rose"\n"tulip"\n' * 4)
    assert open_source(tmp_path / "flat", str(tmp_path / "labels")).wnids == ("rose", "tulip")


def test_images_to_be_labelled_later_may_be_in_the_list(tmp_path):
    draw(tmp_path / "flat", *NAMES)
    lines = [f"{name},{'rose' if number % 2 else 'tulip'}\n" for number, name in enumerate(NAMES)]
    sources = []
    for more in ([], ["other.png,\n"]):
        (tmp_path / "labels").write_text("".join(["file,label\n", *lines, *more]))
        sources.append(open_source(tmp_path / "flat", str(tmp_path / "labels")))
    assert classes_by_file(sources[0]) == classes_by_file(sources[1])


def test_a_label_file_that_is_not_there(tmp_path):
    draw(tmp_path / "flat", *NAMES)
    complaint(lambda: open_source(tmp_path / "flat", "nowhere.csv"), "nowhere.csv", "no such file")
    complaint(lambda: open_source(tmp_path / "flat", str(tmp_path)), "is not a regular file")


def test_a_list_of_labels_may_have_a_title(tmp_path):
    draw(tmp_path / "flat", *NAMES)
    sources = []
    for text in ("class\n", ""):
        (tmp_path / "labels").write_text(text + "y\nn\n" * 4)
        sources.append(open_source(tmp_path / "flat", str(tmp_path / "labels")))
    assert classes_by_file(sources[0]) == classes_by_file(sources[1])
    assert sources[0].wnids == ("n", "y")  # y is a title too, if it is said once


def test_tiny_imagenet_in_class_folders_has_its_classes_and_split(archive, folder):
    """Without the lists, the archive is class folders like any other."""
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        (folder / name).unlink()
    for file, label in zip(archive.val.files, archive.val.labels, strict=True):
        place = folder / "val" / archive.wnids[label]
        place.mkdir(exist_ok=True)
        (folder / file).rename(place / file.split("/")[-1])
    (folder / "val/images").rmdir()
    for place in (folder / "train").iterdir():
        for file in (place / "images").iterdir():
            file.rename(place / file.name)
        (place / "images").rmdir()
    source = open_source(folder)
    assert type(source).__name__ == "ClassFolders" and source.wnids == archive.wnids
    assert source.train.labels.tolist() == archive.train.labels.tolist()
    assert [file.split("/")[-1] for file in source.train.files] == [
        file.split("/")[-1] for file in archive.train.files
    ]


@given(st.lists(st.integers(3, 30), min_size=2, max_size=8), st.booleans())
@settings(max_examples=20, deadline=None)
def test_every_image_is_in_one_subset(tmp_path_factory, counts, zipped):
    root = tmp_path_factory.mktemp("sizes")
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for label, count in enumerate(counts):
            for number in range(count):
                archive.writestr(f"c{label:02}/{number}.png", f"{label} {number}")
    path = root / "a.zip"
    if not zipped:
        shutil.unpack_archive(path, root / "a")
        path = root / "a"
    source = open_source(path)
    files = [*source.train.files, *source.val.files]
    assert len(set(files)) == len(files) == sum(counts) and not source.test.files
    for label, count in enumerate(counts):
        in_val = int((source.val.labels == label).sum())
        assert in_val == min(max(1, round(count * 0.2)), count - 1)


def test_several_data_sets_are_not_mixed(tmp_path):
    for year in ("2020", "2021"):
        flowers(tmp_path, 4, prefix=f"{year}/train/")
    complaint(lambda: open_source(tmp_path), "several data sets (2020/, 2021/)")
    shutil.rmtree(tmp_path / "2021")
    draw(tmp_path, "2021/rose/a.png", "2020/a.png")
    source = open_source(tmp_path)
    assert source.root == "2020/" and len(classes_by_file(source)) == 8
    assert all(len(source.read(file)) for file in classes_by_file(source))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("Train", "Valid", "Test"),
        ("training_set", "", "test-set"),
    ],
)
def test_subsets_are_recognized_in_any_case(tmp_path, train, val, test):
    for folder, count in ((train, 4), (val, 2), (test, 3)):
        if folder:
            flowers(tmp_path, count, prefix=f"{folder}/")
    source = open_source(tmp_path)
    assert source.wnids == ("rose", "tulip") and len(source.test.files) == 6
    assert len(source.train.files) + len(source.val.files) == (12 if val else 8)


def test_a_class_may_be_called_train(tmp_path):
    flowers(tmp_path, 3, ("bus", "car", "train"))
    assert open_source(tmp_path).wnids == ("bus", "car", "train")


def test_what_tinynet_writes_beside_the_images_is_no_empty_class(tmp_path):
    flowers(tmp_path, 3)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a.npy").write_bytes(b"pixels")
    assert open_source(tmp_path).wnids == ("rose", "tulip")


def test_a_file_of_labels_may_name_the_images_of_test(tmp_path):
    draw(tmp_path / "x", *(f"{part}/{n}.png" for part in ("train", "test") for n in range(6)))
    lines = [f"{part}/{n}.png,{'ab'[n % 2]}" for part in ("train", "test") for n in range(6)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    source = open_source(tmp_path / "x", str(tmp_path / "l.csv"))
    assert source.test.labels.tolist() == [0, 1] * 3
    (tmp_path / "l.csv").write_text("\n".join(lines[:6]))
    assert open_source(tmp_path / "x", str(tmp_path / "l.csv")).test.labels is None


@pytest.mark.parametrize(
    "line", ["{label} {n}.jpg", "{n}.jpg {label}", "{n}.jpg,x{label},n0000000{label} 1 2 3 4"]
)
def test_labels_that_look_like_names_of_images(tmp_path, line):
    draw(tmp_path / "x", *(f"{n}.jpg" for n in range(12)))
    text = "\n".join(line.format(label=n % 3, n=n) for n in range(12))
    (tmp_path / "labels.txt").write_text(text)
    source = open_source(tmp_path / "x", str(tmp_path / "labels.txt"))
    classes = classes_by_file(source)
    for number in range(12):
        assert classes[f"{number}.jpg"][1][-1] == str(number % 3)
    assert len(source.wnids) == 3
