"""Optuna's importances of what a search varies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from ablate.search.trials import distributions_of
from ablate.space import Params, Space

FANOVA_POINTS = 200
"""Points up to which fANOVA is worth its time, which grows with their square: 4 s."""
BEST = 5
"""Points that PED-ANOVA compares with all, at least; else a tenth of them."""


def importances(
    space: Space, points: Sequence[Params], scores: Sequence[float], seed: int
) -> tuple[Literal["fanova", "ped_anova"], dict[str, float]]:
    """How much each factor and range of the points matters to their scores: always the same.

    fANOVA's shares of the variance over the space; PED-ANOVA's weights, which add up to 1, for
    more points than it can take and where scikit-learn is missing.

    Args:
        space: that the points are of.
        points: distinct ones.
        scores: theirs, less is better; not all the same.
        seed: of the forest.
    """
    distributions = distributions_of(space)
    logs = {path for path, own in space.ranges.items() if own.log}
    for path in logs:  # else fANOVA takes the space of the plain numbers: nine tenths a decade
        low, high = space.ranges[path].low, space.ranges[path].high
        distributions[path] = FloatDistribution(math.log(low), math.log(high))
    study = optuna.create_study()
    for point, score in zip(points, scores, strict=True):
        params = {name: math.log(v) if name in logs else v for name, v in point.items()}
        study.add_trial(create_trial(value=score, params=params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not normalised: experimental there
        read = partial(optuna.importance.get_param_importances, study, params=list(distributions))
        if len(points) <= FANOVA_POINTS:
            try:
                fanova = optuna.importance.FanovaImportanceEvaluator(seed=seed)
                return "fanova", _floats(read(evaluator=fanova, normalize=False))
            except ImportError:
                pass
        best = min(max(0.1, BEST / len(points)), 0.5)
        ped = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        return "ped_anova", _floats(read(evaluator=ped))


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
