"""Merges: functions that combine the probabilities of several views into one per image.

A merge maps log-probabilities (V, N, C) of V views to normalised log-probabilities (N, C). In the
log domain very small probabilities do not underflow. Merges reject logits and probabilities.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinynet.errors import InputError

Merge = Callable[[Tensor], Tensor]
_LOG_ZERO = -1e30  # replaces -inf: log_softmax would be NaN if views ruled out every class


def mean(log_probabilities: Tensor) -> Tensor:
    """Average the probabilities. `sum` is the same merge, because the sum is normalised."""
    _check(log_probabilities)
    return torch.logsumexp(log_probabilities, 0) - math.log(len(log_probabilities))


def gmean(log_probabilities: Tensor) -> Tensor:
    """Take the geometric mean: a view can rule out a class."""
    return torch.log_softmax(_check(log_probabilities).clamp_min(_LOG_ZERO).mean(0), 1)


def maximum(log_probabilities: Tensor) -> Tensor:
    """Take the greatest probability over views, renormalised."""
    return torch.log_softmax(_check(log_probabilities).amax(0), 1)


def vote(log_probabilities: Tensor) -> Tensor:
    """Let each view vote for its most probable class; the mean probability breaks ties.

    The result is (votes + mean probability) / (V + 1).
    """
    views, _, classes = _check(log_probabilities).shape
    votes = torch.nn.functional.one_hot(log_probabilities.argmax(2), classes).sum(0)
    return torch.logaddexp(
        votes.to(log_probabilities.dtype).log(), mean(log_probabilities)
    ) - math.log(views + 1)


def sharpen(log_probabilities: Tensor, temperature: float = 0.5) -> Tensor:
    """Average p^(1/temperature), renormalised per view.

    With a temperature below 1, confident views have more influence.
    """
    return mean(torch.log_softmax(_check(log_probabilities) / temperature, 2))


MERGES: dict[str, Merge] = {
    "mean": mean,
    "sum": mean,
    "gmean": gmean,
    "max": maximum,
    "vote": vote,
    "sharpen": sharpen,
}


def get(name: str) -> Merge:
    """Return the merge `name`; raise `InputError` if it does not exist."""
    if not isinstance(name, str) or name not in MERGES:
        raise InputError(f"merge {name!r}: does not exist; use one of {', '.join(MERGES)}")
    return MERGES[name]


def _check(log_probabilities: Tensor) -> Tensor:
    """Return the argument; raise `InputError` if it cannot be log-probabilities (V, N, C)."""
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
            f"merge: needs log-probabilities (views, images, classes), got a tensor of shape "
            f"{tuple(log_probabilities.shape)} {values}; apply log_softmax to logits, or log to "
            "probabilities"
        )
    return log_probabilities
