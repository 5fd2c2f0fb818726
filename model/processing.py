"""What may be done to decoded lanes afterwards: off by default, and read apart from the raw lanes.

Lanes are x px at the rows, (..., T) in writing order, nan where there is no point.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from model.config import DecodeConfig

_SHORT = 10
"""Points; a lane with no more of them is never cut."""
_QUANTILE, _TIMES = 0.85, 2.0


def processes(config: DecodeConfig) -> bool:
    """Say whether anything is done at all."""
    return config.hallucination_removal or config.smooth > 1 or config.nms is not None


def process(
    lanes: Float[np.ndarray, "*images L T"], config: DecodeConfig
) -> Float[np.ndarray, "*images L T"]:
    """Do what `config` asks for: the cut, the smoothing, then suppression; copies."""
    done = np.array(
        [_process_lane(lane, config) for lane in lanes.reshape(-1, lanes.shape[-1])], lanes.dtype
    )
    if config.nms is not None:
        for image in done.reshape(-1, *lanes.shape[-2:]):
            image[repeated(image, config.nms)] = np.nan
    return done.reshape(lanes.shape)


def remove_hallucination(lane: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Cut a lane of more than 10 points after the first step |dx| > 2 * P85(|dx|).

    The rule is the LaneLM paper's, dx from point to point. It knows no bins: where most steps of a
    lane are 0 (an upright lane in coarse bins), a step of one bin is a jump to it.
    """
    points = np.flatnonzero(np.isfinite(lane))
    if len(points) <= _SHORT:
        return lane.copy()
    steps = np.abs(np.diff(lane[points]))
    jumps = np.flatnonzero(steps > _TIMES * np.quantile(steps, _QUANTILE))
    kept = lane.copy()
    if len(jumps):
        kept[points[jumps[0] + 1] :] = np.nan
    return kept


def repeated(lanes: Float[np.ndarray, "L T"], nearer: float) -> Bool[np.ndarray, " L"]:
    """Say which lanes of an image repeat another one (non-maximum suppression).

    Lanes are written independently of each other, so that two ids may write one line. From the
    longest to the shortest (of equal ones the first) a lane is kept unless its mean |dx| to a kept
    one, on rows where both have a point, is under `nearer` px. A lane without a point repeats none.
    """
    again = np.zeros(len(lanes), dtype=bool)
    kept: list[int] = []
    for lane in np.argsort(-np.isfinite(lanes).sum(-1), kind="stable"):
        apart = np.abs(lanes[lane] - lanes[kept])  # (kept, T)
        common = np.isfinite(apart)
        total = np.where(common, apart, 0.0).sum(-1)
        again[lane] = (common.any(-1) & (total < nearer * common.sum(-1))).any()
        if not again[lane]:
            kept.append(int(lane))
    return again


def smooth(lane: Float[np.ndarray, " T"], window: int) -> Float[np.ndarray, " T"]:
    """Take the mean over `window` (odd) points around each; towards the ends over fewer.

    The window stays centred, so that straight lanes and the end points do not move.
    """
    points = np.flatnonzero(np.isfinite(lane))
    smoothed = lane.copy()
    sums = np.concatenate([[0.0], lane[points].cumsum()])
    place = np.arange(len(points))
    half = np.minimum(window // 2, np.minimum(place, place[::-1]))
    smoothed[points] = (sums[place + half + 1] - sums[place - half]) / (2 * half + 1)
    return smoothed


def _process_lane(lane: np.ndarray, config: DecodeConfig) -> np.ndarray:
    if config.hallucination_removal:
        lane = remove_hallucination(lane)
    return smooth(lane, config.smooth) if config.smooth > 1 else lane
