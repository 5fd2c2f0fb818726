"""First values of the parameters, each drawn from (seed, its name) alone.

Two models that differ in one part therefore share every other parameter bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02


@runtime_checkable
class HasFirstValues(Protocol):
    """A module that knows better than the rules below how some of its own parameters start."""

    def first_values(self) -> Mapping[str, Tensor | float]:
        """Give by parameter name a first value, or the standard deviation to draw it with."""
        ...


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter of `model` in place, on the CPU so that devices agree.

    Norms start as the identity and biases at 0. A matrix (out, in) gets variance 1 / in (of a
    convolution, all of its window), so that what it writes has the scale of what it reads.
    Embeddings are small: a step of the optimiser then changes much of them, which is what lets 500
    steps at 1e-4 learn an image.
    """
    for path, module in model.named_modules():
        own = _own_values(module)
        for leaf, parameter in module.named_parameters(recurse=False):
            first = own.get(leaf, _rule(module, leaf, parameter))
            if parameter.is_meta:
                continue
            if isinstance(first, Tensor):
                parameter.copy_(first)
            else:
                generator = stream(seed, f"{path}.{leaf}" if path else leaf)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * first)


def _own_values(module: object) -> Mapping[str, Tensor | float]:
    return module.first_values() if isinstance(module, HasFirstValues) else {}


def _rule(module: nn.Module, leaf: str, parameter: Tensor) -> Tensor | float:
    if parameter.ndim == 1:
        one = isinstance(module, nn.LayerNorm | nn.GroupNorm) and leaf == "weight"
        return torch.ones(()) if one else torch.zeros(())
    fan_in = math.prod(parameter.shape[1:])
    return EMBEDDING_STD if isinstance(module, nn.Embedding) else 1 / math.sqrt(fan_in)


def stream(seed: int, name: str) -> torch.Generator:
    """Make the random stream that belongs to (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
