"""Where data lies."""

import shutil

from support import complaint

from tinynet import TinyImageNet
from tinynet.data.download import find_data
from tinynet.data.packing import open_packed


def test_the_home_folder_is_written_with_a_tilde(archive_path, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(archive_path, tmp_path / "drawn.zip")
    assert open_packed("~/drawn.zip").contents == packed.contents
    assert open_packed("~/drawn.zip", "~/elsewhere").folder.parent == tmp_path / "elsewhere"
    monkeypatch.setenv("TINYNET_DATA", "~/drawn.zip")
    assert find_data(None) == tmp_path / "drawn.zip"
    assert len(TinyImageNet("~/drawn.zip", "val")) == 24
    complaint(lambda: open_packed("~nobody-of-this-name/a.zip"), "unknown user after ~")
