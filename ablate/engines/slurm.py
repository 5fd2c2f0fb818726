"""Jobs as Slurm array tasks, by way of submitit.

The tasks and the coordinator share OUT and nothing else:

    OUT/slurm/jobs/<job_id>.json    which Slurm job has this one: coordinator -> later coordinators
    OUT/slurm/mail, halt            letters between tasks and coordinator (`ablate.engines.post`)
    OUT/slurm/logs/<Slurm's id>/    submitit's files

A ticket is one attempt at one job. Slurm's warning before a preemption or the end of the time makes
a task keep a checkpoint and go back into the queue; its ticket stays valid. A coordinator that is
started anew finds the tickets of jobs that Slurm still has, and follows them on.

Slurm may be silent for a while: nothing is concluded from that, and what it may or may not have
taken is looked for by its name before it is submitted again.
"""

from __future__ import annotations

import math
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ablate.engines import EngineError, Notice, Order, Outcome, Task
from ablate.engines.base import BaseEngine
from ablate.engines.post import Office, Ticket, read
from ablate.engines.slurm_cluster import (
    Cluster,
    LocalCluster,
    QueueElement,
    Refused,
    Silent,
    SlurmCluster,
    first_answer,
    let_go,
)
from ablate.resources import slurm_option


class SlurmEngine(BaseEngine):
    """Submits arrays, reads the mail, asks Slurm now and then what became of the silent ones."""

    fuses = False  # a ticket is one job's: it is found again by it

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        if (place := order.place) is None:
            raise EngineError("the engine slurm needs a folder that its jobs share")
        self._at, self._stop_asked = place, order.stop_asked
        self._option: Callable[[str], Any] = lambda name: slurm_option(place.resources, name)
        root = place.out / "slurm"
        self._office = Office(root)
        self._root = root
        kind = SlurmCluster if self._option("cluster") == "slurm" else LocalCluster
        self.workers = order.workers or kind.workers
        self._cluster: Cluster = kind(root / "logs", place.resources, self.workers)
        self._size = self._option("jobs_per_task")
        self.depth = self._cluster.burst * self._size
        self._tickets: dict[str, Ticket] = {}
        self._unsent: dict[str, list[QueueElement]] = {}
        """By their batch, elements that Slurm has not said to have taken."""
        self._doubtful: set[str] = set()
        """Batches of these that it may have."""
        self._retry = 0.0
        self._over: set[str] = set()
        """Slurm's ids of tasks that have told all; their logs go when Slurm has let them go."""
        self._said = ""
        """What is wrong with Slurm at present, as the user was told."""
        self._broken = False
        self._alive = first_answer(self._cluster)
        self._asked = time.monotonic()
        self._left = self._found()

    def follow(self, tasks: Sequence[Task]) -> set[str]:
        stale: dict[str, dict[str, Any]] = {}
        followed: set[str] = set()
        for task in tasks:
            if (record := self._left.pop(task.job_id, None)) is None:
                continue
            if record.get("code") != self._at.code:
                stale[task.job_id] = record
                continue
            ticket = self._tickets[record["ticket"]] = Ticket(task, record)
            followed.add(task.job_id)
            if ticket.begun:
                self._notices.append(Notice(task.job_id))
        if stale:
            ids = {record["slurm"] for record in stale.values()}
            self._at.say(f"{len(ids)} tasks of other code are cancelled; waiting for their end")
            let_go(self._cluster, ids, self._stop_asked)
        for job_id, record in stale.items():
            self._office.drop(job_id, record["ticket"])
        return followed

    def pending(self) -> int:
        return len(self._queue) + len(self._notices) + len(self._tickets)

    def wait(self, seconds: float) -> list[Notice]:
        self._send()
        end = time.monotonic() + seconds
        while True:
            notices = [*self._told(), *self._read_mail(), *self._time_out()]
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
            self._unsent.clear()
            return
        self._withdraw()
        self._halt(list(self._tickets.values()))
        self._asked = -math.inf  # those that were queued are gone with the next question

    def cancel(self, job_id: str) -> None:
        self._forget(job_id)
        self._halt([t for t in self._tickets.values() if t.task.job_id == job_id])

    def close(self) -> None:
        self._queue.clear()
        if not self._option("detach") and not self._broken:
            self._withdraw()
            if why := self._cluster.cancel({ticket.slurm for ticket in self._tickets.values()}):
                self._at.say(f"jobs may go on, scancel does not work: {why}")
        self._tickets.clear()

    def _found(self) -> dict[str, dict[str, Any]]:
        """What Slurm still has of earlier coordinators' jobs; the rest is forgotten."""
        left = {}
        for job_id, record in self._office.records().items():
            if not record["slurm"]:  # killed between sbatch and its answer
                with suppress(Silent):
                    ids = self._cluster.find(record["batch"], record["of"])
                    record["slurm"] = ids[record["index"]] if ids else ""
            if record["slurm"] in self._alive:
                left[job_id] = record
            else:
                self._office.drop(job_id, record["ticket"])
        return left

    def _send(self) -> None:
        """Submit what is queued, as few arrays as can be, never more than may run at once.

        Slurm's limit holds within one array. So the first may be long; what follows it waits until
        there is room beside what is left of it, and comes in batches.
        """
        if self._unsent and time.monotonic() < self._retry:
            return
        for batch in list(self._unsent):
            self._submit(batch)
        while self._queue and not self._unsent and (n := self._room()):
            batch = f"ablate-{secrets.token_hex(4)}"
            tasks = [self._queue.popleft() for _ in range(min(len(self._queue), n * self._size))]
            n = math.ceil(len(tasks) / self._size)
            groups = [tasks[i::n] for i in range(n)]
            elements = [QueueElement(self._work, group, batch, self._root) for group in groups]
            for index, element in enumerate(elements):
                for task in element.tasks:
                    record: dict[str, Any] = {"ticket": element.ticket(task), "slurm": ""}
                    record |= {"batch": batch, "index": index, "of": n, "code": self._at.code}
                    self._office.keep(task.job_id, record)
                    self._tickets[record["ticket"]] = Ticket(task, record)
            self._unsent[batch] = elements
            self._submit(batch)

    def _room(self) -> int:
        """How many elements may be submitted now."""
        at_slurm = len({ticket.slurm for ticket in self._tickets.values()})
        queued = math.ceil(len(self._queue) / self._size)
        if not at_slurm:
            return min(queued, self._cluster.burst)
        free = min(self.workers - at_slurm, queued)
        return free if free >= min(queued, max(1, self.workers // 8)) else 0

    def _submit(self, batch: str) -> None:
        elements = self._unsent[batch]
        try:
            ids = self._cluster.find(batch, len(elements)) if batch in self._doubtful else []
            ids = ids or self._cluster.submit(elements, batch)
        except Silent as silent:
            self._doubt(f"Slurm does not answer ({silent}); it is asked again, its jobs go on")
            self._doubtful.add(batch)
            return
        except Refused as refused:
            if any(ticket.slurm for ticket in self._tickets.values()):
                self._doubt(f"sbatch refuses more ({refused}); tried again as jobs end")
                return
            self._broken = True
            raise EngineError(f"sbatch refuses: {refused}") from None
        del self._unsent[batch]
        self._doubtful.discard(batch)
        for element, slurm in zip(elements, ids, strict=True):
            for task in element.tasks:
                if (ticket := self._tickets.get(element.ticket(task))) is not None:
                    ticket.record["slurm"] = slurm
                    self._office.keep(task.job_id, ticket.record)
        self._alive |= set(ids)
        self._asked = time.monotonic()
        self._said = ""

    def _doubt(self, line: str) -> None:
        """Say what is wrong with Slurm, once, and leave it alone for a while."""
        self._retry = time.monotonic() + self._option("poll")
        if line.partition("(")[0] != self._said.partition("(")[0]:
            self._at.say(line)
        self._said = line

    def _withdraw(self) -> None:
        """Forget what was never submitted, or cancel it, should Slurm have it after all."""
        for batch in self._doubtful & self._unsent.keys():
            with suppress(Silent):
                self._cluster.cancel(self._cluster.find(batch, len(self._unsent[batch])))
        self._unsent.clear()
        for ticket in [ticket for ticket in self._tickets.values() if not ticket.slurm]:
            self._end(ticket)

    def _halt(self, tickets: Sequence[Ticket]) -> None:
        """Ask attempts to end; those that wait in Slurm's queue are taken out of it."""
        for ticket in tickets:
            self._office.halt(ticket.name)
            ticket.halted = True
        wanted = {t.slurm for t in self._tickets.values() if t.since is not None or not t.halted}
        idle = {ticket.slurm for ticket in tickets} - wanted - {""}
        if idle:
            self._cluster.cancel(idle, queued=True)

    def _read_mail(self) -> list[Notice]:
        notices: list[Notice] = []
        for name, what, path in self._office.letters():
            ticket = self._tickets.get(name)
            if ticket is None:  # of a coordinator that no longer asks
                if what == "outcome" or not self._office.kept(name):
                    path.unlink(missing_ok=True)
                continue
            if (letter := read(path)) is None:  # a network's file system may need another moment
                continue
            if not ticket.begun:
                notices.append(Notice(ticket.task.job_id))
            if what == "outcome":
                self._end(ticket)
                self._at.refresh(ticket.task.job_id)
                notices.append(Notice(ticket.task.job_id, Outcome(letter["kind"], letter["error"])))
            else:
                ticket.record["started"] = time.time() if what == "started" else None
                self._office.keep(ticket.task.job_id, ticket.record)
            path.unlink(missing_ok=True)
        return notices

    def _end(self, ticket: Ticket) -> None:
        del self._tickets[ticket.name]
        self._office.drop(ticket.task.job_id, ticket.name)
        self._over.add(ticket.slurm)

    def _time_out(self) -> list[Notice]:
        if self._timeout is None:
            return []
        limit = time.time() - self._timeout
        notices = []
        for ticket in list(self._tickets.values()):
            if (ticket.since or math.inf) <= limit and ticket.name in self._tickets:
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
            if ticket.halted and ticket.since is None:
                notices.append(Notice(ticket.task.job_id, Outcome("interrupted")))
            elif ticket.begun:
                notices.append(Notice(ticket.task.job_id, Outcome("died", why)))
            else:
                self._queue.append(ticket.task)
        return notices

    def _ask(self) -> list[Notice]:
        """Ask Slurm which jobs it still has; two answers without one are its end."""
        self._asked = time.monotonic()
        try:
            alive = self._cluster.alive()
        except Silent as silent:
            self._doubt(f"Slurm does not answer ({silent}); it is asked again, its jobs go on")
            return []
        if self._said and not self._unsent:
            self._at.say("Slurm answers again")
            self._said = ""
        notices: list[Notice] = []
        gone: dict[str, None] = {}
        known = alive | {""}
        for ticket in self._tickets.values():
            ticket.missing = 0 if ticket.slurm in known else ticket.missing + 1
            if ticket.missing >= (1 if ticket.halted and ticket.since is None else 2):
                gone[ticket.slurm] = None
        for slurm in gone:
            mine = [ticket for ticket in self._tickets.values() if ticket.slurm == slurm]
            why = self._cluster.why(slurm)
            if not any(ticket.begun or ticket.halted for ticket in mine):
                for ticket in mine:  # it never came to its work: trying for ever helps nobody
                    self._end(ticket)
                    notices.append(Notice(ticket.task.job_id))
                    notices.append(Notice(ticket.task.job_id, Outcome("died", why)))
            notices += self._abandon(slurm, why)
        busy = {ticket.slurm for ticket in self._tickets.values()}
        for slurm in self._over - alive - busy:
            shutil.rmtree(self._office.logs(slurm), ignore_errors=True)
        self._over &= alive | busy
        self._alive = alive
        return notices
