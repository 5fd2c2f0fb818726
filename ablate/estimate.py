"""How long the jobs of a plan will take and how much memory, before they run. Pure.

Jobs of one shape take alike: from jobs of that shape that have ended, else from a timed probe of it
(`ablate.costs`), else scaled from shapes that are known by what their steps compute.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ablate.nouns import Cost, Job, Result
from ablate.progress import Shape, effort, shape, steps_of

Source = Literal["finished jobs", "probe", "finished jobs elsewhere", "scaled", "unknown"]


@dataclass(frozen=True)
class Guess:
    """What one job of a shape takes, and how we know."""

    seconds: float | None
    memory_mb: float | None
    source: Source
    beside: float = 0.0
    """Seconds of it that are no optimiser steps, as far as known."""


@dataclass(frozen=True)
class Estimate:
    """What the jobs that have not ended take."""

    workers: int
    jobs: int
    """Of the plan."""
    to_run: int
    trainings: int
    """Of those: jobs whose training is the same share one."""
    guesses: Mapping[Shape, Guess]
    """By shape of what is to run, most jobs first."""
    counts: Mapping[Shape, int]
    seconds: float | None
    """Until the last has ended; None when nothing is known of some shape."""
    cpu_seconds: float | None
    """Of all workers together."""

    @property
    def memory_mb(self) -> float | None:
        """Of the largest worker."""
        known = [g.memory_mb for g in self.guesses.values() if g.memory_mb is not None]
        return max(known, default=None)

    def to_json(self) -> dict[str, Any]:
        """The `estimate` of `plan --json`."""
        return {
            "jobs": self.jobs,
            "to_run": self.to_run,
            "trainings": self.trainings,
            "workers": self.workers,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "memory_mb": self.memory_mb,
            "shapes": [
                {"jobs": self.counts[key], "seconds_per_job": guess.seconds}
                | {"memory_mb": guess.memory_mb, "source": guess.source}
                for key, guess in self.guesses.items()
            ],
        }


def _each_alone(jobs: Iterable[Job]) -> list[list[Job]]:
    return [[job] for job in jobs]


def estimate(
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    costs: Mapping[Shape, Cost],
    environment: Mapping[str, Any],
    workers: int,
    trainings: Callable[[Iterable[Job]], Sequence[Sequence[Job]]] = _each_alone,
) -> Estimate:
    """Estimate what is left of a plan.

    Args:
        jobs: of the plan.
        results: of those that have ended, by id.
        costs: of shapes that were probed on this machine.
        environment: this machine's, as results name theirs.
        workers: jobs at once.
        trainings: groups jobs into those that train once together; without, each by itself.
    """
    todo = [job for job in jobs if job.id not in results]
    by_shape = {shape(job): job for job in todo}
    counts = Counter(shape(job) for job in todo)
    here = ended_like(jobs, results, lambda result: dict(result.environment) == environment)
    elsewhere = ended_like(jobs, results, lambda result: True)
    found: dict[Shape, Guess] = {}
    for key, job in by_shape.items():
        if key in here:
            found[key] = here[key]
        elif key in costs:
            cost, load = costs[key], job.workload
            found[key] = Guess(cost.seconds(load), cost.memory_mb, "probe", cost.beside(load))
        elif key in elsewhere:
            found[key] = replace(elsewhere[key], source="finished jobs elsewhere")
    # sizes are asked only where they are needed: to know them, models are made
    rate = None if len(found) == len(by_shape) else _rate(found, by_shape)
    for key, job in by_shape.items():
        if key not in found:
            seconds = None if rate is None else rate * effort(job)
            found[key] = Guess(seconds, None, "unknown" if rate is None else "scaled")
    ordered = dict(sorted(found.items(), key=lambda item: -counts[item[0]]))
    groups = trainings(todo)
    workers = max(1, min(workers, len(groups)))
    times = _times(groups, found)
    return Estimate(
        workers,
        len(jobs),
        len(todo),
        len(groups),
        ordered,
        counts,
        None if times is None else makespan(times, workers),
        None if times is None else math.fsum(times),
    )


def ended_like(
    jobs: Iterable[Job], results: Mapping[str, Result], counts: Any
) -> dict[Shape, Guess]:
    """Mean seconds and largest memory of done jobs by shape, of the results that `counts`.

    Jobs that ended early say nothing of how long a whole one takes.
    """
    seconds: dict[Shape, list[tuple[float, float]]] = {}
    memory: dict[Shape, float] = {}
    for job in jobs:
        result = results.get(job.id)
        if result is None or result.state != "done" or result.early or not counts(result):
            continue
        took = result.metrics.get("cost/seconds", math.nan)
        if took > 0:
            key = shape(job)
            pace = result.metrics.get("cost/steps_per_second", math.nan)
            beside = took - steps_of(job) / pace if pace > 0 else 0.0
            seconds.setdefault(key, []).append((took, max(beside, 0.0)))
            if (peak := result.metrics.get("cost/peak_memory_mb", math.nan)) > 0:
                memory[key] = max(memory.get(key, 0.0), peak)
    means = {
        key: [math.fsum(x) / len(x) for x in zip(*own, strict=True)] for key, own in seconds.items()
    }
    return {
        key: Guess(took, memory.get(key), "finished jobs", beside)
        for key, (took, beside) in means.items()
    }


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Time until all jobs have ended, when the longest start first and no worker waits.

    >>> makespan([4, 3, 3, 2], 2)
    6.0
    """
    free = [0.0] * workers
    for took in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + took)
    return max(free)


def _times(groups: Iterable[Sequence[Job]], found: Mapping[Shape, Guess]) -> list[float] | None:
    """Seconds of each training: of its lead, and what the others do beside its steps."""
    times: list[float] = []
    for lead, *others in groups:
        seconds = found[shape(lead)].seconds
        if seconds is None:
            return None
        times.append(seconds + math.fsum(found[shape(other)].beside for other in others))
    return times


def _rate(found: Mapping[Shape, Guess], by_shape: Mapping[Shape, Job]) -> float | None:
    """Seconds per unit of effort, of the shapes that are known."""
    known = {key: guess.seconds for key, guess in found.items() if guess.seconds is not None}
    efforts = sum(effort(by_shape[key]) for key in known)
    return sum(known.values()) / efforts if efforts > 0 else None
