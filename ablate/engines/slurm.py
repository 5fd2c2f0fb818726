"""Jobs as Slurm array tasks, by way of submitit.

The tasks and the coordinator share OUT and nothing else:

    OUT/slurm/jobs/<job_id>.json    which Slurm job has this one: coordinator -> later coordinators
    OUT/slurm/mail, halt            letters between tasks and coordinator (`ablate.engines.post`)
    OUT/slurm/logs/<Slurm's id>/    submitit's files

A ticket is one attempt at one job. Slurm's warning before a preemption or the end of the time makes
a task keep a checkpoint and go back into the queue; its ticket stays valid. A coordinator that is
started anew finds the tickets of jobs that Slurm still has, and follows them on.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.engines import EngineError, Notice, Outcome, Place, StopAsked, Task, Work
from ablate.engines.post import read, when, write
from ablate.engines.slurm_cluster import Cluster, LocalCluster, QueueElement, SlurmCluster
from ablate.resources import slurm_option

ARRAY = 1000
"""Tasks of one array; Slurm's own limit is 1,001 unless a site raised it."""


@dataclass
class _Ticket:
    """One attempt at one job that Slurm has."""

    name: str
    task: Task
    slurm: str
    started: bool = False
    deadline: float | None = None  # time.monotonic seconds
    missing: int = 0
    """Questions in a row in which Slurm no longer knew its job."""


