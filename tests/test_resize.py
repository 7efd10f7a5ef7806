"""Ways to resize."""

import numpy as np
import pytest
import torch

from tinynet.resolution.resize import METHODS, resize_square


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_images_of_the_size_in_the_range(method):
    images = torch.rand(3, 3, 64, 64)
    for size in (48, 64, 96):
        seen = resize_square(images, size, method)
        assert seen.shape == (3, 3, size, size) and seen.min() >= 0 and seen.max() <= 1
    assert torch.equal(resize_square(images, 64, method), images)
    flat = torch.full((1, 3, 64, 64), 128 / 255)
    assert torch.allclose(
        resize_square(flat, 96, method), torch.full((1, 3, 96, 96), 128 / 255), atol=1e-6
    )


def test_methods_agree_with_those_of_pil():
    from PIL import Image

    # no overshoot is cut off
    pixels = np.random.RandomState(0).randint(80, 176, (64, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    for method, theirs in (
        ("antialias", "BILINEAR"),
        ("bicubic", "BICUBIC"),
        ("lanczos", "LANCZOS"),
        ("nearest", "NEAREST"),
    ):
        # elsewhere two neighbours are equally near
        for size in (48, 96) if method != "nearest" else (128,):
            expected = np.asarray(
                Image.fromarray(pixels).resize((size, size), Image.Resampling[theirs])
            )
            found = resize_square(images, size, method)[0].permute(1, 2, 0).numpy() * 255
            assert np.abs(found - expected).max() < 2, (method, size)
