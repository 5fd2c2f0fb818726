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
        """The arm of a point.

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
        label = f"#{number} {'/'.join([*said, *map(text_of, values.values())])}"
        return Arm(label, levels, settings=values)

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
            if levels.get(path, UNSEARCHED) == UNSEARCHED:
                return None
            params[path] = (int if range_.whole else float)(levels[path])
        return params


def text_of(value: float | int) -> str:
    """A range's value as a level's name.

    >>> text_of(0.0003), text_of(3.123e-05), text_of(1234567)
    ('0.0003', '3.123e-05', '1234567')
    """
    return str(value) if isinstance(value, int) else f"{value:.12g}"
