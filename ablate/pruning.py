"""Which jobs are not worth finishing: Optuna's pruners, told what the ledger tells.

    events, results --> Pruner --> {job id: why it is to stop}

Median, ASHA and Hyperband look at one reading of evaluations, a trial a job; Wilcoxon at the final
readings of an arm seed by seed, a trial an arm, and prunes the seeds that are left. All trials are
made in the order of the plan, and readings count once, however often a resumed job repeats them:
a coordinator that comes back is told the same and decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ablate.nouns import Job, Pruning, Result
from ablate.search import pruners


class Pruner:
    """Follows the jobs of a study."""

    def __init__(self, pruning: Pruning) -> None:
        self._pruning = pruning
        self._by_arm = pruning.rule == "wilcoxon"
        self._study = pruners.make_pruned_study(pruning)
        self._trials: dict[str, Any] = {}
        self._told: dict[str, dict[int, float]] = {}
        self._open: dict[str, set[str]] = {}  # by trial: jobs that have not ended
        self._verdict: dict[str, str] = {}
        self.heard_any = False
        """Whether any job had the reading (`ablate.pruning_schema.unheard`)."""

    def extend(self, jobs: Iterable[Job]) -> None:
        """Take the jobs of the plan, in its order."""
        for job in jobs:
            key = self._key(job)
            if key not in self._trials:
                self._trials[key] = self._study.ask()
                self._told[key], self._open[key] = {}, set()
            self._open[key].add(job.id)

    def heard(self, job: Job, events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Take a job's events; the jobs that are to stop, and why."""
        if self._by_arm:
            return {}
        for event in events:
            step, value = event.get("step"), (event.get("metrics") or {}).get(self._pruning.reading)
            if isinstance(step, int) and isinstance(value, int | float):
                said = f"step {step}"
                if why := self._report(self._key(job), step, float(value), said):
                    return {job.id: why}
        return {}

    def ended(self, job: Job, result: Result) -> dict[str, str]:
        """Take how a job ended; the jobs that are to stop, and why."""
        key = self._key(job)
        self._open[key].discard(job.id)
        value = result.metrics.get(self._pruning.reading, math.nan)
        why = None
        if self._by_arm and result.state == "done" and math.isfinite(value):
            why = self._report(key, job.seed, value, f"seed {job.seed}")
        if not self._open[key] or (result.state != "done" and not self._by_arm):
            self._close(key, result.state)
        return dict.fromkeys(self._open[key], why) if why else {}

    def _key(self, job: Job) -> str:
        return job.arm if self._by_arm else job.id

    def _report(self, key: str, step: int, value: float, said: str) -> str | None:
        """Tell a reading once; why the trial is to stop, if it is."""
        told, trial = self._told[key], self._trials[key]
        self.heard_any = True
        if step in told or key in self._verdict or trial is None:
            return None
        told[step] = value
        if pruners.prunes(trial, step, value):
            p = self._pruning
            self._verdict[key] = f"pruned at {said} by {p.rule}: {p.reading} {value:.4g}"
            return self._verdict[key]
        return None

    def _close(self, key: str, state: str) -> None:
        trial, told = self._trials[key], self._told[key]
        if trial is None:
            return
        self._trials[key] = None
        values = list(told.values())
        last = math.fsum(values) / len(values) if self._by_arm and values else None
        value = last if self._by_arm else (values[-1] if values else None)
        # one that ended before the word reached it is complete
        pruned = state == "pruned" or (self._by_arm and key in self._verdict)
        pruners.close_trial(self._study, trial, value, pruned=pruned)
