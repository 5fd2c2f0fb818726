"""The coordinator: skip what is done, submit the rest, follow, retry, record. One loop.

    ledger --missing--> engine --notices--> ledger
                          |                   |
                       events.jsonl  ---->  display, record

The ledger alone says what has run. Killing the coordinator at any point loses nothing but the
steps since the last checkpoints: the next run finds every result and goes on with what is missing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.adaptive_designs import follows
from ablate.core import Core, CoreError, load_core
from ablate.display import Display
from ablate.engines import Engine, Notice, Outcome, Place, Task, engine_class, make_engine
from ablate.files import write_atomic
from ablate.kin import Kin, may_fuse
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study, StudyError
from ablate.progress import Progress, effort
from ablate.reader import resolved
from ablate.scribe import Recorder, Scribe
from ablate.shears import Shears
from ablate.stopping import StopFlag, stop_signals
from ablate.worker import Worker, describe_code

if TYPE_CHECKING:
    from ablate.rank import Ranking

Conclude = Callable[[Mapping[str, Result]], tuple["Ranking", Sequence[Path]]]
"""Results -> the ranking and the files of the answer."""

Grow = Callable[[Mapping[str, Result], int], Plan]
"""Results, and jobs that could start now -> the plan, with the arms that follow from results."""

PRELOAD = ("ablate.worker", "ablate.cli")
"""What workers need beside their core; the second is what `ablate` itself runs as."""

TICK = 0.25
"""Seconds between looks at the events of running jobs."""
LOOK = 0.06
"""Seconds of a tick that the looks may take; where jobs are many or the disk is slow, those that
were not looked at come first in the next."""


@dataclass(frozen=True)
class RunOptions:
    """How to run; nothing here changes what a job computes."""

    workers: int | None = None
    """Jobs at once; None: as many as the engine has room for."""
    engine: str = "pool"
    retry_failed: bool = False
    """Run failed jobs again, from their checkpoints where there are any."""
    rerun: bool = False
    """Run jobs again whose results come from other core code than today's."""
    fuse: int | None = None
    """Jobs of one shape that train as one model, at most; 1: each alone; None: the core's word."""
    room: int | None = None
    """How many jobs that train as one a worker's share of its GPU has room for, where `fuse` does
    not say; None: not known."""
    gpus: tuple[str, ...] = ()
    """The GPU of each worker of this machine; empty: they are not assigned."""


@dataclass(frozen=True)
class RunSummary:
    """What there is after a run, earlier results included."""

    results: Mapping[str, Result]
    missing: tuple[str, ...]
    """Jobs without a result: interrupted, not started, or their results could not be kept."""
    more: tuple[str, ...]
    """What is still to come of adaptive designs: stopped, or their next arms could not be made."""
    trained: tuple[str, ...]
    """Jobs that ended in this run."""
    interrupted: bool
    seconds: float

    def count(self, state: str) -> int:
        return sum(result.state == state for result in self.results.values())


def run(
    study: Study,
    plan: Plan,
    out: Path,
    options: RunOptions,
    display: Display,
    make_recorder: Callable[[], Recorder] | None = None,
    conclude: Conclude | None = None,
    grow: Grow | None = None,
) -> RunSummary:
    """Run the jobs of a plan that have not ended yet.

    Args:
        study: for its core, criteria, timeout and attempts.
        plan: the jobs.
        out: the folder that holds them.
        options: how to run.
        display: where to show it.
        make_recorder: makes the record's writer, called in a thread of its own; None: no record.
        conclude: called with the results once all jobs have ended, while `out` is still held.
        grow: asked for the plan again whenever jobs have ended, where it has adaptive designs.

    Raises:
        LockHeld: another coordinator works in `out`.
        StudyError: `out` cannot be written, or shared inputs cannot be prepared.
        EngineError: no worker can be started.
        KeyboardInterrupt: asked a second time to stop.
    """
    begin = time.monotonic()
    ledger = Ledger(out)
    with ledger.lock(), stop_signals() as stop:
        coordinator = _Coordinator(
            study, plan, ledger, options, display, stop, make_recorder, conclude, grow
        )
        return coordinator.run(begin)


