"""Synthetic archives."""

import numpy as np
import pytest
from support import complaint

from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import Archive


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
        image, (x0, y0, x1, y1) = module.draw_image(np.random.RandomState(kind), kind, 64)
        other, _ = module.draw_image(np.random.RandomState(kind), kind + 5 * 7, 64)
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
