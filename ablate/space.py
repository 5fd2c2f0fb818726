"""What a search may vary: the levels of factors and ranges of settings. Pure; no sampler in here.

A value of a range has four digits (`3.123e-05`): what a table shows is what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablate.designs import Axis
from ablate.nouns import UNSEARCHED, Arm, StudyError

DIGITS = 4

Params = Mapping[str, Any]
"""Axis -> label, range -> number: a point of the space."""


@dataclass(frozen=True)
class Range:
    """A setting between two numbers; whole ones when both are whole."""

    low: float | int
    high: float | int
    log: bool = False
    step: float | int | None = None

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(type(end) is int for end in (self.low, self.high, self.step or 1))

    def read(self, text: str) -> float | int | None:
        """The value of a level's name; None where the range does not come to it.

        >>> Range(1, 8).read("3"), Range(1, 8).read("9"), Range(1, 8).read("2.5")
        (3, None, None)
        >>> Range(0.0, 1.0, step=0.25).read("0.75"), Range(0.0, 1.0, step=0.25).read("0.8")
        (0.75, None)
        """
        try:
            given = (int if self.whole else float)(text)
        except ValueError:  # a whole range and a fraction; the name that stands for no value
            return None
        value = min(max(given, self.low), self.high)
        if not math.isclose(given, value, rel_tol=1e-9):  # a name has twelve digits
            return None
        step = self.step or (1 if self.whole else None)
        steps = 0.0 if step is None else (value - self.low) / step
        return value if abs(steps - round(steps)) < 1e-8 else None

    def checked(self) -> Range:
        """Itself.

        Raises:
            StudyError: it holds less than two values, or a logarithm that is none.
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise StudyError(f"given {self.low} to {self.high}, low must be below high")
        if self.log and self.low <= 0:
            raise StudyError(f"log: low is {self.low}, must be above 0")
        if self.log and self.step is not None:
            raise StudyError("step: a log range takes none")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise StudyError(f"step: given {self.step}, must be above 0 and within the range")
        return self

    def rounded(self, value: float) -> float | int:
        """A value as it is trained.

        >>> Range(1e-5, 1e-3, log=True).rounded(0.000312345678)
        0.0003123
        >>> Range(1, 8).rounded(3)
        3
        """
        if self.whole:
            return int(value)
        if self.step is not None:  # 0.1 * 3 is 0.30000000000000004
            return float(f"{value:.12g}")
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The points that a search may try."""

    axes: Sequence[Axis]
    """All factors of the study, zipped ones as one."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """By the path of the setting."""
    factors: Sequence[str] | None = None
    """Factors that vary, the others stay at their base level; None: all."""
    base: Mapping[str, str] = field(default_factory=dict)

    @property
    def varied(self) -> list[Axis]:
        """The axes that vary."""
        if self.factors is None:
            return list(self.axes)
        return [a for a in self.axes if {*self.factors} & {a.name, *a.choices[0][1]}]

    def arm(self, number: int, params: Params) -> Arm:
        """The arm of a point; 0 is no number.

        >>> space = Space([Axis.of("tokens", "full", "p5")], {"optim.lr": Range(1e-5, 1e-3)})
        >>> arm = space.arm(7, {"tokens": "p5", "optim.lr": 0.0002})
        >>> arm.label, arm.levels, arm.settings
        ('#7 p5/0.0002', {'tokens': 'p5', 'optim.lr': '0.0002'}, {'optim.lr': 0.0002})
        """
        levels: dict[str, str] = {}
        said = []
        varied = {axis.name for axis in self.varied}
        for axis in self.axes:
            pick = axis.default(self.base, 0)
            if axis.name in varied:
                labels = [label for label, _ in axis.choices]
                pick = labels.index(params[axis.name])
                said.append(params[axis.name])
            levels |= axis.choices[pick][1]
        values = {path: params[path] for path in self.ranges}
        levels |= {path: text_of(value) for path, value in values.items()}
        label = "/".join([*said, *map(text_of, values.values())])
        return Arm(f"#{number} {label}" if number else label, levels, settings=values)

    def corners(self) -> list[Arm]:
        """A few points: each choice once beside the base's, ranges all at one end, then the other.

        >>> space = Space([Axis.of("tokens", "full", "p5")], {"model.n_layers": Range(1, 4)})
        >>> [arm.label for arm in space.corners()]
        ['full/1', 'p5/1', 'full/4', 'p5/4']
        """
        start = {axis.name: axis.choices[axis.default(self.base, 0)][0] for axis in self.varied}
        singles = [start] + [
            start | {axis.name: label}
            for axis in self.varied
            for label, _ in axis.choices
            if label != start[axis.name]
        ]
        lows = {path: own.low for path, own in self.ranges.items()}
        highs = {path: own.high for path, own in self.ranges.items()}
        ends = [lows, highs] if self.ranges else [{}]
        return [self.arm(0, {**single, **end}) for end in ends for single in singles]

    def point(self, levels: Mapping[str, str]) -> dict[str, Any] | None:
        """The point of an arm's levels; None where the arm is of another design.

        >>> space = Space([Axis.of("tokens", "full", "p5")], {"model.n_layers": Range(1, 4)})
        >>> space.point({"tokens": "p5", "model.n_layers": "3"})
        {'tokens': 'p5', 'model.n_layers': 3}
        """
        params: dict[str, Any] = {}
        for axis in self.varied:
            found = [label for label, own in axis.choices if all(levels[f] == own[f] for f in own)]
            if not found:  # named in a list, past zipped factors
                return None
            params[axis.name] = found[0]
        for path, range_ in self.ranges.items():
            value = range_.read(levels.get(path, UNSEARCHED))
            if value is None:
                return None
            params[path] = value
        return params


def text_of(value: float | int) -> str:
    """A range's value as a level's name.

    >>> text_of(0.0003), text_of(3.123e-05), text_of(1234567)
    ('0.0003', '3.123e-05', '1234567')
    """
    return str(value) if isinstance(value, int) else f"{value:.12g}"
