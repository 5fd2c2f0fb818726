"""Jobs one after the other in this process: for a debugger, and for machines without processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ablate.engines import Notice, StopAsked, Task, Work


class InlineEngine:
    """Runs one job within each second call of `wait` (the first tells that it starts).

    A time limit cannot be kept here, and a crash of a job is a crash of the coordinator.
    """

    workers = 1

    def __init__(
        self,
        work: Work,
        workers: int = 1,
        *,
        timeout: float | None = None,
        preload: Sequence[str] = (),
        stop_asked: StopAsked = lambda: False,
    ) -> None:
        self._work = work
        self._stop_asked = stop_asked
        self._queue: deque[Task] = deque()
        self._started: Task | None = None

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def pending(self) -> int:
        return len(self._queue) + (self._started is not None)

    def wait(self, seconds: float) -> list[Notice]:
        if self._started is not None:
            task, self._started = self._started, None
            return [Notice(task.job_id, self._work(task, self._stop_asked))]
        if self._queue:
            self._started = self._queue.popleft()
            return [Notice(self._started.job_id)]
        return []

    def stop(self) -> None:
        self._queue.clear()

    def close(self) -> None:
        self._queue.clear()
        self._started = None
