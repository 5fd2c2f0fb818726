"""The options of the design `search` in a study file: an `Entry` in, plain values out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ablate import schema
from ablate.nouns import StudyError
from ablate.space import Range
from ablate.strict_yaml import Entry

SAMPLERS = ("tpe", "gp", "nsga2", "random")
OPTIONS = (
    "sampler",
    "trials",
    "objective",
    "factors",
    "ranges",
    "base",
    "constraints",
    "seed",
    "startup",
    "population",
)
RANGE = ("low", "high", "log", "step")


def read_search(
    entry: Entry, levels: Mapping[str, tuple[str, ...]], criteria: Collection[str]
) -> dict[str, Any]:
    """The options, checked; plain values, so that a study is kept as it was read."""
    if not entry.is_mapping():
        raise entry.error("needs options: trials and, for ranges, ranges")
    given = entry.entries(OPTIONS)
    if "trials" not in given:
        raise entry.error("trials: is missing; how many points to try")
    readers: dict[str, Callable[[Entry], Any]] = {
        "trials": lambda e: schema.read_positive(e, int, None),
        "sampler": lambda e: schema.known(e, e.text(), "sampler", SAMPLERS),
        "objective": _objectives,
        "factors": lambda e: schema.names(e, levels),
        "base": lambda e: schema.level_choice(e, levels),
        "ranges": lambda e: {path: _range(own) for path, own in e.entries().items()},
        "constraints": lambda e: [
            schema.known(own, own.text(), "criterion", criteria) for own in e.items()
        ],
        "seed": _seed,
        "startup": lambda e: schema.read_positive(e, int, None),
        "population": lambda e: schema.read_positive(e, int, None),
    }
    found = {name: readers[name](value) for name, value in given.items()}
    for name, samplers in (("startup", ("tpe", "gp")), ("population", ("nsga2",))):
        if name in given and found.get("sampler", "tpe") not in samplers:
            raise given[name].error(f"only the sampler {' or '.join(samplers)} has it")
    if not (found.get("factors", levels) or found.get("ranges")):
        raise entry.error("nothing to search: no factors to vary, and ranges is not given")
    return found


def _seed(entry: Entry) -> int:
    seed = entry.typed(int, "a whole number from 0")
    if seed < 0:
        raise entry.error(f"given {seed}, must be a whole number from 0")
    return seed


def _objectives(entry: Entry) -> dict[str, str]:
    given = entry.items() if entry.is_list() else [entry]
    found: dict[str, str] = {}
    for one in given:
        found |= schema.read_objective(one) if not _several(one) else _mapping(one)
    if not found or len(found) < len(given):
        raise entry.error("must be one or several different readings")
    return found


def _several(entry: Entry) -> bool:
    return entry.is_mapping() and len(entry.entries()) > 1


def _mapping(entry: Entry) -> dict[str, str]:
    """Several readings in one mapping, as a resolved study has them."""
    return {
        name: schema.known(value, value.text(), "direction", schema.DIRECTIONS)
        for name, value in entry.entries().items()
    }


def _range(entry: Entry) -> dict[str, Any]:
    given = entry.entries(RANGE)
    for end in ("low", "high"):
        if end not in given:
            raise entry.error(f"{end}: is missing; a range is low, high and perhaps log or step")
    found: dict[str, Any] = {}
    for name, value in given.items():
        found[name] = value.plain()
        if type(found[name]) not in ((bool,) if name == "log" else (int, float)):
            raise value.error(
                f"given {found[name]!r}, must be {'true or false' if name == 'log' else 'a number'}"
            )
    try:
        Range(**found).checked()
    except StudyError as error:
        raise entry.error(str(error)) from None
    return found
