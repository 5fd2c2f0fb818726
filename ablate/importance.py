"""What a search's readings hung on: importances of its factors and ranges, from ended jobs. Pure.

Only of the design `search`: a designed grid has its analysis of variance, and of a search, whose
points crowd where it went well, no such model can be fitted. Optuna's evaluators say
(`ablate.search.importances`), on the points that every seed has a reading of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ablate import wording
from ablate.adaptive import tried_of
from ablate.adaptive_designs import SEARCH, numbered, objectives_of, space_of
from ablate.compare import void_metrics
from ablate.nouns import UNSEARCHED, Design, Gate, Job, Result, Study
from ablate.space import Params, Space
from ablate.stats import scale_of

Method = Literal["fanova", "ped_anova"]

LEAST = 10
"""Points with a reading below which nothing is said."""


@dataclass(frozen=True)
class Importance:
    """How much one factor or range of a search matters to one reading."""

    search: str
    """Which of the study's searches: `search`, `search 2`."""
    metric: str
    parameter: str
    method: Method
    value: float
    """fanova: share of the variance, alone. ped_anova: weight, 1 in all, no share of anything."""
    points: int
    """Points that it is read from."""
    scale: Literal["log", "linear"]
    """Of the reading, whose variance is shared out."""

    @property
    def column(self) -> tuple[str, str]:
        return self.search, self.metric

    @property
    def text(self) -> str:
        """For people: a share in per cent, a weight as a plain number."""
        return f"{100 * self.value:.1f} %" if self.method == "fanova" else f"{self.value:.2f}"


def importances_of(
    study: Study,
    jobs: Iterable[Job],
    results: Mapping[str, Result],
    gates: Mapping[str, Sequence[Gate]],
) -> tuple[tuple[Importance, ...], tuple[str, ...]]:
    """The importances of every search and objective of a study, and what keeps others from it.

    Args:
        study: its designs; nothing of any but `search`.
        jobs: of its plan.
        results: by job id.
        gates: by job id; what they void is no reading.
    """
    searches = [(name, own) for name, own in numbered(study.designs) if own.name == SEARCH]
    if not searches:
        return (), ()
    by_arm: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        by_arm.setdefault(tuple(job.levels.values()), []).append(job)
    found: list[Importance] = []
    notes: list[str] = []
    for name, design in searches:
        own, said = _of(name, study, design, list(by_arm.values()), results, gates)
        found += own
        notes += said
    return tuple(found), tuple(notes)


def _of(
    name: str,
    study: Study,
    design: Design,
    arms: Sequence[Sequence[Job]],
    results: Mapping[str, Result],
    gates: Mapping[str, Sequence[Gate]],
) -> tuple[list[Importance], list[str]]:
    from ablate.search.importances import importances  # optuna takes a while to import

    space = space_of(study, design)
    tried = []
    for own in arms:
        point = point_of(space, own[0].levels)
        void = {job.id: void_metrics(study, gates.get(job.id, ())) for job in own}
        outcome = tried_of(own, results, void) if point is not None else None
        if point is not None and outcome is not None:
            tried.append((point, outcome))
    found, notes = [], []
    for metric, direction in objectives_of(study, design).items():
        read = [(point, mean) for point, one in tried if (mean := one.mean(metric)) is not None]
        points, values = [point for point, _ in read], [value for _, value in read]
        if len(read) < LEAST:
            notes.append(
                f"{name}: importances for {metric} are told from {LEAST} points on; "
                f"{len(read)} have a reading"
            )
            continue
        if max(values) == min(values):
            notes.append(f"{name}: no importances for {metric}: it is the same in all points")
            continue
        log = scale_of(metric) == "ratio" and min(values) > 0
        scores = [math.log(value) if log else value for value in values]
        sign = 1 if direction == "minimize" else -1
        method, shares = importances(
            space, points, [sign * score for score in scores], design.options.get("seed", 0)
        )
        scale = "log" if log else "linear"
        found += [
            Importance(name, metric, parameter, method, value, len(read), scale)
            for parameter, value in sorted(shares.items(), key=lambda one: (-one[1], one[0]))
        ]
    return found, notes


def point_of(space: Space, levels: Mapping[str, str]) -> Params | None:
    """An arm as a point; None where the search cannot come to it: an arm of another design."""
    point = space.point(levels)
    if point is None:
        return None
    own = space.arm(0, point).levels  # what it has beside them are other searches' ranges
    return point if all(own.get(k, UNSEARCHED) == level for k, level in levels.items()) else None


def explained(importances: Sequence[Importance]) -> list[str]:
    """What the numbers are and what they are not, a line a method."""
    lines = []
    for one in {own.method: own for own in importances}.values():
        points = max(own.points for own in importances if own.method == one.method)
        if one.method == "fanova":
            logs = {wording.name(own.metric) for own in importances if own.scale == "log"}
            of = f" (log of {', '.join(sorted(logs))})" if logs else ""
            lines.append(
                f"Per cent: share of the variance{of} over the whole space that each alone "
                f"explains, by fANOVA: a random forest fitted to {points} points; the rest is "
                "joint effects. Where the search rarely went the forest guesses. This is no test, "
                "and noise has shares too: where nothing matters at all, the first of three "
                "settings still has 30 to 60 % (of 10 to 40 points)."
            )
        else:
            lines.append(
                "Plain numbers: weights of PED-ANOVA, 1 in all: how differently the best of "
                f"{points} points are spread along each than all points are. They order; they "
                "are no shares of the variance, and two studies' are not comparable."
            )
    return lines


def columns(importances: Sequence[Importance]) -> dict[tuple[str, str], dict[str, Importance]]:
    """By search and metric, then by parameter; the most important first."""
    found: dict[tuple[str, str], dict[str, Importance]] = {}
    for one in importances:
        found.setdefault(one.column, {})[one.parameter] = one
    return found


def rows(importances: Sequence[Importance]) -> list[str]:
    """The parameters, in the order of the first column."""
    return list(dict.fromkeys(one.parameter for one in importances))


def heading(column: tuple[str, str], among: Iterable[Any]) -> str:
    """A column's title; the search is named where there are several."""
    several = len({search for search, _ in among}) > 1
    return f"{column[0]}: {wording.name(column[1])}" if several else wording.name(column[1])
