"""The test-time augmentation wrapper."""

import io

import numpy as np
import pytest
import torch
from score_support import merged, noise
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet.score.tta import TestTimeAugmentation


class Colours(nn.Module):
    """Logits are the means of the channels of the left half and of the right half."""

    def forward(self, images):
        left, right = images.chunk(2, -1)
        return 30 * torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1)


@pytest.mark.parametrize("merge", ["mean", "gmean", "vote"])
def test_the_wrapper_gives_the_merged_prediction_of_its_views(merge):
    images = noise(6, 3, 48, 48)
    found = TestTimeAugmentation(Colours(), "flip+scales:48,64", merge)(images)
    each = [
        torch.log_softmax(Colours()(tv.resize(seen, [side, side], antialias=True)), 1)
        for seen in (images, images.flip(-1))
        for side in (48, 64)
    ]
    np.testing.assert_allclose(found, merged(merge, np.stack(each)), rtol=1e-4, atol=1e-5)
    assert (found.exp().sum(1) - 1).abs().max() < 1e-5
    buffer = io.BytesIO()
    torch.save(TestTimeAugmentation(nn.Flatten(), "flip+rotate"), buffer)  # can be pickled
