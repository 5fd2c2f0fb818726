"""The neck: trained convolutions over the tokens of a frozen pyramid, before they are looked at.

A backbone that was trained to name objects does not say where a lane is; a detector's does, which
is what LaneLM's paper freezes. The neck is that part, trained with the decoder.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Convolution(nn.Module):
    """h + mix(gelu(norm(conv3x3(h)))); the norm is over all of an image's cells and channels."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(d_model, d_model, 3, padding=1)
        self.norm = nn.GroupNorm(1, d_model)
        self.mix = nn.Conv2d(d_model, d_model, 1)

    def forward(self, h: Float[Tensor, "B D height width"]) -> Float[Tensor, "B D height width"]:
        return h + self.mix(F.gelu(self.norm(self.spread(h))))
