"""Jobs that train in a fraction of a second, for the tests of the loop and its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.presets import build
from model.train import train

SETTINGS: dict[str, Any] = {
    "backbone.name": "random",
    "backbone.random_channels": 8,
    "data.width": 160,
    "data.height": 64,
    "data.train_images": 2,
    "data.val_images": 1,
    "data.max_lanes": 2,
    "visual.levels": "p5",
    "tokenizer.n_rows": 8,
    "tokenizer.n_bins": 40,
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.d_ff": 16,
    "optim.steps": 8,
    "evaluation.every": 4,
    "runtime.log_every": 1,
    "runtime.checkpoint_every": 3,
    "runtime.pictures": False,
}

VARIED: dict[str, Any] = {
    "model__dropout": 0.1,
    "optim__schedule": "cosine",
    "optim__warmup": 2,
    "loss__y_schedule": "staged",
    "loss__y_threshold": 50.0,
    "loss__y_patience": 2,
    "loss__y_hold": 2,
    "loss__y_ramp": 4,
    "exposure__mode": "scheduled_sampling",
    "exposure__input_noise": 0.5,
    "batch__accumulate": 2,
    "batch__lanes": 3,
    "data__train_images": 3,
}
"""All that a resumption has to get right at once."""

Numbers = dict[str, float]


def settings(**changes: Any) -> dict[str, Any]:
    """Settings of a tiny job; `optim__lr=1.0` for "optim.lr"."""
    return SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}


def tiny(**changes: Any) -> TrainConfig:
    """Build the config of a tiny job."""
    return build(settings(**changes))


class Events:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float], str | None]] = []

    def __call__(self, step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
        self.lines.append((step, dict(metrics), event))

    def of(self, name: str) -> dict[int, float]:
        """Give the last reading of each step."""
        return {step: metrics[name] for step, metrics, _ in self.lines if name in metrics}

    @property
    def events(self) -> list[tuple[int, str]]:
        return [(step, event) for step, _, event in self.lines if event]


def run(config: TrainConfig, folder: Path, cache: Path) -> tuple[dict[str, float], Events]:
    """Train undisturbed."""
    events = Events()
    return train(config, events, folder, cache), events


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out what differs between two runs."""
    return {name: value for name, value in metrics.items() if not name.startswith("cost/")}
