"""Where designs start from and lead to: a study has one base and one best. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ablate.designs import Axis
from ablate.nouns import Design, StudyError

PLACES = {"base": 0, "best": -1}
"""Option of a design -> the level of each axis that it leaves unnamed."""
TAKES = {
    "base": ("one_at_a_time", "leave_one_out", "list", "paths"),
    "best": ("leave_one_out", "paths"),
}
"""Designs whose arms hang on it in any case; of others, those that vary only some factors."""


def with_whole_starts(designs: Sequence[Design], axes: Sequence[Axis]) -> tuple[Design, ...]:
    """The designs, with the levels of zipped factors that a `base` or `best` implies named too.

    Raises:
        StudyError: two designs have other bases (or bests): effects are told against one.
    """
    whole = tuple(_completed(design, axes) for design in designs)
    for option in PLACES:
        starts = list(_starts(whole, axes, option))
        for name, levels in starts[1:]:
            first, wanted = starts[0]
            if other := [factor for factor in levels if levels[factor] != wanted[factor]]:
                one, two = (", ".join(f"{f}={own[f]}" for f in other) for own in (wanted, levels))
                raise StudyError(
                    f"{first} has the {option} {one}, {name} {two}; a study has one {option}: name "
                    "the same in both"
                )
    return whole


def _completed(design: Design, axes: Sequence[Axis]) -> Design:
    options = dict(design.options)
    for option, place in PLACES.items():
        named = options.get(option)
        if named:
            whole = dict(named)
            for axis in axes:
                if any(factor in named for factor in axis.choices[0][1]):
                    whole |= axis.choices[axis.default(named, place)][1]
            options[option] = whole
    return dataclasses.replace(design, options=options)


def _starts(
    designs: Sequence[Design], axes: Sequence[Axis], option: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each design that takes the option, and the levels it stands for."""
    for design in designs:
        partial = option == "base" and design.options.get("factors")
        if design.name in TAKES[option] or partial or design.options.get(option):
            named = design.options.get(option) or {}
            levels: dict[str, str] = {}
            for axis in axes:
                levels |= axis.choices[axis.default(named, PLACES[option])][1]
            yield design.name, levels
