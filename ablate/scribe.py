"""Feeds the record (MLflow) from a thread of its own, so that no job ever waits for it."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ablate.nouns import Job, Plan, Result

if TYPE_CHECKING:
    from ablate.rank import Ranking


PATIENCE = 3.0
"""Seconds that a stopped run waits for its record."""


class Recorder(Protocol):
    """What a record is told (`ablate.record.Recorder`)."""

    def start(self, plan: Plan) -> None: ...

    def planned(self, plan: Plan) -> None: ...

    def job_started(self, job: Job) -> None: ...

    def job_events(self, job: Job, events: Sequence[dict[str, Any]]) -> None: ...

    def job_finished(self, job: Job, result: Result, folder: Path) -> None: ...

    def conclude(self, ranking: Ranking, files: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


Call = Callable[[Recorder], None]
"""Tells a recorder one thing."""


class Scribe:
    """The one writer of a record. Any trouble with it ends the recording, never the training.

    The ledger keeps all; `ablate record` makes the record whole again.
    """

    def __init__(
        self, make: Callable[[], Recorder] | None, say: Callable[[str, str], None]
    ) -> None:
        self._make = make
        self._say = say
        self._told: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._trouble: str | None = None
        self._plan = Plan([])
        self._thread = threading.Thread(target=self._write, name="scribe", daemon=True)

    def begin(self, plan: Plan) -> None:
        """Start writing. Called once the workers train: the imports alone take seconds.

        What was told before is written after the recorder has started.
        """
        if self._make is not None and self._thread.ident is None:
            self._plan = plan
            self._thread.start()

    def tell(self, call: Call) -> None:
        """Have the recorder called, in order, some time soon, in the scribe's thread."""
        if self._make is not None:
            self._told.put(call)

    def check(self) -> None:
        """Say what went wrong, once."""
        line, self._trouble = self._trouble, None
        if line is not None:
            self._say(
                f"MLflow cannot be written: {line}. Training goes on, the ledger keeps everything; "
                "`ablate record` makes MLflow complete later.",
                "bold yellow",
            )

    def finish(self, stop_asked: Callable[[], bool]) -> None:
        """Let it write what it was told; who stops the run waits for a moment only."""
        self._told.put(None)
        said, deadline = False, math.inf
        while self._thread.is_alive():
            self._thread.join(0.25)
            if not said and self._told.qsize() > 10:
                said = True
                self._say("Writing the last jobs to MLflow ...", "")
            if stop_asked():
                deadline = min(deadline, time.monotonic() + PATIENCE)
            if time.monotonic() > deadline:
                self._say("MLflow is behind; the next run or `ablate record` catches up.", "yellow")
                return
        self.check()

    def _write(self) -> None:
        assert self._make is not None
        try:
            recorder = self._make()
            recorder.start(self._plan)
            while (call := self._told.get()) is not None:
                call(recorder)
            recorder.close()
        except Exception as error:  # noqa: BLE001 - whatever ails the record, training goes on
            self._trouble = " ".join(f"{type(error).__name__}: {error}".split())
            self._make = None  # nobody reads: take no more calls
