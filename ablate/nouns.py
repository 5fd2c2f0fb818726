"""The nouns of a study: plain frozen values, no I/O, nothing of the thing being ablated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Settings = Mapping[str, Any]
"""Dotted paths to plain values: {"optim.lr": 3e-4}."""

EARLY = "final/step"
"""Reading of a job that ended before its last step because all criteria held: that step."""

UNSEARCHED = "base"
"""What stands for the setting of a range in the levels of arms that no search made."""

State = Literal["done", "failed", "diverged", "pruned"]
Verdict = Literal["passed", "failed", "not testable"]


class StudyError(ValueError):
    """The request is wrong: one line says which key, what was given, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Options:
    """What the command line lays over a study file."""

    data: tuple[str, ...] = ()
    checkpoint: str | None = None
    seeds: int | None = None
    sets: tuple[str, ...] = ()
    out: Path = Path("runs")
    resources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What one job needs on a cluster; it changes no number, and one machine does not read it."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction: jobs that share a GPU."""
    memory: float | None = None
    """GiB."""
    storage: Literal["shared", "local"] = "shared"
    """local: OUT is not seen by the other machines; files travel through Ray."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """What sbatch is told, and how the engine works (`ablate.resources.SLURM`)."""


@dataclass(frozen=True)
class Level:
    """A named bundle of settings, so that settings that need each other travel together."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Factor:
    """What a study varies. The first level is the base's, the last the best's, unless named."""

    name: str
    levels: tuple[Level, ...]

    def level(self, name: str) -> Level:
        """The level of that name (KeyError where there is none)."""
        for level in self.levels:
            if level.name == name:
                return level
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels)


@dataclass(frozen=True)
class Design:
    """A design's name (`ablate.designs.DESIGNS`) and its options, as the study file gives them."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """A level for every factor, and the short label that people read."""

    label: str
    levels: Mapping[str, str]
    design: str = ""
    settings: Settings = field(default_factory=dict, repr=False)
    """What it sets beside its levels: the values of a search's ranges."""


@dataclass(frozen=True)
class Condition:
    """`metric < threshold`, or `>`; a value that is missing or not a number does not hold."""

    metric: str
    threshold: float
    above: bool = False
    """Met by what is greater than the threshold, not less."""

    def meets(self, value: float) -> bool:
        return value > self.threshold if self.above else value < self.threshold

    def holds(self, metrics: Mapping[str, float]) -> bool:
        return self.meets(metrics.get(self.metric, math.nan))

    def margin(self, value: float) -> float:
        """How far inside the threshold, relative to it: above 0 holds.

        >>> Condition("f1", 0.8, above=True).margin(0.9) == -Condition("f1", 0.8).margin(0.9) > 0
        True
        """
        inside = value - self.threshold if self.above else self.threshold - value
        return inside / abs(self.threshold or 1.0)


@dataclass(frozen=True)
class Criterion:
    """A name that passes when all its conditions hold."""

    name: str
    conditions: tuple[Condition, ...]

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether it holds for readings by themselves; gates and seeds are for the ranking."""
        return all(condition.holds(metrics) for condition in self.conditions)

    def voided(self, gate: Gate) -> bool:
        """Whether a failed gate leaves it without meaning: it is named there, or a reading is."""
        return self.name in gate.voids or any(c.metric in gate.voids for c in self.conditions)


@dataclass(frozen=True)
class Gate:
    """A check that qualifies one job's result and voids the readings it makes meaningless.

    `voids` names readings (`final/px_error`), or criteria: a criterion is void when its name or
    any of its readings is there.
    """

    name: str
    verdict: Verdict
    value: float | None
    voids: tuple[str, ...]
    note: str

    def concerns(self, criteria: Iterable[Criterion]) -> bool:
        """Whether it says something of these criteria: it voids one of them, or it voids nothing.

        A gate of readings that no criterion reads is not theirs to pass.
        """
        return not self.voids or any(criterion.voided(self) for criterion in criteria)


@dataclass(frozen=True)
class Finding:
    """A diagnosis: the rule, what it says, the readings behind it, the next experiment."""

    rule: str
    text: str
    readings: Mapping[str, float]
    next: str


Match = Mapping[str, tuple[str, ...]]
"""Factor -> levels; an arm matches when each named factor has one of its levels."""


@dataclass(frozen=True)
class Pruning:
    """Which jobs of a study are stopped because others do better (`ablate.pruning`)."""

    rule: Literal["median", "asha", "hyperband", "wilcoxon"]
    reading: str
    """What is compared: of evaluations; for wilcoxon, of final readings."""
    direction: Literal["minimize", "maximize"] = "minimize"
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The rule in a line, by which a pruned result is known as its own."""
        given = ", ".join(f"{name} {value:g}" for name, value in sorted(self.options.items()))
        return f"{self.rule} of {self.reading} ({self.direction}{given and ', '}{given})"


