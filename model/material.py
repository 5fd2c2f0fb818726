"""What a job reads: the features and targets of its training, validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from model.config import DataConfig, TrainConfig
from model.data import Scene, SceneRef, Splits, make_splits
from model.eval_split import EvalSplit
from model.features import FeatureBank, prepare_features
from model.file_hashes import FileHashes


@dataclass(frozen=True)
class Material:
    """Images as features and targets."""

    name: str
    """of the feature bank: a hash of the images, their labels and the backbone"""
    bank: FeatureBank
    splits: Splits
    train: EvalSplit
    shown: EvalSplit
    """the first `evaluation.train_images` of `train`: what the readings are taken on"""
    val: EvalSplit
    """may be empty"""
    test: EvalSplit
    """may be empty"""


def load_material(config: TrainConfig, cache: Path) -> Material:
    """Open what the job reads; features that are not in `cache` are computed into it first.

    Raises:
        DataError, CheckpointError, FeatureError: images, labels or weights cannot be used.
    """
    splits = make_splits(config.data)
    folder = prepare_features(config, [*splits.train, *splits.val, *splits.test], cache)
    bank = FeatureBank.open(folder)
    hashes = FileHashes(cache)  # which has just hashed all files

    def split(refs: Sequence[SceneRef]) -> EvalSplit:
        data = config.data  # frozen, so it hashes
        scenes = (_labels(ref, data, ref.digest(hashes)) for ref in refs)  # pyright: ignore
        return EvalSplit.of(scenes, bank, config)

    train = split(splits.train)
    return Material(
        folder.name,
        bank,
        splits,
        train,
        train.first(config.evaluation.train_images),
        split(splits.val),
        split(splits.test),
    )


def pixels(ref: SceneRef, data: DataConfig) -> np.ndarray:
    """Load a scene's pixels, to draw on a copy; the next job of this process draws on them too."""
    return _pixels(ref, data, ref.digest())  # pyright: ignore - frozen, so it hashes


@lru_cache(maxsize=8)
def _pixels(ref: SceneRef, data: DataConfig, digest: str) -> np.ndarray:
    return ref.load(data).image


@lru_cache(maxsize=10_000)
def _labels(ref: SceneRef, data: DataConfig, digest: str) -> Scene:
    """Read a scene's labels; the next job of this process reads the same ones."""
    return ref.labels(data)
