"""Digests of weights, which tell networks apart in caches and checkpoints."""

import hashlib

from torch import nn


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over all weights and buffers, with their names."""
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        whole.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]
