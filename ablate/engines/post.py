"""Letters between a coordinator and tasks of a queue that share a folder and nothing else.

    mail/<ticket>.*      started, paused, or how it ended: task -> coordinator
    halt/<ticket>        keep a checkpoint and end: coordinator -> task

A ticket is one attempt at one job. Letters are whole or not there; neither side need be alive when
the other writes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ablate.engines import Outcome, StopAsked, Task, Work
from ablate.files import write_atomic

LETTERS = ("started", "paused", "outcome")
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
            stop = self._stopper(task)
            try:
                outcome = Outcome("interrupted") if stop() else self.work(task, stop)
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


@dataclass
class Ticket:
    """One attempt at one job that the queue has, or is about to have."""

    task: Task
    record: dict[str, Any]
    """See `Office`."""
    halted: bool = False
    missing: int = 0
    """Questions in a row in which the queue no longer knew it."""

    @property
    def name(self) -> str:
        return self.record["ticket"]

    @property
    def slurm(self) -> str:
        """Slurm's id; "" until it has answered."""
        return self.record["slurm"]

    @property
    def begun(self) -> bool:
        """Whether it ever was at work."""
        return "started" in self.record

    @property
    def since(self) -> float | None:
        """Since when it is at work now, in time.time seconds."""
        return self.record.get("started")


class Office:
    """The coordinator's side: its letters, and what it keeps to find its jobs again.

    A record is `{ticket, slurm, batch, index, of, code}`, and `started`: since when the job is at
    work by this machine's clock, null while it waits again, absent before its first time.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in ("jobs", "mail", "halt", "logs"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def records(self) -> dict[str, dict[str, Any]]:
        """Of each job that an earlier coordinator left."""
        found = {path.stem: read(path) for path in (self._root / "jobs").glob("*.json")}
        return {job_id: record for job_id, record in found.items() if record and "slurm" in record}

    def keep(self, job_id: str, record: Mapping[str, Any]) -> None:
        write(self._root / "jobs" / f"{job_id}.json", record)

    def drop(self, job_id: str, ticket: str) -> None:
        """Forget an attempt, and what was written about it."""
        (self._root / "jobs" / f"{job_id}.json").unlink(missing_ok=True)
        (self._root / "halt" / ticket).unlink(missing_ok=True)
        for what in LETTERS:
            (self._root / "mail" / f"{ticket}.{what}.json").unlink(missing_ok=True)

    def halt(self, ticket: str) -> None:
        """Ask an attempt to keep a checkpoint and end."""
        (self._root / "halt" / ticket).touch()

    def logs(self, slurm: str) -> Path:
        return self._root / "logs" / slurm

    def letters(self) -> Iterator[tuple[str, str, Path]]:
        """Ticket, what it says and the file of each letter, in the order of writing."""
        for path in sorted((self._root / "mail").glob("*.json"), key=_when):
            ticket, what = path.name.removesuffix(".json").rsplit(".", 1)
            yield ticket, what, path

    def kept(self, ticket: str) -> bool:
        """Whether the job's record still names this ticket: a later run may follow it."""
        record = read(self._root / "jobs" / f"{ticket.split('~')[0]}.json")
        return record is not None and record.get("ticket") == ticket


def _when(letter: Path) -> tuple[bool, int]:
    """In the order of writing, an end last."""
    try:
        return letter.name.endswith(".outcome.json"), letter.stat().st_mtime_ns
    except OSError:  # NFS, at times
        return True, 0


def write(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(value), flush=False)


def read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else None
    return None