@dataclass(frozen=True)
class Study:
    """A question and what is run to answer it, with the command line's options laid over."""

    name: str
    """As the folder under OUT: `strategy1`, or `strategy1@CULane` with `--data CULane`."""
    question: str
    base: Settings
    """What every arm starts from; presets as names, the levels' settings win."""
    factors: tuple[Factor, ...]
    designs: tuple[Design, ...]
    seeds: tuple[int, ...]
    criteria: tuple[Criterion, ...]
    zipped: tuple[tuple[str, ...], ...] = ()
    """Groups of factors that vary together, level by level."""
    exclude: tuple[Match, ...] = ()
    only: tuple[Match, ...] = ()
    core: str = "lanelm"
    timeout: float | None = None
    """Seconds per attempt of a job."""
    attempts: int = 2
    """Starts a job may have when its worker dies or another passing trouble ends it."""
    resources: Resources = field(default_factory=Resources)
    pruning: Pruning | None = None
    stop_when_passed: bool = False
    """End a job at the first evaluation where all criteria and gates hold."""
    source: str = ""
    """The study file, as errors name it."""

    def factor(self, name: str) -> Factor:
        """The factor of that name (KeyError where there is none)."""
        for factor in self.factors:
            if factor.name == name:
                return factor
        raise KeyError(name)

    def accepts(self, result: Result) -> bool:
        """Whether a result in the ledger is one of this study, so that its job need not run."""
        if result.state == "pruned":
            return self.pruning is not None and result.pruned_by == self.pruning.said
        if result.state == "done" and result.early:
            return self.stop_when_passed and all(c.holds(result.metrics) for c in self.criteria)
        return True

    @property
    def base_levels(self) -> dict[str, str]:
        """The base arm: each factor's first level unless a design names its base."""
        named: dict[str, str] = {}
        for design in self.designs:
            named = {**dict(design.options.get("base") or {}), **named}
        levels = {f.name: named.get(f.name, f.levels[0].name) for f in self.factors}
        return {**levels, **dict.fromkeys(self.ranges, UNSEARCHED)}

    @property
    def ranges(self) -> tuple[str, ...]:
        """Settings that a search varies over a range: they stand beside the levels of every arm."""
        paths = (path for design in self.designs for path in design.options.get("ranges", ()))
        return tuple(dict.fromkeys(paths))


@dataclass(frozen=True)
class Workload:
    """What a job's time and memory hang on; jobs of one shape differ in the counts alone."""

    shape: tuple[tuple[str, Any], ...] = ()
    """What decides the cost of a step and of an evaluation, by name; empty: the core cannot say."""
    steps: int = 1
    evaluations: int = 0
    device: str = "cpu"
    """Where its workers compute: cpu, cuda (any GPU) or cuda:N."""
    images: int = 1
    """That a step computes, where the core can say; orders jobs that nothing has timed yet."""


@dataclass(frozen=True)
class Cost:
    """What jobs of one shape take, measured."""

    step_seconds: float
    evaluation_seconds: float
    other_seconds: float
    """Once a job: opening its inputs, the last readings."""
    memory_mb: float
    """Largest memory of one worker, on the device it trains on."""

    def seconds(self, load: Workload) -> float:
        """Seconds of one job.

        >>> Cost(0.05, 1.0, 2.0, 700.0).seconds(Workload(steps=500, evaluations=5))
        32.0
        """
        return load.steps * self.step_seconds + self.beside(load)

    def beside(self, load: Workload) -> float:
        """Seconds of one job that are no optimiser steps."""
        return load.evaluations * self.evaluation_seconds + self.other_seconds


@dataclass(frozen=True)
class Job:
    """One training run: an arm with one seed."""

    id: str
    """12 hex digits, the same for the same numbers in any study and folder (`ablate.plan`)."""
    arm: str
    levels: Mapping[str, str]
    seed: int
    settings: dict[str, Any]
    """Flat and complete: what config.json holds."""
    design: str = ""
    also: tuple[Arm, ...] = ()
    """Other arms of the study that come to the very same job."""
    size: Mapping[str, float] = field(default_factory=dict)
    """What the core says of it before training: visual_tokens, parameters."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Content hashes of what it reads: data, backbone."""
    workload: Workload = Workload()
    """What its time and memory hang on."""
    training: str = ""
    """The same in jobs whose training is the same to the bit, which differ in what is read of it
    alone; empty: no other job's is known to be."""


@dataclass(frozen=True)
class Plan:
    """Every job of a study once, arms in the order of their designs, seeds within an arm."""

    jobs: list[Job]
    notes: tuple[str, ...] = ()
    """What a reader of the designs must know, e.g. the aliases of a fractional one."""
    walked: tuple[str, ...] = ()
    """Labels of the arms of an ablation path, from the base on."""
    more: tuple[str, ...] = ()
    """What is to come of adaptive designs, whose further arms follow from results."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The distinct arms, in order."""
        seen: dict[str, Arm] = {}
        for job in self.jobs:
            seen.setdefault(job.arm, Arm(job.arm, job.levels, job.design))
        return tuple(seen.values())


@dataclass(frozen=True)
class Result:
    """How a job ended: `result.json`. Undisturbed runs of a job differ in `cost/*` alone."""

    job_id: str
    levels: Mapping[str, str]
    seed: int
    state: State
    metrics: Mapping[str, float]
    error: str | None = None
    """One line for people; None when done."""
    attempts: int = 1
    code: Mapping[str, str] = field(default_factory=dict)
    """commit; core: the hash of the core's sources."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    traceback: str | None = None
    pruned_by: str = ""
    """The rule that ended it (`Pruning.said`): to a study without it, the job is unfinished."""

    @property
    def early(self) -> bool:
        """Whether it ended before its last step, because all criteria held."""
        return EARLY in self.metrics
