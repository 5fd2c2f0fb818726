"""Readings over steps as MLflow draws them: a line per key. Pure: no MLflow in here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

NAME = re.compile(r"[^\w\-. /:]")
"""What MLflow allows in names of metrics, params and images."""
FINAL = ("final/", "best/", "test/", "floor/", "cost/")
"""Readings that a job has once, at its end: bars, whenever they were told."""
ARM_PARTS = 100
"""Parts, at most, of an arm's line, a mean to be compared with others: its jobs have every step."""


class Point(NamedTuple):
    """One value of a metric; time in ms since 1970."""

    key: str
    value: float
    time: int
    step: int


def points_of(events: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """The readings of a job's events that make lines; what is not a finite number is left out."""
    for event in events:
        step, metrics = event.get("step"), event.get("metrics")
        if not isinstance(step, int) or not isinstance(metrics, Mapping):
            continue
        time = event.get("time")
        stamp = int(1000 * time) if isinstance(time, int | float) else 0
        for key, value in metrics.items():
            if is_number(value) and not str(key).startswith(FINAL):
                yield Point(NAME.sub("_", str(key)), float(value), stamp, step)


def without_plateaus(points: Iterable[Point]) -> list[Point]:
    """Leave out what lies between two equal readings of the same key: the lines stay as they are.

    >>> steps = [Point("lr", value, 0, step) for step, value in enumerate([1, 1, 1, 2])]
    >>> [point.step for point in without_plateaus(steps)]
    [0, 2, 3]
    """
    kept = []
    for line in _lines(points):
        for before, point, after in zip([None, *line], line, [*line[1:], None], strict=False):
            if not (before and after and before.value == point.value == after.value):
                kept.append(point)
    return kept


def mean(histories: Sequence[Iterable[Point]]) -> list[Point]:
    """Means over seeds at the steps that all seeds have."""
    sums: dict[tuple[str, int], list[float]] = {}
    for points in histories:
        once = {(point.key, point.step): point.value for point in points}
        for place, value in once.items():
            sums.setdefault(place, []).append(value)
    return [
        Point(key, _short(math.fsum(values) / len(values)), 0, step)
        for (key, step), values in sums.items()
        if len(values) == len(histories)
    ]


def thinned(points: Iterable[Point], parts: int = ARM_PARTS) -> list[Point]:
    """Keep the ends of each line, and between them, evenly, at most so many parts.

    >>> steps = [Point("loss", 0.0, 0, step) for step in range(0, 80, 10)]
    >>> [point.step for point in thinned(steps, 4)]
    [0, 10, 30, 50, 70]
    """
    kept = []
    for line in _lines(points):
        stride = max(math.ceil((len(line) - 1) / parts), 1)
        kept += [line[i] for i in sorted({0, *range(len(line) - 1, 0, -stride)})]
    return kept


def is_number(value: Any) -> bool:
    """Say whether it is one that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def _lines(points: Iterable[Point]) -> Iterable[list[Point]]:
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.key, []).append(point)
    return lines.values()


def _short(value: float) -> float:
    """Four digits: a column of MLflow's table shows no more."""
    return float(f"{value:.4g}")
