"""One attempt at one job, from its config.json to its result.json: what an engine is given to do.

A worker writes only into its job's folder. What it cannot judge, whether a passing trouble deserves
another attempt, it hands back to the coordinator as an `Outcome`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import reprlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core import Core, CoreError, Diverged, Interrupted, Member, load_core
from ablate.engines import Outcome, StopAsked, Task
from ablate.ledger import Ledger, LockHeld
from ablate.nouns import Criterion, Result, Settings, State, StudyError
from ablate.origin import environment_here

PATIENCE = 10.0
"""Seconds to wait for a job's lock: the worker of a coordinator that was just killed leaves at
once, so a lock held for longer means that the job really trains elsewhere."""

OUTPUT = "output.txt"
"""What a job's process wrote to stdout and stderr, in the job's folder; absent when nothing."""

load_core = functools.cache(load_core)


@dataclass(frozen=True)
class Worker:
    """The work of an engine (`ablate.engines.Work`) for the jobs of one OUT; picklable."""

    out: Path
    core: str
    cache: Path
    code: Mapping[str, str]
    environment: Mapping[str, Any] | None = None
    """None: of the process that trains, wherever that is."""
    criteria: tuple[Criterion, ...] | None = None
    """End a job early where all of these and the gates hold; None: never."""
    capture: bool = True
    """Send stdout and stderr of the process into the job's folder while the job runs."""

    def __call__(self, task: Task, stop: StopAsked) -> Outcome:
        ledger = Ledger(self.out)
        tasks: list[Task] = []
        outcomes: dict[str, Outcome] = {}
        with ExitStack() as held:
            for one in (task, *task.members):
                try:
                    held.enter_context(_patient_lock(ledger, one.job_id, stop))
                except LockHeld as error:
                    kind = "interrupted" if stop() else "busy"
                    outcomes[one.job_id] = Outcome(kind, str(error))
                    continue
                except StudyError as error:  # a full disk, a file system without locks
                    outcomes[one.job_id] = Outcome("broken", str(error))
                    continue
                if ledger.result(one.job_id) is None:
                    tasks.append(one)
                else:  # by a worker whose coordinator was killed just then
                    outcomes[one.job_id] = Outcome("ended")
            if tasks and self.capture:
                try:
                    held.enter_context(captured(ledger.folder(tasks[0].job_id) / OUTPUT))
                except OSError as error:
                    outcomes |= {one.job_id: Outcome("broken", _one_line(error)) for one in tasks}
                    tasks = []
            if len(tasks) == 1:
                outcomes[tasks[0].job_id] = self._train(ledger, tasks[0], stop)
            elif tasks:
                outcomes |= self._train_together(ledger, tasks, stop)
        own = outcomes.pop(task.job_id)
        return Outcome(own.kind, own.error, outcomes)

    def misfit(self) -> str:
        """What keeps this machine from doing the work as the coordinator would; "" if nothing."""
        here = load_core(self.core).source_hash()
        if self.code.get("core") not in (None, here):
            return f"other code is installed there ({here}, not {self.code['core']})"
        return ""

    def moved(self, out: Path, cache: Path) -> Worker:
        """The same work on a machine that has OUT elsewhere."""
        return dataclasses.replace(self, out=out, cache=cache)

    def _train(self, ledger: Ledger, task: Task, stop: StopAsked) -> Outcome:
        diary = Diary(ledger, task.job_id)
        diary.write({"event": "started", "attempt": task.attempt, "core": self.code.get("core")})
        end: Mapping[str, float] | BaseException
        try:
            core, settings = load_core(self.core), ledger.settings(task.job_id)
            early: dict[str, Any] = {}
            if self.criteria is not None:
                early["enough"] = functools.partial(all_hold, core, self.criteria, settings)
            folder = ledger.folder(task.job_id)
            end = core.train(settings, diary.log, folder, self.cache, stop, **early)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a failed job is data
            end = error
        return self._book(diary, task, end)

    def _train_together(
        self, ledger: Ledger, tasks: Sequence[Task], stop: StopAsked
    ) -> dict[str, Outcome]:
        """Train several jobs as one; each ends by itself, in a folder of its own."""
        diaries = [Diary(ledger, task.job_id) for task in tasks]
        cohort = [task.job_id for task in tasks]
        for diary, task in zip(diaries, tasks, strict=True):
            start = {"event": "started", "attempt": task.attempt, "core": self.code.get("core")}
            diary.write({**start, "cohort": cohort})
        outcomes: dict[str, Outcome] = {}
        try:
            members = [
                Member(ledger.settings(job_id), diary.log, ledger.folder(job_id), stop)
                for job_id, diary in zip(cohort, diaries, strict=True)
            ]
            for place, end in load_core(self.core).train_cohort(members, self.cache):
                outcomes[cohort[place]] = self._book(diaries[place], tasks[place], end)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - alone, they may not meet it
            traceback.print_exc()
            left = Outcome("broken", _one_line(error))
            outcomes = dict.fromkeys(cohort, left) | outcomes
        return outcomes

    def _book(self, diary: Diary, task: Task, end: Mapping[str, float] | BaseException) -> Outcome:
        """Write down how a job ended, by its metrics or by what it raised."""
        if not isinstance(end, BaseException):
            if wrong := no_readings(end):
                return self._end(diary, task, "failed", {}, wrong)
            return self._end(diary, task, "done", end)
        if isinstance(end, Interrupted):
            diary.write({"event": "interrupted"})
            return Outcome("interrupted", str(end))
        if isinstance(end, Diverged):
            return self._end(diary, task, "diverged", end.metrics, str(end))
        if isinstance(end, OSError | MemoryError) or _out_of_memory(end):
            traceback.print_exception(end)  # a full disk, a lost mount, no memory: may pass
            return Outcome("broken", _one_line(end))
        trace = "".join(traceback.format_exception(end))
        return self._end(diary, task, "failed", {}, _one_line(end), trace)

    def _end(
        self,
        diary: Diary,
        task: Task,
        state: State,
        metrics: Mapping[str, float],
        error: str | None = None,
        trace: str | None = None,
    ) -> Outcome:
        result = self.result(task, state, metrics, error, trace)
        try:
            diary.write({"event": state, "error": error} if error else {"event": state})
            diary.ledger.write_result(result)
        except OSError as trouble:
            return Outcome("broken", f"its result cannot be kept: {_one_line(trouble)}")
        return Outcome("ended", error or "")

    def result(
        self,
        task: Task,
        state: State,
        metrics: Mapping[str, float],
        error: str | None = None,
        trace: str | None = None,
    ) -> Result:
        """How `task` ended, with the code and the machine that made it so."""
        return Result(
            job_id=task.job_id,
            levels=dict(task.levels),
            seed=task.seed,
            state=state,
            metrics={name: float(value) for name, value in metrics.items()},
            error=error,
            attempts=task.attempt,
            code=self.code,
            environment=environment_here() if self.environment is None else self.environment,
            traceback=trace,
        )


