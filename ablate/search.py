"""Optuna, as a view of the ledger: suggestions, pruners and storages.

Only this file imports optuna. Nothing of Optuna outlives a call: a study in memory is rebuilt from
what the ledger holds, so that the n-th suggestion is a function of the study's file and of the
results that there were, and a killed search goes on as if nothing had happened.

    OUT/<study>/suggestions.jsonl   one line a suggestion, on disk before its job starts
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablate.adaptive import Ask, Direction, Proposal, Tried
from ablate.ledger import append_line
from ablate.nouns import UNSEARCHED, Arm, Criterion, Pruning, StudyError
from ablate.space import Params, Space

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("optuna").setLevel(logging.ERROR)

UNMEASURED = "measured"
"""Constraint that a point without readings violates: refused, diverged, pruned, voided."""


@dataclass(frozen=True)
class Sampling:
    """How a search thinks of points."""

    sampler: str = "tpe"
    seed: int = 0
    startup: int = 10
    """Random points before a model is fitted (tpe, gp)."""
    population: int = 20
    """Points of a generation (nsga2)."""

    def make(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler of one suggestion, with a random stream of its own."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup)
        if self.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=self.startup)
        if self.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)
        return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class Suggestion:
    """A point, and what its sampler must remember of it."""

    number: int
    params: Params
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The design `search` of a study (`ablate.adaptive.Adaptive`)."""

    space: Space
    sampling: Sampling
    trials: int
    objectives: Mapping[str, Direction]
    criteria: Sequence[Criterion]
    """Held as constraints."""
    file: Path
    """Where suggestions are kept."""
    context: str = ""
    """What else results hang on: suggestions made under another context are not gone on with."""
    replicates: int = 1
    """Jobs to an arm: its seeds."""
    name: str = "search"
    """As its notes call it, where a study has several."""
    siblings: frozenset[str] = frozenset()
    """Digests of the study's searches: what they suggested stands in the same file."""

    def outline(self) -> Sequence[Sequence[Arm]]:
        """Some points of its space."""
        return (self.space.corners(),)

    def propose(self, tried: Ask, slots: int) -> Proposal:
        """The arms suggested so far; new ones while jobs could start and trials are left.

        Raises:
            StudyError: a suggestion cannot be kept.
        """
        kept, strange = self._read()
        known = [tried(self._arm(one)) for one in kept]
        while slots > 0 and len(kept) < self.trials:
            new = self.suggest(kept, known)
            self._keep(new)
            kept.append(new)
            known.append(tried(self._arm(new)))
            slots -= self.replicates if known[-1] is None else 0
        arms = [self._arm(one) for one in kept]
        waiting = sum(outcome is None for outcome in known)
        more = ""
        if len(kept) < self.trials or waiting:
            more = f"{self.name}: {len(kept) - waiting} of {self.trials} points tried"
            more += f", {waiting} under way" if waiting else ""
            more += "; each suggestion follows from the results before it"
        return Proposal(tuple(arms), more, self._notes(arms, known, strange))

    def suggest(self, before: Sequence[Suggestion], known: Sequence[Tried | None]) -> Suggestion:
        """The next point: a function of those before it, in order, and of what became of them."""
        number = len(before)
        distributions = distributions_of(self.space)
        study = make_study(self.objectives, self.sampling.make(number))
        for one, outcome in zip(before, known, strict=True):
            study.add_trial(self._trial(one, outcome, distributions))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental parts, fallbacks at the beginning
            trial = study.ask(distributions)
        params = {
            name: self.space.ranges[name].rounded(value) if name in self.space.ranges else value
            for name, value in trial.params.items()
        }
        attributes = study.trials[-1].system_attrs
        generation = {k: v for k, v in attributes.items() if k.endswith(":generation")}
        return Suggestion(number, params, generation)

    def _arm(self, one: Suggestion) -> Arm:
        return self.space.arm(one.number + 1, one.params)

    def _trial(
        self, one: Suggestion, tried: Tried | None, distributions: Mapping[str, BaseDistribution]
    ) -> FrozenTrial:
        made: dict[str, Any] = {
            "params": dict(one.params),
            "distributions": dict(distributions),
            "system_attrs": dict(one.attributes),
        }
        if tried is None:
            return create_trial(state=TrialState.RUNNING, **made)
        values = [tried.mean(metric) for metric in self.objectives]
        found = [value for value in values if value is not None]
        if len(found) < len(values):
            made["constraints"] = {UNMEASURED: 1.0}
            return create_trial(state=TrialState.PRUNED, **made)
        means = {metric: tried.mean(metric) for metric in tried.metrics}
        made["constraints"] = constraints_of(self.criteria, means)
        return create_trial(state=TrialState.COMPLETE, values=found, **made)

    def _notes(
        self, arms: Sequence[Arm], known: Sequence[Tried | None], strange: int
    ) -> tuple[str, ...]:
        notes = []
        ended = [(arm, tried) for arm, tried in zip(arms, known, strict=True) if tried is not None]
        lost = sum(any(t.mean(m) is None for m in self.objectives) for _, t in ended)
        if lost:
            notes.append(f"{self.name}: {lost} of {len(ended)} points have no reading to search by")
        for metric, direction in self.objectives.items():
            sign = 1 if direction == "minimize" else -1
            values = [
                (sign * mean, _met(self.criteria, tried), arm)
                for arm, tried in ended
                if (mean := tried.mean(metric)) is not None
            ]
            if values:
                score, met, best = min(values, key=lambda own: (-own[1], own[0]))
                levels = ", ".join(f"{name}={level}" for name, level in best.levels.items())
                of = f", {met} of {len(self.criteria)} criteria" if self.criteria else ""
                notes.append(f"{self.name}: best {metric} {sign * score:.4g}{of}: {levels}")
        if strange:
            notes.append(
                f"{self.name}: {strange} suggestions made under other settings are left out "
                f"({self.file.name})"
            )
        return tuple(notes)

    @property
    def digest(self) -> str:
        """Of all that suggestions hang on, but for their number and the seeds of the jobs."""
        value = {
            "axes": [(axis.name, [label for label, _ in axis.choices]) for axis in self.space.axes],
            "factors": None if self.space.factors is None else sorted(self.space.factors),
            "base": dict(self.space.base),
            "ranges": {path: vars(range_) for path, range_ in self.space.ranges.items()},
            "sampling": vars(self.sampling),
            "objectives": dict(self.objectives),
            "constraints": [
                [(k.metric, k.threshold) for k in criterion.conditions]
                for criterion in self.criteria
            ],
            "context": self.context,
        }
        text = json.dumps(value, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _read(self) -> tuple[list[Suggestion], int]:
        """The suggestions kept, and how many were made under other settings."""
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise StudyError(f"{self.file}: cannot be read ({error.strerror})") from None
        own = self.digest
        kept, strange = [], 0
        for line in lines:
            try:
                value = json.loads(line)
                one = Suggestion(value["number"], value["params"], value["attributes"])
                digest = value["search"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # torn by a kill: its job never started, so it is thought of again
            if digest != own:
                strange += digest not in self.siblings
            elif one.number == len(kept):
                kept.append(one)
        return kept, strange

    def _keep(self, one: Suggestion) -> None:
        line = {"search": self.digest, **vars(one)}
        try:
            append_line(self.file, json.dumps(line))
            for path in (self.file, self.file.parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StudyError(
                f"{self.file}: a suggestion cannot be kept ({error.strerror})"
            ) from None


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
    """Criteria as Optuna's constraints: (value - threshold) / threshold, above 0 is violated.

    A criterion without a reading, or with one that a gate voids, is violated as a whole.
    """
    found = {}
    for criterion in criteria:
        for condition in criterion.conditions:
            value = means.get(condition.metric)
            violation = 1.0
            if value is not None and math.isfinite(value):
                violation = (value - condition.threshold) / abs(condition.threshold or 1.0)
            found[f"{criterion.name}: {condition.metric}"] = violation
    return found


def _met(criteria: Sequence[Criterion], tried: Tried) -> int:
    means = {metric: tried.mean(metric) for metric in tried.metrics}
    return sum(
        all(value < 0 for value in constraints_of([criterion], means).values())
        for criterion in criteria
    )


def make_pruned_study(pruning: Pruning) -> optuna.Study:
    """A study in memory whose trials are pruned by a rule."""
    options, made = dict(pruning.options), optuna.pruners
    pruner: optuna.pruners.BasePruner
    if pruning.rule == "median":
        pruner = made.MedianPruner(
            n_startup_trials=options.get("startup", 5), n_warmup_steps=options.get("warmup", 0)
        )
    elif pruning.rule == "asha":
        pruner = made.SuccessiveHalvingPruner(
            min_resource=options["min_steps"], reduction_factor=options.get("factor", 4)
        )
    elif pruning.rule == "hyperband":
        pruner = made.HyperbandPruner(
            min_resource=options["min_steps"],
            max_resource=options["max_steps"],
            reduction_factor=options.get("factor", 3),
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is experimental there
            pruner = made.WilcoxonPruner(p_threshold=options.get("p", 0.1))
    return optuna.create_study(study_name="ablate", direction=pruning.direction, pruner=pruner)


def prunes(trial: optuna.Trial, step: int, value: float) -> bool:
    """Report a reading; whether the trial is to stop."""
    trial.report(value, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a pruner leaves out of account
        return trial.should_prune()


def close_trial(
    study: optuna.Study, trial: optuna.Trial, value: float | None, *, pruned: bool
) -> None:
    """Tell the end of a trial; without a value it says nothing of the others."""
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif value is None or not math.isfinite(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


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
        user_attrs=_plain(attributes),
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


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
