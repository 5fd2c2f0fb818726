"""Small real models over features held in memory, for the tests of the readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.eval_split import EvalScene, EvalSplit
from model.init import stream
from model.lanelm import LaneLM, Memory
from model.loss import compute_loss
from model.presets import build
from model.scene import Frame, Kind
from model.targets import make_targets

SMALL: dict[str, Any] = {
    "data.width": 256,
    "data.height": 96,
    "data.max_lanes": 2,
    "tokenizer.n_rows": 12,
    "tokenizer.n_bins": 64,
    "visual.levels": "p5",
    "model.d_model": 32,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.d_ff": 32,
    "backbone.name": "random",
}
CHANNELS = (4, 4, 16)
FRAME = Frame(512, 292, 100, 256, 96)


class MemoryBank:
    """Features held in memory; every image has its own signature on every cell."""

    def __init__(self, n: int) -> None:
        sizes = ((12, 32), (6, 16), (3, 8))
        self.levels = []
        for level, (c, (h, w)) in enumerate(zip(CHANNELS, sizes, strict=True)):
            noise = torch.randn(n, c, h, w, generator=stream(0, f"noise/{level}"))
            own = torch.randn(n, c, 1, 1, generator=stream(0, f"own/{level}"))
            self.levels.append(noise + 2 * own)

    def batch(self, indices: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
        return [self.levels[level][list(indices)].clone() for level in levels]

    def statistics(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        chosen = [level[list(indices)] for level in self.levels]
        return [(x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)) for x in chosen]


class Blind(LaneLM):
    """A model whose visual tokens are the same whatever the image."""

    def encode(self, features: Sequence[Tensor], padding: Tensor | None = None) -> Memory:
        return super().encode([torch.zeros_like(f) for f in features], padding)


def config_with(**changes: Any) -> TrainConfig:
    return build(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


def lane(x0: float, x1: float, top: float = 20.0) -> np.ndarray:
    """A straight lane in input px, from `top` to the bottom."""
    y = np.linspace(top, 95, 16)
    return np.stack([x0 + (x1 - x0) * (y - top) / (95 - top), y], axis=1)


LANES = [
    [lane(60, 20), lane(120, 160, 40)],
    [lane(140, 100, 30), lane(200, 240)],
    [lane(30, 30), lane(100, 90, 60)],
    [lane(200, 120, 10)],
]


def split_of(config: TrainConfig, places: Sequence[int], kind: Kind = "culane") -> EvalSplit:
    rows = tuple(range(100, 290, 10)) if kind == "tusimple" else None
    scenes = []
    for i in places:
        original = [FRAME.to_original(x) for x in LANES[i]]
        if rows is not None:  # labelled at its rows, as TuSimple is
            y = [np.array([r for r in rows if x[0, 1] <= r <= x[-1, 1]], float) for x in original]
            pairs = zip(original, y, strict=True)
            original = [np.stack([np.interp(r, x[:, 1], x[:, 0]), r], axis=1) for x, r in pairs]
        scenes.append(EvalScene(str(i), kind, FRAME, tuple(original), rows))
    targets = make_targets([LANES[i] for i in places], config)
    return EvalSplit(list(places), targets, tuple(scenes))


def fit(model: LaneLM, bank: MemoryBank, split: EvalSplit, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    features = bank.batch(split.indices, model.levels)
    for _ in range(steps):
        logits_x, logits_y = model(model.encode(features), *model.shift(split.targets.ids))
        loss = compute_loss(logits_x, logits_y, split.targets, model.config.loss, 0.0).objective
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
