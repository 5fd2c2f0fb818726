"""Jobs one after the other in this process: for a debugger, and for machines without processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ablate.engines import Notice, Outcome, Place, StopAsked, Task, Work


class InlineEngine:
    """Runs one job within each second call of `wait` (the first tells that it starts).

    A time limit cannot be kept here, and a crash of a job is a crash of the coordinator.
    """

    workers = 1
    depth = 2
    in_process = True
    fuses = True

    def __init__(
        self,
        work: Work,
        workers: int | None = 1,
        *,
        timeout: float | None = None,
        preload: Sequence[str] = (),
        stop_asked: StopAsked = lambda: False,
        place: Place | None = None,
    ) -> None:
        self._work = work
        self._stop_asked = stop_asked
        self._queue: deque[Task] = deque()
        self._started: Task | None = None
        self._cancelled: set[str] = set()
        self._forgotten: list[Notice] = []

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def pending(self) -> int:
        return len(self._queue) + len(self._forgotten) + (self._started is not None)

    def wait(self, seconds: float) -> list[Notice]:
        if self._forgotten:
            told, self._forgotten = self._forgotten, []
            return told
        if self._started is not None:
            task, self._started = self._started, None
            outcome = self._work(task, lambda: self._asked_to_stop(task.job_id))
            self._cancelled.discard(task.job_id)
            return [Notice(task.job_id, outcome)]
        if self._queue:
            self._started = self._queue.popleft()
            return [Notice(self._started.job_id)]
        return []

    def stop(self) -> None:
        self._queue.clear()

    def cancel(self, job_id: str) -> None:
        for task in [task for task in self._queue if task.job_id == job_id]:
            self._queue.remove(task)
            self._forgotten.append(Notice(job_id, Outcome("interrupted")))
            return
        self._cancelled.add(job_id)  # read by the job at work, which asks `stop_asked` first

    def _asked_to_stop(self, job_id: str) -> bool:
        return self._stop_asked() or job_id in self._cancelled

    def close(self) -> None:
        self._queue.clear()
        self._started = None
