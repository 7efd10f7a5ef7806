"""Files of labels as people have them: each image gets its own label, or the list is refused for
what it is.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import complaint

from tinynet.data.image_folder import imagenet_wnids, labelled_images
from tinynet.errors import InputError

WNIDS = imagenet_wnids()
FIRST, SECOND = WNIDS[7], WNIDS[500]


def folder_of(tmp_path, *names):
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def labels_of(folder, text, classes=WNIDS, name="labels.txt", encoding="utf-8"):
    path = folder.parent / name
    path.write_text(text, encoding=encoding)
    images = labelled_images(folder, classes, str(path))
    return {
        file.relative_to(folder).as_posix(): label
        for file, label in zip(images.files, images.labels, strict=True)
    }


@pytest.fixture
def two(tmp_path):
    """ImageNet's first two val images, by name; the labels of the tests name the second one
    first.
    """
    return folder_of(tmp_path, "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")


WANTED = {"ILSVRC2012_val_00000001.JPEG": 500, "ILSVRC2012_val_00000002.JPEG": 7}
ONE, TWO = "ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"


@pytest.mark.parametrize(
    "text",
    [
        f"ImageId,PredictionString\n{TWO},{FIRST} 85 1 499 272 \n{ONE},{SECOND} 3 4 5 6 {SECOND} 7 "
        "8 9 9 \n",
        f"{TWO},{FIRST} 85 1 499 272 \n{ONE},{SECOND} 3 4 5 6 \n",
        f"ImageId,Class\n{TWO},{FIRST}\n{ONE},{SECOND}\n",
        f'"ImageId","Class"\n"{TWO}.JPEG","{FIRST}"\n"{ONE}.JPEG","{SECOND}"\n',
        f"Class,ImageId\n{FIRST},{TWO}\n{SECOND},{ONE}\n",
        f"path;label\nval\\{TWO}.JPEG;7\nval\\{ONE}.JPEG;500\n",
        f"filename,width,label,height\n{TWO}.JPEG,64,7,64\n{ONE}.JPEG,64,500,64\n",
        f"id,filename,wnid\n1,{TWO}.JPEG,{FIRST}\n2,{ONE}.JPEG,{SECOND}\n",
        f"{TWO} {FIRST}\n{ONE} {SECOND}\n",
        f"{FIRST} {TWO}.JPEG\n{SECOND} {ONE}.JPEG\n",
        f"./{TWO}.JPEG\t{FIRST}\t0\t0\t63\t63\n./{ONE}.JPEG\t{SECOND}\t1\t2\t3\t4\n",
        f"/home/me/val/{TWO}.JPEG 7\n/home/me/val/{ONE}.JPEG 500\n\n",
        f"{TWO}.png 7\n{ONE}.png 500\n",
        f"{TWO} 7\n{ONE} 500\n{TWO} 7\n",
        f"{SECOND}\n{FIRST}\n",
        "500\n7\n",
        f"label\n{SECOND}\n{FIRST}\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_layout_gives_each_image_its_own_label(two, text, encoding):
    assert labels_of(two, text, encoding=encoding) == WANTED
    assert labels_of(two, text.replace("\n", "\r\n"), encoding=encoding) == WANTED


def test_the_annotations_of_tiny_imagenet_are_labels(folder, packed):
    images = labelled_images(
        folder / "val/images", packed.wnids, str(folder / "val/val_annotations.txt")
    )
    assert {f"val/images/{file.name}" for file in images.files} == set(packed.val.files)
    wanted = dict(zip(packed.val.files, packed.val.labels.tolist(), strict=True))
    assert [wanted[f"val/images/{file.name}"] for file in images.files] == list(images.labels)
    complaint(
        lambda: labelled_images(
            folder / "val/images", WNIDS, str(folder / "val/val_annotations.txt")
        ),
        "not one of the network's 1000 classes",
        "'n0",
    )


@pytest.mark.parametrize(
    "names",
    [
        [f"{k}.jpg" for k in range(12)],
        [f"img{k}.jpg" for k in (1, 2, 10)],
        ["B.jpg", "a.jpg"],
        ["a/1.jpg", "a.b/1.jpg"],
    ],
)
def test_ambiguous_order_is_rejected(tmp_path, names):
    folder = folder_of(tmp_path, *names)
    complaint(
        lambda: labels_of(folder, "".join(f"{k}\n" for k in range(len(names)))),
        "labels without file names",
        "order of",
        "FILE LABEL",
    )
    named = "".join(f"{name} {k}\n" for k, name in enumerate(names))
    assert labels_of(folder, named) == {name: k for k, name in enumerate(names)}


def test_labels_by_position_are_taken_where_all_orders_agree(tmp_path):
    folder = folder_of(tmp_path, *[f"{k:02}.jpg" for k in range(12)])
    assert list(labels_of(folder, "".join(f"{k}\n" for k in range(12))).values()) == list(range(12))


@pytest.mark.parametrize(
    "text, classes, words",
    [
        ("1000\n1\n", WNIDS, ["index 1000 is", "1 to 1000", "count from 1", "0 to 999"]),
        ("21000\n4\n", WNIDS, ["index 21000 is", "4 to 21000", "0 to 999"]),
        ("--1\n4\n", WNIDS, ["'--1' is not one of"]),
        ("-1\n4\n", WNIDS, ["index -1 is", "-1 to 4"]),
        (f"{TWO} 1000\n{ONE} 1\n", WNIDS, ["index 1000 is", "count from 1"]),
        (f"{TWO} 3\n{ONE} 1\n", ("a", "b", "c"), ["index 3 is", "count from 1", "0 to 2"]),
        (
            f"{TWO} n00000001\n{ONE} n00000002\n",
            WNIDS,
            ["n00000001", "not one of the network's 1000"],
        ),
        (f"file,label\n{TWO},cat\n{ONE},dog\n", WNIDS, ["cat"]),
        (f"{TWO} 7\n{TWO} 8\n{ONE} 7\n", WNIDS, [TWO, "two labels", WNIDS[7], WNIDS[8]]),
        (
            f"{TWO},{FIRST} 1 2 3 4 {SECOND} 1 2 3 4\n{ONE},{SECOND} 1 2 3 4\n",
            WNIDS,
            [TWO, "two labels", FIRST, SECOND],
        ),
        (f"a,b,file\n7,8,{TWO}\n9,10,{ONE}\n", WNIDS, ["columns 1, 2", "two columns"]),
        (f"{TWO} 7\n", WNIDS, ["no label for 1 of 2", ONE]),
        (f"file,label\n{TWO},7\n{ONE}\n", WNIDS, ["mixes line formats", "every line FILE LABEL"]),
        ("", WNIDS, ["0 labels for 2"]),
        ("7\n500\n", WNIDS, None),
    ],
)
def test_lists_that_do_not_fit_are_refused_for_what_they_are(two, text, classes, words):
    if words is None:
        assert set(labels_of(two, text, classes).values()) == {7, 500}
    else:
        complaint(lambda: labels_of(two, text, classes), "labels ", *words)


def test_the_devkits_own_numbers_are_not_taken_for_indices(two):
    complaint(
        lambda: labels_of(two, "490\n361\n", name="ILSVRC2012_validation_ground_truth.txt"),
        "devkit",
        "folder",
    )


def test_names_that_are_not_in_the_folder_are_counted(two, capsys):
    assert labels_of(two, f"{TWO} 7\n{ONE} 500\nILSVRC2012_val_00000003 3\n") == WANTED
    assert "ignored 1 labels for files that are not in the folder" in capsys.readouterr().err


def test_ambiguous_file_names_are_rejected(tmp_path):
    folder = folder_of(tmp_path, "a/1.png", "a/1.jpg", "b/1.png")
    complaint(lambda: labels_of(folder, "1 7\n"), "occur in several folders")
    complaint(lambda: labels_of(folder, "a/1 7\nb/1 8\n"), "no label for 2 of 3", "a/1.jpg")
    assert labels_of(folder, "a/1.png 7\na/1.jpg 8\nb/1 9\nb/1.png 9\n") == {
        "a/1.png": 7,
        "a/1.jpg": 8,
        "b/1.png": 9,
    }


def test_a_title_says_which_column_is_the_label(tmp_path):
    folder = folder_of(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    wanted = {"1.jpg": 3, "2.jpg": 1, "3.jpg": 2}
    for title in ("label", "Class ID", "target"):
        assert labels_of(folder, f"{title},id\n3,1\n1,2\n2,3\n") == wanted
    assert labels_of(folder, "id,fold,label\n1,0,3\n2,1,1\n3,0,2\n") == wanted


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "file,fold,label\n{two},0,cat\n{one},1,dog\n",
            ["'cat'", "not one of the network's 1000 classes"],
        ),
        ("file,fold,label\n{two},0,1000\n{one},1,7\n", ["index 1000", "out of range"]),
        ("{two},0,7000\n{one},1,5000\n", ["columns 2, 3", "header"]),
        ("file,fold,age\n{two},0,7000\n{one},1,5000\n", ["columns 2, 3", "'label'"]),
        ("file,age,name\n{two},7,cat\n{one},500,dog\n", ["columns 2, 3", "FILE and LABEL"]),
    ],
)
def test_a_number_beside_the_label_is_not_taken_for_it(two, text, words):
    complaint(lambda: labels_of(two, text.format(one=ONE, two=TWO)), "labels ", *words)


def test_numbers_that_may_be_names_or_labels_are_rejected(tmp_path):
    folder = folder_of(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    complaint(
        lambda: labels_of(folder, "2,1\n3,2\n1,3\n"), "columns 1 and 2", "file names", "extensions"
    )
    assert labels_of(folder, "2,1.jpg\n3,2.jpg\n1,3.jpg\n") == {"1.jpg": 2, "2.jpg": 3, "3.jpg": 1}


def test_files_matched_in_other_folders_are_reported(tmp_path, capsys):
    folder = folder_of(tmp_path, "val/a.jpg", "val/b.jpg")
    assert labels_of(folder, "test/a.jpg 7\ntest/b.jpg 8\n") == {"val/a.jpg": 7, "val/b.jpg": 8}
    (said,) = capsys.readouterr().err.splitlines()
    assert "labels.txt" in said and "their folders differ" in said
    for text in ("val/a.jpg 7\nval/b.jpg 8\n", "a.jpg 7\nb.jpg 8\n"):
        labels_of(folder, text)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text, words",
    [
        ("image fold label\n{a} 1 5\n{b} 2 6\n", None),
        ("{a} 500 375 5\n{b} 500 375 6\n", ["which of its columns 2, 3, 4"]),
        ("{a} 0 1\n{b} 1 0\n", ["which of its columns 2, 3"]),
        ("image,label\n{a},5 6\n{b},6\n", ["'5 6' is not one of"]),
    ],
)
def test_columns_between_spaces_are_columns(two, text, words):
    text = text.format(a=TWO, b=ONE)
    if words is None:
        assert set(labels_of(two, text).values()) == {5, 6}
    else:
        complaint(lambda: labels_of(two, text), "labels ", *words)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="0123456789na.,;\t\n \"'/-_", max_size=80), data=st.data())
def test_any_text_gives_labels_or_one_line(tmp_path_factory, text, data):
    folder = folder_of(tmp_path_factory.mktemp("any"), "a.png", "n1.png", "2.png")
    try:
        labels = labels_of(folder, text, ("n1", "n2", "a"))
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("labels ")
    else:
        assert set(labels) == {"2.png", "a.png", "n1.png"} and set(labels.values()) <= {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(5)),
    labels=st.lists(st.integers(0, 999), min_size=5, max_size=5),
    form=st.sampled_from(
        ["{name} {label}", "{name}.png,{wnid}", "{wnid}\t{name}.png", "x/{name}.png;{label}"]
    ),
)
def test_labels_follow_names_in_any_order_and_form(tmp_path_factory, order, labels, form):
    names = ["a", "b 2", "c10", "c9", "d-e"]
    folder = folder_of(tmp_path_factory.mktemp("any"), *[f"{name}.png" for name in names])
    text = "\n".join(
        form.format(name=names[k], label=labels[k], wnid=WNIDS[labels[k]]) for k in order
    )
    assert labels_of(folder, text) == {f"{names[k]}.png": labels[k] for k in range(5)}
