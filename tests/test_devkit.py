"""ImageNet's devkit."""

import numpy as np
from image_folders import IMAGENET_WNIDS, draw_noise
from support import complaint

from tinynet.data.image_folder import labelled_images


def test_imagenets_devkit_numbers_its_classes_in_its_own_way(tmp_path):
    from scipy.io import savemat

    flat, kit = tmp_path / "val", tmp_path / "devkit"
    for k in range(3):
        draw_noise(flat / f"ILSVRC2012_val_{k:08}.JPEG", seed=k)
    (kit / "data").mkdir(parents=True)
    synsets = np.array(
        [(1, "n02119789"), (2, IMAGENET_WNIDS[0]), (3, IMAGENET_WNIDS[999])],
        dtype=[("ILSVRC2012_ID", int), ("WNID", object)],
    )
    savemat(kit / "data" / "meta.mat", {"synsets": synsets})
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")
    assert labelled_images(flat, IMAGENET_WNIDS, str(kit)).labels == (
        999,
        IMAGENET_WNIDS.index("n02119789"),
        0,
    )
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n")
    complaint(lambda: labelled_images(flat, IMAGENET_WNIDS, str(kit)), "2 labels for 3 images")
    (kit / "data" / "meta.mat").write_bytes(b"no matrix")
    complaint(lambda: labelled_images(flat, IMAGENET_WNIDS, str(kit)), "devkit", "meta.mat")
