"""What the decoder is trained to write: lanes as ids, rows and masks, in writing order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.config import TrainConfig
from model.tokenizer import lane_to_rows, make_tokenizer, row_positions


@dataclass(frozen=True)
class Targets:
    """The lanes of n images in L slots of T steps.

    A present lane reads: lead (blanks), point, ..., point, first_end, nothing. An absent lane ends
    at once: first_end at step 0, lead after it.
    """

    x: Float[Tensor, "n L T"]
    """px, nan where there is no point"""
    ids: Int[Tensor, "n L T"]
    y: Int[Tensor, "n L T"]
    """the step where there is a point, T where not"""
    present: Bool[Tensor, "n L"]
    point: Bool[Tensor, "n L T"]
    first_end: Bool[Tensor, "n L T"]
    lead: Bool[Tensor, "n L T"]

    def select(self, indices: Sequence[int] | Int[Tensor, " k"]) -> Targets:
        """Take the images `indices`, in their order."""
        at = torch.as_tensor(indices, dtype=torch.long)
        return Targets(*(getattr(self, field.name)[at] for field in fields(self)))


def make_targets(lanes: Sequence[Sequence[np.ndarray]], config: TrainConfig) -> Targets:
    """Write each image's lanes, polylines (P, 2) in input px, into its slots in their order.

    A lane that meets no row takes no slot. With `data.lane_order` ego every entry has its slot, and
    an empty polyline (0, 2) leaves it empty.

    Raises:
        ValueError: an image has more lanes than `data.max_lanes`.
    """
    slots, T = config.data.max_lanes, config.tokenizer.n_rows
    rows = row_positions(config.tokenizer, config.data.height)
    x = np.full((len(lanes), slots, T), np.nan)
    for image, polylines in enumerate(lanes):
        read = [lane_to_rows(lane, rows, config.data.width) for lane in polylines]
        keep = config.data.lane_order == "ego"
        seen = [row for row in read if keep or not np.isnan(row).all()]
        if len(seen) > slots:
            raise ValueError(f"image {image} has {len(seen)} lanes, data.max_lanes is {slots}")
        x[image, : len(seen)] = np.array(seen).reshape(-1, T)
    return targets_of(torch.from_numpy(x).float(), config)


def targets_of(x: Float[Tensor, "n L T"], config: TrainConfig) -> Targets:
    """Make the targets of lanes given as x px at the rows, nan where there is no point."""
    T = x.shape[-1]
    point = ~x.isnan()
    present = point.any(-1)
    seen = point.cumsum(-1)
    after = ~point & (seen == seen[..., -1:])  # absent lanes: all steps
    first_end = after & (after.cumsum(-1) == 1)
    return Targets(
        x=x,
        ids=make_tokenizer(config.tokenizer, config.data.width).encode(x),
        y=torch.where(point, torch.arange(T), T),
        present=present,
        point=point,
        first_end=first_end,
        lead=~point & ~first_end & ((seen == 0) | ~present[..., None]),
    )
