"""What each change did: the comparisons that a study's designs allow. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ablate.nouns import UNSEARCHED, Gate, Job, Result, Study
from ablate.stats import FACTOR, JOB, Effect, contrasts, job_frame, path_effects

if TYPE_CHECKING:
    import pandas as pd

    from ablate.anova import Term
    from ablate.margins import Interaction

CROSSED = {"factorial", "fractional"}
"""Designs whose arms a linear model of the factors can be fitted to."""
LOSSES_APART = "tokenizers differ: raw losses are not comparable"


@dataclass(frozen=True)
class LevelCount:
    """How the jobs of one level ended."""

    factor: str
    level: str
    counts: Mapping[str, int]
    """Jobs by state: done, failed, diverged, pruned, missing."""


@dataclass(frozen=True)
class Comparison:
    """Everything that is said of differences between arms."""

    base: str | None
    best: str | None
    effects: tuple[Effect, ...]
    variance: tuple[Term, ...]
    interactions: tuple[Interaction, ...]
    levels: tuple[LevelCount, ...]


def compare(
    study: Study,
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    gates: Mapping[str, Sequence[Gate]],
    walked: Sequence[str] = (),
) -> Comparison:
    """Compare arms with the base, with the best, or all with all, as the designs allow.

    Args:
        study: its designs, and which arm is the base.
        jobs: of its plan.
        results: by job id.
        gates: by job id; a failed one voids what it makes meaningless.
        walked: labels of an ablation path's arms.
    """
    metrics = list(dict.fromkeys(k.metric for c in study.criteria for k in c.conditions))
    frame = job_frame(jobs, results, {job: void_metrics(study, own) for job, own in gates.items()})
    levels = _levels(jobs)
    designs = {design.name for design in study.designs}
    base, best = _label(levels, study.base_levels), None
    if "leave_one_out" in designs:
        best = _label(levels, best_levels(study))
    effects: list[Effect] = []
    variance: list[Term] = []
    interactions: list[Interaction] = []
    if base is not None and designs & {"one_at_a_time", "list", "paths"}:
        effects += contrasts(frame, levels, base, metrics, "one at a time", study.zipped)
    effects += path_effects(frame, levels, walked, metrics, study.zipped)
    if best is not None:
        effects += contrasts(frame, levels, best, metrics, "leave one out", study.zipped)
    if designs & CROSSED:
        from ablate import anova, margins  # statsmodels takes over a second to import

        factors, start, crossed = _crossed(study, frame)
        for metric in metrics:
            fitted = anova.fit(crossed, factors, metric)
            effects += margins.main_effects(crossed, factors, start, metric, fitted)
            terms = anova.variance(crossed, factors, metric, fitted)
            interactions += margins.interactions(fitted, terms, start)
            variance += terms
    return Comparison(
        base=base,
        best=best,
        effects=tuple(_mind_tokenizers(jobs, effects)),
        variance=tuple(variance),
        interactions=tuple(interactions),
        levels=tuple(_level_counts(study, jobs, results)),
    )


def best_levels(study: Study) -> dict[str, str]:
    """The arm that leave-one-out starts from: each factor's last level unless named."""
    named: dict[str, str] = {}
    for design in study.designs:
        named = {**dict(design.options.get("best") or {}), **named}
    levels = {f.name: named.get(f.name, f.levels[-1].name) for f in study.factors}
    return {**levels, **dict.fromkeys(study.ranges, UNSEARCHED)}


def void_metrics(study: Study, gates: Iterable[Gate]) -> set[str]:
    """The metrics that a job's failed gates void, of those that the study goes by.

    Metrics of criteria, by name or as the criterion's, and what its designs name as their reading.
    """
    failed = {name for gate in gates if gate.verdict == "failed" for name in gate.voids}
    void = {k.metric for c in study.criteria for k in c.conditions if {c.name, k.metric} & failed}
    named = [d.options.get("objective") or d.options.get("reading") for d in study.designs]
    return void | (failed & {name for one in named for name in one or ()})


