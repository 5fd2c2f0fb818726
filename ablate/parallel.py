"""Parallel coordinates of a study's arms: inline SVG, brushed by the script beside the template.

An axis per factor and per reading, a line per arm. Without the script the picture stands as it is.
Pure. Places on an axis run from 0 (bottom: low values, first levels) to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ablate import wording
from ablate.arm import RankedArm
from ablate.rank import COST, Ranking
from ablate.stats import scale_of

LEFT, TOP, HEIGHT, BOTTOM = 60, 36, 210, 16
"""px of the SVG's own coordinates: beside the axes, above, of them, below."""
WIDTH, CLOSEST, FARTHEST = 1150, 104, 190
"""px; the axes share a page's breadth, but stand neither too close nor too far apart."""
SPREAD = 16.0
"""px over which the lines through one level are spread, so that they can be told apart."""
MOST = 15
"""Characters of a name beside an axis."""
DECADES = 10.0
"""Readings compared as ratios that span more are on a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """One reading or factor, and where each arm is on it."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    """Place and text."""
    places: Mapping[str, float]
    """By arm; one without a value is absent."""
    levels: bool
    """Whether the ticks are all that there is."""
    threshold: float | None = None
    """Place of the criterion's threshold, where it lies on the axis."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    above: bool = False
    """Whether its criterion asks for more, not less."""


def axes_of(ranking: Ranking) -> list[Axis]:
    """The factors that vary, what the criteria read, and the cost."""
    arms = [arm for arm in ranking.arms if arm.seeds]
    axes: list[Axis] = []
    for factor in arms[0].levels if arms else ():
        used = {arm.levels[factor] for arm in arms}
        levels = [own.level for own in ranking.levels if own.factor == factor and own.level in used]
        if len(levels) > 1:
            axes.append(_of_levels(factor, levels, arms))
    for index, criterion in enumerate(arms[0].criteria if arms else ()):
        values = {}
        for arm in arms:
            read = arm.criteria[index]
            if read.verdict != "not testable" and read.readings[0].value is not None:
                values[arm.arm] = read.readings[0].value.mean
        first = criterion.readings[0]
        axes += _of_numbers(first.metric, values, first.threshold, first.above)
    costs = {arm.arm: arm.metrics[COST].mean for arm in arms if COST in arm.metrics}
    return [*axes, *_of_numbers(COST, costs, None)]


def parallel_coordinates(ranking: Ranking, axes: Sequence[Axis]) -> str:
    """The arms as lines over all axes; empty where there is nothing to compare."""
    arms = [arm for arm in ranking.arms if arm.seeds]
    if len(axes) < 2 or len(arms) < 2:
        return ""
    step = _step(axes)
    width = 2 * LEFT + step * (len(axes) - 1)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg id="parallel" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'data-top="{TOP}" data-height="{HEIGHT}" '
        'role="img" aria-label="Parallel coordinates of the configurations">'
    ]
    for index, arm in reversed(list(enumerate(arms))):  # the best on top
        offset = SPREAD * (index / (len(arms) - 1) - 0.5)
        parts += [_line(arm, axes, ranking, offset)]
    parts += [_axis(index, LEFT + step * index, axis) for index, axis in enumerate(axes)]
    return "".join([*parts, "</svg>"])


def _of_levels(factor: str, levels: Sequence[str], arms: Sequence[RankedArm]) -> Axis:
    place = {level: index / (len(levels) - 1) for index, level in enumerate(levels)}
    ticks = tuple((place[level], level) for level in levels)
    return Axis(factor, ticks, {arm.arm: place[arm.levels[factor]] for arm in arms}, True)


def _of_numbers(
    metric: str, values: Mapping[str, float], threshold: float | None, above: bool = False
) -> list[Axis]:
    """An axis from the least to the greatest value; none where they do not differ."""
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    if not low < high:
        return []
    log = scale_of(metric) == "ratio" and low > 0 and high > DECADES * low
    scale = math.log if log else float

    def place(value: float) -> float:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    middle = math.sqrt(low * high) if log else (low + high) / 2
    ticks = tuple((place(v), wording.number(v, 2)) for v in (low, middle, high))
    limit = place(threshold) if threshold is not None and low <= threshold <= high else None
    places = {arm: place(value) for arm, value in values.items()}
    return [Axis(wording.name(metric), ticks, places, False, limit, low, high, log, above)]


def _step(axes: Sequence[Axis]) -> int:
    """Px between axes."""
    return min(max((WIDTH - 2 * LEFT) // (len(axes) - 1), CLOSEST), FARTHEST)


def _y(place: float) -> float:
    return round(TOP + HEIGHT * (1 - place), 1)


def _line(arm: RankedArm, axes: Sequence[Axis], ranking: Ranking, offset: float) -> str:
    """A path over the axes, broken where a value is missing; places as data for the script."""
    path, joined, data, step = [], False, [], _step(axes)
    for index, axis in enumerate(axes):
        place = axis.places.get(arm.arm)
        data.append("-" if place is None else f"{place:.4f}")
        if place is not None:
            y = round(_y(place) + (offset if axis.levels else 0), 1)
            path.append(f"{'L' if joined else 'M'}{LEFT + step * index} {y}")
        joined = place is not None
    kind = "best" if arm.rank == 1 else "base" if arm.arm == ranking.base else ""
    said = f"{arm.rank}. {arm.arm}"
    return (
        f'<path class="arm {kind}" data-arm="{escape(said)}" data-at="{" ".join(data)}" '
        f'd="{" ".join(path)}"><title>{escape(said)}</title></path>'
    )


def _axis(index: int, x: int, axis: Axis) -> str:
    ticks = "".join(
        f'<text x="{x + 5}" y="{_y(place) + 4}" class="tick">{_cut(text)}</text>'
        for place, text in axis.ticks
    )
    limit = ""
    if axis.threshold is not None:
        y = _y(axis.threshold)
        limit = f'<path class="limit" d="M{x - 9} {y}H{x + 9}"/>'
    return (
        f'<g class="axis" data-axis="{index}" data-name="{escape(axis.name)}">'
        f'<path d="M{x} {TOP}V{TOP + HEIGHT}"/>{limit}{ticks}'
        f'<text x="{x}" y="14" text-anchor="middle">{_cut(axis.name)}</text>'
        f'<rect class="brush" x="{x - 9}" y="{TOP}" width="18" height="0"/>'
        f'<rect class="hit" x="{x - 18}" y="{TOP - 6}" width="36" height="{HEIGHT + 12}"/></g>'
    )


def _cut(text: str) -> str:
    return escape(wording.cut(text, MOST))
