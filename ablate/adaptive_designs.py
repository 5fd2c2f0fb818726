"""The adaptive designs of a study, made of what its file says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ablate.adaptive import Adaptive, Direction
from ablate.designs import axes_of, constrained
from ablate.ledger import Ledger
from ablate.nouns import Arm, Design, Options, Study, StudyError
from ablate.paths import Paths
from ablate.space import Range, Space

if TYPE_CHECKING:
    from ablate.search.design import Search

SEARCH = "search"
SUGGESTIONS = "suggestions.jsonl"


class Asking(Protocol):
    """Who a design is made for: the planner."""

    study: Study
    options: Options

    def possible(self, arm: Arm) -> bool:
        """Whether an arm can be run."""
        ...


def numbered(designs: Iterable[Design]) -> list[tuple[str, Design]]:
    """The designs by name, from the second of a kind on with a number: `search`, `search 2`."""
    seen: Counter[str] = Counter()
    found = []
    for design in designs:
        seen[design.name] += 1
        several = seen[design.name] > 1
        found.append((f"{design.name} {seen[design.name]}" if several else design.name, design))
    return found


def follows(study: Study) -> bool:
    """Whether any of a study's arms follow from results."""
    return any(design.name in ADAPTIVE for design in study.designs)


def allowed(study: Study, arm: Arm) -> bool:
    """Whether `exclude` and `only` let an arm be."""
    return bool(constrained([arm], study.exclude, study.only))


def objectives_of(study: Study, design: Design | None = None) -> dict[str, Direction]:
    """What a design goes by: what it names, else px error if a criterion reads it, else the first.

    Args:
        study: its criteria.
        design: `paths` or `search`; None: any of the study's.

    Raises:
        StudyError: nothing is named, and the study has no criteria.
    """
    for one in study.designs if design is None else (design,):
        named = one.options.get("objective") or one.options.get("reading")
        if named:
            return dict(named)
    above = {k.metric: k.above for c in study.criteria for k in c.conditions}
    metrics = list(above)
    if not metrics:
        raise StudyError(
            f"{study.source}: criteria: there are none, so it is not known which reading is to be "
            "small; give one, or the design's own (reading: of paths, objective: of search)"
        )
    chosen = next((name for name in metrics if name.endswith("/px_error")), metrics[0])
    return {chosen: "maximize" if above[chosen] else "minimize"}


def _paths(asking: Asking, name: str, design: Design) -> Adaptive:
    study = asking.study
    named = {key: value for key, value in design.options.items() if key != "reading"}
    ((reading, direction),) = objectives_of(study, design).items()
    axes = axes_of(study.factors, study.zipped)
    made = Paths(axes, reading, direction, allowed=asking.possible, **named)
    (base,), _ = made.outline()
    if not allowed(study, base):
        levels = ", ".join(f"{factor}={level}" for factor, level in base.levels.items())
        raise StudyError(f"{study.source}: exclude/only: the path's base is left out ({levels})")
    return made


def _search(asking: Asking, name: str, design: Design) -> Adaptive:
    study, options = asking.study, asking.options
    searches = [_searched(name, study, own, options) for own in study.designs if own.name == SEARCH]
    siblings = frozenset(one.digest for one in searches)
    return replace(_searched(name, study, design, options), siblings=siblings)


def _searched(name: str, study: Study, design: Design, options: Options) -> Search:
    from ablate.search.design import Sampling, Search  # optuna takes a while to import

    named = dict(design.options)
    sampling = {k: named[k] for k in ("sampler", "seed", "startup", "population") if k in named}
    constraints = named.get("constraints", [criterion.name for criterion in study.criteria])
    return Search(
        space_of(study, design),
        Sampling(**sampling),
        named["trials"],
        objectives_of(study, design),
        [criterion for criterion in study.criteria if criterion.name in constraints],
        Ledger(options.out).study_folder(study.name) / SUGGESTIONS,
        repr((study.core, sorted(study.base.items()), study.factors, study.zipped)),
        len(study.seeds),
        name,
    )


def space_of(study: Study, design: Design) -> Space:
    """What a search varies."""
    ranges = {path: Range(**own) for path, own in design.options.get("ranges", {}).items()}
    factors, base = design.options.get("factors"), design.options.get("base", {})
    return Space(axes_of(study.factors, study.zipped), ranges, factors, base)


ADAPTIVE: Mapping[str, Callable[[Asking, str, Design], Adaptive]] = {
    "paths": _paths,
    SEARCH: _search,
}
"""Design name -> what makes it, for whom, with the name that its notes bear."""
