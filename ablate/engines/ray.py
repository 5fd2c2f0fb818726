"""Jobs on a Ray cluster: the one RAY_ADDRESS names, or one that is started here.

Workers are actors, not one task a job: an actor has imported everything once and takes one job
after the other, so that a short job costs a call (milliseconds) and not the start of a process
(seconds). Each is pinned to a node that was asked before whether it sees OUT and has the same code.

    coordinator -> actor    run(task, files, shared) | halt(job_id) | news() | life()
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.engines import Notice, Order, Outcome, Task
from ablate.engines.base import BaseEngine
from ablate.engines.far import FarWorker, Shared, remove_home
from ablate.engines.mirror import Parcel, Sender, lay_in
from ablate.engines.ray_nodes import (
    Nodes,
    OnNode,  # pyright: ignore[reportAttributeAccessIssue]
    RayError,  # pyright: ignore[reportAttributeAccessIssue]
    RayTaskError,  # pyright: ignore[reportAttributeAccessIssue]
    cause,
    connect,
    last_line,
    ray,
    signals_kept,
)
from ablate.nouns import Resources, StudyError

PIECE = 2**26
"""Bytes of a shared file that are in memory at once."""
FAREWELL = 10.0
"""Seconds that nodes have to remove what was sent to them."""


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

    @property
    def calls(self) -> list[Any]:
        """Those that have not returned."""
        return [c for c in (self.life, self.ready, self.run, self.news) if c is not None]


class RayEngine(BaseEngine):
    """As many actors as the nodes have room for, or `workers`; lost ones are replaced."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        place = order.place
        self._asked, self._preload = order.workers, tuple(order.preload)
        self._needs = place.resources if place is not None else Resources()
        self._crew: list[_Hand] = []
        self._stopped = False
        self._shared: dict[str, Shared] = {}
        self._visited: set[str] = set()
        """Nodes that have a folder of this study."""
        self._home = None  # where jobs live on nodes that do not see OUT
        if place is not None and place.resources.storage == "local":
            key = hashlib.sha256(f"{socket.gethostname()} {os.getpid()} {place.out}".encode())
            self._home = Path(tempfile.gettempdir()) / f"ablate-{os.getuid()}-{key.hexdigest()[:8]}"
        self._nodes: Nodes | None = None
        local = connect((order.workers or 0) * self._needs.cpus)
        try:
            self._nodes = Nodes(self._needs, place, order.work, local=local)
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

    @property
    def _room(self) -> dict[str, int]:
        return self._nodes.room if self._nodes is not None else {}

    def share(self, paths: Sequence[Path]) -> None:
        """Put files of the cache where the nodes get them from, piece by piece."""
        if self._home is None or self._place is None:
            return
        for path in paths:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                name = str(file.relative_to(self._place.cache))
                if file.is_file() and name not in self._shared:
                    self._shared[name] = name, file.stat().st_size, list(_pieces(file))

    def pending(self) -> int:
        at_work = sum(hand.task is not None for hand in self._crew)
        return len(self._queue) + len(self._notices) + at_work

    def wait(self, seconds: float) -> list[Notice]:
        assert self._nodes is not None
        self._nodes.look()
        self._hire()
        self._hand_out()
        calls: dict[Any, _Hand | None] = dict.fromkeys(self._nodes.questions())
        calls |= {call: hand for hand in self._crew for call in hand.calls}
        ends = [hand.deadline for hand in self._crew if hand.deadline is not None]
        if ends:
            seconds = min(seconds, min(ends) - time.monotonic())
        seconds = 0 if self._notices else max(seconds, 0)
        if calls:
            done, _ = ray.wait(list(calls), timeout=seconds, fetch_local=False)
            if done:
                done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in done:
                if (hand := calls[call]) is not None:
                    self._hear(hand, call)
                else:
                    self._nodes.hear(call)
        elif seconds:
            time.sleep(seconds)
        now = time.monotonic()
        for hand in [h for h in self._crew if h.deadline is not None and now >= h.deadline]:
            self._lose(hand, Outcome("timed out", f"no end within {self._timeout:g} s"))
        self._hand_out()
        return self._told()

    def stop(self) -> None:
        self._stopped = True
        self._queue.clear()
        for hand in self._crew:
            if hand.task is not None:
                hand.actor.halt.remote(hand.task.job_id)

    def cancel(self, job_id: str) -> None:
        self._forget(job_id)
        for hand in self._crew:
            if hand.task is not None and hand.task.job_id == job_id:
                hand.actor.halt.remote(job_id)

    def close(self) -> None:
        self._stopped = True
        self._queue.clear()
        for hand in self._crew:
            ray.kill(hand.actor)
        self._crew.clear()
        if self._nodes is not None:
            self._nodes.close()
            if farewells := [
                _remove.options(num_cpus=0, scheduling_strategy=OnNode(name, soft=False)).remote(
                    self._home
                )
                for name in self._visited & self._room.keys()
            ]:
                ray.wait(farewells, num_returns=len(farewells), timeout=FAREWELL)
        with signals_kept():
            ray.shutdown()

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
        room = self._room
        wanted = 0 if self._stopped else min(self.workers, self.pending())
        while len(self._crew) < wanted:
            taken = dict.fromkeys(room, 0)
            for hand in self._crew:
                if hand.node in taken:
                    taken[hand.node] += 1
            free = [name for name in room if taken[name] < room[name]]
            if not free:
                return
            node = max(free, key=lambda name: room[name] - taken[name])
            actor = _Actor.options(
                num_cpus=self._needs.cpus,
                num_gpus=self._needs.gpus or None,
                memory=self._needs.memory and self._needs.memory * 2**30,
                scheduling_strategy=OnNode(node, soft=False),
            ).remote(self._work, self._preload, self._home, sys.path, ray.get)
            if self._home is not None:
                self._visited.add(node)
            self._crew.append(_Hand(actor, node, actor.life.remote(), actor.ready.remote()))

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
            hand.run = hand.actor.run.remote(task, parcel, list(self._shared.values()))
            self._notices.append(Notice(task.job_id))

    def _hear(self, hand: _Hand, call: Any) -> None:
        """Take what a call returned; an error means that the actor is gone."""
        if hand not in self._crew or self._nodes is None:
            return
        try:
            value: Any = ray.get(call)
        except RayTaskError as error:
            self._lose(hand, Outcome("broken", last_line(error)), error)
            return
        except RayError as error:
            self._lose(hand, Outcome("died", cause(error)), error)
            return
        if call == hand.ready:
            hand.ready = None
            self._nodes.started(hand.node)
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

    def _lose(self, hand: _Hand, outcome: Outcome, error: BaseException | None = None) -> None:
        """An actor that is gone, or is to go."""
        self._crew.remove(hand)
        ray.kill(hand.actor)
        if hand.task is not None:
            self._notices.append(Notice(hand.task.job_id, outcome))
        if self._nodes is not None:
            self._nodes.lost(hand.node, error if hand.ready is not None else None)


def _news(hand: _Hand) -> Any:
    """Ask for what is new of the task at hand."""
    assert hand.task is not None
    return hand.actor.news.remote(hand.task.job_id, hand.task.attempt)


_Actor = ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=8)(FarWorker)
_remove = ray.remote(max_retries=0)(remove_home)


def _pieces(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield ray.put(piece)
