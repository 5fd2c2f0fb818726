"""The design `search`: Optuna's samplers, told what the ledger tells.

The n-th suggestion is a function of the study's file and of the results that there were, so that a
killed search goes on as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablate.adaptive import Ask, Direction, Proposal, Tried
from ablate.nouns import Arm, Criterion
from ablate.search.suggestions import Suggestion, Suggestions
from ablate.search.trials import constraints_of, distributions_of, make_study
from ablate.space import Space

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
        kept, strange = self._kept.read()
        known = [tried(self._arm(one)) for one in kept]
        while slots > 0 and len(kept) < self.trials:
            new = self.suggest(kept, known)
            self._kept.keep(new)
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
    def _kept(self) -> Suggestions:
        return Suggestions(self.file, self.digest, self.siblings)

    @cached_property
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
                [(k.metric, k.threshold, *["above"] * k.above) for k in criterion.conditions]
                for criterion in self.criteria
            ],
            "context": self.context,
        }
        text = json.dumps(value, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _met(criteria: Sequence[Criterion], tried: Tried) -> int:
    means = {metric: mean for metric in tried.metrics if (mean := tried.mean(metric)) is not None}
    return sum(criterion.holds(means) for criterion in criteria)
