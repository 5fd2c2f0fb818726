"""Jobs one after the other in this process: for a debugger, and for machines without processes."""

from __future__ import annotations

from ablate.engines import Notice, Order, Task
from ablate.engines.base import BaseEngine


class InlineEngine(BaseEngine):
    """Runs one job within each second call of `wait` (the first tells that it starts).

    A time limit cannot be kept here, and a crash of a job is a crash of the coordinator.
    """

    workers = 1
    depth = 2
    in_process = True

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._stop_asked = order.stop_asked
        self._started: Task | None = None
        self._cancelled: set[str] = set()

    def pending(self) -> int:
        return len(self._queue) + len(self._notices) + (self._started is not None)

    def wait(self, seconds: float) -> list[Notice]:
        if self._notices:
            return self._told()
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
        if not self._forget(job_id):
            self._cancelled.add(job_id)  # read by the job at work, which asks `stop_asked` first

    def _asked_to_stop(self, job_id: str) -> bool:
        return self._stop_asked() or job_id in self._cancelled

    def close(self) -> None:
        self._queue.clear()
        self._started = None
