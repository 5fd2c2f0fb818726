"""Letters between a coordinator and tasks of a queue that share a folder and nothing else.

    mail/<ticket>.*      started, paused, or how it ended: task -> coordinator
    halt/<ticket>        keep a checkpoint and end: coordinator -> task

A ticket is one attempt at one job. Letters are whole or not there; neither side need be alive when
the other writes.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ablate.engines import Outcome, StopAsked, Task, Work

GLANCE = 0.5
"""Seconds between a task's looks for a request to stop."""


@dataclass
class Element:
    """What one task of a queue does: its jobs one after the other, a letter at each turn."""

    work: Work
    tasks: Sequence[Task]
    batch: str
    root: Path
    warning: float = 90.0
    _done: set[str] = field(default_factory=set)
    _leaving: Any = field(default=None, repr=False)
    _thread: Any = field(default=None, repr=False)

    def ticket(self, task: Task) -> str:
        return f"{task.job_id}~{task.attempt}~{self.batch}"

    def __call__(self) -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        self._leaving = threading.Event()
        # in a thread: Slurm's warning is heard by the main one, which then waits for a checkpoint
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(1)

    def leave(self) -> Self:
        """Keep a checkpoint now; what is left to do."""
        self._leaving.set()
        self._thread.join(self.warning / 2)
        rest = [task for task in self.tasks if task.job_id not in self._done]
        return type(self)(self.work, rest, self.batch, self.root, self.warning)

    def _serve(self) -> None:
        for task in self.tasks:
            if self._leaving.is_set():
                return
            write(self._letter(task, "started"), {})
            try:
                outcome = self.work(task, self._stopper(task))
            except Exception as error:  # noqa: BLE001 - told, as any end is
                outcome = Outcome("broken", " ".join(f"{type(error).__name__}: {error}".split()))
            if outcome.kind == "interrupted" and self._leaving.is_set():
                write(self._letter(task, "paused"), {})
                return
            self._done.add(task.job_id)
            letter = {"kind": outcome.kind, "error": outcome.error}
            write(self._letter(task, "outcome"), letter)

    def _letter(self, task: Task, what: str) -> Path:
        return self.root / "mail" / f"{self.ticket(task)}.{what}.json"

    def _stopper(self, task: Task) -> StopAsked:
        halt, looked, found = self.root / "halt" / self.ticket(task), 0.0, False

        def stop() -> bool:
            nonlocal looked, found
            if not found and time.monotonic() - looked > GLANCE:
                looked, found = time.monotonic(), halt.exists()
            return found or self._leaving.is_set()

        return stop


def when(letter: Path) -> tuple[bool, int]:
    """In the order of writing, an end last."""
    return letter.name.endswith(".outcome.json"), letter.stat().st_mtime_ns


def write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else None
    return None
