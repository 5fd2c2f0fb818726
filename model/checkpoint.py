"""Checkpoints: the whole state of a run in one file, which is there whole or not at all.

Every random stream of a run is named by its place in it (`model.init.stream`), so the step says
where all of them stand.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import CheckpointError, read_checkpoint
from model.config import NUMERICS_VERSION, TrainConfig, identity, settings_of
from model.presets import SettingError, build

_FORMAT = 1


@dataclass
class Progress:
    """What a run remembers beside weights and moments."""

    step: int = 0
    """steps done"""
    y_weight: dict[str, Any] = field(default_factory=dict)
    """`YWeight.state()`"""
    clipped: int = 0
    """steps whose gradient was clipped"""
    losses: list[float] = field(default_factory=list)
    """`train/loss` of every step"""
    grad_norm_first: float = 0.0
    grad_norm_most: float = 0.0
    """of all steps, before clipping"""
    first_objective: float = 0.0
    running_objective: float = 0.0
    stepped: dict[str, float] = field(default_factory=dict)
    """readings of the last step"""
    evaluated: dict[str, float] = field(default_factory=dict)
    """readings of the last evaluation"""
    start: dict[str, float] = field(default_factory=dict)
    """readings at initialisation"""
    best_step: int = 0
    """0: no validation reading yet"""
    best_score: float = float("inf")
    best_readings: dict[str, float] = field(default_factory=dict)
    """the validation readings of those weights"""
    best_weights: dict[str, Tensor] | None = None
    seconds: float = 0.0
    """wall time of all attempts so far"""
    step_seconds: float = 0.0
    """of which in optimiser steps"""
    evaluation_seconds: float = 0.0
    """of which in evaluations before the last"""
    picture_seconds: float = 0.0
    """of which in pictures during training"""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save_checkpoint(
    path: Path,
    config: TrainConfig,
    features: str,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Replace the checkpoint at `path` in one rename, flushed to disk before.

    Args:
        path: the file.
        config: of the run; goes along.
        features: name of the feature bank, which is a hash of scenes, labels and backbone.
        progress: of the run.
        model: as it stands.
        optimizer: as it stands; None when no step comes after.
    """
    payload = {
        "format": _FORMAT,
        "numerics_version": NUMERICS_VERSION,
        "settings": settings_of(config),
        "features": features,
        "progress": {f.name: getattr(progress, f.name) for f in dataclasses.fields(progress)},
        "model": weights_of(model),  # copies: a view would take its whole stack along
        "optimizer": optimizer.state_dict() if optimizer else None,
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: as `read_checked`, or it is no checkpoint of a run.
    """
    payload = read_checked(path)
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise CheckpointError(f"checkpoint {path}: is none that this program's training wrote")
    return payload


def read_checked(path: Path) -> Any:
    """Read a torch file, every byte of it checked, without running code that it holds.

    Raises:
        CheckpointError: one line: no such file, torn, damaged, or it needs a class to be imported,
            which is named.
    """
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError):
            damaged = "the archive"  # whatever foreign bytes raise inside zipfile
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path}: damaged ({damaged.split('/', 1)[-1]})")
    return read_checkpoint(path)


def resume(
    path: Path,
    config: TrainConfig,
    features: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put model and optimizer where the checkpoint at `path` left them.

    Raises:
        CheckpointError: as `load_checkpoint`, or it is of another run; the model may be changed.
    """
    payload = load_checkpoint(path)
    saved = saved_config(payload, path)
    was, now = settings_of(saved), settings_of(config)
    for name in sorted({*identity(saved), *identity(config), "seed"}):
        if was[name] != now[name]:
            raise CheckpointError(f"checkpoint {path}: {name} was {was[name]!r}, now {now[name]!r}")
    if payload.get("numerics_version") != NUMERICS_VERSION:
        raise CheckpointError(f"checkpoint {path}: of a version with other numerics")
    if payload.get("features") != features:
        raise CheckpointError(f"checkpoint {path}: of other images, labels or backbone weights")
    try:
        load_weights(model, payload["model"], path)
        if payload["optimizer"] is not None:
            optimizer.load_state_dict(payload["optimizer"])
        return Progress(**payload["progress"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path}: of another version ({error})") from None


def saved_config(payload: Mapping[str, Any], path: Path) -> TrainConfig:
    """Give the config inside a checkpoint.

    Raises:
        CheckpointError: it has settings that this version does not know.
    """
    try:
        return build(payload["settings"])
    except (SettingError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None


def load_weights(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    """Load all weights, and no others.

    Raises:
        CheckpointError: names the first missing and unexpected keys, or the first wrong shape.
    """
    wanted = model.state_dict()
    missing = next((name for name in wanted if name not in weights), None)
    unexpected = next((name for name in weights if name not in wanted), None)
    if missing or unexpected:
        parts = [f"no {missing}"] * bool(missing) + [f"{unexpected} unexpected"] * bool(unexpected)
        raise CheckpointError(f"checkpoint {path}: of another model: {', '.join(parts)}")
    for name, value in wanted.items():
        given = weights[name]
        if not isinstance(given, Tensor) or given.shape != value.shape:
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise CheckpointError(
                f"checkpoint {path}: {name} is {found}, this model has {tuple(value.shape)}"
            )
    model.load_state_dict(dict(weights))
