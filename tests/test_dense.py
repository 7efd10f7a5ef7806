"""The dense network."""

import pytest
import torch
from support import complaint

from tinynet.models.classifier import POOLINGS
from tinynet.models.dense import Dense


@torch.inference_mode()
def test_a_dense_network_sees_a_window_as_the_maps_around_it_show_it(small_network):
    small_network.eval()
    feature_names, images = small_network.feature_names, torch.rand(3, 3, 96, 128)
    found = Dense(small_network, 64)(images)
    maps = small_network.backbone(images, ["pool5", "relu4_3"])
    expected = []
    for down in range(2):
        for right in range(3):
            window = {
                "pool5": maps["pool5"][..., down : down + 2, right : right + 2],
                "relu4_3": maps["relu4_3"][..., 4 * down : 4 * down + 8, 4 * right : 4 * right + 8],
            }
            seen = torch.cat(
                [
                    POOLINGS[feature.split(":")[1]](window[feature.split(":")[0]])
                    for feature in feature_names
                ],
                1,
            )
            expected.append(small_network.head(seen).softmax(1))
    torch.testing.assert_close(found.exp(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    whole = torch.rand(2, 3, 64, 64)  # one window: the image
    torch.testing.assert_close(
        Dense(small_network, 64)(whole),
        torch.log_softmax(small_network(whole), 1),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("side", [32, 80, 110])
def test_a_dense_network_refuses_images_that_windows_do_not_fill(small_network, side):
    complaint(
        lambda: Dense(small_network, 64)(torch.rand(1, 3, side, side)),
        "64",
        f"{side}x{side}",
        "dense:96",
    )
