"""Where things are, as vectors: sinusoids of row and column px.

A code of d numbers is made of d / 4 frequencies, each with four: sine and cosine of the row, sine
and cosine of the column. Codes add: code(row, column) = rows(row) + columns(column), each zero in
the other's places, so that the codes of a whole grid are two small tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FINEST_STRIDE = 8
"""px between neighbouring cells of the pyramid's finest level (P3)"""


@dataclass(frozen=True)
class Basis:
    """Wavelengths in geometric steps, per axis; `heads` equal slices of a code get an even mix."""

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
    """Tell the finest level's neighbours apart (two cells a period), unique over the image."""
    return Basis(d, (2 * FINEST_STRIDE, 2 * width), (2 * FINEST_STRIDE, 2 * width), heads)


def weak(d: int, height: int, width: int) -> Basis:
    """Legacy: the shortest period is the whole image, so that neighbours look the same."""
    return Basis(d, (height, 1e4 * height), (width, 1e4 * width))
