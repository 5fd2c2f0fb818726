"""The nouns of a study as Optuna's: ranges and levels as distributions, criteria as constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ablate.adaptive import Direction
from ablate.nouns import Criterion
from ablate.space import Space


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distributions: levels as categories, ranges as numbers."""
    found: dict[str, BaseDistribution] = {
        axis.name: CategoricalDistribution([label for label, _ in axis.choices])
        for axis in space.varied
    }
    for path, own in space.ranges.items():
        if own.whole:
            found[path] = IntDistribution(
                int(own.low), int(own.high), log=own.log, step=int(own.step or 1)
            )
        else:
            found[path] = FloatDistribution(
                float(own.low), float(own.high), log=own.log, step=own.step
            )
    return found


def make_study(
    objectives: Mapping[str, Direction], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """An Optuna study in memory."""
    return optuna.create_study(directions=list(objectives.values()), sampler=sampler)


def constraints_of(
    criteria: Sequence[Criterion], means: Mapping[str, float | None]
) -> dict[str, float]:
    """Criteria as Optuna's constraints: margins turned round, so that above 0 is violated.

    A criterion without a reading, or with one that a gate voids, is violated as a whole.
    """
    found = {}
    for criterion in criteria:
        for condition in criterion.conditions:
            value = means.get(condition.metric)
            violation = 1.0
            if value is not None and math.isfinite(value):
                violation = -condition.margin(value)
            found[f"{criterion.name}: {condition.metric}"] = violation
    return found
