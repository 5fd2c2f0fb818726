"""What the time and memory of a job hang on, told from its settings alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.config import TrainConfig, settings_of

FREE = frozenset(
    {
        *("seed", "data.seed", "data.geometry", "data.lane_order", "data.above_crop"),
        *("backbone.random_seed", "backbone.checkpoint"),
        *("visual.scale", "model.temperature", "model.x_scale", "model.lane_scale"),
        *("loss.y_weight", "loss.y_threshold", "loss.y_patience", "loss.y_first", "loss.y_hold"),
        *("loss.y_ramp", "loss.ends_weight", "loss.label_smoothing"),
        *("loss.start_weight", "decode.nms"),
        *("optim.lr", "optim.lr_min", "optim.schedule", "optim.warmup", "optim.clip"),
        *("optim.weight_decay", "optim.beta1", "optim.beta2", "optim.steps"),
        *("evaluation.every", "evaluation.val_every"),
        *("runtime.log_every", "runtime.checkpoint_every"),
    }
)
"""Settings that change numbers, or how often something is done, but not what doing it takes."""


def shape_of(config: TrainConfig) -> dict[str, Any]:
    """Give the settings on which the cost of a step and of a reading hangs."""
    return {path: value for path, value in settings_of(config).items() if path not in FREE}


def evaluations(config: TrainConfig) -> int:
    """Count the evaluations of all its images that the readings during training amount to.

    There is one every `evaluation.every` steps and after the last; those that leave out the
    validation images count for the share of the images that they read.

    >>> from model.presets import build
    >>> evaluations(build({"optim.steps": 250, "evaluation.every": 100}))
    3
    >>> evaluations(build({"optim.steps": 1000, "evaluation.val_every": 500}))
    3
    """
    steps, when = config.optim.steps, config.evaluation
    at = [*range(when.every, steps, when.every), steps]
    whole = sum(when.reads_val(step, steps) for step in at)
    shown, held_out = config.data.train_images, config.data.val_images
    if isinstance(shown, str) or isinstance(held_out, str):
        return len(at)
    shown = min(shown, when.train_images)
    return whole + math.ceil((len(at) - whole) * shown / (shown + held_out))


DECODING = ("model.decode_shift", "model.decode_y_offset")
"""Settings that decoding alone reads, beside those of `decode`."""


def twinship(settings: Mapping[str, Any]) -> str | None:
    """Give a name that jobs share whose training is the same; None: no other's is.

    Args:
        settings: all of a job's, flat.
    """
    if settings["exposure.mode"] != "teacher_forcing":  # own tokens are chosen as in decoding
        return None
    training = [
        (path, value)
        for path, value in sorted(settings.items())
        if path not in DECODING and not path.startswith("decode.")
    ]
    return repr(training)
