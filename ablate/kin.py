"""Which jobs can train as one model: what the core says of their shapes, and how many at most."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ablate.core import Core
from ablate.nouns import Job, Study


def may_fuse(study: Study) -> bool:
    """Whether jobs of a study may train as one: not where readings on the way end them."""
    return study.pruning is None and not study.stop_when_passed


class Kin:
    """Remembers the kinship of jobs; one it never heard of trains alone."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int]] = {}

    def learn(
        self,
        core: Core,
        jobs: Iterable[Job],
        configs: Iterable[Any],
        at_most: int | None,
        room: int | None = None,
    ) -> None:
        """Ask the core about jobs.

        Args:
            core: knows their shapes.
            jobs: any.
            configs: theirs.
            at_most: how many train as one; None: as many as the core says.
            room: how many of those the memory has room for; None: not known.
        """
        for job, config in zip(jobs, configs, strict=True):
            size = at_most or min(core.fused_by_default(config), room or sys.maxsize)
            kinship = core.kinship(config) if size > 1 else None
            if kinship is not None:
                self._known[job.id] = kinship, size

    @property
    def most(self) -> int:
        """How many of the jobs known so far would train as one at most."""
        counts = Counter(self._known.values())
        return max((min(n, size) for (_, size), n in counts.items()), default=1)

    def room(self, job_id: str) -> int:
        """How many others may train beside a job."""
        return self._known[job_id][1] - 1 if job_id in self._known else 0

    def alike(self, job_id: str, other: str) -> bool:
        return other in self._known and self._known[other][0] == self._known[job_id][0]
