"""A worker on another machine: what an engine of several machines calls there.

Nothing here knows how the calls travel. Where OUT is not seen, a job's folder is sent along with
the job, and what changes in it goes back: events every second, the last checkpoint more rarely,
everything at the end (`ablate.engines.mirror`).
"""

from __future__ import annotations

import fcntl
import importlib
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablate.engines import Outcome, Task
from ablate.engines.mirror import Parcel, Sender, lay_out

Shared = tuple[str, int, Sequence[Any]]
"""A file of the cache: name, bytes in all, and pieces that travel by themselves."""
NEWS_EVERY = 1.0
"""Seconds between the events that are sent."""
FILES_EVERY, FILES_RATE = 2.0, 2e6
"""Checkpoints are sent this many seconds apart, and so rarely that they take no more than this many
bytes a second."""


class FarWorker:
    """Runs one job at a time; its other methods are called meanwhile, from other threads."""

    def __init__(
        self,
        work: Any,
        preload: Sequence[str],
        home: Path | None,
        path: Sequence[str],
        get: Callable[[Any], bytes],
    ) -> None:
        """Import what jobs need.

        Args:
            work: what is done for each job.
            preload: modules to import now.
            home: where they live on this machine, which does not see OUT; None: it does.
            path: the coordinator's sys.path.
            get: makes bytes of a piece of `Shared`.
        """
        sys.path += [entry for entry in path if entry not in sys.path]
        for module in preload:
            importlib.import_module(module)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        self._work, self._home, self._get = work, home, get
        if home is not None:
            self._work = work.moved(home, home / "cache")
        self._halted: set[str] = set()
        self._sender: Sender | None = None
        self._attempt = ("", 0)
        """At which job and attempt it is."""
        self._unheard = Parcel()
        """What `news` gave last; the next call of it says that it arrived."""
        self._files_due = 0.0
        self._lock = threading.Lock()

    def ready(self) -> None:
        return None

    def life(self) -> None:
        threading.Event().wait()

    def halt(self, job_id: str) -> None:
        self._halted.add(job_id)

    def run(
        self, task: Task, parcel: Parcel | None, shared: Sequence[Shared]
    ) -> tuple[Outcome, Parcel | None]:
        if parcel is not None and self._home is not None:
            fetch(shared, self._home / "cache", self._get)
            with self._lock:
                self._sender = lay_out(self._home / "jobs" / task.job_id, parcel)
                self._attempt = task.job_id, task.attempt
                self._unheard, self._files_due = Parcel(), time.monotonic() + FILES_EVERY
        outcome = self._work(task, lambda: task.job_id in self._halted)
        self._halted.discard(task.job_id)
        with self._lock:
            sender, self._sender = self._sender, None
            if sender is None:
                return outcome, None
            last = self._unheard.then(sender.changes(final=True))
            shutil.rmtree(sender.folder, ignore_errors=True)
            return outcome, last

    def news(self, job_id: str, attempt: int) -> Parcel:
        """What is new in the folder of an attempt at a job; waits until there is something.

        A question that outlives its attempt is answered with nothing: nobody hears the answer, and
        what it took of the next job's folder would be lost.
        """
        deadline = time.monotonic() + 10
        with self._lock:
            if self._attempt == (job_id, attempt):
                self._unheard = Parcel()
        while time.monotonic() < deadline:
            time.sleep(NEWS_EVERY)
            with self._lock:
                if self._sender is None or self._attempt != (job_id, attempt):
                    break
                if self._sender.grown():
                    now = time.monotonic()
                    self._unheard = self._sender.changes(files=now > self._files_due)
                    if size := sum(map(len, self._unheard.whole.values())):
                        self._files_due = now + FILES_EVERY + size / FILES_RATE
                    return self._unheard
        return Parcel()


def unfit(path: str | None, word: str, work: Any) -> str:
    """Asked on a node: what is wrong with it, or nothing."""
    if path is not None:
        try:
            read = Path(path).read_text()
        except OSError as error:
            read = error.strerror
        if read != word:
            return (
                f"does not see OUT ({read}); give an --out on storage that all nodes share, or "
                "`--resource storage=local`: files then travel through Ray"
            )
        try:
            copy = Path(f"{path}.{secrets.token_hex(4)}")
            copy.write_text(word)
            copy.unlink()
        except OSError as error:
            return f"cannot write to OUT ({error.strerror})"
    misfit = getattr(work, "misfit", None)
    return misfit() if misfit is not None else ""


def remove_home(home: Path) -> None:
    """Asked on a node, when all is over: remove what was sent there."""
    shutil.rmtree(home, ignore_errors=True)


def fetch(files: Sequence[Shared], folder: Path, get: Callable[[Any], bytes]) -> None:
    """Get what the jobs share, once for all workers of a machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, size, pieces in files:
            path = folder / name
            if path.exists() and path.stat().st_size == size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("wb") as file:  # not `write_atomic`: it is not in memory at once
                for piece in pieces:
                    file.write(get(piece))
            temporary.replace(path)
