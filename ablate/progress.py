"""What a run in progress knows of itself: counts, running jobs, the best so far, time left.

No I/O and no clock of its own: the coordinator says what happened and when.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.nouns import Criterion, Job, Result

Shape = tuple[Any, ...]

FIXED_TOKENS = 500
"""What an image of a step costs beside its visual tokens, in tokens: 64 ms at 250 and 460 ms at
5,250 visual tokens lie on a line that meets zero near -500."""


def effort(job: Job) -> float:
    """How long a job takes beside others, without a unit: images x tokens x parameters x steps."""
    tokens = job.size.get("visual_tokens", 0.0) + FIXED_TOKENS
    images = job.workload.images
    return images * tokens * max(job.size.get("parameters", 1.0), 1.0) * steps_of(job)


def steps_of(job: Job) -> int:
    """Steps a job takes, as its core says or its settings."""
    return max(job.workload.steps, steps(job.settings))


def steps(settings: Mapping[str, Any]) -> int:
    """Steps a job takes, from the setting called that; 1 where a core has none."""
    found = (v for path, v in settings.items() if path.rsplit(".", 1)[-1] == "steps")
    return next((value for value in found if isinstance(value, int) and value > 0), 1)


def shape(job: Job) -> Shape:
    """Jobs of one shape take like time."""
    load = job.workload
    if load.shape:
        return load.shape, load.steps, load.evaluations
    return (*sorted(job.size.items()), steps(job.settings))


def reading(metrics: Mapping[str, float], name: str) -> float | None:
    """The value of `final/<name>`, else of `train/<name>`; None where neither is a number."""
    for prefix in ("final", "train"):
        value = metrics.get(f"{prefix}/{name}")
        if value is not None and not math.isnan(value):
            return value
    return None


@dataclass
class Running:
    """A job at work, as its events tell."""

    job: Job
    since: float
    attempt: int = 1
    step: int = 0
    first_step: int | None = None
    """Where this attempt began: above 0 when it went on from a checkpoint."""
    loss: float | None = None
    px: float | None = None
    steps: int = field(init=False)
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        # once: the estimate asks for them of every running job whenever one ends
        self.steps, self.shape = steps_of(self.job), shape(self.job)

    def left(self, now: float) -> float | None:
        """Seconds left, by its own pace; None while it has hardly begun."""
        done = self.step - (self.first_step or 0)
        if done < max(2, self.steps // 20) or self.step > self.steps:  # it counts otherwise
            return None
        return (now - self.since) * max(self.steps - self.step, 0) / done


class Progress:
    """The state of a run over the jobs of a study; every question costs little at 10,000 jobs."""

    def __init__(
        self, jobs: Iterable[Job], criteria: tuple[Criterion, ...], workers: int = 1
    ) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.criteria = criteria
        self.workers = workers
        self.results: dict[str, Result] = {}
        self.running: dict[str, Running] = {}
        self.best: list[tuple[Job, Result, int]] = []
        """The three jobs that meet most criteria, then with the least px error, then loss."""
        self.stopping = False
        self._waiting: dict[str, Shape] = {}
        self._queue: defaultdict[Shape, float] = defaultdict(float)
        """Trainings that wait, of each shape."""
        self._share: dict[str, float] = {}
        self._states: Counter[str] = Counter()
        self._effort: dict[Shape, float] = {}
        self._seconds: dict[Shape, tuple[float, int]] = {}  # sum, count

    def begin(self, results: Mapping[str, Result], waiting: Iterable[str]) -> None:
        """Take what earlier runs left and what this one is to do."""
        for job_id in waiting:
            key = self._waiting[job_id] = shape(self.jobs[job_id])
            self._queue[key] += 1
            self._effort.setdefault(key, effort(self.jobs[job_id]))
        for job_id, result in results.items():
            if job_id not in self._waiting:
                self._take(result)
                self._time(job_id, result.metrics.get("cost/seconds"))

    def extend(
        self, jobs: Iterable[Job], results: Mapping[str, Result], waiting: Iterable[Job]
    ) -> None:
        """Take jobs that an adaptive design added."""
        self.jobs |= {job.id: job for job in jobs}
        self.begin(results, [job.id for job in waiting])

    def share(self, job_id: str, part: float) -> None:
        """Hear that a waiting job takes but a part of a training: others train along with it."""
        if job_id in self._waiting:
            self._queue[self._waiting[job_id]] -= self._part(job_id) - part
            self._share[job_id] = part

    def _part(self, job_id: str) -> float:
        return self._share.get(job_id, 1.0)

    @property
    def busy(self) -> bool:
        return bool(self.running or self._waiting)

    def started(self, job_id: str, attempt: int, now: float) -> None:
        self._leave_queue(job_id)
        self.running[job_id] = Running(self.jobs[job_id], now, attempt)

    def events(self, job_id: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Take a running job's new events; the latest reading of each kind counts."""
        row = self.running.get(job_id)
        if row is None:
            return
        for event in events:
            if event.get("event") == "started":  # what came before is of an earlier attempt
                row.first_step = None
            if isinstance(step := event.get("step"), int):
                row.step = step
                if row.first_step is None:
                    row.first_step = step
            metrics = event.get("metrics") or {}
            loss, px = reading(metrics, "loss"), reading(metrics, "px_error")
            row.loss = row.loss if loss is None else loss
            row.px = row.px if px is None else px

    def ended(self, job_id: str, result: Result | None, now: float) -> None:
        """A job left the workers; without a result it waits for a later run."""
        row = self.running.pop(job_id, None)
        self._leave_queue(job_id)
        if result is not None:
            self._take(result)
            if result.state == "done" and row is not None and (row.first_step or 0) <= 1:
                self._time(job_id, now - row.since)

    def count(self, state: str) -> int:
        return self._states[state]

    def seconds_left(self, now: float) -> float | None:
        """Estimate from finished and running jobs of like shape; None before there is a base."""
        rows = [(row, row.shape, row.left(now)) for row in self.running.values()]
        known = {key: total / n for key, (total, n) in self._seconds.items()}
        for row, key, left in rows:
            if left is not None:
                share = 1 - (row.first_step or 0) / row.steps  # a resumed job does the rest only
                known.setdefault(key, (now - row.since + left) / share)
                if key not in self._effort:
                    self._effort[key] = effort(row.job)
        if not known:
            return None
        rate = sum(known.values()) / max(sum(self._effort[key] for key in known), 1e-12)

        def whole(key: Shape) -> float:
            return known[key] if key in known else self._effort[key] * rate

        at_work = [
            max(whole(key) - (now - row.since), 0.0) if left is None else left
            for row, key, left in rows
        ]
        queued = {} if self.stopping else {key: whole(key) for key in self._queue}
        total = sum(
            part * self._part(row.job.id) for part, (row, *_) in zip(at_work, rows, strict=True)
        )
        total += sum(queued[key] * self._queue[key] for key in queued)
        return max(total / max(self.workers, 1), max([*at_work, *queued.values()], default=0.0))

    def _take(self, result: Result) -> None:
        if (before := self.results.get(result.job_id)) is not None:
            self._states[before.state] -= 1
        self.results[result.job_id] = result
        self._states[result.state] += 1
        if result.state == "done":
            met = sum(criterion.holds(result.metrics) for criterion in self.criteria)
            self.best.append((self.jobs[result.job_id], result, met))
            self.best = sorted(self.best, key=_order)[:3]

    def _leave_queue(self, job_id: str) -> None:
        key = self._waiting.pop(job_id, None)
        if key is not None:
            self._queue[key] -= self._part(job_id)
            if self._queue[key] < 1e-9:  # parts of one
                del self._queue[key]

    def _time(self, job_id: str, seconds: float | None) -> None:
        if seconds is not None and seconds > 0:
            job = self.jobs[job_id]
            key = shape(job)
            total, n = self._seconds.get(key, (0.0, 0))
            self._seconds[key] = total + seconds, n + 1
            self._effort.setdefault(key, effort(job))


def _order(entry: tuple[Job, Result, int]) -> tuple[float, ...]:
    _, result, met = entry
    values = (reading(result.metrics, name) for name in ("px_error", "loss"))
    return -met, *(math.inf if value is None else value for value in values)


def duration(seconds: float) -> str:
    """3.2 s, 41 s, 4:12, 2:03:45."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
