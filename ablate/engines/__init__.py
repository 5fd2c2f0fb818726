"""Where jobs run: one protocol, one file for each engine.

An engine takes tasks and says what became of them. It knows nothing of studies, ledgers or
cores: the *work* it is given does the job and returns an `Outcome`; the engine adds what the work
cannot say about itself, that its process died or ran out of time.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ablate.nouns import Resources, StudyError

StopAsked = Callable[[], bool]


@dataclass(frozen=True)
class Task:
    """One attempt at a job, and what its result must say of it."""

    job_id: str
    attempt: int
    levels: Mapping[str, str]
    seed: int
    members: tuple[Task, ...] = ()
    """Other jobs that train as one model with this one, their lead; an engine sees one task."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt at a job.

    ended: its result is written. interrupted: it kept a checkpoint because it was asked to stop.
    broken: an error that another attempt may not meet. busy: another process trains the job.
    died: its process ended under it. timed out: its process was ended by the engine.
    """

    kind: Literal["ended", "interrupted", "broken", "busy", "died", "timed out"]
    error: str = ""
    members: Mapping[str, Outcome] = field(default_factory=dict)
    """By job id, where the jobs of one task fared differently."""


Work = Callable[[Task, StopAsked], Outcome]
"""Picklable, because an engine may send it to another process."""


@dataclass(frozen=True)
class Notice:
    """A job started (`outcome` is None) or an attempt at it is over."""

    job_id: str
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Place:
    """What engines of several machines need to know beside the work itself."""

    out: Path
    """Holds `jobs/<job_id>/` and whatever an engine keeps to find its jobs again."""
    cache: Path
    """What the jobs share, read only."""
    code: str = ""
    """Names the code that makes the numbers: jobs of other code are not gone on with."""
    resources: Resources = field(default_factory=Resources)
    say: Callable[[str], None] = lambda line: None
    """Tells the user what else should be known."""
    gpus: Sequence[str] = ()
    """Of each worker of this machine, as CUDA_VISIBLE_DEVICES names it; empty: not assigned."""

    def folder(self, job_id: str) -> Path:
        return self.out / "jobs" / job_id

    def refresh(self, job_id: str) -> None:
        """Have a network's file system read a job's folder anew, where it keeps an old view."""
        with suppress(OSError):
            os.listdir(self.folder(job_id))  # noqa: PTH208 - opening the folder is what does it


@dataclass(frozen=True)
class Order:
    """What an engine is asked for; `make_engine` says what each is."""

    work: Work
    workers: int | None = None
    timeout: float | None = None
    preload: Sequence[str] = ()
    stop_asked: StopAsked = lambda: False
    place: Place | None = None


class Engine(Protocol):
    """Runs submitted jobs in the order given, at most `workers` at once."""

    @property
    def workers(self) -> int:
        """Jobs at once, as far as is known now: machines may come and go."""
        ...

    @property
    def depth(self) -> int:
        """How many jobs it likes to hold, queued and running."""
        ...

    @property
    def fuses(self) -> bool:
        """Whether a task may have members."""
        ...

    def follow(self, tasks: Sequence[Task]) -> set[str]:
        """Take up what an earlier coordinator left at work; the jobs of these that go on.

        To be asked before anything in their folders is touched: other workers may write there. An
        attempt that cannot be gone on with (other code) is ended first; this waits until it is.
        """
        ...

    def share(self, paths: Sequence[Path]) -> None:
        """Files and folders of `Place.cache` that the jobs submitted from now on read."""
        ...

    def submit(self, task: Task) -> None:
        """Queue one attempt at a job."""
        ...

    def pending(self) -> int:
        """How many jobs are queued or running."""
        ...

    def wait(self, seconds: float) -> list[Notice]:
        """What happened since the last call; blocks for at most about `seconds` if nothing did."""
        ...

    def stop(self) -> None:
        """Forget the queue and ask the running jobs to keep a checkpoint and end."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask one job to keep a checkpoint and end; a queued one is `interrupted`, untouched.

        The others go on. A job that is not here any more is no matter.
        """
        ...

    def close(self) -> None:
        """End everything now. Idle workers leave by themselves, running jobs are killed."""
        ...


class EngineError(RuntimeError):
    """The engine cannot run at all (no worker process can be started): one line."""


ENGINES = {
    "pool": "PoolEngine",
    "inline": "InlineEngine",
    "ray": "RayEngine",
    "slurm": "SlurmEngine",
}
"""Name (of the module here, and of its extra) -> class."""

NEEDS = {"ray": "ray", "slurm": "submitit"}
"""Engines that come with an extra -> the module that it installs."""


def engine_class(name: str) -> Any:
    """The class of the engine called `name`.

    Raises:
        StudyError: there is no such engine, or its extra is not installed.
    """
    if name not in ENGINES:
        raise StudyError(f"--engine: given {name!r}, must be one of {', '.join(ENGINES)}")
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        raise StudyError(
            f"--engine {name}: needs the extra [{name}], which is not installed; type "
            f"`make setup EXTRAS={name}`, or in a clone of your own: python -m pip install "
            f"'.[{name}]'"
        )
    return getattr(importlib.import_module(f"ablate.engines.{name}"), ENGINES[name])


def make_engine(
    name: str,
    work: Work,
    workers: int | None = None,
    *,
    timeout: float | None = None,
    preload: Sequence[str] = (),
    stop_asked: StopAsked = lambda: False,
    place: Place | None = None,
) -> Engine:
    """Make the engine called `name`.

    Args:
        name: a key of `ENGINES`.
        work: what is done for each job.
        workers: jobs at once; None: as many as there is room for.
        timeout: seconds that one attempt may take; None: as long as it likes.
        preload: modules that workers find imported when they start.
        stop_asked: true once the user asked to stop; read by work that runs in this process.
        place: where the jobs lie and what each needs; engines of one machine do not read it.
    """
    return engine_class(name)(Order(work, workers, timeout, preload, stop_asked, place))


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of a control group's processor time in how many; absent on other systems."""


def affine_cores() -> int:
    """Cores that this process may run on: all, where the system has no affinities (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    cores = affine_cores()
    try:
        quota, period = CPU_QUOTA.read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max": no quota
        pass
    return cores
