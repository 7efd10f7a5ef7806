"""Which files of a folder are images."""

import os
import socket

from image_folders import draw_square
from support import complaint

from tinynet.data.image_folder import expand, labelled_images

CLASSES = ("cat", "dog")


def expanded(folder):
    return [file.relative_to(folder).as_posix() for file in expand([str(folder)])]


def test_hidden_and_machine_made_files_are_left_out_at_any_depth_and_counted(tmp_path, capsys):
    for name in ("a.png", "deep/er/b.png"):
        draw_square(tmp_path / name)
    for place in (
        ".ipynb_checkpoints",
        "deep/.git",
        "deep/er/@eaDir",
        "__MACOSX/deep",
        "deep/er/$RECYCLE.BIN",
    ):
        draw_square(tmp_path / place / "copy.png")
    draw_square(tmp_path / "deep/._b.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep/IMG_1.HEIC").write_bytes(b"no image that can be read")
    assert expanded(tmp_path) == ["a.png", "deep/er/b.png"]
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
    assert expanded(tmp_path / "deep/er") == ["b.png"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, capsys):
    draw_square(tmp_path / "a.png")
    assert expanded(tmp_path) == ["a.png"] and capsys.readouterr().err == ""


def test_links_to_folders_are_followed_once_each(tmp_path, capsys):
    folder, more = tmp_path / "images", tmp_path / "more"
    draw_square(folder / "cat/a.png")
    draw_square(folder / "dog/a.png")
    for k in range(3):
        draw_square(more / f"{k}.png")
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
    draw_square(tmp_path / "images/dog/a.png")
    (tmp_path / "images/cat").symlink_to(tmp_path / "images/dog")
    assert labelled_images(tmp_path / "images", CLASSES).labels == (1,)


def test_a_link_to_a_folder_above_adds_no_image_twice(tmp_path, capsys):
    draw_square(tmp_path / "root/cat/a.png")
    draw_square(tmp_path / "beside.png")
    (tmp_path / "root/up").symlink_to("..")
    assert expanded(tmp_path / "root") == ["cat/a.png", "up/beside.png"]
    said = capsys.readouterr().err
    assert "links not followed: up/root (already included)" in said


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    draw_square(tmp_path / "cat/a.png")
    (tmp_path / "cat/b.png").symlink_to(tmp_path / "nowhere.png")
    assert expanded(tmp_path) == ["cat/a.png", "cat/b.png"]
    assert expand([str(tmp_path / "cat/b.png")]) == (tmp_path / "cat/b.png",)


def test_pipes_and_sockets_are_never_opened(tmp_path, monkeypatch, capsys):
    draw_square(tmp_path / "images/a.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    monkeypatch.chdir(tmp_path / "images")  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        assert expanded(tmp_path / "images") == ["a.png"]
    assert "2 not regular files" in capsys.readouterr().err
    complaint(lambda: expand(["pipe.png"]), "pipe.png", "not a regular file")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    draw_square(tmp_path / "cat/a.png")
    scan = os.scandir

    def deny(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    complaint(
        lambda: labelled_images(tmp_path, CLASSES), "cat", "Permission denied", "make it readable"
    )
