"""CULane F1: lanes drawn as thick curves, the masks' IoU, one-to-one matching.

Works in original image px. The rules are those of the benchmark's Python tools: a spline through
the points, coordinates truncated to whole px, lines drawn by OpenCV, a hit where IoU is *above* the
threshold. Unlike those tools it takes one-point lanes and repeated points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy.interpolate import splev, splprep
from scipy.optimize import linear_sum_assignment

LANE_WIDTH = 30
"""px, on images IMAGE_SIZE[0] px wide"""
IMAGE_SIZE = (1640, 590)
"""width, height, px"""
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""mF1 is the mean over these"""
_SAMPLES = 5  # curve points per segment
_NEAR = 1e-6  # px; points nearer than this are one point
_FAR = 20_000.0  # px; keeps wild coordinates inside the integers that OpenCV draws with


@dataclass(frozen=True)
class Counts:
    """Hits of some images at each of THRESHOLDS; counts of several images add up."""

    hits: np.ndarray  # (10,) int: predictions matched above the threshold (TP)
    predicted: int
    labelled: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.predicted + other.predicted,
            self.labelled + other.labelled,
        )

    @property
    def false_positives(self) -> np.ndarray:
        """Predictions that hit no lane (10,)."""
        return self.predicted - self.hits

    @property
    def false_negatives(self) -> np.ndarray:
        """Lanes that no prediction hit (10,)."""
        return self.labelled - self.hits


NO_COUNTS = Counts(np.zeros(len(THRESHOLDS), int), 0, 0)


def clean(lane: np.ndarray) -> np.ndarray:
    """Drop points that are not finite or repeat the one before them; (P, 2) x, y px."""
    lane = np.asarray(lane, float).reshape(-1, 2)
    lane = lane[np.isfinite(lane).all(axis=1)]
    if len(lane) < 2:
        return lane
    moved = np.linalg.norm(np.diff(lane, axis=0), axis=1) > _NEAR
    return lane[np.concatenate([[True], moved])]


def curve(lane: np.ndarray) -> np.ndarray:
    """Draw a clean lane (P >= 2 points) as a denser polyline: a segment, or an exact spline."""
    if len(lane) == 2:
        return lane
    spline: Any = splprep(lane.T, s=0, k=min(3, len(lane) - 1))[0]
    at = np.linspace(0, 1, (len(lane) - 1) * _SAMPLES + 1)
    return np.stack(splev(at, spline), axis=1)


def draw(lane: np.ndarray, width: int, height: int, thickness: int) -> np.ndarray:
    """Draw a clean lane as a mask (height, width) of 0 and 1."""
    mask = np.zeros((height, width), np.uint8)
    points = np.clip(curve(lane), -_FAR, _FAR).astype(np.int32)
    cv2.polylines(mask, [points.reshape(-1, 1, 2)], False, (1,), thickness)
    return mask


def iou_matrix(
    predicted: Sequence[np.ndarray],
    labelled: Sequence[np.ndarray],
    size: tuple[int, int] = IMAGE_SIZE,
    thickness: int = LANE_WIDTH,
) -> np.ndarray:
    """Give the IoU of each prediction with each lane, both clean: (n_predicted, n_labelled)."""
    width, height = size
    own = [draw(lane, width, height, thickness) for lane in predicted]
    true = [draw(lane, width, height, thickness) for lane in labelled]
    iou = np.zeros((len(own), len(true)))
    for i, a in enumerate(own):
        for j, b in enumerate(true):
            common = cv2.countNonZero(cv2.bitwise_and(a, b))
            union = cv2.countNonZero(a) + cv2.countNonZero(b) - common
            iou[i, j] = common / union if union else 0.0
    return iou


def count(
    predicted: Sequence[np.ndarray],
    labelled: Sequence[np.ndarray],
    size: tuple[int, int] = IMAGE_SIZE,
) -> Counts:
    """Match one image's lanes (P, 2) in original px; lanes of fewer than 2 points are dropped.

    Images of another width draw their lanes as wide as the same share of the image.
    """
    own = [lane for lane in map(clean, predicted) if len(lane) > 1]
    true = [lane for lane in map(clean, labelled) if len(lane) > 1]
    thickness = max(1, round(LANE_WIDTH * size[0] / IMAGE_SIZE[0]))
    iou = iou_matrix(own, true, size, thickness)
    pairs = iou[linear_sum_assignment(iou, maximize=True)]
    hits = (pairs[:, None] > np.array(THRESHOLDS)).sum(axis=0)
    return Counts(hits, len(own), len(true))


def f1(counts: Iterable[Counts]) -> dict[str, float]:
    """Give `f1` (at 0.5), `f1_75` and `mf1` of the summed counts.

    Without a lane on either side there is nothing to score, and no reading.
    """
    total = sum(counts, NO_COUNTS)
    if total.predicted + total.labelled == 0:
        return {}
    scores = 2 * total.hits / (total.predicted + total.labelled)
    at = {threshold: float(score) for threshold, score in zip(THRESHOLDS, scores, strict=True)}
    return {"f1": at[0.5], "f1_75": at[0.75], "mf1": float(scores.mean())}
