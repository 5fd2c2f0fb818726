"""First values of the parameters, each drawn from (seed, its name) alone.

Two models that differ in one part therefore share every other parameter bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02


@runtime_checkable
class SetsOwn(Protocol):
    """A module that sets some of its own parameters itself."""

    def first_values(self) -> dict[str, Tensor]:
        """Give first values by parameter name; the others are drawn."""
        ...


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter of `model` in place.

    Norms start as the identity and biases at 0. A matrix (out, in) gets variance 1 / in, so that
    what it writes has the scale of what it reads; an embedding's rows are small.
    """
    for path, module in model.named_modules():
        own = module.first_values() if isinstance(module, SetsOwn) else {}
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if leaf in own:
                parameter.copy_(own[leaf])
            elif parameter.ndim == 1:
                parameter.fill_(1.0 if isinstance(module, nn.LayerNorm) and leaf == "weight" else 0)
            else:
                small = isinstance(module, nn.Embedding)
                std = EMBEDDING_STD if small else 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_(torch.randn(parameter.shape, generator=stream(seed, name)) * std)


def stream(seed: int, name: str) -> torch.Generator:
    """Make the random stream that belongs to (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
