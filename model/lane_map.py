"""The lane map: each visual token says where in its cell a lane passes, as one more loss.

A lane's tokens teach the neck one place at a time; the map teaches it all places of an image at
once, as the segmentation loss of CLRNet does (Zheng et al., 2022), whose features LaneLM's paper
freezes. Decoding does not read the map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import TrainConfig
from model.positions import STRIDES, make_grids
from model.targets import Targets
from model.tokenizer import row_positions

ROW, COLUMN = 8, 4
"""px between neighbouring places of the map; both divide every stride"""
RARE = -4.0
"""logit of a lane before training (1.8 %), so that the many places without one do not swamp it"""
SPREAD = (0.25, 0.5, 1.0, 0.5, 0.25)
"""target of the places beside a lane's own, in its row"""


class _Head(nn.Conv2d):
    """Of each token the places in its cell, row by row."""

    def __init__(self, d_model: int, stride: int) -> None:
        super().__init__(d_model, stride // ROW * (stride // COLUMN), 1)
        self.inside = stride // ROW, stride // COLUMN

    def first_values(self) -> Mapping[str, Tensor | float]:
        return {"bias": torch.tensor(RARE)}

    def forward(self, input: Float[Tensor, "B D h w"]) -> Float[Tensor, "B rows columns"]:
        places = super().forward(input).unflatten(1, self.inside)  # (B, r, c, h, w)
        return places.permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)


class LaneMap(nn.Module):
    """A norm and a linear head per level, and the loss of what they say."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config, self.grids = config, make_grids(config)
        D = config.model.d_model
        self.norms = nn.ModuleList(nn.GroupNorm(1, D) for _ in self.grids)
        self.heads = nn.ModuleList(_Head(D, STRIDES[grid.level]) for grid in self.grids)

    def forward(self, content: Float[Tensor, "B D N"]) -> list[Float[Tensor, "B rows columns"]]:
        """Give each level's logits of a lane at the places ROW and COLUMN px apart."""
        levels = content.split([grid.cells for grid in self.grids], dim=-1)
        return [
            head(norm(level.unflatten(-1, (grid.height, grid.width))))
            for grid, norm, head, level in zip(
                self.grids, self.norms, self.heads, levels, strict=True
            )
        ]

    def loss(self, content: Float[Tensor, "B D N"], targets: Targets) -> Float[Tensor, ""]:
        """Give the mean binary cross-entropy over the places of all levels."""
        lanes = mapped(targets.x, self.config)
        losses = [
            F.binary_cross_entropy_with_logits(logits.float(), lanes) for logits in self(content)
        ]
        return torch.stack(losses).mean()


def mapped(x: Float[Tensor, "n L T"], config: TrainConfig) -> Float[Tensor, "n rows columns"]:
    """Draw lanes (px at the tokens' rows, nan where there is no point) as the target of the map.

    Between two rows that hold a point a lane is straight; it is drawn nowhere else.
    """
    data = config.data
    rows, columns = data.height // ROW, data.width // COLUMN
    y = torch.from_numpy(row_positions(config.tokenizer, data.height)).to(x)  # px, writing order
    if y[0] > y[-1]:
        x, y = x.flip(-1), y.flip(-1)
    asked = torch.arange(rows, device=x.device, dtype=x.dtype) * ROW
    after = torch.searchsorted(y, asked).clamp(max=len(y) - 1)  # the first row not above it
    before = torch.where(y[after] == asked, after, (after - 1).clamp(min=0))
    gap = (y[after] - y[before]).clamp(min=1e-6)
    at = torch.lerp(x[..., before], x[..., after], ((asked - y[before]) / gap).clamp(0, 1))
    at = torch.where(asked > y[-1], torch.nan, at)  # (n, L, rows)
    lanes = torch.zeros(len(x), rows, columns, device=x.device)
    image, lane, row = (~at.isnan()).nonzero(as_tuple=True)
    lanes[image, row, (at[image, lane, row] / COLUMN).long().clamp(0, columns - 1)] = 1.0
    kernel = torch.tensor(SPREAD, device=x.device).view(1, 1, -1)
    wide = F.conv1d(lanes.flatten(0, 1)[:, None], kernel, padding=len(SPREAD) // 2)
    return wide.view_as(lanes).clamp(max=1.0)
