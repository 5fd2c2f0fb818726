"""Training images seen from another place of the road, made on their features.

A camera that turns shifts its image sideways. One that stands farther left or right sees the road
leaning: the nearer, the farther aside, which in the image is the lower, and the horizon stays.

A convolutional backbone says of a shifted image what it says of the image, shifted, but for the
edge, as long as the shift is a whole number of its cells (here P5's, so that all levels agree). Of
a leaning one that holds about, for lines keep nearly their direction within what a cell sees. So
an image can be shown from another place without its features being computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from model.config import BatchConfig, TrainConfig
from model.eval_split import EvalScene
from model.positions import STRIDES
from model.scene import cut, input_lanes
from model.targets import Targets, make_targets

FARTHEST = 6
"""P5 cells: what is drawn farther out stays there, a quarter of an 800 px image"""


def moves(config: BatchConfig) -> bool:
    """Say whether images are moved at all."""
    return config.shift > 0 or config.shear > 0


class Shift:
    """Shifts and leans images by Gaussian numbers of P5 cells, and their labels with them.

    `batch.shift` is rounded to whole cells. `batch.shear` is how far the image's bottom goes aside;
    its top stays, the rows between go their share, by parts of a column. What this uncovers repeats
    the features of the edge; lanes end where the image they came from does.
    """

    def __init__(self, config: TrainConfig, scenes: Sequence[EvalScene]) -> None:
        """Take the training scenes in the order of their targets."""
        self.config, self.scenes = config, scenes

    def __call__(
        self,
        images: Sequence[int],
        features: Sequence[Tensor],
        targets: Targets,
        generator: torch.Generator,
    ) -> tuple[list[Tensor], Targets]:
        """Give features (B, C, h, w) per level and targets of `images`, each moved by its own."""
        batch = self.config.batch
        drawn = torch.randn(2, len(images), generator=generator)
        drawn = (drawn * torch.tensor([[batch.shift], [batch.shear]])).clamp(-FARTHEST, FARTHEST)
        cells, leans = drawn[0].round().int().tolist(), drawn[1].tolist()
        width = self.config.data.width // STRIDES[-1]  # columns of P5
        moved = [
            torch.stack(
                [
                    lean(move(f, n * (f.shape[-1] // width)), by * (f.shape[-1] // width))
                    for f, n, by in zip(level, cells, leans, strict=True)
                ]
            )
            for level in features
        ]
        parts = [
            self._labels(image, n, by) if n or by else targets.select([place])
            for place, (image, n, by) in enumerate(zip(images, cells, leans, strict=True))
        ]
        joined = (torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Targets))
        return moved, Targets(*joined)

    def _labels(self, image: int, cells: int, leans: float) -> Targets:
        frame, data = self.scenes[image].frame, self.config.data
        lanes = []
        for lane in self.scenes[image].original_lanes:
            seen = frame.to_input(lane)
            seen = cut(seen, frame.input_width, frame.input_height)
            seen[:, 0] += STRIDES[-1] * (cells + leans * seen[:, 1] / frame.input_height)
            lanes.append(frame.to_original(seen))
        return make_targets([input_lanes(lanes, frame, data)], self.config)


def move(feature: Tensor, columns: int) -> Tensor:
    """Move a level (C, h, w) to the right; its edge column fills what is uncovered."""
    n = min(abs(columns), feature.shape[-1] - 1)
    kept, edge = (feature[..., : -n or None], 0) if columns > 0 else (feature[..., n:], -1)
    gap = feature[..., edge, None].expand(*feature.shape[:-1], n)
    return torch.cat([gap, kept] if columns > 0 else [kept, gap], dim=-1)


def lean(feature: Tensor, columns: float) -> Tensor:
    """Move the bottom edge of a level (C, h, w) right by `columns`, its top by none.

    A row moves by its middle's share; between columns it is interpolated.
    """
    if not columns:
        return feature
    height, width = feature.shape[-2:]
    middles = (torch.arange(height) + 0.5) / height
    source = (torch.arange(width) - columns * middles[:, None]).clamp(0, width - 1)  # (h, w)
    left = source.long()
    share = (source - left).to(feature.dtype)
    right = (left + 1).clamp(max=width - 1)
    near, far = (feature.gather(-1, column.expand(feature.shape)) for column in (left, right))
    return near.lerp(far, share.expand(feature.shape))
