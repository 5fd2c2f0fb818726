"""Visual tokens: the frozen pyramid of an image as what the decoder may look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.config import TrainConfig
from model.positions import sharp

LEVELS: dict[str, tuple[int, ...]] = {"p5": (2,), "p4p5": (1, 2), "full": (0, 1, 2)}
"""`visual.levels` as indices of P3, P4, P5"""
STRIDES = (8, 16, 32)
"""px between neighbouring cells of P3, P4, P5"""


@dataclass(frozen=True)
class Grid:
    """The cells of one level that become tokens, row by row."""

    level: int
    height: int
    """rows kept"""
    width: int
    """columns kept"""
    step: int
    """every step-th row and column of the level is kept"""

    @property
    def cells(self) -> int:
        return self.height * self.width

    def rows(self) -> Float[Tensor, " height"]:
        """Give the y px of the middle of each row of cells."""
        return (torch.arange(self.height) * self.step + 0.5) * STRIDES[self.level]

    def columns(self) -> Float[Tensor, " width"]:
        """Give the x px of the middle of each column of cells."""
        return (torch.arange(self.width) * self.step + 0.5) * STRIDES[self.level]


def make_grids(config: TrainConfig) -> tuple[Grid, ...]:
    """Give the grid of each level used, finest first."""
    grids = []
    for level in LEVELS[config.visual.levels]:
        step = config.visual.stride if level < 2 else 1
        height, width = config.data.height // STRIDES[level], config.data.width // STRIDES[level]
        grids.append(Grid(level, -(-height // step), -(-width // step), step))
    return tuple(grids)


def visual_tokens(config: TrainConfig) -> int:
    """Count the tokens of an image that the decoder may look at."""
    cells = sum(grid.cells for grid in make_grids(config))
    return cells if config.visual.select == "none" else min(cells, config.visual.select_tokens)


@dataclass(frozen=True)
class Tokens:
    """The visual tokens of B images."""

    values: Float[Tensor, "B N D"]
    place: Float[Tensor, "#B N D"] | None
    """aligned: the code of each token's place, for keys"""
    padding: Bool[Tensor, "B N"] | None
    """True: not a token"""


class VisualEncoder(nn.Module):
    """Per level: norm, projection, position and level embedding; then all levels in one row."""

    def __init__(self, config: TrainConfig, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = config.visual
        self.grids = make_grids(config)
        D = config.model.d_model
        self.norms = nn.ModuleDict(
            {str(g.level): nn.LayerNorm(channels[g.level]) for g in self.grids}
        )
        self.projections = nn.ModuleDict(
            {str(g.level): nn.Linear(channels[g.level], D) for g in self.grids}
        )
        self.level_embedding = nn.Embedding(3, D) if self.config.level_embedding else None
        for grid in self.grids:
            basis = sharp(D, config.data.width)
            place = basis.rows(grid.rows())[:, None] + basis.columns(grid.columns())
            self.register_buffer(f"place{grid.level}", place.flatten(0, 1), persistent=False)

    def forward(
        self,
        features: list[Float[Tensor, "B _C _h _w"]],
        padding: Bool[Tensor, "B N"] | None = None,
    ) -> Tokens:
        rows = []
        for grid, feature in zip(self.grids, features, strict=True):
            f = feature[..., :: grid.step, :: grid.step].flatten(2).transpose(1, 2)  # (B, N, C)
            h = self.projections[str(grid.level)](self.norms[str(grid.level)](f))
            h = h + self.get_buffer(f"place{grid.level}")
            if self.level_embedding is not None:
                h = h + self.level_embedding.weight[grid.level]
            rows.append(h)
        return Tokens(torch.cat(rows, dim=1), None, padding)
