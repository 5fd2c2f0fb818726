"""Before a plan is shown: time the shapes of jobs that nothing is known of, with a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablate import costs
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
