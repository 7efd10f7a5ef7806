"""Digests of weights, which identify networks in caches and checkpoints."""

import hashlib

from torch import nn


def weights_digest(module: nn.Module, salt: str = "") -> str:
    """Return 16 hex digits of the SHA-256 of all weights and buffers, their names and `salt`."""
    sha256 = hashlib.sha256(salt.encode())
    for name, tensor in sorted(module.state_dict().items()):
        sha256.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()[:16]
