"""Which jobs train as one: what the core says of their shapes and trainings, and how many at most.

Kin are of one shape: stacked, they fill a GPU. Twins train alike to the bit and differ in what is
read of it: once is enough, anywhere.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ablate.core import Core
from ablate.nouns import Job, Study

TWINS = 8
"""How many twins train as one: each has its own weights chosen as best, and its own readings."""


def may_fuse(study: Study) -> bool:
    """Whether jobs of a study may train as one: not where readings on the way end them."""
    return study.pruning is None and not study.stop_when_passed


def trainings(jobs: Iterable[Job]) -> list[list[Job]]:
    """Group jobs into trainings, in their order: twins together, every other by itself.

    On a GPU most twins train stacked with others: those are counted by themselves.
    """
    by_name: dict[str, list[list[Job]]] = {}
    for job in jobs:
        alone = job.workload.device.startswith("cuda") or not job.training
        own = by_name.setdefault(job.id if alone else job.training, [])
        if not own or len(own[-1]) == TWINS:
            own.append([])
        own[-1].append(job)
    return [group for own in by_name.values() for group in own]


@dataclass(frozen=True)
class Bond:
    """What holds jobs together that may train as one."""

    name: str
    size: int
    """Jobs at most."""
    twins: bool


class Kin:
    """Remembers the bonds of jobs; one it never heard of trains alone."""

    def __init__(self) -> None:
        self._known: dict[str, Bond] = {}
        self._bound: Counter[Bond] = Counter()

    def learn(
        self,
        core: Core,
        jobs: Iterable[Job],
        configs: Iterable[Any],
        at_most: int | None,
        room: int | None = None,
    ) -> None:
        """Hear of jobs, and ask the core about their shapes.

        Args:
            core: knows their shapes.
            jobs: any.
            configs: theirs.
            at_most: how many train as one; None: twins, and kin as many as the core says.
            room: how many of those the memory has room for; None: not known.
        """
        for job, config in zip(jobs, configs, strict=True):
            size = at_most or min(core.fused_by_default(config), room or sys.maxsize)
            kinship = core.kinship(config) if size > 1 else None
            bond = None
            if kinship is not None:
                bond = Bond(kinship, size, twins=False)
            elif at_most is None and job.training:
                bond = Bond(job.training, TWINS, twins=True)
            if bond is not None and job.id not in self._known:
                self._known[job.id] = bond
                self._bound[bond] += 1

    def others(self, bond: Bond) -> int:
        """How many others a job of this bond has, of all that were ever known."""
        return self._bound[bond] - 1

    def share(self, job_id: str) -> float:
        """Give the part of a training that a job takes: less than 1 where twins train along."""
        bond = self.bond(job_id)
        return 1 / min(bond.size, self._bound[bond]) if bond and bond.twins else 1.0

    @property
    def most(self) -> int:
        """How many of the jobs known so far would train as one stacked model at most."""
        sizes = [min(n, bond.size) for bond, n in self._bound.items() if not bond.twins]
        return max(sizes, default=1)

    def bond(self, job_id: str) -> Bond | None:
        """What holds a job and others known so far together; None: it has no others."""
        bond = self._known.get(job_id)
        return bond if bond is not None and self._bound[bond] > 1 else None
