"""Jobs in worker processes of this machine: persistent, one thread each, replaced when they die.

Workers are forked from a server process that has imported the heavy modules once, so that a worker
starts in milliseconds. Each has one pipe of its own to the coordinator:

    coordinator -> worker   Task | "stop" | job id (stop that job) | None (leave)
    worker -> coordinator   Outcome
    end of file             the other side is dead

A worker that meets the end of file leaves at once, in the middle of a job if need be: a coordinator
that was killed leaves nothing behind that trains.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ablate.engines import (
    EngineError,
    Notice,
    Order,
    Outcome,
    Task,
    Work,
    available_cores,
)
from ablate.engines.base import BaseEngine

ONE_THREAD: dict[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

STOP = ""
"""Stops whatever a worker does: no job has this id."""

POLITE = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job_id: str | None = None
    deadline: float | None = None  # time.monotonic seconds
    gpu: str | None = None


class PoolEngine(BaseEngine):
    """`workers` processes; a job whose process dies or exceeds `timeout` seconds ends alone."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        place = order.place
        self._gpus = list(place.gpus) if place else []
        """Of workers that are not there yet, or no more."""
        self.workers = order.workers or len(self._gpus) or available_cores()
        self.depth = 2 * self.workers
        self._crew: list[_Worker] = []
        self._stopped = False
        self._context = multiprocessing.get_context("forkserver")
        warm_up(order.preload)

    @staticmethod
    def warm_up(preload: Sequence[str]) -> None:
        """Start the slow imports before there is work."""
        warm_up(preload)

    def pending(self) -> int:
        at_work = sum(worker.job_id is not None for worker in self._crew)
        return len(self._queue) + len(self._notices) + at_work

    def wait(self, seconds: float) -> list[Notice]:
        self._hand_out()
        limits = [worker.deadline for worker in self._crew if worker.deadline is not None]
        if limits:
            seconds = min(seconds, min(limits) - time.monotonic())
        waiting = [worker.pipe for worker in self._crew]
        ends = [worker.process.sentinel for worker in self._crew]
        ready = set(wait([*waiting, *ends], 0 if self._notices else max(seconds, 0)))
        for worker in list(self._crew):
            if worker.pipe in ready or worker.process.sentinel in ready:
                self._hear(worker)
            elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                worker.process.kill()
                self._lose(worker, Outcome("timed out", f"no end within {self._timeout:g} s"))
        self._hand_out()  # the freed workers go on while the coordinator books what ended
        return self._told()

    def stop(self) -> None:
        self._stopped = True
        self._queue.clear()
        for worker in self._crew:
            self._send(worker, STOP if worker.job_id is not None else None)

    def cancel(self, job_id: str) -> None:
        self._forget(job_id)
        for worker in self._crew:
            if worker.job_id == job_id:
                self._send(worker, job_id)  # by its name: it may be at the next one by then

    def close(self) -> None:
        self._stopped = True
        self._queue.clear()
        for worker in self._crew:
            if worker.job_id is None:
                self._send(worker, None)
            else:
                worker.process.kill()
        for worker in self._crew:
            worker.process.join(5)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._crew.clear()

    def _hand_out(self) -> None:
        """Give queued jobs to idle workers, and to new ones while there are fewer than allowed."""
        while self._queue and not self._stopped:
            worker = next((one for one in self._crew if one.job_id is None), None)
            if worker is None:
                if len(self._crew) >= self.workers:
                    return
                worker = self._hire()
            task = self._queue.popleft()
            worker.job_id = task.job_id
            if self._timeout is not None:
                worker.deadline = time.monotonic() + self._timeout * (1 + len(task.members))
            self._notices.append(Notice(worker.job_id))
            self._send(worker, task)

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        gpu = self._gpus.pop(0) if self._gpus else None
        arguments = (theirs, self._work, gpu)
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        try:
            with worker_surroundings():  # the server itself may have died and start anew
                process.start()
        except (EOFError, OSError) as error:
            raise EngineError(f"no worker process can be started: {error!r}") from error
        theirs.close()
        worker = _Worker(process, ours, gpu=gpu)
        self._crew.append(worker)
        return worker

    def _hear(self, worker: _Worker) -> None:
        """Take a worker's outcome, or note its death (an outcome sent before it still counts)."""
        try:
            if not worker.pipe.poll():
                raise EOFError
            outcome = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self._lose(worker, Outcome("died", _cause_of_death(worker.process.exitcode)))
            return
        assert worker.job_id is not None
        self._notices.append(Notice(worker.job_id, outcome))
        worker.job_id = worker.deadline = None
        if self._stopped:
            self._send(worker, None)

    def _lose(self, worker: _Worker, outcome: Outcome) -> None:
        worker.process.join(5)
        worker.pipe.close()
        self._crew.remove(worker)
        if worker.gpu is not None:
            self._gpus.insert(0, worker.gpu)  # for the one that takes its place
        if worker.job_id is not None:
            self._notices.append(Notice(worker.job_id, outcome))

    @staticmethod
    def _send(worker: _Worker, message: object) -> None:
        with contextlib.suppress(OSError):  # it is dead: the next `wait` hears so
            worker.pipe.send(message)


def warm_up(preload: Sequence[str]) -> None:
    """Start the server that workers are forked from; it imports `preload` while we go on."""
    multiprocessing.forkserver.set_forkserver_preload(list(preload))
    with worker_surroundings():
        multiprocessing.forkserver.ensure_running()


def _serve(pipe: Connection, work: Work, gpu: str | None = None) -> None:
    """Live as a worker process: one job after the other until told to leave."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything here asks for a GPU
    signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    faulthandler.enable()
    jobs: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    stopped: set[str] = set()
    threading.Thread(target=_listen, args=(pipe, jobs, stopped), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the coordinator is gone: `_listen` is leaving
        while (task := jobs.get()) is not None:
            names = {STOP, task.job_id}
            pipe.send(work(task, lambda names=names: not names.isdisjoint(stopped)))


def _listen(pipe: Connection, jobs: queue.SimpleQueue, stopped: set[str]) -> None:
    """Take the coordinator's messages; leave at once when it is gone."""
    try:
        while (message := pipe.recv()) is not None:
            if isinstance(message, str):
                stopped.add(message)
            else:
                jobs.put(message)
    except (EOFError, OSError):
        os._exit(1)
    jobs.put(None)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None:
        return "its worker closed the pipe but did not end"
    if exitcode >= 0:
        return f"its worker exited with status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its worker was killed by {name}{hint}"


@contextlib.contextmanager
def worker_surroundings() -> Iterator[None]:
    """What worker processes inherit: one thread in each library, and no ear for polite signals.

    Ctrl-C, a closed terminal or a terminated process group reach every process of the group; only
    the coordinator may act on them. Blocked here, not ignored: it hears them right after.
    """
    resource_tracker.ensure_running()  # when it starts, it unblocks them: not within the block
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
