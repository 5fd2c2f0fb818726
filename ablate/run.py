"""The coordinator: skip what is done, submit the rest, follow, retry, record. One loop.

    ledger --missing--> engine --notices--> ledger
                          |                   |
                       events.jsonl  ---->  display, record

The ledger alone says what has run. Killing the coordinator at any point loses nothing but the
steps since the last checkpoints: the next run finds every result and goes on with what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.adaptive_designs import follows
from ablate.conclude import answered, write_study
from ablate.core import Core, CoreError, load_core
from ablate.dispatch import Dispatcher
from ablate.display import Display
from ablate.engines import Engine, Place, engine_class, make_engine
from ablate.kin import may_fuse
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study, StudyError
from ablate.origin import describe_code
from ablate.progress import Progress, effort
from ablate.scribe import Recorder, Scribe
from ablate.shears import Shears
from ablate.stopping import StopFlag, stop_signals
from ablate.worker import Worker

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
    """Jobs of one shape that train as one model, at most; 1: each alone; None: the core's word, and
    jobs whose training is the same train once."""
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
        if not answered(self.study, self.ledger):  # the study of that answer stays beside it
            self._keep_study()
        for job_id in ended:
            self.ledger.mend(self.jobs[job_id])
        self.display.say(self._opening(ended, todo))
        self.progress = Progress(self.plan.jobs, self.study.criteria)
        self.progress.begin(ended, [job.id for job in todo])
        self.scribe = Scribe(self.make_recorder, self.display.say)
        self.shears = Shears(self.study.pruning, self.ledger, self.display.say)
        self.dispatcher = Dispatcher(
            self.study,
            self.ledger,
            self.display,
            self.stop,
            self.progress,
            self.scribe,
            self.shears,
            self.code["core"],
            self._due,
            share_out=self.options.fuse is None,
        )
        if todo or self.plan.more:
            kept = {job_id: result for job_id, result in ended.items() if job_id not in again}
            self._train(todo, self.shears.begin(self.plan.jobs, kept))
        self.scribe.begin(self.plan)
        if self.conclude is not None and not self.stop.asked:
            self._keep_study()
            ranking, files = self.conclude(self.progress.results)
            self.scribe.tell(lambda record: record.conclude(ranking, files))
        self.scribe.finish(lambda: self.stop.asked)
        missing = tuple(job_id for job_id in self.jobs if job_id not in self.progress.results)
        return RunSummary(
            dict(self.progress.results),
            missing,
            self.plan.more,
            tuple(self.dispatcher.trained),
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
        try:
            write_study(self.study, self.ledger)
        except OSError as error:
            path = self.ledger.study_folder(self.study.name) / "study.yaml"
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
        worker = Worker(
            self.ledger.out,
            self.study.core,
            cache,
            self.code,
            criteria=self.study.criteria if self.study.stop_when_passed else None,
            capture=not engine_class(self.options.engine).in_process,
        )
        engine = make_engine(
            self.options.engine,
            worker,
            self.options.workers,
            timeout=self.study.timeout,
            preload=(*PRELOAD, *self.core.preload),
            stop_asked=self.dispatcher.asked,
            place=Place(
                self.ledger.out,
                cache,
                self.code["core"],
                self.study.resources,
                self.display.say,
                self.options.gpus,
            ),
        )
        self.dispatcher.serve(engine, worker)
        try:
            self._refuse_fuse(engine.fuses)  # Ray's depends on its storage
            self._prepare(todo, cache, engine)
            self.dispatcher.enqueue(todo)
            self.dispatcher.prune(cut)
            self._loop(engine)
        finally:
            engine.close()

    def _refuse_fuse(self, fuses: bool) -> None:
        if (self.options.fuse or 1) <= 1:
            return
        if not fuses:
            why = f"--engine {self.options.engine} runs each job by itself here"
        elif not may_fuse(self.study):
            key = "pruning" if self.study.pruning else "stop_when_passed"
            why = f"{key}: may end each job at a step of its own, so each trains by itself"
        else:
            return
        raise StudyError(f"--fuse: given {self.options.fuse}, {why}; leave it")

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
                kin = self.dispatcher.kin
                kin.learn(self.core, todo, configs, how.fuse, how.room)
                for job in todo:
                    self.progress.share(job.id, kin.share(job.id))
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
        while self.dispatcher.news and self.grow is not None and not self.stop.asked:
            self.dispatcher.news = False
            slots = max(engine.workers, 1) - len(self.dispatcher.waiting) - engine.pending()
            self.plan = self.grow(self.progress.results, max(slots, 0))
            new = [job for job in self.plan.jobs if job.id not in self.jobs]
            self.jobs |= {job.id: job for job in new}
            found = {job.id: self.ledger.accepted(job.id, self.study) for job in new}
            todo = sorted((job for job in new if self._due(found[job.id])), key=_longest_first)
            kept = {k: r for k, r in found.items() if r is not None and not self._due(r)}
            self.progress.extend(new, kept, todo)
            self.dispatcher.news = len(todo) < len(new)  # some had run before, for another study
            self.scribe.tell(lambda record, plan=self.plan: record.planned(plan))
            if todo:
                self._prepare(todo, self.ledger.out / "cache", engine)
                self.dispatcher.enqueue(todo)
            self.dispatcher.prune(self.shears.extend(new, kept))

    def _loop(self, engine: Engine) -> None:
        stopping = False
        self._grow(engine)
        while self.dispatcher.waiting or engine.pending():
            if self.stop.asked and not stopping:
                stopping = self.progress.stopping = True
                self.dispatcher.waiting.clear()
                engine.stop()
                self.display.say("Stopping: running jobs keep a checkpoint. Ctrl-C again: now.")
            self.dispatcher.submit()
            notices = engine.wait(TICK)
            self.progress.workers = max(min(engine.workers, len(self.plan.jobs)), 1)
            self.scribe.begin(self.plan)  # once the workers are at it
            for notice in notices:
                self.dispatcher.hear(notice)
            self.dispatcher.look_around()
            self._grow(engine)
            self.scribe.check()
            self.display.tick(self.progress)


class _Stopped(Exception):  # noqa: N818 - asked for, not a mistake
    """Leaves a long preparation."""


def _longest_first(job: Job) -> float:
    return -effort(job)
