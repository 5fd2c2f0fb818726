"""Optuna's storages: jobs that have ended as trials, written for Optuna and its dashboard."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablate.adaptive import Direction
from ablate.finite import finite
from ablate.nouns import UNSEARCHED, Criterion
from ablate.search.trials import constraints_of, distributions_of
from ablate.space import Space


def finished_trial(
    space: Space,
    levels: Mapping[str, str],
    numbers: Mapping[str, str],
    *,
    state: str,
    values: Sequence[float | None],
    criteria: Sequence[Criterion],
    metrics: Mapping[str, float],
    attributes: Mapping[str, Any],
    intermediate: Mapping[int, float],
    span: tuple[datetime, ...] | None,
) -> FrozenTrial:
    """A job that has ended as a trial; a range that it does not vary has no parameter."""
    distributions = distributions_of(space)
    params: dict[str, Any] = dict(levels)
    for path, text in numbers.items():
        if text != UNSEARCHED:
            params[path] = (int if space.ranges[path].whole else float)(text)
    found = [value for value in values if value is not None and math.isfinite(value)]
    complete = state == "done" and len(found) == len(values)
    trial = create_trial(
        state=TrialState.COMPLETE
        if complete
        else TrialState.PRUNED
        if state == "pruned"
        else TrialState.FAIL,
        values=found if complete else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=finite(attributes),
        intermediate_values=dict(intermediate),
        constraints=constraints_of(criteria, metrics) if complete else None,
    )
    if span is not None:
        trial.datetime_start, trial.datetime_complete = span
    return trial


def write_storage(
    file: Path,
    sqlite: bool,
    name: str,
    objectives: Mapping[str, Direction],
    trials: Sequence[FrozenTrial],
    attributes: Mapping[str, Any],
) -> None:
    """Write a study with these trials into a new file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sqlite:
            storage: Any = optuna.storages.RDBStorage(f"sqlite:///{file.absolute()}")
        else:
            backend = JournalFileBackend(str(file.absolute()))
            storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(
            study_name=name, storage=storage, directions=list(objectives.values())
        )
        study.set_metric_names([metric.replace("/", "_") for metric in objectives])
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        study.add_trials(trials)
        if sqlite:
            storage.engine.dispose()
