"""The jobs on their way: from the queue to a worker, followed, retried or pruned, to their results.

`ablate.run` says what is to run; this hands it out and hears how it goes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from ablate.display import Display
from ablate.engines import Engine, Notice, Outcome, Task
from ablate.kin import Kin
from ablate.ledger import Ledger
from ablate.nouns import Job, Result, Study
from ablate.progress import Progress
from ablate.scribe import Scribe
from ablate.shears import Shears
from ablate.stopping import StopFlag
from ablate.worker import Worker

LOOK = 0.06
"""Seconds of a tick that the looks may take; where jobs are many or the disk is slow, those that
were not looked at come first in the next."""


@dataclass
class Followed:
    """A job on its way, and how far its events have been read."""

    job: Job
    attempt: int = 1
    shared: int = 0
    """Attempts that were made with others as one: their trouble may not be this job's."""
    since: float = 0.0
    offset: int = 0

    @property
    def task(self) -> Task:
        return Task(self.job.id, self.attempt, dict(self.job.levels), self.job.seed)


@dataclass
class Dispatcher:
    """Hands jobs to the engine and takes their results; `serve` names the engine first."""

    study: Study
    ledger: Ledger
    display: Display
    stop: StopFlag
    progress: Progress
    scribe: Scribe
    shears: Shears
    core_hash: str
    due: Callable[[Result | None], bool]
    """Whether a job with this result is to run (again)."""
    share_out: bool
    """Whether jobs that train as one leave no worker without work."""
    kin: Kin = field(default_factory=Kin)
    waiting: deque[Followed] = field(default_factory=deque)
    running: dict[str, Followed] = field(default_factory=dict)
    cohorts: dict[str, list[Followed]] = field(default_factory=dict)
    """The jobs of each task under way, by its lead."""
    at_work: deque[str] = field(default_factory=deque)
    """Jobs of `running` that have started, the one that was looked at longest ago first."""
    trained: list[str] = field(default_factory=list)
    """Jobs that ended in this run."""
    news: bool = True
    """Whether a job has ended since adaptive designs were asked; they take it back."""

    def serve(self, engine: Engine, worker: Worker) -> None:
        """Hand jobs to this engine from now on; the worker's results are kept."""
        self.engine, self.worker = engine, worker

    def enqueue(self, todo: Iterable[Job]) -> None:
        """Have jobs wait for a worker, but for those that an earlier coordinator's is at."""
        waiting = [Followed(job) for job in todo]
        met = self.engine.follow([followed.task for followed in waiting])
        if met:
            self.display.say(f"{len(met)} jobs of an earlier run are followed on")
        for followed in waiting:
            if followed.job.id in met:
                self.running[followed.job.id] = followed
                self.cohorts[followed.job.id] = [followed]
            else:
                self.waiting.append(followed)

    def submit(self) -> None:
        """Keep the engine's queue just long enough that no worker waits for the coordinator."""
        while self.waiting and self.engine.pending() < self.engine.depth:
            ready = [followed for followed in self._next() if self._opened(followed)]
            if ready:
                self.running |= {followed.job.id: followed for followed in ready}
                self.cohorts[ready[0].job.id] = ready
                for followed in ready:
                    followed.shared += len(ready) > 1
                lead, *others = (followed.task for followed in ready)
                self.engine.submit(replace(lead, members=tuple(others)))

    def _next(self) -> list[Followed]:
        """Take the next job, and those that train as one with it; a retried one is alone."""
        first = self.waiting.popleft()
        bond = self.kin.bond(first.job.id)
        if bond is None or first.attempt > 1:
            return [first]
        room = bond.size - 1
        waiting = (o for o in self.waiting if o.attempt == 1 and self.kin.bond(o.job.id) == bond)
        if bond.twins:
            alike = list(itertools.islice(waiting, min(room, self.kin.others(bond))))
        else:
            alike = list(waiting)
            if self.share_out:  # no worker is to wait while others train many
                room = min(room, math.ceil((len(alike) + 1) / max(self.engine.workers, 1)) - 1)
        for followed in alike[:room]:
            self.waiting.remove(followed)
        return [first, *alike[:room]]

    def _opened(self, followed: Followed) -> bool:
        """Make a job's folder ready for an attempt; not if it has just ended without us."""
        result = self.ledger.accepted(followed.job.id, self.study)
        if followed.attempt == 1 and not self.due(result):
            self._end_here(followed, Outcome("ended"))
            return False
        try:
            if followed.attempt == 1:
                self.ledger.begin(followed.job, self.core_hash)
            else:
                self.ledger.create(followed.job)  # sweeps what a killed writer left half written
        except OSError as error:
            self._lose(followed.job, f"its folder cannot be written ({error.strerror})")
            return False
        return True

    def hear(self, notice: Notice) -> None:
        cohort = self.cohorts[notice.job_id]
        if notice.outcome is None:
            for followed in cohort:
                self._started(followed)
            return
        del self.cohorts[notice.job_id]
        for followed in cohort:
            self._ended(followed, notice.outcome.members.get(followed.job.id, notice.outcome))

    def _started(self, followed: Followed) -> None:
        followed.since = time.monotonic()
        if followed.job.id not in self.at_work:
            self.at_work.append(followed.job.id)
        self.progress.started(followed.job.id, followed.attempt, followed.since)
        self.display.started(self.progress, followed.job, followed.attempt)
        if followed.attempt == 1:
            self.scribe.tell(lambda record: record.job_started(followed.job))

    def _ended(self, followed: Followed, outcome: Outcome) -> None:
        job = followed.job
        self._follow(followed)
        del self.running[job.id]
        if job.id in self.at_work:
            self.at_work.remove(job.id)
        result = self._settle(followed, outcome)
        now = time.monotonic()
        self.progress.ended(job.id, result, now)
        if result is not None:
            self.news = True
            self.trained.append(job.id)
            self.display.ended(self.progress, job, result, now - followed.since)
            folder = self.ledger.folder(job.id)
            self.scribe.tell(lambda record: record.job_finished(job, result, folder))
            self.prune(self.shears.ended(job, result))

    def _settle(self, followed: Followed, outcome: Outcome) -> Result | None:
        """The job's result; None when it is to run again, now or in a later run.

        A result that lies there but cannot be read just now is never written over.
        """
        job = followed.job
        result = self.ledger.result(job.id)
        unread = result is None and (outcome.kind == "ended" or self.ledger.holds_result(job.id))
        if result is None and not unread and self.shears.cut(job.id):
            last, why = self.shears.last_readings(job.id)
            pruned = self.worker.result(followed.task, "pruned", last, why)
            return self._keep(followed, replace(pruned, pruned_by=self.shears.said))
        if result is not None or outcome.kind == "interrupted":
            return result
        if self.stop.asked and outcome.kind != "timed out":
            return None  # what stopping broke is no failure: it stays missing
        error = outcome.error or "it ended without a result"
        error = "its result cannot be read" if unread else error
        attempts = self.study.attempts + followed.shared
        late = outcome.kind == "timed out" and not (followed.shared and followed.attempt == 1)
        if not late and followed.attempt < attempts:
            self.display.say(f"{job.arm} seed {job.seed}: {error}; trying again", "yellow")
            followed.attempt += 1
            self.waiting.append(followed)
            return None
        if unread or outcome.kind == "busy":  # the other that trains it writes its result
            self._lose(job, f"{error}; a later run takes it, or makes it again")
            return None
        return self._keep(followed, self.worker.result(followed.task, "failed", {}, error))

    def _keep(self, followed: Followed, result: Result) -> Result | None:
        try:
            self.ledger.write_result(result)
        except OSError as trouble:
            line = f"{result.error}; this cannot be written ({trouble.strerror})"
            self._lose(followed.job, line)
            return None
        return result

    def asked(self) -> bool:
        """Whether to stop; asked by jobs in this process, which may be pruned only then."""
        if self.shears.sharp:
            for followed in list(self.running.values()):
                self._follow(followed)
        return self.stop.asked

    def prune(self, verdicts: Collection[str]) -> None:
        """Tell jobs to stop. Those that wait for a worker end here."""
        for job_id in verdicts:
            if job_id in self.running:
                self.engine.cancel(job_id)
        if not verdicts:  # as most often, and many may wait
            return
        for followed in [f for f in self.waiting if f.job.id in verdicts]:
            self.waiting.remove(followed)
            if self._opened(followed):  # without the result of an earlier run
                self._end_here(followed, Outcome("interrupted"))

    def _end_here(self, followed: Followed, outcome: Outcome) -> None:
        """A job ends that no worker of this run had."""
        followed.since = time.monotonic()
        self.running[followed.job.id] = followed
        self._ended(followed, outcome)

    def _lose(self, job: Job, reason: str) -> None:
        """Say that a job has no result because the ledger takes none; a later run makes it."""
        self.progress.ended(job.id, None, time.monotonic())
        self.display.say(f"{job.arm} seed {job.seed}: {reason}", "bold red")

    def look_around(self) -> None:
        """Follow the jobs at work in turn, as far as this tick's time goes."""
        end = time.monotonic() + LOOK
        for _ in range(len(self.at_work)):
            self._follow(self.running[self.at_work[0]])
            self.at_work.rotate(-1)
            if time.monotonic() > end:
                return

    def _follow(self, followed: Followed) -> None:
        job = followed.job
        events, followed.offset = self.ledger.read_events(job.id, followed.offset)
        if events:
            self.progress.events(job.id, events)
            self.scribe.tell(lambda record: record.job_events(job, events))
            self.prune(self.shears.heard(job, events))
