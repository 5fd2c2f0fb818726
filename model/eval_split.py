"""The images that a reading is taken on, with what scoring needs of their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from model import culane, tusimple
from model.config import DataConfig, TrainConfig
from model.metrics import Lanes
from model.scene import Frame, Kind, Polyline, Scene, input_lanes
from model.targets import Targets, make_targets
from model.tokenizer import row_positions


@runtime_checkable
class Rows(Protocol):
    """Where a scene's features lie (model.feature_bank.FeatureBank)."""

    def index(self, key: str) -> int: ...


@dataclass(frozen=True)
class EvalScene:
    """A scene without its image."""

    key: str
    kind: Kind
    frame: Frame
    original_lanes: tuple[Polyline, ...]
    h_samples: tuple[int, ...] | None

    @classmethod
    def of(cls, scene: Scene) -> EvalScene:
        """Leave the image behind."""
        return cls(scene.key, scene.kind, scene.frame, scene.original_lanes, scene.h_samples)


@dataclass(frozen=True)
class EvalSplit:
    """Some images: where their features are, what to write, how to score it; in one order."""

    indices: list[int]
    """rows of the feature bank"""
    targets: Targets
    scenes: tuple[EvalScene, ...]
    labels: Float[Tensor, "n L T"] | None = None
    """what to score against where the targets are not what was labelled (legacy `above_crop`)"""

    @classmethod
    def of(cls, scenes: Iterable[Scene], bank: Rows, config: TrainConfig) -> EvalSplit:
        """Take `scenes`, one at a time, so that their images need not be held together."""
        kept, lanes, labelled = [], [], []
        uncut = DataConfig.model_validate({**config.data.model_dump(), "above_crop": "cut"})
        for scene in scenes:
            kept.append(EvalScene.of(scene))
            lanes.append(scene.lanes)
            if config.data.above_crop == "clip":
                labelled.append(input_lanes(scene.original_lanes, scene.frame, uncut))
        indices = [bank.index(scene.key) for scene in kept]
        labels = make_targets(labelled, config).x if labelled else None
        return cls(indices, make_targets(lanes, config), tuple(kept), labels)

    @property
    def truth(self) -> Lanes:
        """What was labelled, x px at the rows: what every px error is against."""
        x = self.targets.x if self.labels is None else self.labels
        return x.double().numpy()

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, places: Sequence[int]) -> EvalSplit:
        """Take some images, by their place in this split."""
        return EvalSplit(
            [self.indices[i] for i in places],
            self.targets.select(places),
            tuple(self.scenes[i] for i in places) if self.scenes else (),
            None if self.labels is None else self.labels[list(places)],
        )

    def first(self, n: int) -> EvalSplit:
        """Take the first n images, or all."""
        return self if n >= len(self) else self.select(range(n))


def polylines(
    decoded: np.ndarray, config: TrainConfig, frame: Frame | None = None
) -> list[Polyline]:
    """Turn one image's decoded lanes (L, T), x px at the rows, into polylines (P, 2), y ascending.

    In original px when `frame` is given. Slots without a point are left out.
    """
    y = row_positions(config.tokenizer, config.data.height)
    lanes = []
    for x in decoded:
        seen = np.flatnonzero(np.isfinite(x))
        if seen.size:
            lane = np.stack([x[seen], y[seen]], axis=1)[np.argsort(y[seen])]
            lanes.append(lane if frame is None else frame.to_original(lane))
    return lanes


def official_readings(decoded: Lanes, split: EvalSplit, config: TrainConfig) -> dict[str, float]:
    """Score decoded lanes by the data sets' own rules, in original px and against all labels.

    `f1`, `f1_75` and `mf1` are CULane's, for images of any kind; `tusimple_*` of TuSimple's images.
    Lanes are not prolonged beyond their first and last row, so that rows limit the scores: perfect
    tokens of TuSimple's training labels reach an accuracy of .952 with 40 rows, .994 with 56, and
    an f1 of 1.
    """
    counts, scores = [], []
    for own, scene in zip(decoded, split.scenes, strict=True):
        lanes = polylines(own, config, scene.frame)
        size = (scene.frame.width, scene.frame.height)
        counts.append(culane.count(lanes, scene.original_lanes, size))
        if scene.kind == "tusimple" and scene.h_samples is not None:
            rows = scene.h_samples
            predicted = [tusimple.at_rows(lane, rows) for lane in lanes]
            labelled = [tusimple.labelled_at_rows(lane, rows) for lane in scene.original_lanes]
            scores.append(tusimple.score(predicted, labelled, rows))
    return culane.f1(counts) | tusimple.report(scores)
