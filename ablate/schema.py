"""The keys of a study file one by one: an `Entry` in, a noun out, or one line that says why not."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, get_args

from ablate.adaptive import Direction
from ablate.designs import DESIGNS
from ablate.nouns import Condition, Criterion, Design, Factor, Level, Match
from ablate.strict_yaml import Entry, suggestion

DISTINCT = 10
"""Characters in which the levels of a factor must differ: parallel plots show no more."""

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
        factors.append(
            Factor(name, tuple(Level(level, read_settings(e)) for level, e in levels.items()))
        )
    return tuple(factors)


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
        if name == "search":
            raise entry.error("search needs options, trials at least: {search: {trials: 40}}")
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
        return {entry.text(): "minimize"}
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
        elif given.is_mapping():
            conditions = given.entries().items()
            if not conditions:
                raise given.error("empty: it would always pass; null takes a criterion away")
            criteria[name] = Criterion(
                name, tuple(Condition(m, e.typed(float, "a number")) for m, e in conditions)
            )
        else:
            old = criteria[known(given, name, "criterion", criteria)]
            if len(old.conditions) != 1:
                metrics = ", ".join(condition.metric for condition in old.conditions)
                raise given.error(f"has several conditions; give a threshold for each: {metrics}")
            threshold = given.typed(float, "a number, or metric: number")
            criteria[name] = Criterion(name, (Condition(old.conditions[0].metric, threshold),))
    return tuple(criteria.values())


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
