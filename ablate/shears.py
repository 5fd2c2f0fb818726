"""Pruning while a study runs: what the pruner is told, which jobs it cuts, how they are booked.

A study without `pruning:` has shears that cut nothing, so that the coordinator need not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablate.ledger import Ledger
from ablate.nouns import Job, Pruning, Result
from ablate.pruning_schema import unheard

if TYPE_CHECKING:
    from ablate.pruning import Pruner


class Shears:
    """Tells which jobs are to stop, and remembers why."""

    def __init__(
        self, pruning: Pruning | None, ledger: Ledger, say: Callable[[str, str], None]
    ) -> None:
        self._pruning, self._ledger, self._say = pruning, ledger, say
        self._pruner: Pruner | None = None
        self._cut: dict[str, str] = {}
        self._warned = False

    @property
    def sharp(self) -> bool:
        """Whether the study prunes at all."""
        return self._pruning is not None

    @property
    def said(self) -> str | None:
        """The rule, as results name it."""
        return self._pruning.said if self._pruning else None

    def begin(self, jobs: Sequence[Job], ended: Mapping[str, Result]) -> list[str]:
        """Make the pruner, and tell it what earlier runs left; the ids of jobs that are to stop.

        Args:
            jobs: of the plan.
            ended: results of those that do not run again.
        """
        if self._pruning is None:
            return []
        from ablate.pruning import Pruner  # optuna takes a while to import

        self._pruner = Pruner(self._pruning)
        return self.extend(jobs, ended)

    def extend(self, jobs: Sequence[Job], ended: Mapping[str, Result]) -> list[str]:
        """Take jobs that joined the plan, some of which had `ended`; as `begin`."""
        if self._pruner is None:
            return []
        self._pruner.extend(jobs)
        found: list[str] = []
        for job in jobs:
            if job.id in ended:
                found += self._note(self._pruner.heard(job, self._ledger.read_events(job.id)[0]))
                found += self._note(self._pruner.ended(job, ended[job.id]))
        return found

    def heard(self, job: Job, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take a job's events; the ids of the jobs that are to stop."""
        return self._note(self._pruner.heard(job, events)) if self._pruner is not None else []

    def ended(self, job: Job, result: Result) -> list[str]:
        """Take how a job ended; the ids of the jobs that are to stop.

        Says so, once, when it ended without ever having had the reading that pruning looks at.
        """
        if self._pruner is None:
            return []
        found = self._note(self._pruner.ended(job, result))
        if not (self._pruner.heard_any or self._warned):
            line = unheard(self._pruning, {job.id: result}, self._ledger)
            self._warned = line is not None
            if line is not None:
                self._say(line, "yellow")
        return found

    def cut(self, job_id: str) -> bool:
        """Whether the job was told to stop."""
        return job_id in self._cut

    def last_readings(self, job_id: str) -> tuple[dict[str, float], str]:
        """What a cut job read last, none of it final, and why it was cut."""
        last: dict[str, float] = {}
        step = 0
        for event in self._ledger.read_events(job_id)[0]:
            step = event.get("step", step)
            read = event.get("metrics") or {}
            last |= {k: v for k, v in read.items() if v is not None and not k.startswith("final/")}
        return last, f"{self._cut[job_id]}; stopped after step {step}"

    def _note(self, verdicts: Mapping[str, str]) -> list[str]:
        for job_id, why in verdicts.items():
            self._cut.setdefault(job_id, why)
        return list(verdicts)
