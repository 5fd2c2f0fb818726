"""Sideways shifts of training images, made on their features.

A convolutional backbone says of a shifted image what it says of the image, shifted, but for the
edge, as long as the shift is a whole number of its cells (here P5's, so that all levels agree). So
an image can be shown at another place without its features being computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.eval_split import EvalScene
from model.positions import STRIDES
from model.scene import cut, input_lanes
from model.targets import Targets, make_targets

FARTHEST = 6
"""P5 cells: what is drawn farther out stays there, a quarter of an 800 px image"""


class Shift:
    """Shifts images by a rounded Gaussian number of P5 cells, and their labels with them.

    What a shift uncovers repeats the features of the edge; lanes end where the image they came
    from does.
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
        """Give features (B, C, h, w) per level and targets of `images`, each shifted by its own."""
        drawn = torch.randn(len(images), generator=generator) * self.config.batch.shift
        cells = [int(n) for n in drawn.round().clamp(-FARTHEST, FARTHEST)]
        width = self.config.data.width // STRIDES[-1]  # columns of P5
        moved = [
            torch.stack(
                [move(f, n * (f.shape[-1] // width)) for f, n in zip(level, cells, strict=True)]
            )
            for level in features
        ]
        parts = [
            self._labels(image, n) if n else targets.select([place])
            for place, (image, n) in enumerate(zip(images, cells, strict=True))
        ]
        joined = (torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Targets))
        return moved, Targets(*joined)

    def _labels(self, image: int, cells: int) -> Targets:
        frame, data = self.scenes[image].frame, self.config.data
        lanes = []
        for lane in self.scenes[image].original_lanes:
            seen = frame.to_input(lane)
            seen = cut(seen, frame.input_width, frame.input_height)
            lanes.append(frame.to_original(seen + np.array((cells * STRIDES[-1], 0))))
        return make_targets([input_lanes(lanes, frame, data)], self.config)


def move(feature: Tensor, columns: int) -> Tensor:
    """Move a level (C, h, w) to the right; its edge column fills what is uncovered."""
    width = feature.shape[-1]
    source = (torch.arange(width) - columns).clamp(0, width - 1)
    return feature[..., source]
