"""One attempt at one job, from its config.json to its result.json: what an engine is given to do.

A worker writes only into its job's folder. What it cannot judge, whether a passing trouble deserves
another attempt, it hands back to the coordinator as an `Outcome`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core import CoreError, Diverged, Interrupted, load_core
from ablate.engines import Outcome, StopAsked, Task
from ablate.ledger import Ledger, LockHeld
from ablate.nouns import Result, State

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
    capture: bool = True
    """Send stdout and stderr of the process into the job's folder while the job runs."""

    def __call__(self, task: Task, stop: StopAsked) -> Outcome:
        ledger = Ledger(self.out)
        with ExitStack() as held:
            try:
                held.enter_context(_patient_lock(ledger, task.job_id, stop))
            except LockHeld as error:
                return Outcome("interrupted" if stop() else "broken", str(error))
            if ledger.result(task.job_id) is not None:
                return Outcome("ended")  # by a worker whose coordinator was killed just then
            if self.capture:
                held.enter_context(captured(ledger.folder(task.job_id) / OUTPUT))
            return self._train(ledger, task, stop)

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
        try:
            metrics = load_core(self.core).train(
                ledger.settings(task.job_id),
                diary.log,
                ledger.folder(task.job_id),
                self.cache,
                stop,
            )
        except Interrupted as error:
            diary.write({"event": "interrupted"})
            return Outcome("interrupted", str(error))
        except Diverged as error:
            return self._end(diary, task, "diverged", error.metrics, str(error))
        except (OSError, MemoryError) as error:  # a full disk, a lost mount, no memory: may pass
            traceback.print_exc()
            return Outcome("broken", _one_line(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a failed job is data
            if _out_of_memory(error):
                traceback.print_exc()
                return Outcome("broken", _one_line(error))
            trace = traceback.format_exc()
            return self._end(diary, task, "failed", {}, _one_line(error), trace)
        return self._end(diary, task, "done", metrics)

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
            environment=_environment() if self.environment is None else self.environment,
            traceback=trace,
        )


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


def describe_code(core: str) -> dict[str, str]:
    """The commit this package was run from (`+` when files differ from it), and the core's hash."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", str(here), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    return {"commit": commit, "core": load_core(core).source_hash()}


def describe_environment() -> dict[str, Any]:
    """Python, the libraries that make numbers, and the machine."""
    versions: dict[str, Any] = {}
    for name in ("torch", "numpy", "opencv-python-headless"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
    }


_environment = functools.cache(describe_environment)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


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
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
        if path.stat().st_size == 0:
            path.unlink()


def _out_of_memory(error: BaseException) -> bool:
    """Torch has its own type for a device and a bare RuntimeError for the CPU's allocator."""
    return type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)


def _one_line(error: BaseException) -> str:
    if isinstance(error, CoreError):
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
