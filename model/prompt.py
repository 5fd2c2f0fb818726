"""Keypoints that someone else found, as the beginning that `LaneLM.generate` goes on from.

x = first_keypoints(targets.x, 2)                 # or a detector's, x px at the rows
ids = model.generate(memory, prompt=prompt_of(model.tokenizer, x))
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.tokenizer import Tokenizer

FREE = -1
"""In a prompt: the model writes this step itself."""


def first_keypoints(x: Float[Tensor, "B L T"], k: int) -> Float[Tensor, "B L T"]:
    """Keep the first k points, in writing order, of each lane: x px at the rows, nan elsewhere."""
    return torch.where((~x.isnan()).cumsum(-1) <= k, x, torch.nan)


def prompt_of(tokenizer: Tokenizer, x: Float[Tensor, "B L T"]) -> Int[Tensor, "B L k"]:
    """Turn keypoints, x px at the rows (nan: none), into a prompt for `LaneLM.generate`.

    It reaches to the last keypoint of any lane. Rows before a lane's first keypoint are given as
    blanks. Those between two keypoints and after the last are free, and so is a lane without
    keypoints; a lane that the model ends in a gap stays ended.
    """
    given = ~x.isnan()
    later = given.flip(-1).cumsum(-1).flip(-1) > 0  # at or before the last keypoint
    before = later & (given.cumsum(-1) == 0)
    ids = torch.where(given | before, tokenizer.encode(x), FREE)
    return ids[..., : int(later.any(0).any(0).sum())]
