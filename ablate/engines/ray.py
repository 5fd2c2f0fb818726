"""Jobs on a Ray cluster: the one RAY_ADDRESS names, or one that is started here.

Workers are actors, not one task a job: an actor has imported everything once and takes one job
after the other, so that a short job costs a call (milliseconds) and not the start of a process
(seconds). Each is pinned to a node that was asked before whether it sees OUT and has the same code.

    coordinator -> actor    run(task, files) | halt(job_id) | news() | life()
    actor -> coordinator    Outcome, and, without shared storage, what changed in the job's folder

`life` never returns: its error says that the actor is gone, with its node perhaps. A job that was
running there has `died` and is tried again elsewhere, from its checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.engines import EngineError, Notice, Outcome, Place, StopAsked, Task, Work
from ablate.engines.far import FarWorker
from ablate.engines.mirror import Parcel, Sender, lay_in
from ablate.engines.ray_nodes import (
    OnNode,
    Probe,
    RayError,
    RayTaskError,
    cause,
    connect,
    last_line,
    ray,
    signals_kept,
)
from ablate.nouns import StudyError

NODES_EVERY = 2.0
"""Seconds between looks at which nodes there are."""


@dataclass
class _Hand:
    """An actor, and the calls to it that have not returned."""

    actor: Any
    node: str
    life: Any
    ready: Any = None
    run: Any = None
    news: Any = None
    task: Task | None = None
    deadline: float | None = None  # time.monotonic seconds


class RayEngine:
    """As many actors as the nodes have room for, or `workers`; lost ones are replaced."""

    in_process = False

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
        self._work, self._asked, self._timeout = work, workers, timeout
        self._preload, self._place = tuple(preload), place
        self._needs = place.resources if place is not None else Place(Path(), Path()).resources
        self._queue: deque[Task] = deque()
        self._crew: list[_Hand] = []
        self._notices: list[Notice] = []
        self._forgotten: list[Notice] = []
        self._room: dict[str, int] = {}
        """Node -> actors that it holds."""
        self._unfit: set[str] = set()
        self._looked = 0.0
        self._stopped = False
        self._cache: list[tuple[str, int, Any]] | None = None
        self._probe = Probe(place)
        self._home = None  # where jobs live on nodes that do not see OUT
        if place is not None and place.resources.storage == "local":
            key = hashlib.sha256(f"{socket.gethostname()} {os.getpid()} {place.out}".encode())
            self._home = Path(tempfile.gettempdir()) / f"ablate-{os.getuid()}-{key.hexdigest()[:8]}"
        self._local = connect((workers or 0) * self._needs.cpus)
        try:
            self._look()
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        room = sum(self._room.values())
        return min(self._asked, room) if self._asked else room

    @property
    def depth(self) -> int:
        return 2 * max(self.workers, 1)

    @property
    def fuses(self) -> bool:
        """Not where folders travel: one goes with a task."""
        return self._home is None

    def submit(self, task: Task) -> None:
        self._queue.append(task)

    def pending(self) -> int:
        at_work = sum(hand.task is not None for hand in self._crew)
        return len(self._queue) + len(self._forgotten) + at_work

    def wait(self, seconds: float) -> list[Notice]:
        self._look()
        self._hire()
        self._hand_out()
        calls = {}
        for hand in self._crew:
            for call in (hand.life, hand.ready, hand.run, hand.news):
                if call is not None:
                    calls[call] = hand
            if hand.deadline is not None:
                seconds = min(seconds, hand.deadline - time.monotonic())
        seconds = 0 if self._notices or self._forgotten else max(seconds, 0)
        if calls:
            done, _ = ray.wait(list(calls), timeout=seconds, fetch_local=False)
            if done:
                done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in done:
                self._hear(calls[call], call)
        elif seconds:
            time.sleep(seconds)
        now = time.monotonic()
        for hand in [h for h in self._crew if h.deadline is not None and now >= h.deadline]:
            self._lose(hand, Outcome("timed out", f"no end within {self._timeout:g} s"))
        self._hand_out()
        notices = [*self._forgotten, *self._notices]
        self._notices, self._forgotten = [], []
        return notices

    def stop(self) -> None:
        self._stopped = True
        self._queue.clear()
        for hand in self._crew:
            if hand.task is not None:
                hand.actor.halt.remote(hand.task.job_id)

    def cancel(self, job_id: str) -> None:
        queued = [task for task in self._queue if task.job_id == job_id]
        for task in queued:
            self._queue.remove(task)
            self._forgotten.append(Notice(job_id, Outcome("interrupted")))
        for hand in self._crew:
            if hand.task is not None and hand.task.job_id == job_id:
                hand.actor.halt.remote(job_id)

    def close(self) -> None:
        self._stopped = True
        self._queue.clear()
        for hand in self._crew:
            ray.kill(hand.actor)
        self._crew.clear()
        self._probe.remove()
        with signals_kept():
            ray.shutdown()

    def _look(self) -> None:
        """See which nodes there are; ask new ones whether they fit."""
        now = time.monotonic()
        if now - self._looked < NODES_EVERY and self._room:
            return
        self._looked = now
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        new = [name for name in alive if name not in self._room and name not in self._unfit]
        wrong = {} if self._local else self._probe.ask(new, self._work)
        if wrong and not self._room and not self._crew:
            name, why = next(iter(wrong.items()))
            of = f"; so do {len(wrong) - 1} other nodes" if len(wrong) > 1 else ""
            raise StudyError(f"Ray node {alive[name]['NodeManagerAddress']}: {why}{of}")
        for name, why in wrong.items():
            self._unfit.add(name)
            if self._place:
                self._place.say(f"Ray node {alive[name]['NodeManagerAddress']} is not used: {why}")
        self._room = {
            name: self._holds(node["Resources"])
            for name, node in alive.items()
            if name not in self._unfit
        }

    def _holds(self, resources: dict[str, float]) -> int:
        """How many jobs a node has room for."""
        wants = {"CPU": self._needs.cpus, "GPU": self._needs.gpus}
        if self._needs.memory is not None:
            wants["memory"] = self._needs.memory * 2**30
        return min(int(resources.get(k, 0.0) / v + 1e-9) for k, v in wants.items() if v)

    def _check(self) -> None:
        if not self.workers:
            has = ray.cluster_resources()
            gib = has.get("memory", 0.0) / 2**30
            raise StudyError(
                f"resources: cpus {self._needs.cpus:g}, gpus {self._needs.gpus:g}, memory "
                f"{self._needs.memory or 0:g} GiB for each job, which no Ray node has; together "
                f"they have cpus {has.get('CPU', 0):g}, gpus {has.get('GPU', 0):g}, memory "
                f"{gib:.3g} GiB"
            )

    def _hire(self) -> None:
        """Start actors where there is room, no more than there are jobs for."""
        wanted = 0 if self._stopped else min(self.workers, self.pending())
        while len(self._crew) < wanted:
            taken = dict.fromkeys(self._room, 0)
            for hand in self._crew:
                if hand.node in taken:
                    taken[hand.node] += 1
            free = [name for name in self._room if taken[name] < self._room[name]]
            if not free:
                return
            node = max(free, key=lambda name: self._room[name] - taken[name])
            actor = _Actor.options(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus or None,
                memory=self._needs.memory and self._needs.memory * 2**30,
                scheduling_strategy=OnNode(node, soft=False),
            ).remote(
                self._work,
                self._preload,
                self._home,
                sys.path,
                self._shared(),
                ray.get,
            )
            self._crew.append(_Hand(actor, node, actor.life.remote(), actor.ready.remote()))

    def _shared(self) -> list[tuple[str, int, Any]]:
        """What jobs share, in the object store: name, size, where; made once, when it is ready."""
        if self._cache is None:
            self._cache = []
            if self._home and self._place:
                root = self._place.cache
                self._cache = [
                    (str(path.relative_to(root)), path.stat().st_size, ray.put(path.read_bytes()))
                    for path in sorted(root.rglob("*"))
                    if path.is_file()
                ]
        return self._cache

    def _hand_out(self) -> None:
        for hand in self._crew:
            if not self._queue or self._stopped:
                return
            if hand.task is not None or hand.ready is not None:
                continue
            task = self._queue.popleft()
            hand.task = task
            if self._timeout is not None:
                hand.deadline = time.monotonic() + self._timeout * (1 + len(task.members))
            parcel = None
            if self._home and self._place:
                parcel = Sender(self._place.folder(task.job_id)).changes(final=True)
                hand.news = _news(hand)
            hand.run = hand.actor.run.remote(task, parcel)
            self._notices.append(Notice(task.job_id))

    def _hear(self, hand: _Hand, call: Any) -> None:
        """Take what a call returned; an error means that the actor is gone."""
        if hand not in self._crew:
            return
        try:
            value: Any = ray.get(call)
        except RayTaskError as error:
            if call == hand.ready:
                raise EngineError(f"a Ray worker cannot start: {last_line(error)}") from None
            self._lose(hand, Outcome("broken", last_line(error)))
            return
        except RayError as error:
            self._lose(hand, Outcome("died", cause(error)))
            return
        if call == hand.ready:
            hand.ready = None
        elif call == hand.news:
            self._lay_in(hand, value)
            hand.news = _news(hand) if hand.task is not None else None
        elif call == hand.run:
            outcome, parcel = value
            self._lay_in(hand, parcel)
            assert hand.task is not None
            if self._place is not None:
                for one in (hand.task, *hand.task.members):
                    self._place.refresh(one.job_id)
            self._notices.append(Notice(hand.task.job_id, outcome))
            hand.task = hand.run = hand.deadline = hand.news = None

    def _lay_in(self, hand: _Hand, parcel: Parcel | None) -> None:
        if parcel and hand.task is not None and self._place is not None:
            lay_in(self._place.folder(hand.task.job_id), parcel)

    def _lose(self, hand: _Hand, outcome: Outcome) -> None:
        """An actor that is gone, or is to go."""
        self._crew.remove(hand)
        ray.kill(hand.actor)
        self._looked = 0.0  # its node may be gone, too
        if hand.task is not None:
            self._notices.append(Notice(hand.task.job_id, outcome))


def _news(hand: _Hand) -> Any:
    """Ask for what is new of the task at hand."""
    assert hand.task is not None
    return hand.actor.news.remote(hand.task.job_id, hand.task.attempt)


_Actor = ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=8)(FarWorker)
