"""The pictures of a job: what its model writes over some images, and where it looks meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float

from model.config import TrainConfig
from model.draw import Image, Sheet, draw_attention, draw_overlay, merge_levels, tile
from model.eval_split import EvalSplit, polylines
from model.lanelm import LaneLM
from model.looking import looked_at, uniformity
from model.metrics import px_readings
from model.passes import Bank, Known, decode, evaluating, images
from model.tokenizer import row_positions

_SHEET = 1600  # px; breadth of a sheet of attention maps


def overlays(
    model: LaneLM,
    bank: Bank,
    split: EvalSplit,
    pictures: Sequence[Image],
    known: Known | None = None,
) -> list[Image]:
    """Draw decoded lanes, free-running and unsmoothed, over the images of `split` in its order."""
    lanes = decode(model, bank, split, known=known).lanes
    return [
        lanes_over(own, labels, picture, model.config)
        for own, labels, picture in zip(lanes, split.truth, pictures, strict=True)
    ]


def lanes_over(
    own: Float[np.ndarray, "L T"],
    labels: Float[np.ndarray, "L T"],
    picture: Image,
    config: TrainConfig,
) -> Image:
    """Draw one image's decoded lanes over its labelled ones, both x px at the rows."""
    read = px_readings(own[None], labels[None])
    caption = f"{read['px_error']:.1f} px off" if "px_error" in read else "no lane met"
    if "coverage" in read:
        caption += f", {read['coverage']:.0%} of the points"
    return draw_overlay(picture, polylines(labels, config), polylines(own, config), caption)


def attention_sheet(
    model: LaneLM, bank: Bank, split: EvalSplit, place: int, picture: Image
) -> Sheet | None:
    """Draw where each head (columns) of each block (rows) looks, for one image of `split`.

    The query is the middle point of the longest labelled lane, after the true prefix, so that it
    is the same whatever the model. None for an image without lanes.
    """
    one = split.select([place])
    point = one.targets.point[0]  # (L, T)
    if not point.any():
        return None
    lane = int(point.sum(-1).argmax())
    steps = point[lane].nonzero()[:, 0]
    step = int(steps[len(steps) // 2])
    y = row_positions(model.config.tokenizer, model.config.data.height)[step]
    heads = model.config.model.cross_heads or model.config.model.n_heads
    small, scale = _fit(picture, heads)
    query = (float(one.targets.x[0, lane, step]) * scale, float(y) * scale)
    rows = []
    with evaluating(model):
        memory, targets = next(images(model, bank, one, 1))
        ids, y_in = (read[:, [lane], : step + 1] for read in model.shift(targets.ids))
        lane_ids = torch.tensor([lane], device=ids.device)
        for i, weights in enumerate(model.attention(memory, ids, y_in, lane_ids)):
            own = weights[:, :, 0, step].float()  # (1, heads, N)
            even = uniformity(*looked_at(model, memory, own))[0][0]
            levels = [level[0].cpu().double().numpy() for level in memory.maps(i, own)]
            row = []
            for head in range(heads):
                merged = merge_levels([level[head] for level in levels], *small.shape[:2])
                caption = f"block {i + 1} head {head + 1}: uniformity {float(even[head]):.2f}"
                row.append(draw_attention(small, merged, query, caption))
            rows.append(row)
    return tile(rows)


def _fit(picture: Image, columns: int) -> tuple[Sheet, float]:
    """Shrink a picture by a factor, so that `columns` of them fit side by side on a sheet."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SHEET / columns / width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8), scale
