"""Image folders with classes of ImageNet, and a small network that has its 1,000 classes."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as tv

from tinynet.data.image_folder import imagenet_wnids, labelled_images
from tinynet.models.pretrained import Pretrained


def draw_square(path, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (colour, 90, 20)).save(path)
    return path


IMAGENET_WNIDS = imagenet_wnids()


TREE_CLASSES = [IMAGENET_WNIDS[i] for i in (3, 500, 999)]


SMALL_ARCH = "shufflenet_v2_x0_5"


def draw_noise(path, sides=(90, 70), seed=0, **how):
    """A image of coarse noise."""
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC).save(path, **how)


class CellMeans(nn.Module):
    """1000 logits that depend on every pixel: weighted means of a few cells of the image."""

    def __init__(self, classes=1000):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(classes, 48, generator=torch.Generator().manual_seed(1))
        )
        if classes == 1000:  # most others are never said, so that some images are right
            self.weight.data[[k for k in range(1000) if k not in (3, 107, 500, 999)]] *= 0.01

    def forward(self, images):
        return 3 * nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.weight.T


def by_hand(
    tree, views, mode="shorter", interpolation=tv.InterpolationMode.BILINEAR, resize=64, size=56
):
    """Mean probabilities, one image at a time, with torchvision's own transforms."""
    found = labelled_images(tree, IMAGENET_WNIDS)
    model = Pretrained(CellMeans(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    rows = []
    for file in found.files:
        side = resize if mode == "shorter" else [resize, resize]
        image = tv.resize(Image.open(file).convert("RGB"), side, interpolation)
        crops = tv.ten_crop(image, size) if views == "ten" else [tv.center_crop(image, size)]
        with torch.inference_mode():
            seen = torch.stack([tv.to_dtype(tv.to_image(one), scale=True) for one in crops])
            rows.append(model(seen).softmax(1).mean(0))
    return torch.stack(rows), torch.tensor(found.labels)
