"""Visual tokens: the frozen pyramid of an image as what the decoder may look at.

Tokens are channel-first, (B, D, N), as the features are: nothing is transposed on the way. N runs
over the levels used, finest first, and over each level's cells row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.config import TrainConfig
from model.matmul import Linear, project
from model.neck import Convolution
from model.positions import LEVELS, STRIDES, Grid, codes, make_grids, sharp, weak

Statistics = Sequence[tuple[Float[Tensor, " _c"], Float[Tensor, " _c"]]]
"""mean and std per channel of P3, P4, P5 over the training images"""


@dataclass(frozen=True)
class Tokens:
    """The visual tokens of B images, what they show apart from where they are."""

    content: Float[Tensor, "B D N"]
    position: Float[Tensor, "*B D N"]
    """position and level embedding, to be added to the content"""
    place: Float[Tensor, "D N"] | None
    """aligned: the code of a token's place that keys share with queries"""
    padding: Bool[Tensor, "B N"] | None
    """True: not a token"""

    def values(self) -> Float[Tensor, "B D N"]:
        """Give what the decoder reads."""
        return self.content + self.position


class VisualEncoder(nn.Module):
    """Norm, projection, position and level embedding per level; all levels side by side."""

    def __init__(
        self, config: TrainConfig, channels: tuple[int, int, int], statistics: Statistics | None
    ) -> None:
        super().__init__()
        D, position = config.model.d_model, config.visual.position
        self.grids = make_grids(config)
        self.fold = config.visual.fold
        if self.fold:
            channels, statistics = folded(channels, statistics, LEVELS[config.visual.levels])
        self.levels = nn.ModuleDict(
            {
                f"p{3 + grid.level}": Level(
                    config,
                    grid,
                    channels[grid.level],
                    statistics[grid.level] if statistics else None,
                )
                for grid in self.grids
            }
        )
        added = place = torch.zeros(D, 1)
        if position in ("sinusoidal", "aligned"):
            added = codes(sharp(D, config.data.width), self.grids)
        elif position == "weak":
            added = codes(weak(D, config.data.height, config.data.width), self.grids)
        if position == "aligned":
            heads = config.model.cross_heads or config.model.n_heads
            place = codes(sharp(D, config.data.width, heads), self.grids)
        self.aligned = position == "aligned"
        self.register_buffer("added", added, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(
        self,
        features: Sequence[Float[Tensor, "B _c _h _w"]],
        padding: Bool[Tensor, "B N"] | None = None,
    ) -> Tokens:
        if padding is not None and bool(padding.all(dim=1).any()):
            raise ValueError("padding leaves an image without a visual token")
        if self.fold:
            features = [fold(features)]
        content, positions = [], []
        for level, feature in zip(self.levels.values(), features, strict=True):
            assert isinstance(level, Level)
            content.append(level(feature))
            positions.append(level.position())
        position = torch.cat(positions, dim=-1) + self.get_buffer("added")
        place = self.get_buffer("place") if self.aligned else None
        return Tokens(torch.cat(content, dim=-1), position, place, padding)


class Level(nn.Module):
    """One pyramid level: h = proj(scale * norm(f)), h + MLP(h) with `residual`, then the neck."""

    def __init__(
        self,
        config: TrainConfig,
        grid: Grid,
        channels: int,
        statistics: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__()
        visual, D = config.visual, config.model.d_model
        self.grid = grid
        self.kind, self.scale = visual.norm, visual.scale
        self.norm = nn.LayerNorm(channels) if visual.norm == "layernorm" else None
        if visual.norm == "standardize":  # nan until given here or loaded from a state dict
            mean, std = statistics or (torch.full((channels,), torch.nan),) * 2
            self.register_buffer("mean", mean.detach().clone().float())
            self.register_buffer("std", std.detach().clone().float())
        self.projection = Linear(channels, D)
        self.residual = visual.residual
        if visual.residual:
            self.grow, self.shrink = Linear(D, config.model.d_ff), Linear(config.model.d_ff, D)
        self.neck = nn.Sequential(*(Convolution(D) for _ in range(visual.neck)))
        self.embedding = nn.Embedding(1, D) if visual.level_embedding else None
        self.places = None
        if visual.position == "learned":
            stride = STRIDES[grid.level]
            self.places = LearnedPlaces(
                config.data.height // stride, config.data.width // stride, grid.step, D
            )

    def forward(self, feature: Float[Tensor, "B c _h _w"]) -> Float[Tensor, "B D n"]:
        f = feature[..., :: self.grid.step, :: self.grid.step].flatten(2)
        if f.shape[-1] != self.grid.cells:
            raise ValueError(
                f"P{3 + self.grid.level} has {tuple(feature.shape[-2:])} cells, not those of "
                f"data.height and data.width"
            )
        weight, bias = self.projection.weight * self.scale, self.projection.bias
        if self.norm is not None:
            # The norm's gain and offset are laid into the projection: features need no gradient,
            # so that a step never goes back through as many numbers as the pyramid has.
            f = _normalise(f, self.norm.eps)
            bias = bias + (weight @ self.norm.bias[..., None])[..., 0]
            weight = weight * self.norm.weight[..., None, :]
        elif self.kind == "standardize":
            mean, std = self.get_buffer("mean"), self.get_buffer("std")
            f = (f - mean[:, None]) / std.clamp(min=1e-6)[:, None]
        h = project(weight, f) + self.column(bias)
        if self.residual:
            hidden = F.gelu(project(self.grow.weight, h) + self.column(self.grow.bias))
            h = h + project(self.shrink.weight, hidden) + self.column(self.shrink.bias)
        if not self.neck:
            return h
        return self.neck(h.unflatten(-1, (self.grid.height, self.grid.width))).flatten(2)

    def column(self, vector: Float[Tensor, " D"]) -> Float[Tensor, "D 1"]:
        """Lay a vector along the channels (a stack of models: that of each image's model)."""
        return vector[:, None]

    def position(self) -> Float[Tensor, "D n"]:
        """Give what is learned of where a cell is: its level, and its place with `learned`."""
        position = self.projection.bias.new_zeros(self.projection.out_features, self.grid.cells)
        if self.embedding is not None:
            position = position + self.embedding.weight.T
        return position if self.places is None else position + self.places()


def fold(features: Sequence[Float[Tensor, "B _c _h _w"]]) -> Float[Tensor, "B C h w"]:
    """Lay the cells of finer levels that lie in a P5 cell beside its channels (space to depth)."""
    height = features[-1].shape[-2]
    return torch.cat([F.pixel_unshuffle(f, f.shape[-2] // height) for f in features], dim=1)


def folded(
    channels: tuple[int, int, int], statistics: Statistics | None, levels: Sequence[int]
) -> tuple[tuple[int, int, int], Statistics | None]:
    """Give `channels` and `statistics` as they are of P5 after `fold`."""
    cells = [(STRIDES[-1] // STRIDES[level]) ** 2 for level in levels]
    total = sum(n * channels[level] for n, level in zip(cells, levels, strict=True))
    if statistics is not None:
        mean, std = (
            torch.cat(
                [
                    statistics[level][moment].repeat_interleave(n)
                    for n, level in zip(cells, levels, strict=True)
                ]
            )
            for moment in (0, 1)
        )
        statistics = (*statistics[:2], (mean, std))
    return (*channels[:2], total), statistics


class LearnedPlaces(nn.Module):
    """A learned vector per row and per column of the whole level, added up for the cells kept."""

    def __init__(self, height: int, width: int, step: int, d_model: int) -> None:
        super().__init__()
        self.step = step
        self.rows = nn.Parameter(torch.empty(height, d_model))
        self.columns = nn.Parameter(torch.empty(width, d_model))

    def first_values(self) -> dict[str, float]:
        """Make a cell's first vector as long as its sinusoid would be."""
        return {"rows": 0.5, "columns": 0.5}

    def forward(self) -> Float[Tensor, "D n"]:
        rows, columns = self.rows[:: self.step], self.columns[:: self.step]
        return (rows[:, None] + columns).flatten(0, 1).T


def _normalise(f: Float[Tensor, "B c n"], eps: float) -> Float[Tensor, "B c n"]:
    """Do LayerNorm's first half over the channels (written out: 16 times faster channel-first)."""
    f = f - f.mean(1, keepdim=True)
    return f * ((f * f).mean(1, keepdim=True) + eps).rsqrt()
