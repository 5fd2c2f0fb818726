"""TuSimple accuracy, FP and FN: per-row hits within a slope-dependent distance, in original px.

The rules are those of the benchmark: no one-to-one matching, absent on both sides counts as
correct, at most four lanes count. A lane is its x at the image's rows, negative where absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

ABSENT = -2.0
_FAR = -100.0  # the benchmark compares absent rows as if they lay here
_DISTANCE = 20.0  # px, across the lane
_MATCHED = 0.85  # accuracy of a found lane
_MOST = 4  # lanes that count


def at_rows(lane: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """Read a predicted lane (P, 2) x, y px at the rows; ABSENT above and below it."""
    lane = np.asarray(lane, float).reshape(-1, 2)
    if len(lane) == 0:
        return np.full(len(rows), ABSENT)
    lane = lane[np.argsort(lane[:, 1], kind="stable")]
    x = np.interp(rows, lane[:, 1], lane[:, 0], left=ABSENT, right=ABSENT)
    return np.where(x < 0, ABSENT, x)


def labelled_at_rows(lane: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """Give a labelled lane (P, 2) back as its file has it: only its own points, no fill-in."""
    known = {round(float(y)): float(x) for x, y in np.asarray(lane, float).reshape(-1, 2)}
    return np.array([known.get(row, ABSENT) for row in rows])


def distance_allowed(lane: np.ndarray, rows: Sequence[int]) -> float:
    """Give the horizontal distance (px) of a hit: 20 px / cos(arctan k) for x = k y + b."""
    seen = lane >= 0
    if seen.sum() < 2:
        return _DISTANCE
    slope = np.polyfit(np.asarray(rows, float)[seen], lane[seen], 1)[0]
    return _DISTANCE / math.cos(math.atan(slope))


def line_accuracy(predicted: np.ndarray, labelled: np.ndarray, allowed: float) -> float:
    """Give the share of all rows where the two lie within `allowed` px, or are both absent."""
    distance = np.abs(
        np.where(predicted >= 0, predicted, _FAR) - np.where(labelled >= 0, labelled, _FAR)
    )
    return float((distance < allowed).mean())


def score(
    predicted: Sequence[np.ndarray], labelled: Sequence[np.ndarray], rows: Sequence[int]
) -> tuple[float, float, float]:
    """Give one image's accuracy, FP share and FN share; lanes are x at `rows`."""
    if len(predicted) > len(labelled) + 2:
        return 0.0, 0.0, 1.0
    best = []
    for lane in labelled:
        allowed = distance_allowed(lane, rows)
        best.append(max((line_accuracy(p, lane, allowed) for p in predicted), default=0.0))
    matched = sum(accuracy >= _MATCHED for accuracy in best)
    missed = len(best) - matched
    total = sum(best)
    if len(best) > _MOST:
        total -= min(best)
        missed -= missed > 0
    counted = max(min(len(best), _MOST), 1)
    spurious = (len(predicted) - matched) / len(predicted) if predicted else 0.0
    return total / counted, spurious, missed / counted


def report(scores: Iterable[tuple[float, float, float]]) -> dict[str, float]:
    """Give the plain mean over images, or nothing without images."""
    table = np.array(list(scores))
    if table.size == 0:
        return {}
    accuracy, fp, fn = table.mean(axis=0)
    return {
        "tusimple_accuracy": float(accuracy),
        "tusimple_fp": float(fp),
        "tusimple_fn": float(fn),
    }
