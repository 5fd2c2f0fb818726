"""Designs: which combinations of levels a study runs. Pure: axes and options in, arms out.

An axis is what varies as one: a factor, or several zipped factors whose levels go in step. An arm
has a level for every factor of the study, so any two designs can meet in the same arm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from ablate import fractions
from ablate.nouns import Arm, Factor, Match, StudyError


@dataclass(frozen=True)
class Axis:
    """One thing that varies: its name, and for each choice a label and the levels it sets."""

    name: str
    choices: tuple[tuple[str, Mapping[str, str]], ...]

    @staticmethod
    def of(name: str, *levels: str) -> Axis:
        """The axis of one factor.

        >>> Axis.of("clip", "1.0", "0.5").choices[1]
        ('0.5', {'clip': '0.5'})
        """
        return Axis(name, tuple((level, {name: level}) for level in levels))

    def default(self, named: Mapping[str, str], position: int) -> int:
        """The choice that `named` (factor -> level) asks for, or the one at `position`."""
        asked = {factor: named[factor] for factor in self.choices[0][1] if factor in named}
        if not asked:
            return range(len(self.choices))[position]
        for index, (_, levels) in enumerate(self.choices):
            if all(levels[factor] == level for factor, level in asked.items()):
                return index
        given = ", ".join(f"{factor}={level}" for factor, level in asked.items())
        raise StudyError(f"{given}: not a level of {self.name}; allowed: {self.labels}")

    @property
    def labels(self) -> str:
        return ", ".join(label for label, _ in self.choices)


def axes_of(factors: Sequence[Factor], zipped: Sequence[Sequence[str]] = ()) -> list[Axis]:
    """The axes of a study: each zipped group is one, where its first factor stands.

    Raises:
        StudyError: a zipped group whose factors differ in their number of levels.
    """
    groups = {name: tuple(group) for group in zipped for name in group}
    by_name = {factor.name: factor for factor in factors}
    axes = []
    for factor in factors:
        group = groups.get(factor.name, (factor.name,))
        if factor.name != min(group, key=list(by_name).index):
            continue
        counts = {name: len(by_name[name].levels) for name in group}
        if len(set(counts.values())) > 1:
            raise StudyError(f"zip: levels go in step, so their numbers must be equal: {counts}")
        steps = zip(*(by_name[name].names for name in group), strict=True)
        choices = tuple(("+".join(step), dict(zip(group, step, strict=True))) for step in steps)
        axes.append(Axis("+".join(group), choices))
    return axes


def factorial(
    axes: Sequence[Axis], *, factors: Sequence[str] = (), base: Mapping[str, str] | None = None
) -> list[Arm]:
    """Every combination; with `factors`, only theirs, the others at their base level.

    >>> axes = [Axis.of("tokens", "full", "p5"), Axis.of("lr", "3e-4", "1e-4")]
    >>> [arm.label for arm in factorial(axes)]
    ['full/3e-4', 'full/1e-4', 'p5/3e-4', 'p5/1e-4']
    >>> [(arm.label, *arm.levels.values()) for arm in factorial(axes, factors=["lr"])]
    [('3e-4', 'full', '3e-4'), ('1e-4', 'full', '1e-4')]
    """
    _known(factors, axes)
    varied = [not factors or bool(set(axis.choices[0][1]) & set(factors)) for axis in axes]
    ranges = [
        range(len(axis.choices)) if varies else (axis.default(base or {}, 0),)
        for axis, varies in zip(axes, varied, strict=True)
    ]
    return [
        _arm(axes, picks, _path(list(compress(axes, varied)), list(compress(picks, varied))))
        for picks in itertools.product(*ranges)
    ]


def one_at_a_time(axes: Sequence[Axis], *, base: Mapping[str, str] | None = None) -> list[Arm]:
    """The base arm (first levels unless named), then each other level of each axis alone.

    >>> axes = [Axis.of("tokens", "full", "p5"), Axis.of("lr", "3e-4", "1e-4", "5e-5")]
    >>> [arm.label for arm in one_at_a_time(axes)]
    ['base', 'tokens=p5', 'lr=1e-4', 'lr=5e-5']
    >>> one_at_a_time(axes, base={"tokens": "p5"})[1].levels
    {'tokens': 'full', 'lr': '3e-4'}
    """
    start = [axis.default(base or {}, 0) for axis in axes]
    arms = [_arm(axes, start, "base")]
    for place, axis in enumerate(axes):
        for choice, (label, _) in enumerate(axis.choices):
            if choice != start[place]:
                picks = [*start[:place], choice, *start[place + 1 :]]
                arms.append(_arm(axes, picks, f"{axis.name}={label}"))
    return arms


def leave_one_out(
    axes: Sequence[Axis],
    *,
    best: Mapping[str, str] | None = None,
    base: Mapping[str, str] | None = None,
) -> list[Arm]:
    """The best arm (last levels unless named), then it with one axis put back to its base level.

    >>> axes = [Axis.of("tokens", "full", "p5"), Axis.of("clip", "1.0", "0.5")]
    >>> [(arm.label, *arm.levels.values()) for arm in leave_one_out(axes)]
    [('all', 'p5', '0.5'), ('all but tokens', 'full', '0.5'), ('all but clip', 'p5', '1.0')]
    """
    start = [axis.default(base or {}, 0) for axis in axes]
    top = [axis.default(best or {}, -1) for axis in axes]
    arms = [_arm(axes, top, "all")]
    for place, axis in enumerate(axes):
        if start[place] != top[place]:
            picks = [*top[:place], start[place], *top[place + 1 :]]
            arms.append(_arm(axes, picks, f"all but {axis.name}"))
    return arms


def listed(
    axes: Sequence[Axis],
    *,
    arms: Mapping[str, Mapping[str, str]],
    base: Mapping[str, str] | None = None,
) -> list[Arm]:
    """The arms given by name; factors that an arm does not name are at their base level.

    >>> axes = [Axis.of("tokens", "full", "p5"), Axis.of("lr", "3e-4", "1e-4")]
    >>> listed(axes, arms={"ours": {"lr": "1e-4"}})
    [Arm(label='ours', levels={'tokens': 'full', 'lr': '1e-4'}, design='')]
    """
    return [
        _arm(axes, [axis.default({**(base or {}), **levels}, 0) for axis in axes], label)
        for label, levels in arms.items()
    ]


def fractional(
    axes: Sequence[Axis],
    *,
    resolution: int | None = None,
    generators: Mapping[str, Sequence[str]] | None = None,
) -> list[Arm]:
    """A regular fraction of the two-level factorial: of a resolution, or by its generators.

    The smallest fraction of that resolution: III keeps main effects apart from each other, IV also
    from two-factor interactions, V also those from each other. `notes` tells what is aliased.

    >>> axes = [Axis.of("a", "-", "+"), Axis.of("b", "-", "+"), Axis.of("c", "-", "+")]
    >>> [arm.label for arm in fractional(axes, resolution=3)]  # c = a b
    ['-/-/+', '-/+/-', '+/-/-', '+/+/+']
    """
    plan = _fraction(axes, resolution, generators)
    return [_arm(axes, picks, _path(axes, picks)) for picks in plan.runs()]


DESIGNS: dict[str, Callable[..., list[Arm]]] = {
    "factorial": factorial,
    "one_at_a_time": one_at_a_time,
    "leave_one_out": leave_one_out,
    "list": listed,
    "fractional": fractional,
}
"""What a study's `design:` may say. Keyword arguments are the options it takes."""


