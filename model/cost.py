"""What a job takes on this machine: a short one of the same shape is trained and timed.

The short job is a real one, `train` and all, in a folder that is thrown away: of few steps, at a
rate that moves nothing, on a few images. What it reads at the end is scaled by the images left out.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.config import TrainConfig, settings_of
from model.data import make_splits
from model.material import load_material
from model.presets import build
from model.train import train

TRAINED, HELD_OUT = 8, 8
"""Images of the short job, at most; it needs the features of no others."""
FIRST, WARM = 6, 2
"""Steps of the short job, and how many of them are not counted."""
ENOUGH, MOST = 0.3, 60
"""Seconds of steps worth averaging; if the first short job had less, a second has up to MOST."""


@dataclass(frozen=True)
class Cost:
    """What jobs of one shape take."""

    step_seconds: float
    evaluation_seconds: float
    """of each evaluation during training"""
    other_seconds: float
    """once a job: reading its inputs, making the model, the last readings, pictures"""
    memory_mb: float
    """largest resident memory of the process, or of the device's allocator"""


def measure(config: TrainConfig, cache: Path) -> Cost:
    """Time a short job of the same shape; takes seconds.

    Args:
        config: of the job.
        cache: where features lie; those of the short job's images are put there.

    Raises:
        DataError, CheckpointError, FeatureError: what it needs cannot be used.
    """
    few = _few(config)
    first = _timed(config, few, FIRST, cache)
    counted = first.step_seconds * (FIRST - WARM)
    if counted >= ENOUGH:
        return first
    steps = min(MOST, WARM + math.ceil(ENOUGH / first.step_seconds))
    return _timed(config, few, steps, cache)


def _few(config: TrainConfig) -> dict[str, Any]:
    """Say which settings the short job has otherwise, but for its steps."""
    # `data.train_images` counts the images themselves, not their mirror images
    splits, batch = make_splits(config.data.model_copy(update={"mirror": False})), config.batch
    wanted = max(TRAINED, batch.images * batch.accumulate)
    return {
        "data.train_images": min(wanted, len(splits.train)),
        "data.val_images": min(HELD_OUT, len(splits.val)),
        "data.test_images": min(HELD_OUT, len(splits.test)),
        "optim.schedule": "constant",
        "optim.lr": 1e-9,
        "optim.lr_min": 1e-6,  # neutral: without a schedule nothing reads it
        "optim.warmup": 0,
    }


def _timed(config: TrainConfig, few: Mapping[str, Any], steps: int, cache: Path) -> Cost:
    counts = {"optim.steps": steps, "evaluation.every": steps, "runtime.checkpoint_every": steps}
    short = build({**settings_of(config), **few, **counts})
    load_material(short, cache)  # its features are there when the clock starts
    clock = _Clock(short.runtime.device, steps)
    with tempfile.TemporaryDirectory(prefix="lanelm-probe-") as folder:
        begin = clock.now()
        found = train(short, clock.log, Path(folder), cache, clock.before_step)
        end = clock.now()
    step = (clock.starts[-1] - clock.starts[WARM]) / (steps - 1 - WARM)
    last_step, evaluated = clock.last[:2]
    reading, last = evaluated - last_step, end - evaluated
    other = max(0.0, last_step - begin - steps * step)
    shown, held_out, tested = _images(config)
    few_shown, few_held_out, few_tested = _images(short)
    more = (shown + held_out) / (few_shown + few_held_out)
    more_last = (shown + tested) / (few_shown + few_tested)
    return Cost(step, reading * more, other + last * more_last, found["cost/peak_memory_mb"])


class _Clock:
    """Notes when steps begin, and when the last step and its evaluation had ended.

    On the CPU it counts what this process computed, not what it waited for its core: one worker a
    core waits little, and what else runs while a plan is made says nothing about the run.
    """

    def __init__(self, device: str, steps: int) -> None:
        self._device, self._steps = device, steps
        self.starts: list[float] = []
        self.last: list[float] = []
        """when something of the last step was logged: its losses, its evaluation, ..."""

    def now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def before_step(self) -> bool:
        self.starts.append(self.now())
        return False

    def log(self, step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
        if step == self._steps:
            self.last.append(self.now())


def _images(config: TrainConfig) -> tuple[int, int, int]:
    """Count the images that are read: of training, validation and test."""
    splits = make_splits(config.data)
    shown = min(len(splits.train), config.evaluation.train_images)
    return shown, len(splits.val), len(splits.test)


def free_gpu_memory_mb() -> list[float]:
    """Ask each GPU for its free memory; an empty list where torch sees none."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.mem_get_info(gpu)[0] / 1e6 for gpu in range(torch.cuda.device_count())]
