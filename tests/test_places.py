"""Where data lies."""

import shutil

from image_folders import draw_noise
from support import complaint

from tinynet import TinyImageNet
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.data.places import locate


def test_the_home_folder_is_written_with_a_tilde(archive_path, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(archive_path, tmp_path / "drawn.zip")
    assert open_packed("~/drawn.zip").contents == packed.contents
    assert open_packed("~/drawn.zip", "~/elsewhere").folder.parent == tmp_path / "elsewhere"
    monkeypatch.setenv("TINYNET_DATA", "~/drawn.zip")
    assert find_data(None) == tmp_path / "drawn.zip"
    assert len(TinyImageNet("~/drawn.zip", "val")) == 24
    complaint(lambda: open_packed("~nobody-of-this-name/a.zip"), "unknown user after ~")


def test_an_archive_beside_folders_of_images_is_not_taken_in_silence(tmp_path):
    draw_noise(tmp_path / "photos/rose/a.png")
    (tmp_path / "photos/old.zip").write_bytes(b"PK")
    complaint(lambda: locate(tmp_path / "photos"), "old.zip", "folders of images (first: rose)")
    (tmp_path / "photos/old.zip").unlink()
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    assert locate(tmp_path / "photos") == tmp_path / "photos"
    (tmp_path / "photos/rose/a.png").unlink()
    complaint(lambda: locate(tmp_path / "photos"), "contains no images and no archive")
