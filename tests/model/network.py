"""A small network and its images, for the tests of the network's parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.lanelm import LaneLM
from model.positions import STRIDES
from model.presets import build
from model.targets import Targets, make_targets

CHANNELS = (5, 7, 9)
SMALL: dict[str, Any] = {
    "data.width": 128,
    "data.height": 64,
    "data.max_lanes": 3,
    "tokenizer.n_bins": 30,
    "tokenizer.n_rows": 8,
    "model.d_model": 16,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.d_ff": 24,
}


def small(**settings: Any) -> TrainConfig:
    """Make a small config; `visual__levels="p5"` stands for visual.levels."""
    return build(SMALL | {name.replace("__", "."): value for name, value in settings.items()})


def features_of(model: LaneLM, images: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = model.config.data
    return [
        torch.randn(
            images,
            CHANNELS[level],
            data.height // STRIDES[level],
            data.width // STRIDES[level],
            generator=generator,
        )
        for level in model.levels
    ]


def network(config: TrainConfig, sharpen: float = 1.0) -> LaneLM:
    """Make a model in evaluation mode; `sharpen` scales the x head, for tokens that vary."""
    statistics = [(torch.full((c,), 0.3), torch.full((c,), 2.0)) for c in CHANNELS]
    model = LaneLM(config, CHANNELS, statistics).eval()
    with torch.no_grad():
        model.head_x.weight *= sharpen
    return model


def targets_for(config: TrainConfig, images: int = 2) -> Targets:
    """Make lanes that differ between images: slanted, short, and absent in the last image."""
    lanes = [
        [
            np.array([[20.0 + 9 * i, 5], [50 + 5 * i, 62]]),
            np.array([[100.0 - 7 * i, 20], [70, 50]]),
        ][: 2 - (i == images - 1)]
        for i in range(images)
    ]
    return make_targets(lanes, config)