def no_readings(end: object) -> str | None:
    """What is wrong with what a core's `train` returned; None: they are names with numbers."""
    allowed = "must be readings, names with numbers: {'final/loss': 0.1}"
    if not isinstance(end, Mapping):
        return f"train returned {'None' if end is None else type(end).__name__}, {allowed}"
    for name, value in end.items():
        number = None
        if isinstance(name, str) and not isinstance(value, str | bytes):
            with suppress(TypeError, ValueError):
                number = float(value)
        if number is None:
            return f"train returned {reprlib.repr(name)}: {reprlib.repr(value)}, {allowed}"
    return None


def all_hold(
    core: Core,
    criteria: Sequence[Criterion],
    settings: Settings,
    metrics: Mapping[str, float],
    *,
    whole: bool,
) -> bool:
    """Whether all criteria hold, and the gates that concern them.

    Without `whole`, whether no reading speaks against it; an evaluation does not take them all.
    """
    asked = [condition for criterion in criteria for condition in criterion.conditions]
    if not whole:
        asked = [condition for condition in asked if condition.metric in metrics]
    if not all(condition.holds(metrics) for condition in asked):
        return False
    if not whole:
        return True
    gates = (gate for gate in core.gates(metrics, settings) if gate.concerns(criteria))
    return all(gate.verdict != "failed" for gate in gates)


class Diary:
    """Appends a job's events. A full disk does not stop the training: lines wait for the next."""

    def __init__(self, ledger: Ledger, job_id: str) -> None:
        self.ledger = ledger
        self._job_id = job_id
        self._unwritten: list[dict[str, Any]] = []

    def log(self, step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
        """Keep readings of a step (`ablate.core.Log`)."""
        readings = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": step, "metrics": readings}
        self.write(line if event is None else {**line, "event": event})

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event with the time."""
        self._unwritten.append({"time": round(time.time(), 3), **event})
        try:
            while self._unwritten:
                self.ledger.append_event(self._job_id, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if len(self._unwritten) == 1:
                sys.stderr.write(f"event not written yet: {_one_line(error)}\n")


@contextmanager
def _patient_lock(ledger: Ledger, job_id: str, stop: StopAsked) -> Iterator[None]:
    deadline = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(ledger.job_lock(job_id))
                break
            except LockHeld:
                if stop() or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


@contextmanager
def captured(path: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to the end of `path`, libraries' and crash reports included."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    kept = os.dup(1), os.dup(2)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk: what it printed is lost, not the job
                stream.flush()
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _out_of_memory(error: BaseException) -> bool:
    """Torch has its own type for a device and a bare RuntimeError for the CPU's allocator."""
    return type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)


def _one_line(error: BaseException) -> str:
    if isinstance(error, CoreError):
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
