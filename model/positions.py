"""Where things are: the grids of cells, and places in px as sinusoids.

A code of d numbers is made of d / 4 frequencies, each with four: sine and cosine of the row, sine
and cosine of the column. Codes add: code(row, column) = rows(row) + columns(column), each zero in
the other's places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import TrainConfig

LEVELS: dict[str, tuple[int, ...]] = {"p5": (2,), "p4p5": (1, 2), "full": (0, 1, 2)}
"""`visual.levels` as indices of P3, P4, P5"""
STRIDES = (8, 16, 32)
"""px between neighbouring cells of P3, P4, P5"""


@dataclass(frozen=True)
class Grid:
    """The cells of one pyramid level that become tokens, row by row."""

    level: int
    step: int
    """every step-th row and column of the level is kept"""
    height: int
    """rows kept"""
    width: int
    """columns kept"""

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
    """Give the grid of each level that becomes tokens, finest first (with `fold`: P5 alone)."""
    grids = []
    for level in LEVELS["p5" if config.visual.fold else config.visual.levels]:
        step = config.visual.stride if level < 2 else 1  # P5 is kept whole
        height, width = config.data.height // STRIDES[level], config.data.width // STRIDES[level]
        grids.append(Grid(level, step, -(-height // step), -(-width // step)))
    return tuple(grids)


@dataclass(frozen=True)
class Basis:
    """Wavelengths in geometric steps per axis; `heads` equal slices of a code get an even mix."""

    d: int
    row: tuple[float, float]
    """shortest and longest wavelength, px"""
    column: tuple[float, float]
    heads: int = 1

    def rows(self, y: Float[Tensor, "*points"]) -> Float[Tensor, "*points d"]:
        """Give the part of the code that the row y (px) makes."""
        return self._code(y, self.row, axis=0)

    def columns(self, x: Float[Tensor, "*points"]) -> Float[Tensor, "*points d"]:
        """Give the part of the code that the column x (px) makes."""
        return self._code(x, self.column, axis=1)

    def _code(self, at: Tensor, wavelengths: tuple[float, float], axis: int) -> Tensor:
        n = self.d // 4
        order = sorted(range(n), key=lambda i: (i % self.heads, i))
        shortest, longest = wavelengths
        steps = torch.tensor(order, device=at.device) / max(n - 1, 1)
        angle = at[..., None] * (2 * math.pi / shortest) * (shortest / longest) ** steps
        code = at.new_zeros(*at.shape, n, 2, 2)
        code[..., axis, 0], code[..., axis, 1] = angle.sin(), angle.cos()
        return code.flatten(-3)


def sharp(d: int, width: int, heads: int = 1) -> Basis:
    """Tell P3's neighbours apart (two cells a period) and stay unique over the image."""
    wavelengths = (2.0 * STRIDES[0], 2.0 * width)
    return Basis(d, wavelengths, wavelengths, heads)


def weak(d: int, height: int, width: int) -> Basis:
    """Legacy: the shortest period is the whole image, so that neighbours look the same."""
    return Basis(d, (1.0 * height, 1e4 * height), (1.0 * width, 1e4 * width))


def codes(basis: Basis, grids: Sequence[Grid]) -> Float[Tensor, "d N"]:
    """Give the code of every cell, channel-first."""
    each = [
        (basis.rows(grid.rows())[:, None] + basis.columns(grid.columns())).flatten(0, 1)
        for grid in grids
    ]
    return torch.cat(each).T.contiguous()
