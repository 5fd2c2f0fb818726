"""What engines have in common: the queue before the workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ablate.engines import Notice, Order, Outcome, Task


class BaseEngine:
    """The queue, and what an engine whose workers see OUT and leave with it need not care about."""

    in_process = False
    fuses = True

    def __init__(self, order: Order) -> None:
        self._work, self._timeout, self._place = order.work, order.timeout, order.place
        self._queue: deque[Task] = deque()
        self._notices: list[Notice] = []
        """Told by the next `wait`."""

    def follow(self, tasks: Sequence[Task]) -> set[str]:
        return set()

    def share(self, paths: Sequence[Path]) -> None:
        return None

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def _forget(self, job_id: str) -> bool:
        """Take a cancelled job out of the queue, if it is there."""
        queued = [task for task in self._queue if task.job_id == job_id]
        for task in queued:
            self._queue.remove(task)
            self._notices.append(Notice(job_id, Outcome("interrupted")))
        return bool(queued)

    def _told(self) -> list[Notice]:
        notices, self._notices = self._notices, []
        return notices