def warm_up(study: Study, options: RunOptions) -> None:
    """Begin the slow imports of workers while the study is still being planned."""
    begin = getattr(engine_class(options.engine), "warm_up", None)
    if begin is not None:
        begin((*PRELOAD, *load_core(study.core).preload))


@dataclass
class _Followed:
    """A job on its way, and how far its events have been read."""

    job: Job
    attempt: int = 1
    shared: int = 0
    """Attempts that were made with others as one model: their trouble may not be this job's."""
    since: float = 0.0
    offset: int = 0

    @property
    def task(self) -> Task:
        return Task(self.job.id, self.attempt, dict(self.job.levels), self.job.seed)


@dataclass
class _Coordinator:
    study: Study
    plan: Plan
    ledger: Ledger
    options: RunOptions
    display: Display
    stop: StopFlag
    make_recorder: Callable[[], Recorder] | None
    conclude: Conclude | None
    grow: Grow | None
    trained: list[str] = field(default_factory=list)
    kin: Kin = field(default_factory=Kin)
    running: dict[str, _Followed] = field(default_factory=dict)
    cohorts: dict[str, list[_Followed]] = field(default_factory=dict)
    """The jobs of each task under way, by its lead."""
    news: bool = True
    """Whether a job has ended since adaptive designs were asked."""
    at_work: deque[str] = field(default_factory=deque)
    """Jobs of `running` that have started, the one that was looked at longest ago first."""

    def run(self, begin: float) -> RunSummary:
        self.core: Core = load_core(self.study.core)
        self.code = describe_code(self.study.core)
        self.plan = self._replanned()
        self.jobs = {job.id: job for job in self.plan.jobs}
        results = {job_id: self.ledger.accepted(job_id, self.study) for job_id in self.jobs}
        ended = {job_id: result for job_id, result in results.items() if result is not None}
        todo = sorted((j for j in self.plan.jobs if self._due(results[j.id])), key=_longest_first)
        again = {job.id for job in todo}
        for line in self.ledger.warnings:
            self.display.say(line, "yellow")
        self._keep_study()
        for job_id in ended:
            self.ledger.mend(self.jobs[job_id])
        self.display.say(self._opening(ended, todo))
        self.waiting: deque[_Followed] = deque()
        self.progress = Progress(self.plan.jobs, self.study.criteria)
        self.progress.begin(ended, [job.id for job in todo])
        self.scribe = Scribe(self.make_recorder, self.display.say)
        self.shears = Shears(self.study.pruning, self.ledger, self.display.say)
        if todo or self.plan.more:
            kept = {job_id: result for job_id, result in ended.items() if job_id not in again}
            self._train(todo, self.shears.begin(self.plan.jobs, kept))
        self.scribe.begin(self.plan)
        if self.conclude is not None and not self.stop.asked:
            self.scribe.tell("conclude", *self.conclude(self.progress.results))
        self.scribe.finish(lambda: self.stop.asked)
        missing = tuple(job_id for job_id in self.jobs if job_id not in self.progress.results)
        return RunSummary(
            dict(self.progress.results),
            missing,
            self.plan.more,
            tuple(self.trained),
            self.stop.asked and bool(missing or self.plan.more),
            time.monotonic() - begin,
        )

    def _replanned(self) -> Plan:
        """The plan; of adaptive designs, without what follows from results that are made again."""
        if self.grow is None or not follows(self.study):
            self.grow = None
            return self.plan
        results = {job.id: self.ledger.accepted(job.id, self.study) for job in self.plan.jobs}
        found = {job_id: result for job_id, result in results.items() if result is not None}
        kept = {job_id: result for job_id, result in found.items() if not self._due(result)}
        return self.plan if len(kept) == len(found) else self.grow(kept, 0)

    def _keep_study(self) -> None:
        """Write the study as it was resolved beside its answers."""
        path = self.ledger.study_folder(self.study.name) / "study.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, resolved(self.study))
        except OSError as error:
            self.display.say(f"{path} cannot be written: {error.strerror}", "yellow")

    def _opening(self, ended: Mapping[str, Result], todo: list[Job]) -> str:
        """What there is and what is to do, in one line."""
        line = f"{self.study.name}: {len(self.jobs)} jobs, {len(ended)} ended, {len(todo)} to run"
        failed = sum(result.state == "failed" for result in ended.values())
        if failed and not self.options.retry_failed:
            line += f"; {failed} failed (--retry-failed runs them again)"
        older = sum(result.code.get("core") != self.code["core"] for result in ended.values())
        if older and not self.options.rerun:
            line += f"; {older} results from older code (--rerun trains them again)"
        return line

    def _due(self, result: Result | None) -> bool:
        if result is None:
            return True
        if self.options.rerun and result.code.get("core") != self.code["core"]:
            return True
        return self.options.retry_failed and result.state == "failed"

    def _train(self, todo: list[Job], cut: Collection[str]) -> None:
        """Run the jobs `todo`, but for those that earlier results `cut`."""
        self._refuse_fuse(engine_class(self.options.engine).fuses is not False)
        cache = self.ledger.out / "cache"
        self.worker = Worker(
            self.ledger.out,
            self.study.core,
            cache,
            self.code,
            criteria=self.study.criteria if self.study.stop_when_passed else None,
            capture=not engine_class(self.options.engine).in_process,
        )
        self.engine = engine = make_engine(
            self.options.engine,
            self.worker,
            self.options.workers,
            timeout=self.study.timeout,
            preload=(*PRELOAD, *self.core.preload),
            stop_asked=self._asked,
            place=Place(
                self.ledger.out,
                cache,
                self.code["core"],
                self.study.resources,
                self.display.say,
                self.options.gpus,
            ),
        )
        try:
            self._refuse_fuse(engine.fuses)  # Ray's depends on its storage
            self._prepare(todo, cache, engine)
            self._enqueue(todo)
            self._prune(cut)
            self._loop(engine)
        finally:
            engine.close()

    def _refuse_fuse(self, fuses: bool) -> None:
        if (self.options.fuse or 1) > 1 and not fuses:
            raise StudyError(
                f"--fuse: given {self.options.fuse}, --engine {self.options.engine} runs each "
                "job by itself here; leave it"
            )

    def _prepare(self, todo: list[Job], cache: Path, engine: Engine) -> None:
        """Compute what the jobs share, while the engine's server imports its modules."""

        def progress(done: int, of: int) -> None:
            if self.stop.asked:
                raise _Stopped
            self.display.preparing(done, of)

        try:
            configs = [self.core.build(job.settings) for job in todo]
            if engine.fuses and may_fuse(self.study):
                how = self.options
                self.kin.learn(self.core, todo, configs, how.fuse, how.room)
            shared = self.core.prepare(configs, cache, progress)
            engine.share([cache] if shared is None else shared)
        except _Stopped:
            return
        except CoreError as error:
            raise StudyError(str(error)) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise StudyError(f"{cache}: shared inputs cannot be kept ({reason})") from None

    def _grow(self, engine: Engine) -> None:
        """Let adaptive designs add jobs; where they cannot, those under way go on all the same."""
        try:
            self._ask(engine)
        except StudyError as error:
            self.grow = None
            self.display.say(f"No further arms in this run: {error}", "bold red")

    def _ask(self, engine: Engine) -> None:
        """Take the jobs that adaptive designs made of what has ended since they were asked."""
        while self.news and self.grow is not None and not self.stop.asked:
            self.news = False
            slots = max(engine.workers, 1) - len(self.waiting) - engine.pending()
            self.plan = self.grow(self.progress.results, max(slots, 0))
            new = [job for job in self.plan.jobs if job.id not in self.jobs]
            self.jobs |= {job.id: job for job in new}
            found = {job.id: self.ledger.accepted(job.id, self.study) for job in new}
            todo = sorted((job for job in new if self._due(found[job.id])), key=_longest_first)
            kept = {k: r for k, r in found.items() if r is not None and not self._due(r)}
            self.progress.extend(new, kept, todo)
            self.news = len(todo) < len(new)  # some had run before, for another study
            self.scribe.tell("planned", self.plan)
            if todo:
                self._prepare(todo, self.ledger.out / "cache", engine)
                self._enqueue(todo)
            self._prune(self.shears.extend(new, kept))

    def _loop(self, engine: Engine) -> None:
        stopping = False
        self._grow(engine)
        while self.waiting or engine.pending():
            if self.stop.asked and not stopping:
                stopping = self.progress.stopping = True
                self.waiting.clear()
                engine.stop()
                self.display.say("Stopping: running jobs keep a checkpoint. Ctrl-C again: now.")
            self._submit(engine)
            notices = engine.wait(TICK)
            self.progress.workers = max(min(engine.workers, len(self.plan.jobs)), 1)
            self.scribe.begin(self.plan)  # once the workers are at it
            for notice in notices:
                self._hear(notice)
            self._look_around()
            self._grow(engine)
            self.scribe.check()
            self.display.tick(self.progress)

    def _enqueue(self, todo: Iterable[Job]) -> None:
        """Have jobs wait for a worker, but for those that an earlier coordinator's is at."""
        waiting = [_Followed(job) for job in todo]
        met = self.engine.follow([followed.task for followed in waiting])
        if met:
            self.display.say(f"{len(met)} jobs of an earlier run are followed on")
        for followed in waiting:
            if followed.job.id in met:
                self.running[followed.job.id] = followed
                self.cohorts[followed.job.id] = [followed]
            else:
                self.waiting.append(followed)

    def _submit(self, engine: Engine) -> None:
        """Keep the engine's queue just long enough that no worker waits for the coordinator."""
        while self.waiting and engine.pending() < engine.depth:
            ready = [followed for followed in self._next() if self._opened(followed)]
            if ready:
                self.running |= {followed.job.id: followed for followed in ready}
                self.cohorts[ready[0].job.id] = ready
                for followed in ready:
                    followed.shared += len(ready) > 1
                lead, *others = (followed.task for followed in ready)
                engine.submit(replace(lead, members=tuple(others)))

    def _next(self) -> list[_Followed]:
        """Take the next job, and those that train as one model with it; a retried one is alone."""
        first = self.waiting.popleft()
        room = self.kin.room(first.job.id) if first.attempt == 1 else 0
        if not room:
            return [first]
        alike = [
            other
            for other in self.waiting
            if other.attempt == 1 and self.kin.alike(first.job.id, other.job.id)
        ]
        if self.options.fuse is None:  # no worker is to wait while others train many
            room = min(room, math.ceil((len(alike) + 1) / max(self.engine.workers, 1)) - 1)
        for followed in alike[:room]:
            self.waiting.remove(followed)
        return [first, *alike[:room]]

    def _opened(self, followed: _Followed) -> bool:
        """Make a job's folder ready for an attempt; not if it has just ended without us."""
        result = self.ledger.accepted(followed.job.id, self.study)
        if followed.attempt == 1 and not self._due(result):
            self._end_here(followed, Outcome("ended"))
            return False
        try:
            if followed.attempt == 1:
                self.ledger.begin(followed.job, self.code["core"])
            else:
                self.ledger.create(followed.job)  # sweeps what a killed writer left half written
        except OSError as error:
            self._lose(followed.job, f"its folder cannot be written ({error.strerror})")
            return False
        return True

    def _hear(self, notice: Notice) -> None:
        cohort = self.cohorts[notice.job_id]
        if notice.outcome is None:
            for followed in cohort:
                self._started(followed)
            return
        del self.cohorts[notice.job_id]
        for followed in cohort:
            self._ended(followed, notice.outcome.members.get(followed.job.id, notice.outcome))

    def _started(self, followed: _Followed) -> None:
        followed.since = time.monotonic()
        if followed.job.id not in self.at_work:
            self.at_work.append(followed.job.id)
        self.progress.started(followed.job.id, followed.attempt, followed.since)
        self.display.started(self.progress, followed.job, followed.attempt)
        if followed.attempt == 1:
            self.scribe.tell("job_started", followed.job)

    def _ended(self, followed: _Followed, outcome: Outcome) -> None:
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
            self.scribe.tell("job_finished", job, result, self.ledger.folder(job.id))
            self._prune(self.shears.ended(job, result))

    def _settle(self, followed: _Followed, outcome: Outcome) -> Result | None:
        """The job's result; None when it is to run again, now or in a later run."""
        job = followed.job
        result = self.ledger.result(job.id)
        if result is None and self.shears.cut(job.id):
            last, why = self.shears.last_readings(job.id)
            pruned = self.worker.result(followed.task, "pruned", last, why)
            return self._keep(followed, replace(pruned, pruned_by=self.shears.said))
        if result is not None or outcome.kind == "interrupted":
            return result
        if self.stop.asked and outcome.kind != "timed out":
            return None  # what stopping broke is no failure: it stays missing
        error = outcome.error or "it ended without a result"
        attempts = self.study.attempts + followed.shared
        late = outcome.kind == "timed out" and not (followed.shared and followed.attempt == 1)
        if not late and followed.attempt < attempts:
            self.display.say(f"{job.arm} seed {job.seed}: {error}; trying again", "yellow")
            followed.attempt += 1
            self.waiting.append(followed)
            return None
        return self._keep(followed, self.worker.result(followed.task, "failed", {}, error))

    def _keep(self, followed: _Followed, result: Result) -> Result | None:
        try:
            self.ledger.write_result(result)
        except OSError as trouble:
            line = f"{result.error}; this cannot be written ({trouble.strerror})"
            self._lose(followed.job, line)
            return None
        return result

    def _asked(self) -> bool:
        """Whether to stop; asked by jobs in this process, which may be pruned only then."""
        if self.shears.sharp:
            for followed in list(self.running.values()):
                self._follow(followed)
        return self.stop.asked

    def _prune(self, verdicts: Collection[str]) -> None:
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

    def _end_here(self, followed: _Followed, outcome: Outcome) -> None:
        """A job ends that no worker of this run had."""
        followed.since = time.monotonic()
        self.running[followed.job.id] = followed
        self._ended(followed, outcome)

    def _lose(self, job: Job, reason: str) -> None:
        """Say that a job has no result because the ledger takes none; a later run makes it."""
        self.progress.ended(job.id, None, time.monotonic())
        self.display.say(f"{job.arm} seed {job.seed}: {reason}", "bold red")

    def _look_around(self) -> None:
        """Follow the jobs at work in turn, as far as this tick's time goes."""
        end = time.monotonic() + LOOK
        for _ in range(len(self.at_work)):
            self._follow(self.running[self.at_work[0]])
            self.at_work.rotate(-1)
            if time.monotonic() > end:
                return

    def _follow(self, followed: _Followed) -> None:
        job = followed.job
        events, followed.offset = self.ledger.read_events(job.id, followed.offset)
        if events:
            self.progress.events(job.id, events)
            self.scribe.tell("job_events", job, events)
            self._prune(self.shears.heard(job, events))


class _Stopped(Exception):  # noqa: N818 - asked for, not a mistake
    """Leaves a long preparation."""


def _longest_first(job: Job) -> float:
    return -effort(job)
