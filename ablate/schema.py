"""The keys of a study file one by one: an `Entry` in, a noun out, or one line that says why not."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from ablate.adaptive import Direction
from ablate.designs import DESIGNS
from ablate.nouns import Condition, Criterion, Design, Factor, Level, Match
from ablate.strict_yaml import Entry, suggestion

DISTINCT = 10
"""Characters in which the levels of a factor must differ: parallel plots show no more."""

BOUNDS = ("below", "above")
MORE_IS_BETTER = re.compile(r"(^|[/_])(m?f1(_\d+)?|accuracy|coverage)$")
"""Readings for which a number alone, an upper bound, would hold where they are worst."""

DIRECTIONS = get_args(Direction)
PATHS = ("base", "best", "reading")
"""Options of the design `paths`; `search` has a file of its own."""
NAMES = (*DESIGNS, "paths", "search")

Levels = Mapping[str, tuple[str, ...]]
"""Factor -> names of its levels."""


def read_settings(entry: Entry | None) -> dict[str, Any]:
    """Dotted paths to values; an empty entry is no settings."""
    if entry is None or entry.is_null():
        return {}
    settings: dict[str, Any] = {}
    for path, value in entry.entries().items():
        if path == "seed":
            raise value.error("seeds are the study's own key: seeds: [0, 1, 2]")
        if value.is_mapping():
            raise value.error(f"given a mapping, must be a value; write {path}.KEY: value")
        settings[path] = value.plain()
    return settings


def read_factors(entry: Entry | None) -> tuple[Factor, ...]:
    """Factor -> level -> settings; null takes a factor of the study it extends away."""
    factors = []
    for name, levels_entry in (entry.entries() if entry else {}).items():
        if not name.strip():
            raise levels_entry.error("a factor needs a name")
        if levels_entry.is_list():
            raise levels_entry.error(_as_levels(name, levels_entry))
        if levels_entry.is_null() and entry and entry.under:
            continue
        levels = levels_entry.entries()
        if len(levels) < 2:
            raise levels_entry.error(f"given {len(levels)} level(s), must be two or more")
        short: dict[str, str] = {}
        for level in levels:
            other = short.setdefault(level[:DISTINCT].strip(), level)
            if not level.strip() or other != level:
                raise levels_entry.error(
                    f"level {level!r} must differ from {other!r} in its first {DISTINCT} characters"
                    if level.strip()
                    else "a level needs a name"
                )
        if all(e.is_null() or (e.is_mapping() and not e.entries()) for e in levels.values()):
            first = next(iter(levels))
            raise levels_entry.error(
                f"no level sets anything; write what each sets: {first}: {{PATH: VALUE}}"
            )
        factors.append(
            Factor(name, tuple(Level(level, read_settings(e)) for level, e in levels.items()))
        )
    return tuple(factors)


def _as_levels(name: str, entry: Entry) -> str:
    """What to write in place of a list of values: a level for each, with its setting."""
    values = [item.text() for item in entry.items() if not item.is_mapping() and not item.is_list()]
    levels = ", ".join(f"{value}: {{{name}: {value}}}" for value in values[:2]) or "LEVEL: {...}"
    more = ", ..." if len(values) > 2 else ""
    label = name.rsplit(".", 1)[-1]
    return f"given a list, must be levels with what each sets: {label}: {{{levels}{more}}}"


def known(entry: Entry, name: str, kind: str, allowed: Collection[str]) -> str:
    """A name that must be one of those allowed."""
    if name not in allowed:
        raise entry.error(f"unknown {kind} {name!r}{suggestion(name, allowed)}")
    return name


def level_choice(entry: Entry, levels: Levels) -> dict[str, str]:
    """{factor: level}."""
    chosen = {}
    for factor, level in entry.entries().items():
        known(level, factor, "factor", levels)
        chosen[factor] = known(level, level.text(), "level", levels[factor])
    return chosen


def names(entry: Entry, levels: Levels) -> list[str]:
    """A list of factors."""
    return [known(item, item.text(), "factor", levels) for item in entry.items()]


def read_designs(
    entry: Entry, levels: Levels, criteria: Collection[str] = ()
) -> tuple[Design, ...]:
    """One design or a list of them."""
    given = entry.items() if entry.is_list() else [entry]
    if not given:
        raise entry.error(f"empty; allowed: {', '.join(NAMES)}")
    return tuple(_design(e, levels, criteria) for e in given)


def _design(entry: Entry, levels: Levels, criteria: Collection[str]) -> Design:
    if not entry.is_mapping():
        name = known(entry, entry.text(), "design", NAMES)
        _refuse_bare(entry, name)
        return Design(name)
    named = entry.entries()
    if len(named) != 1:
        raise entry.error(f"given {len(named)} names, must be one design a list item")
    ((name, given),) = named.items()
    known(entry, name, "design", NAMES)
    if name == "search":
        from ablate.search_schema import read_search

        return Design(name, read_search(given, levels, criteria))
    if given.is_null():
        _refuse_bare(entry, name)
        return Design(name)
    if name == "list":
        arms = {label: level_choice(arm, levels) for label, arm in given.entries().items()}
        return Design(name, {"arms": arms})
    if name in DESIGNS:
        parameters = inspect.signature(DESIGNS[name]).parameters.values()
        allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    else:
        allowed = list(PATHS)
    read = given.entries(allowed).items()
    return Design(name, {option: _option(option, value, levels) for option, value in read})


def _refuse_bare(entry: Entry, name: str) -> None:
    """Refuse a design without options that cannot be without."""
    if name == "search":
        raise entry.error("search needs options, trials at least: {search: {trials: 40}}")
    if name == "list":
        raise entry.error("list needs its arms: {list: {LABEL: {FACTOR: LEVEL}}}")


def _option(option: str, value: Entry, levels: Levels) -> Any:
    """The value of a design's option."""
    if option == "resolution":
        return value.typed(int, "a whole number: 3, 4, 5...")
    if option == "generators":
        return {
            known(of, factor, "factor", levels): names(of, levels)
            for factor, of in value.entries().items()
        }
    if option == "factors":
        return names(value, levels)
    if option == "reading":
        return read_objective(value)
    return level_choice(value, levels)