def aliases(
    axes: Sequence[Axis],
    *,
    resolution: int | None = None,
    generators: Mapping[str, Sequence[str]] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Groups of effects (up to two factors) that a fractional design cannot tell apart.

    >>> axes = [Axis.of("a", "-", "+"), Axis.of("b", "-", "+"), Axis.of("c", "-", "+")]
    >>> aliases(axes, resolution=3)
    (('a', 'b:c'), ('b', 'a:c'), ('c', 'a:b'))
    """
    return _fraction(axes, resolution, generators).aliases([axis.name for axis in axes])


def notes(
    axes: Sequence[Axis],
    *,
    resolution: int | None = None,
    generators: Mapping[str, Sequence[str]] | None = None,
) -> tuple[str, ...]:
    """The same for people: resolution, generators, aliases."""
    names = [axis.name for axis in axes]
    plan = _fraction(axes, resolution, generators)
    made = ", ".join(
        f"{names[column]} = {' '.join(names[i] for i in fractions.members(word))}"
        for column, word in plan.generated()
    )
    size = f"{2**plan.n_base} of {2**plan.n_factors} combinations"
    head = f"fractional: {size}, resolution {plan.resolution or 'full'}; {made or 'no generators'}"
    return head, *(f"aliased: {' = '.join(group)}" for group in plan.aliases(names))


def constrained(
    arms: Iterable[Arm], exclude: Sequence[Match] = (), only: Sequence[Match] = ()
) -> list[Arm]:
    """The arms that no `exclude` matches and, if there is an `only`, one of them does.

    >>> arms = factorial([Axis.of("tokens", "full", "p5"), Axis.of("lr", "3e-4", "1e-4")])
    >>> [arm.label for arm in constrained(arms, exclude=[{"tokens": ("full",), "lr": ("1e-4",)}])]
    ['full/3e-4', 'p5/3e-4', 'p5/1e-4']
    """

    def matches(arm: Arm, match: Match) -> bool:
        return all(arm.levels[factor] in levels for factor, levels in match.items())

    return [
        arm
        for arm in arms
        if not any(matches(arm, match) for match in exclude)
        and (not only or any(matches(arm, match) for match in only))
    ]


def _arm(axes: Sequence[Axis], picks: Sequence[int], label: str) -> Arm:
    levels: dict[str, str] = {}
    for axis, pick in zip(axes, picks, strict=True):
        levels.update(axis.choices[pick][1])
    return Arm(label, levels)


def _path(axes: Sequence[Axis], picks: Sequence[int]) -> str:
    parts = (axis.choices[pick][0] for axis, pick in zip(axes, picks, strict=True))
    return "/".join(parts) or "base"


def _fraction(
    axes: Sequence[Axis],
    resolution: int | None,
    generators: Mapping[str, Sequence[str]] | None,
) -> fractions.Fraction:
    for axis in axes:
        if len(axis.choices) != 2:
            raise StudyError(
                f"design: fractional takes two levels a factor, {axis.name} has "
                f"{len(axis.choices)} ({axis.labels})"
            )
    if (resolution is None) == (generators is None):
        raise StudyError("design: fractional needs one of resolution: (3, 4, 5...) and generators:")
    if generators is None:
        return fractions.of_resolution(len(axes), resolution or 0)
    names = [axis.name for axis in axes]
    _known([*generators, *itertools.chain(*generators.values())], axes)
    columns = {
        names.index(made): [names.index(name) for name in of] for made, of in generators.items()
    }
    return fractions.by_generators(len(axes), columns)


def _known(names: Iterable[str], axes: Sequence[Axis]) -> None:
    known = {name for axis in axes for name in (axis.name, *axis.choices[0][1])}
    for name in names:
        if name not in known:
            raise StudyError(f"design: unknown factor {name!r}; allowed: {', '.join(known)}")
