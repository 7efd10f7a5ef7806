"""Random probabilities and images, and sets of views, for the tests of tinynet.score."""

import numpy as np
import torch
from hypothesis import settings
from scipy.special import log_softmax

from tinynet.score import merges

quickly = settings(max_examples=25, deadline=None)


def log_probabilities(seed, count=40, classes=7, views=None):
    draw = np.random.RandomState(seed)
    shape = (count, classes) if views is None else (views, count, classes)
    return log_softmax(3 * draw.randn(*shape), axis=-1).astype(np.float32), draw.randint(
        0, classes, count
    )


def merged(name, found):
    return merges.get(name)(torch.from_numpy(found.copy())).numpy()


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


SETS = [
    "none",
    "flip",
    "five",
    "ten",
    "shift",
    "shift:3",
    "rotate",
    "rotate:7.5",
    "zoom",
    "scales:48,64,100",
    "flip+shift+rotate",
    "resize:73+five+flip",
    "zoom+ten",
    "dense:96",
]
