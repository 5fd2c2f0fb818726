"""Before a plan is shown or run: time the shapes that nothing is known of, and seat GPU workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablate import costs, gpus
from ablate.core import Core
from ablate.engines import available_cores
from ablate.kin import Kin, may_fuse
from ablate.nouns import StudyError
from ablate.request import Request
from ablate.run import PRELOAD


def time_shapes(asked: Request, workers: int | None) -> list[str]:
    """Time what is to run and unknown; what could not be timed and why, a line each."""
    guess = asked.estimate(workers)
    unknown = [key for key, found in guess.guesses.items() if found.source not in KNOWN]
    jobs = [job for job in asked.to_run if costs.shape(job) in set(unknown)]
    if not any(job.workload.shape for job in jobs):
        return []
    try:
        asked.ledger.prepare()
    except StudyError as error:
        return [f"nothing timed: {error}"]
    core: Core = asked.core
    with _bar() as tell:
        preload = (*PRELOAD, *core.preload)
        return costs.probe(asked.costs, jobs, workers or available_cores(), tell, preload)


@dataclass(frozen=True)
class Crew:
    """The workers on this machine's GPUs."""

    gpus: tuple[str, ...] = ()
    """The GPU of each; empty where jobs train on the CPU or name their GPU themselves."""
    room: int | None = None
    """How many jobs that train as one each has memory for; None: not known."""
    notes: tuple[str, ...] = ()
    """What could not be timed and why."""


def gpu_crew(asked: Request, engine: str, workers: int | None, fuse: int | None = None) -> Crew:
    """Seat workers on the GPUs here, for as many jobs as may train as one in each.

    Args:
        asked: the study.
        engine: that runs it.
        workers: as many, whether they fit or not; None: as many as fit.
        fuse: jobs that train as one, at most, whether they fit or not; None: as the core says and
            as fit.

    Raises:
        StudyError: the jobs want a GPU and there is none.
    """
    if engine not in ("pool", "inline"):
        return Crew()
    _refuse_missing(asked)
    if not on_gpu(asked):
        return Crew()
    free = _free(asked)
    notes = time_shapes(asked, None) if workers is None else []
    return replace(_seated(asked, free, workers, fuse), notes=tuple(notes))


def planned_crew(asked: Request, workers: int | None) -> tuple[int | None, list[str]]:
    """How many workers an estimate is for, None: one a core; and what it leaves out, a line each.

    Nothing is timed for it.
    """
    if not on_gpu(asked):
        return workers, []
    try:
        free = gpus.free_memory_mb(asked.study.core)
    except StudyError as error:
        return workers, [str(error)]
    if not free:
        return workers, []
    crew = _seated(asked, free, workers, None)
    notes = []
    if (crew.room or 1) > 1:
        notes.append(
            f"up to {crew.room} jobs train as one in a worker, in less time and more memory than "
            "is said here of jobs that train alone"
        )
    return len(crew.gpus), notes


def unseen_gpu(asked: Request) -> str:
    """Why the jobs cannot train on this machine's GPUs, as `ablate run` says it; "" if they can."""
    try:
        _refuse_missing(asked)
        if on_gpu(asked):
            _free(asked)
    except StudyError as error:
        return str(error)
    return ""


def _free(asked: Request) -> tuple[float, ...]:
    """Free memory of each GPU here, MB. Raises StudyError where there is none."""
    free = gpus.free_memory_mb(asked.study.core)
    if not free:
        raise StudyError(
            f"{asked.study.source}: its jobs train on cuda, but no GPU is seen here; let them "
            "train on cpu, or elsewhere: --engine ray or slurm"
        )
    return free


def _seated(asked: Request, free: Sequence[float], workers: int | None, fuse: int | None) -> Crew:
    known = [found.memory_mb for found in asked.estimate().guesses.values()]
    need = None if None in known else max((mb for mb in known if mb is not None), default=None)
    together, room = _together(asked, fuse), None
    if need is not None and fuse is not None:
        need *= together
    elif need is not None and workers is not None:
        room = gpus.fitting(free, need, workers, together)
        need *= room
    if workers is not None:
        found = gpus.assigned(free, need, workers)
    elif need is not None and fuse is None:
        found, room = gpus.shared_seats(free, need, available_cores(), together)
    else:
        found = gpus.seats(free, need, available_cores())
    names = gpus.visible_names(len(free))
    seats = found or gpus.assigned(free, need, 1)
    return Crew(tuple(names[gpu] for gpu in seats), room)


def _refuse_missing(asked: Request) -> None:
    """Refuse a GPU that jobs name by its number and that is not here."""
    devices = {job.workload.device for job in asked.plan.jobs}
    named = {int(device.partition(":")[2]): device for device in devices if ":" in device}
    if not named:
        return
    here, last = len(gpus.free_memory_mb(asked.study.core)), max(named)
    if last >= here:
        seen = ", ".join(f"cuda:{gpu}" for gpu in range(here))
        lacking = f"; allowed: {seen}, or" if here else ", but no GPU is seen here;"
        raise StudyError(
            f"{asked.study.source}: runtime.device: given {named[last]!r}{lacking} let its jobs "
            "train on cpu, or elsewhere: --engine ray or slurm"
        )


def on_gpu(asked: Request) -> bool:
    """Whether any job is for whichever GPU there is."""
    return any(job.workload.device == "cuda" for job in asked.plan.jobs)


def _together(asked: Request, fuse: int | None) -> int:
    """How many jobs may come to train as one at most, were there memory for all."""
    if not may_fuse(asked.study):
        return 1
    kin, jobs = Kin(), asked.plan.jobs
    kin.learn(asked.core, jobs, [asked.core.build(job.settings) for job in jobs], fuse)
    return kin.most


KNOWN = ("finished jobs", "probe")


@contextmanager
def _bar() -> Iterator[costs.Tell]:
    """A bar on a terminal; elsewhere one line, as what follows may take its time."""
    console = Console(stderr=True)
    columns = TextColumn("timing a few steps of each shape"), BarColumn(), MofNCompleteColumn()
    live = console.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not live
    ) as bar:
        task = bar.add_task("")

        def tell(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)
            if not live and not done:
                console.print(f"timing a few steps of {of} {'shape' if of == 1 else 'shapes'} ...")

        yield tell