def _crossed(study: Study, frame: pd.DataFrame) -> tuple[list[str], dict[str, str], pd.DataFrame]:
    """The factors of a linear model, their base levels and the jobs that it is of.

    It is of the factors that a design crosses. What differs from the base in another (a baseline
    that a list names) is left out: its one combination would make the averages of all unknowable.
    Points of a search at other values of its ranges are left out too. Factors that vary together
    are one. A job that is several arms' (levels that come to the same settings) counts once: the
    same run again is no replicate.
    """
    start = study.base_levels
    axes = [[f.name] for f in study.factors if not any(f.name in g for g in study.zipped)]
    axes += map(list, study.zipped)
    asked = [set(d.options.get("factors") or ()) for d in study.designs if d.name in CROSSED]
    varied = [axis for axis in axes if any(not own or own & set(axis) for own in asked)]
    for factor in {f.name for f in study.factors}.difference(*varied):
        frame = frame[frame[FACTOR + factor] == start[factor]]
    for path in study.ranges:
        frame = frame[frame[FACTOR + path] == UNSEARCHED]
    frame = frame.drop_duplicates(JOB)
    for group in (axis for axis in varied if len(axis) > 1):
        name = "+".join(group)
        frame[FACTOR + name] = frame[[FACTOR + f for f in group]].agg("+".join, axis=1)
        start[name] = "+".join(start[f] for f in group)
    return ["+".join(axis) for axis in varied], start, frame


def _levels(jobs: Iterable[Job]) -> dict[str, Mapping[str, str]]:
    """Levels by arm label, the arms that share another's runs included."""
    levels: dict[str, Mapping[str, str]] = {}
    for job in jobs:
        levels.setdefault(job.arm, job.levels)
        for arm in job.also:
            levels.setdefault(arm.label, arm.levels)
    return levels


def _label(levels: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str]) -> str | None:
    return next((label for label, own in levels.items() if dict(own) == dict(wanted)), None)


def _level_counts(
    study: Study, jobs: Sequence[Job], results: Mapping[str, Result]
) -> Iterable[LevelCount]:
    for factor in study.factors:
        for name in factor.names:
            own = [job for job in jobs if job.levels.get(factor.name) == name]
            states = (results[job.id].state if job.id in results else "missing" for job in own)
            if own:
                yield LevelCount(factor.name, name, dict(Counter(states)))


def tokenizer_of(job: Job) -> str:
    """What a job's classes hang on, however its study spells it: a setting, or a preset."""
    return repr(sorted((k, v) for k, v in job.settings.items() if k.startswith("tokenizer.")))


def _mind_tokenizers(jobs: Iterable[Job], effects: Iterable[Effect]) -> list[Effect]:
    """Say so where an effect on a loss is across tokenizers: its classes are not the same."""
    tokenizers: dict[frozenset[tuple[str, str]], str] = {}
    for job in jobs:
        for levels in (job.levels, *(arm.levels for arm in job.also)):
            tokenizers.setdefault(frozenset(levels.items()), tokenizer_of(job))
    marked = []
    for effect in effects:
        if effect.metric.endswith("/loss") and _across_tokenizers(effect, tokenizers):
            note = "; ".join(filter(None, (effect.note, LOSSES_APART)))
            effect = replace(effect, note=note)
        marked.append(effect)
    return marked


def _across_tokenizers(
    effect: Effect, tokenizers: Mapping[frozenset[tuple[str, str]], str]
) -> bool:
    """Whether arms that differ in nothing but this effect differ in their tokenizer.

    In a fraction of a grid no two arms do: there it is whether the two levels' arms have others.
    """
    ends = [_named(effect.factor, text) for text in (effect.level, effect.against)]
    ours, theirs = (
        {arm - end: kind for arm, kind in tokenizers.items() if end <= arm} for end in ends
    )
    if both := ours.keys() & theirs.keys():
        return any(ours[rest] != theirs[rest] for rest in both)
    return set(ours.values()) != set(theirs.values())


def _named(factor: str, level: str) -> frozenset[tuple[str, str]]:
    """The levels of an effect by factor; those that vary together are joined by a plus."""
    names = factor.split("+")
    return frozenset(zip(names, level.split("+") if len(names) > 1 else [level], strict=False))
