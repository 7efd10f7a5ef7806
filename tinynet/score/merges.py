"""Probabilities of several views become one distribution a picture; nothing but probabilities comes
in.

Each merge takes log-probabilities (V, N, C), one view after another, and gives log-probabilities
(N, C) that are normalised. In the log domain a probability of 1e-30 in each of ten views stays what
it is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinynet.errors import InputError

Merge = Callable[[Tensor], Tensor]
_LEAST = -1e30  # stands for the logarithm of zero where several are added up


def mean(log_probabilities: Tensor) -> Tensor:
    """The mean probability; `sum` is the same once it is a distribution."""
    checked(log_probabilities)
    return torch.logsumexp(log_probabilities, 0) - math.log(len(log_probabilities))


def gmean(log_probabilities: Tensor) -> Tensor:
    """The geometric mean: every view can rule a class out."""
    return torch.log_softmax(checked(log_probabilities).clamp_min(_LEAST).mean(0), 1)


def maximum(log_probabilities: Tensor) -> Tensor:
    """The greatest probability that any view gives."""
    return torch.log_softmax(checked(log_probabilities).amax(0), 1)


def vote(log_probabilities: Tensor) -> Tensor:
    """Each view votes for its most probable class: (votes + mean probability) / (V + 1), so no ties
    are left.
    """
    views, _, classes = checked(log_probabilities).shape
    votes = torch.nn.functional.one_hot(log_probabilities.argmax(2), classes).sum(0)
    return torch.logaddexp(
        votes.to(log_probabilities.dtype).log(), mean(log_probabilities)
    ) - math.log(views + 1)


def sharpen(log_probabilities: Tensor, temperature: float = 0.5) -> Tensor:
    """The mean of p^(1/temperature), renormalised for each view: below 1, views that are sure count
    for more.
    """
    return mean(torch.log_softmax(checked(log_probabilities) / temperature, 2))


MERGES: dict[str, Merge] = {
    "mean": mean,
    "sum": mean,
    "gmean": gmean,
    "max": maximum,
    "vote": vote,
    "sharpen": sharpen,
}


def get(name: str) -> Merge:
    """The merge called `name`; raises `InputError` for one that there is not."""
    if name not in MERGES:
        raise InputError(f"no merge called {name!r}; there are {', '.join(MERGES)}")
    return MERGES[name]


def checked(log_probabilities: Tensor) -> Tensor:
    """The same, or `InputError` for what cannot be logarithms of probabilities."""
    if (
        log_probabilities.dim() != 3
        or not len(log_probabilities)
        or (log_probabilities > 1e-4).any()
    ):
        values = (
            f"with values up to {log_probabilities.max():.3g}"
            if log_probabilities.numel()
            else "without values"
        )
        raise InputError(
            f"merges take log-probabilities (views, pictures, classes), got a tensor of shape "
            f"{tuple(log_probabilities.shape)} {values}; of logits take log_softmax, of "
            "probabilities the logarithm"
        )
    return log_probabilities
