"""A lane as tokens: the id space, and every mode's encode beside its decode.

    0                               no point at this row; after a point: the lane has ended
    1 .. n_bins - 1                 absolute bins; they tile the width, a point decodes to the
                                    middle of its bin
    n_bins .. n_bins + 2 max_abs_dx relative modes: n_bins + max_abs_dx + the step in bins from the
                                    previous point
    vocab                           start of a lane (input only)

A relative lane's first point is absolute. All arrays are in writing order: index t is the
t-th row written, whichever end of the image that is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.config import TokenizerConfig


def row_positions(config: TokenizerConfig, height: int) -> np.ndarray:
    """Give the y (px) of each row in writing order, shape (T,)."""
    rows = height / config.n_rows * np.arange(config.n_rows)
    return rows if config.row_order == "top_down" else rows[::-1].copy()


def lane_to_rows(lane: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """Read a polyline (P, 2) of x, y px at the rows (T,): x px, nan where there is no point.

    There is a point where the row lies within the lane's own y range and 0 <= x < width. A lane
    that leaves the image and comes back keeps its longest run, so that support is contiguous.
    """
    x = np.full(len(rows), np.nan)
    if len(lane) == 0:
        return x
    lane = lane[np.argsort(lane[:, 1], kind="stable")]
    inside = (rows >= lane[0, 1]) & (rows <= lane[-1, 1])
    x[inside] = np.interp(rows[inside], lane[:, 1], lane[:, 0])
    valid = np.flatnonzero((x >= 0) & (x < width))
    runs = np.split(valid, np.flatnonzero(np.diff(valid) > 1) + 1)
    keep = max(runs, key=len)
    return np.where(np.isin(np.arange(len(rows)), keep), x, np.nan)


class Tokenizer(ABC):
    """What the modes share: bins, and reading ids back as bins and px."""

    def __init__(self, config: TokenizerConfig, width: int) -> None:
        self.n_bins, self.n_rows, self.max_abs_dx = config.n_bins, config.n_rows, config.max_abs_dx
        self.vocab = config.n_bins
        self.width = width
        self.bin_width = width / (config.n_bins - 1)
        """px"""
        self.bound_px = self.bin_width / 2
        """Largest round-trip error (px) the mode claims for a lane whose steps fit max_abs_dx."""

    @property
    def bos(self) -> int:
        """The id that starts a lane; an input only, never a target."""
        return self.vocab

    @abstractmethod
    def encode(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        """Turn x px (nan: no point) into ids."""

    @abstractmethod
    def walk(self, ids: Int[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        """Give the bin each id stands for in its lane, 0 where it is no point; any ids will do."""

    def ends(
        self, ids: Int[Tensor, "*lanes T"]
    ) -> tuple[Bool[Tensor, "*lanes T"], Int[Tensor, "*lanes T"]]:
        """Mark the points, and count the blanks after a point up to and including each step.

        A lane ends at the first of them, as `LaneLM.generate` writes it.
        """
        point = self.walk(ids) > 0
        return point, ((point.cumsum(-1) > 0) & ~point).cumsum(-1)

    def decode(self, ids: Int[Tensor, "*lanes T"]) -> Float[Tensor, "*lanes T"]:
        """Turn any ids into x px, nan where there is no point."""
        bins = self.walk(ids)
        return self.centres(bins).masked_fill(bins == 0, math.nan)

    def columns(self, ids: Int[Tensor, "*lanes T"]) -> Float[Tensor, "*lanes T"]:
        """Give the x px of the last point written up to and including each step, -1 before any."""
        bins = self.walk(ids)
        last = _last_index(bins > 0)
        x = self.centres(bins.gather(-1, last.clamp(min=0)))
        return x.masked_fill(last < 0, -1.0)

    def bins(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        """Give each x its bin, 1 .. n_bins - 1, and nan 0."""
        bins = (x.nan_to_num() / self.bin_width).floor().long() + 1
        return bins.clamp(1, self.n_bins - 1).masked_fill(x.isnan(), 0)

    def centres(self, bins: Int[Tensor, "*lanes T"]) -> Float[Tensor, "*lanes T"]:
        """Give the x px in the middle of each bin, of which 0 has none."""
        return (bins - 0.5) * self.bin_width


class Absolute(Tokenizer):
    """Every point is its bin."""

    def encode(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        return self.bins(x)

    def walk(self, ids: Int[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        return ids * ((ids > 0) & (ids < self.vocab))


class RelativeDisjoint(Tokenizer):
    """The first point is its bin, each later one its step from where decoding stands (closed loop).

    Because a step is taken from the decoded point, rounding never adds up, and a step that was
    clipped to max_abs_dx is made good by the next ones.
    """

    def __init__(self, config: TokenizerConfig, width: int) -> None:
        super().__init__(config, width)
        self.vocab = config.n_bins + 2 * config.max_abs_dx + 1

    def encode(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        bins = self.bins(x)
        ids = torch.zeros_like(bins)
        at = torch.zeros_like(bins[..., 0])  # the decoded bin of the previous row, 0: none
        for t in range(bins.shape[-1]):
            point = bins[..., t] > 0
            step = (bins[..., t] - at).clamp(-self.max_abs_dx, self.max_abs_dx)
            first = point & (at == 0)
            ids[..., t] = torch.where(first, bins[..., t], self.step_id(step)) * point
            at = torch.where(first, bins[..., t], at + step) * point
        return ids

    def walk(self, ids: Int[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        """Row after row: `at` becomes the bin of an absolute id, or at + step inside the image.

        Each row does clamp(at + step, low, high), and one such after another is another such: all
        rows are found in log2(T) rounds that each double the reach.
        """
        absolute = (ids > 0) & (ids < self.n_bins)
        relative = (ids >= self.n_bins) & (ids < self.vocab)
        step = torch.where(relative, ids - self.n_bins - self.max_abs_dx, 0)
        low, high = torch.where(absolute, ids, 1), torch.where(absolute, ids, self.n_bins - 1)
        reach = 1
        while reach < ids.shape[-1]:
            before, floor, roof = (
                F.pad(value[..., :-reach], (reach, 0), value=nothing)
                for value, nothing in ((step, 0), (low, 1), (high, self.n_bins - 1))
            )
            low, high = (floor + step).clamp(low, high), (roof + step).clamp(low, high)
            step, reach = before + step, 2 * reach
        point = _last_index(absolute) > _last_index(~(absolute | relative))  # else a step from none
        return low * point

    def step_id(self, step: Int[Tensor, "*lanes"]) -> Int[Tensor, "*lanes"]:
        """Give the id of a step in bins."""
        return step + self.n_bins + self.max_abs_dx


class RelativeOpenLoop(RelativeDisjoint):
    """Legacy: steps from the *true* previous x, so that rounding drifts along the lane."""

    def encode(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        bins = self.bins(x)
        previous = torch.cat([torch.full_like(x[..., :1], math.nan), x[..., :-1]], dim=-1)
        step = ((x - previous) / self.bin_width).nan_to_num().round().long()
        step = step.clamp(-self.max_abs_dx, self.max_abs_dx)
        return torch.where(previous.isnan(), bins, self.step_id(step)) * (bins > 0)


class RelativeClamped(RelativeDisjoint):
    """Legacy: codes clamped to n_bins - 1 after the offset was added: every step is one token."""

    def encode(self, x: Float[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
        return super().encode(x).clamp(max=self.n_bins - 1)


MODES: dict[str, type[Tokenizer]] = {
    "absolute": Absolute,
    "relative_disjoint": RelativeDisjoint,
    "relative_open_loop": RelativeOpenLoop,
    "relative_clamped": RelativeClamped,
}


def make_tokenizer(config: TokenizerConfig, width: int) -> Tokenizer:
    """Make the tokenizer of `config` for images `width` px wide."""
    return MODES[config.mode](config, width)


def _last_index(mask: Bool[Tensor, "*lanes T"]) -> Int[Tensor, "*lanes T"]:
    """Give the index of the last True up to and including each step, -1 before any."""
    steps = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, steps, -1).cummax(-1).values