class SlurmEngine:
    """Submits arrays, reads the mail, asks Slurm now and then what became of the silent ones."""

    in_process = False
    fuses = False  # a ticket is one job's: it is found again by it

    def __init__(
        self,
        work: Work,
        workers: int | None = None,
        *,
        timeout: float | None = None,
        preload: Sequence[str] = (),
        stop_asked: StopAsked = lambda: False,
        place: Place | None = None,
    ) -> None:
        if place is None:
            raise EngineError("the engine slurm needs a folder that its jobs share")
        self._work, self._timeout, self._place = work, timeout, place
        self._code = place.code
        self._option: Callable[[str], Any] = lambda name: slurm_option(place.resources, name)
        self._root = place.out / "slurm"
        for name in ("jobs", "mail", "halt", "logs"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        kind = SlurmCluster if self._option("cluster") == "slurm" else LocalCluster
        self.workers = workers or kind.workers
        self._cluster: Cluster = kind(self._root / "logs", place.resources, self.workers)
        self.depth = (ARRAY if kind is SlurmCluster else self.workers) * self._option(
            "jobs_per_task"
        )
        self._queue: deque[Task] = deque()
        self._tickets: dict[str, _Ticket] = {}
        self._forgotten: list[Notice] = []
        self._over: set[str] = set()
        """Slurm's ids of tasks that have told all; their logs go when Slurm has let them go."""
        self._alive = self._cluster.alive()
        self._asked = time.monotonic()
        self._sweep()

    def submit(self, task: Task) -> None:
        if not self._follow_on(task):
            self._queue.append(task)

    def pending(self) -> int:
        return len(self._queue) + len(self._forgotten) + len(self._tickets)

    def wait(self, seconds: float) -> list[Notice]:
        self._send()
        end = time.monotonic() + seconds
        while True:
            notices = [*self._forgotten, *self._read_mail(), *self._time_out()]
            self._forgotten.clear()
            if time.monotonic() - self._asked >= self._option("poll"):
                notices += self._ask()
            left = end - time.monotonic()
            if notices or left <= 0:
                return notices
            time.sleep(min(left, 0.1))

    def stop(self) -> None:
        self._queue.clear()
        if self._option("detach"):
            self._tickets.clear()
            return
        idle = {ticket.slurm for ticket in self._tickets.values()}
        for ticket in self._tickets.values():
            (self._root / "halt" / ticket.name).touch()
            if ticket.started:
                idle.discard(ticket.slurm)
        self._cluster.cancel(idle)
        for ticket in [t for t in self._tickets.values() if t.slurm in idle]:
            del self._tickets[ticket.name]

    def cancel(self, job_id: str) -> None:
        queued = [task for task in self._queue if task.job_id == job_id]
        for task in queued:
            self._queue.remove(task)
            self._forgotten.append(Notice(job_id, Outcome("interrupted")))
        for ticket in self._tickets.values():
            if ticket.task.job_id == job_id:  # one that Slurm still queues ends when it starts
                (self._root / "halt" / ticket.name).touch()

    def close(self) -> None:
        self._queue.clear()
        if not self._option("detach"):
            self._cluster.cancel({ticket.slurm for ticket in self._tickets.values()})
        self._tickets.clear()

    def _sweep(self) -> None:
        """Forget the attempts of earlier coordinators that Slurm no longer has."""
        for path in (self._root / "jobs").glob("*.json"):
            record = read(path) or {}
            if (slurm := record.get("slurm")) != "" and slurm not in self._alive:
                path.unlink(missing_ok=True)
                for letter in self._root.glob(f"*/{record.get('ticket')}*"):
                    letter.unlink(missing_ok=True)

    def _follow_on(self, task: Task) -> bool:
        """Take up an attempt that an earlier coordinator submitted and that Slurm still has."""
        try:
            record = json.loads((self._root / "jobs" / f"{task.job_id}.json").read_bytes())
            ticket = _Ticket(record["ticket"], task, record["slurm"] or "")
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not ticket.slurm:  # killed between sbatch and its answer
            ticket.slurm = self._cluster.find(record["batch"], record["index"], record["of"])
        if ticket.slurm not in self._alive or any(
            known.name == ticket.name for known in self._tickets.values()
        ):
            return False
        if record.get("code") != self._code or task.attempt > 1:
            self._cluster.cancel({ticket.slurm})
            return False
        self._tickets[ticket.name] = ticket
        return True

    def _send(self) -> None:
        """Submit what is queued, as few arrays as can be."""
        size = self._option("jobs_per_task")
        while self._queue:
            n = min(len(self._queue), ARRAY * size)
            batch = f"ablate-{secrets.token_hex(4)}"
            tasks = [self._queue.popleft() for _ in range(n)]
            groups = [tasks[i :: math.ceil(n / size)] for i in range(math.ceil(n / size))]
            elements = [QueueElement(self._work, group, batch, self._root) for group in groups]
            for index, element in enumerate(elements):
                self._note(element, index, len(elements), "")
            ids = self._cluster.submit(elements, batch)
            for index, (element, slurm) in enumerate(zip(elements, ids, strict=True)):
                self._note(element, index, len(elements), slurm)
                for task in element.tasks:
                    name = element.ticket(task)
                    self._tickets[name] = _Ticket(name, task, slurm)
            self._alive |= set(ids)
            self._asked = time.monotonic()

    def _note(self, element: QueueElement, index: int, of: int, slurm: str) -> None:
        for task in element.tasks:
            record = {"ticket": element.ticket(task), "slurm": slurm, "batch": element.batch}
            record |= {"index": index, "of": of, "code": self._code}
            write(self._root / "jobs" / f"{task.job_id}.json", record)

    def _read_mail(self) -> list[Notice]:
        notices: list[Notice] = []
        letters = (self._root / "mail").glob("*.json")
        for path in sorted(letters, key=when):
            name, what = path.name.removesuffix(".json").rsplit(".", 1)
            ticket = self._tickets.get(name)
            if ticket is None:  # of a coordinator that no longer asks
                if what == "outcome" or not self._kept(name):
                    path.unlink(missing_ok=True)
                continue
            letter = read(path)
            path.unlink(missing_ok=True)
            if letter is None:
                continue
            if not ticket.started:
                ticket.started = True
                notices.append(Notice(ticket.task.job_id))
            if what == "started":
                limit = None if self._timeout is None else time.monotonic() + self._timeout
                ticket.deadline = limit
            elif what == "paused":
                ticket.deadline = None
            else:
                self._end(ticket)
                self._place.refresh(ticket.task.job_id)
                outcome = Outcome(letter["kind"], letter["error"])
                notices.append(Notice(ticket.task.job_id, outcome))
        return notices

    def _kept(self, ticket: str) -> bool:
        """Whether the job's record still names this ticket: a later run may follow it."""
        job_id = ticket.split("~")[0]
        record = read(self._root / "jobs" / f"{job_id}.json")
        return record is not None and record.get("ticket") == ticket

    def _end(self, ticket: _Ticket) -> None:
        del self._tickets[ticket.name]
        (self._root / "halt" / ticket.name).unlink(missing_ok=True)
        (self._root / "jobs" / f"{ticket.task.job_id}.json").unlink(missing_ok=True)
        self._over.add(ticket.slurm)

    def _time_out(self) -> list[Notice]:
        now = time.monotonic()
        late = [t for t in self._tickets.values() if t.deadline is not None and now >= t.deadline]
        notices = []
        for ticket in late:
            self._cluster.cancel({ticket.slurm})
            self._end(ticket)
            outcome = Outcome("timed out", f"no end within {self._timeout:g} s")
            notices += [Notice(ticket.task.job_id, outcome), *self._abandon(ticket.slurm)]
        return notices

    def _abandon(self, slurm: str, why: str = "") -> list[Notice]:
        """Slurm's job is gone: the attempt it was at has died, those it never began go anew."""
        notices = []
        for ticket in [t for t in self._tickets.values() if t.slurm == slurm]:
            self._end(ticket)
            if ticket.started:
                notices.append(Notice(ticket.task.job_id, Outcome("died", why)))
            else:
                self._queue.append(ticket.task)
        return notices

    def _ask(self) -> list[Notice]:
        """Ask Slurm which jobs it still has; two silences in a row are an end."""
        self._asked = time.monotonic()
        alive = self._cluster.alive()
        notices: list[Notice] = []
        gone: set[str] = set()
        for ticket in self._tickets.values():
            ticket.missing = 0 if ticket.slurm in alive else ticket.missing + 1
            if ticket.missing >= 2:
                gone.add(ticket.slurm)
        for slurm in gone:
            why = self._cluster.why(slurm)
            if not any(t.started for t in self._tickets.values() if t.slurm == slurm):
                for ticket in [t for t in self._tickets.values() if t.slurm == slurm]:
                    self._end(ticket)  # it never came to its work: trying for ever helps nobody
                    notices.append(Notice(ticket.task.job_id))
                    notices.append(Notice(ticket.task.job_id, Outcome("died", why)))
            notices += self._abandon(slurm, why)
        busy = {ticket.slurm for ticket in self._tickets.values()}
        for slurm in self._over - alive - busy:
            shutil.rmtree(self._root / "logs" / slurm, ignore_errors=True)
        self._over &= alive | busy
        self._alive = alive
        return notices
