"""Before a plan is shown or run: time the shapes that nothing is known of, and seat GPU workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablate import costs, gpus
from ablate.core import Core
from ablate.engines import available_cores
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


def gpu_crew(asked: Request, engine: str, workers: int | None) -> tuple[str, ...]:
    """The GPU of each worker here; empty where jobs train on the CPU or name their GPU themselves.

    Raises:
        StudyError: the jobs want a GPU and there is none.
    """
    local = engine in ("pool", "inline")
    if not local or all(job.workload.device != "cuda" for job in asked.plan.jobs):
        return ()
    free = gpus.free_memory_mb(asked.study.core)
    if not free:
        raise StudyError(
            f"{asked.study.source}: its jobs train on cuda, but no GPU is seen here; let them "
            "train on cpu, or elsewhere: --engine ray or slurm"
        )
    if workers is None:
        time_shapes(asked, None)
    known = [found.memory_mb for found in asked.estimate().guesses.values()]
    need = None if None in known else max((mb for mb in known if mb is not None), default=None)
    if workers is None:
        found = gpus.seats(free, need, available_cores()) or gpus.assigned(free, need, 1)
    else:
        found = gpus.assigned(free, need, workers)
    names = gpus.visible_names(len(free))
    return tuple(names[gpu] for gpu in found)


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
