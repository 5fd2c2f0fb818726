"""Which jobs can train as one model: what the core says of their shapes, and how many at most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ablate.core import Core
from ablate.nouns import Job


class Kin:
    """Remembers the kinship of jobs; one it never heard of trains alone."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int]] = {}

    def learn(
        self, core: Core, jobs: Iterable[Job], configs: Iterable[Any], at_most: int | None
    ) -> None:
        """Ask the core about jobs; `at_most` train as one, None: as many as the core thinks fit."""
        for job, config in zip(jobs, configs, strict=True):
            size = at_most or core.fused_by_default(config)
            kinship = core.kinship(config) if size > 1 else None
            if kinship is not None:
                self._known[job.id] = kinship, size

    def room(self, job_id: str) -> int:
        """How many others may train beside a job."""
        return self._known[job_id][1] - 1 if job_id in self._known else 0

    def alike(self, job_id: str, other: str) -> bool:
        return other in self._known and self._known[other][0] == self._known[job_id][0]
