"""What decoded lanes are worth, in px of the input; and cross-entropy, part by part.

Lanes are x px at the rows, (n, L, T) in writing order, nan where there is no point. `decoded` must
come from free-running decoding, the model reading its own tokens; `truth` is the label before any
tokenizer (`Targets.x`). A reading that nothing supports (no lane decoded, no lane labelled) is
left out of the result, never nan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Lanes = Float[np.ndarray, "n L T"]

_DEAD_ZONE_BINS, _DEAD_ZONE_PX = 1.5, 6.0
_NEVER = 1e9  # px; the price of pairing lanes without a common row
_ONE_LINE = 1.0  # px; labels that spread less have no spread to compare with


def pair(
    decoded: Float[np.ndarray, "L T"], truth: Float[np.ndarray, "M T"]
) -> list[tuple[int, int]]:
    """Pair the lanes of one image one to one by the least sum of mean px errors (Hungarian).

    Lanes without a common row are never paired.
    """
    distance = np.abs(decoded[:, None] - truth[None])  # (L, M, T)
    common = np.isfinite(distance)
    total = np.where(common, distance, 0.0).sum(-1)
    cost = np.where(common.any(-1), total / np.maximum(common.sum(-1), 1), _NEVER)
    rows, columns = linear_sum_assignment(cost)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if cost[i, j] < _NEVER]


def px_readings(decoded: Lanes, truth: Lanes) -> dict[str, float]:
    """Compare decoded lanes with the labels.

    - `px_error`, `px_error_p95`, `px_error_max`: |dx| on rows where both have a point, over the
      paired lanes of all images together. Missing when no row is common.
    - `px_error_slot`: the same with lanes paired by lane id.
    - `coverage`: share of the labels' points that their lane's partner decoded; 0 when nothing is.
    - `length_error`: mean difference of the numbers of points of two paired lanes, rows.
    - `lane_count_error`: mean difference per image of the numbers of lanes.
    - `points_ratio`: decoded points per labelled point, over all lanes; over 1 where lanes do not
      end or there are too many.
    """
    errors: list[np.ndarray] = [np.empty(0)]
    lengths: list[int] = []
    for own, labels in zip(decoded, truth, strict=True):
        for i, j in pair(own, labels):
            distance = np.abs(own[i] - labels[j])
            errors.append(distance[np.isfinite(distance)])
            lengths.append(abs(int(_points(own[i]).sum() - _points(labels[j]).sum())))
    error = np.concatenate(errors)
    readings: dict[str, float] = {}
    if error.size:
        readings = {
            "px_error": float(error.mean()),
            "px_error_p95": float(np.quantile(error, 0.95)),
            "px_error_max": float(error.max()),
            "length_error": float(np.mean(lengths)),
        }
    readings |= slot_error(decoded, truth)
    labelled = int(_points(truth).sum())
    if labelled:
        readings["coverage"] = error.size / labelled
        readings["points_ratio"] = int(_points(decoded).sum()) / labelled
    counts = _points(decoded).any(-1).sum(-1) - _points(truth).any(-1).sum(-1)  # (n,)
    if counts.size:
        readings["lane_count_error"] = float(np.abs(counts).mean())
    return readings


def slot_error(decoded: Lanes, truth: Lanes) -> dict[str, float]:
    """Give `px_error_slot`: mean |dx| on common rows of lanes with the same id."""
    distance = np.abs(decoded - truth)
    common = np.isfinite(distance)
    return {"px_error_slot": float(distance[common].mean())} if common.any() else {}


def zigzag(decoded: Lanes, reference: Lanes, bin_width: float) -> dict[str, float]:
    """Measure the lanes' wiggle by d2 = x[t + 1] - 2 x[t] + x[t - 1] on contiguous rows.

    - `zigzag`: mean |d2| in excess of that of `reference`, the labels after their tokenizer's round
      trip, px; negative when the lanes are smoother than the quantised labels.
    - `zigzag_flips`: sign changes of d2 from one bend to the next, per two neighbouring d2. Only
      |d2| over 1.5 bins (at least 6 px) is a bend: rounding alone flips about half the rows.

    A straight wrong lane scores perfectly: read these only beside the px error.
    """
    bends = np.diff(decoded, n=2, axis=-1)
    own, expected = _mean_abs(bends), _mean_abs(np.diff(reference, n=2, axis=-1))
    readings: dict[str, float] = {}
    if own is not None and expected is not None:
        readings["zigzag"] = own - expected
    dead_zone = max(_DEAD_ZONE_BINS * bin_width, _DEAD_ZONE_PX)
    flips = neighbours = 0
    for run in _runs(bends.reshape(-1, bends.shape[-1])):
        signs = np.sign(run[np.abs(run) > dead_zone])
        flips += int((signs[1:] != signs[:-1]).sum())
        neighbours += len(run) - 1
    if neighbours:
        readings["zigzag_flips"] = flips / neighbours
    return readings


def collapse(decoded: Lanes, truth: Lanes) -> dict[str, float]:
    """Compare the spread of the decoded lanes with the labels': 1 as spread out, 0 one line.

    - `collapse_lanes`: between the lanes of an image (mean over rows of the standard deviation);
    - `collapse_images`: between images, lane id by lane id;
    - `collapse`: the smaller of the two.

    Only places (image, lane id, row) where both have a point count, in groups of two or more. A
    spread of the labels under 1 px (one lane, images alike) has no reading.
    """
    common = _points(decoded) & _points(truth)
    readings: dict[str, float] = {}
    for name, axis in (("collapse_lanes", 1), ("collapse_images", 0)):
        own, labelled = (_spread(x, common, axis) for x in (decoded, truth))
        if labelled > _ONE_LINE:
            readings[name] = own / labelled
    if readings:
        readings["collapse"] = min(readings.values())
    return readings


def movement(before: Lanes, after: Lanes) -> dict[str, float]:
    """Say how decoded lanes move when something changes, lane id by lane id.

    - `px`: mean |dx| on rows that both have; missing when there is none.
    - `kept`: share of the points before that still have one after.
    """
    distance = np.abs(after - before)
    common = np.isfinite(distance)
    readings: dict[str, float] = {}
    if common.any():
        readings["px"] = float(distance[common].mean())
    points = int(_points(before).sum())
    if points:
        readings["kept"] = int(common.sum()) / points
    return readings


def cross_entropy(
    logits: Float[Tensor, "n L T V"], ids: Int[Tensor, "n L T"]
) -> Float[Tensor, "n L T"]:
    """Cross-entropy of every step against its hard target, nats."""
    return -logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def first_points(point: Bool[Tensor, "n L T"]) -> Bool[Tensor, "n L T"]:
    """Mark the first point of each lane."""
    return point & (point.cumsum(-1) == 1)


def loss_per_px(nats_per_point: float, bin_width: float) -> float:
    """CE + ln(bin width in px): the loss per point as if over px, comparable across bin widths."""
    return nats_per_point + math.log(bin_width)


def loss_trend(losses: Sequence[float], together: int = 1) -> dict[str, float]:
    """Say how the training losses went, as means of `together` steps.

    - `loss_fall`: share by which the mean of the last tenth lies under that of the tenth before;
      negative when it rose. Needs 20 means.
    - `loss_spikes`: share of means over twice the median of the ten before them (and 0.05 more,
      so that noise about a loss of nearly 0 is none). Needs 11.
    - `loss_overshoot`: the highest loss of any step over that of the first, which is of untrained
      weights: 1 when it only ever fell. Needs 2 steps.
    """
    whole = len(losses) // together * together
    known = np.asarray(losses, float)[len(losses) - whole :].reshape(-1, together).mean(1)
    readings: dict[str, float] = {}
    tenth = len(known) // 10
    if tenth >= 2:
        before, last = known[-2 * tenth : -tenth].mean(), known[-tenth:].mean()
        readings["loss_fall"] = float(1 - last / before) if before > 0 else 0.0
    if len(known) > 10:
        recent = np.median(np.lib.stride_tricks.sliding_window_view(known[:-1], 10), axis=-1)
        readings["loss_spikes"] = float((known[10:] > 2 * recent + 0.05).mean())
    if len(losses) > 1 and losses[0] > 0:
        readings["loss_overshoot"] = max(losses) / losses[0]
    return readings


def _points(lanes: np.ndarray) -> np.ndarray:
    return np.isfinite(lanes)


def _mean_abs(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.abs(known).mean()) if known.size else None


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each stretch without nan of each row."""
    for row in rows:
        known = np.flatnonzero(np.isfinite(row))
        for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
            if run.size:
                yield row[run]


def _spread(lanes: np.ndarray, common: np.ndarray, axis: int) -> float:
    """Mean standard deviation along `axis` of the marked places; 0 without groups of two."""
    count = common.sum(axis, keepdims=True)
    x = np.where(common, lanes, 0.0)
    mean = x.sum(axis, keepdims=True) / np.maximum(count, 1)
    square = np.where(common, (x - mean) ** 2, 0.0).sum(axis, keepdims=True)
    groups = count > 1
    if not groups.any():
        return 0.0
    return float(np.sqrt(square[groups] / count[groups]).mean())