def read_objective(entry: Entry) -> dict[str, Direction]:
    """The name of a reading, where less is better, or {reading: minimize or maximize}."""
    if not entry.is_mapping():
        name = entry.text()
        if MORE_IS_BETTER.search(name):
            raise entry.error(f"more {name} is better: write {{{name}: maximize}} (or minimize)")
        return {name: "minimize"}
    named = entry.entries()
    if len(named) != 1:
        raise entry.error(f"given {len(named)} readings, must be one")
    ((name, given),) = named.items()
    direction = known(given, given.text(), "direction", DIRECTIONS)
    return {name: "maximize" if direction == "maximize" else "minimize"}


def read_seeds(entry: Entry | None) -> tuple[int, ...]:
    """Different whole numbers; 0 alone where a study names none."""
    if entry is None:
        return (0,)
    seeds = [item.typed(int, "a whole number") for item in entry.items()]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise entry.error(f"given {seeds}, must be one or more different numbers from 0")
    return tuple(seeds)


def read_criteria(entry: Entry | None, default: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
    """The core's criteria with the study's laid over them by name."""
    criteria = {criterion.name: criterion for criterion in default}
    for name, given in (entry.entries() if entry else {}).items():
        if given.is_null():
            known(given, name, "criterion", criteria)
            del criteria[name]
        elif given.is_mapping() and not (given.entries().keys() & set(BOUNDS)):
            conditions = given.entries().items()
            if not conditions:
                raise given.error("empty: it would always pass; null takes a criterion away")
            criteria[name] = Criterion(name, tuple(_condition(m, e) for m, e in conditions))
        else:
            old = criteria[known(given, name, "criterion", criteria)]
            if len(old.conditions) != 1:
                metrics = ", ".join(condition.metric for condition in old.conditions)
                raise given.error(f"has several conditions; give a threshold for each: {metrics}")
            (condition,) = old.conditions
            own = _condition(condition.metric, given, condition.above)
            criteria[name] = Criterion(name, (own,))
    return tuple(criteria.values())


def _condition(metric: str, entry: Entry, above: bool | None = None) -> Condition:
    """A bound of a reading: `0.1`, `{below: 0.1}` or `{above: 0.9}`.

    Args:
        metric: the reading.
        entry: its bound.
        above: what a number alone means; None: below, for readings of which less is better.
    """
    if entry.is_mapping():
        named = entry.entries(BOUNDS)
        if len(named) != 1:
            raise entry.error(f"given {len(named)} bounds, must be one of {', '.join(BOUNDS)}")
        ((bound, entry),) = named.items()
        above = bound == "above"
    elif above is None and MORE_IS_BETTER.search(metric):
        given = entry.text() if not entry.is_list() else "NUMBER"
        raise entry.error(
            f"more is better of {metric}, and a number alone is an upper bound; write "
            f"{{above: {given}}} (or {{below: {given}}})"
        )
    threshold = entry.typed(float, "a number, {below: number} or {above: number}")
    if not math.isfinite(threshold):
        raise entry.error(f"given {threshold}, must be a finite number")
    return Condition(metric, threshold, bool(above))


def condition_plain(condition: Condition) -> tuple[str, Any]:
    """A reading and its bound, in the form that `read_criteria` reads."""
    if condition.above:
        return condition.metric, {"above": condition.threshold}
    if MORE_IS_BETTER.search(condition.metric):
        return condition.metric, {"below": condition.threshold}
    return condition.metric, condition.threshold


def read_zipped(entry: Entry | None, levels: Levels) -> tuple[tuple[str, ...], ...]:
    """Groups of factors that vary together."""
    groups = tuple(tuple(names(group, levels)) for group in entry.items()) if entry else ()
    grouped = [name for group in groups for name in group]
    if entry and (len(set(grouped)) < len(grouped) or min(map(len, groups), default=2) < 2):
        raise entry.error("must be lists of two or more factors, each factor in one list at most")
    return groups


def read_matches(entry: Entry | None, levels: Levels) -> tuple[Match, ...]:
    """A list of {factor: level or levels}."""
    matches = []
    for item in entry.items() if entry else []:
        match = {}
        for factor, given in item.entries().items():
            known(given, factor, "factor", levels)
            named = given.items() if given.is_list() else [given]
            match[factor] = tuple(known(e, e.text(), "level", levels[factor]) for e in named)
        if not match:
            raise item.error("empty: it would match every arm")
        matches.append(match)
    return tuple(matches)


def read_positive(entry: Entry | None, kind: type, default: Any) -> Any:
    """A number above zero."""
    if entry is None:
        return default
    value = entry.typed(kind, "a positive number")
    if not value > 0:
        raise entry.error(f"given {value}, must be a positive number")
    return value
