"""Designs whose arms follow from results: what they are asked, what they are told. Pure.

    plan --asks--> propose(tried, slots) --> the arms so far, new ones last
                        |
                      tried(arm) --> what became of it, or None while a job of it has not ended

Asking again with the same results gives the same arms: a study that was killed, and every command
that only looks, replays a design from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ablate.nouns import Arm, Job, Result, State

Direction = Literal["minimize", "maximize"]

WORST_FIRST: tuple[State, ...] = ("failed", "diverged", "pruned", "done")


@dataclass(frozen=True)
class Tried:
    """What became of an arm whose jobs have all ended."""

    state: State
    """The worst of its jobs: failed, diverged, pruned, done."""
    metrics: Mapping[str, tuple[float, ...]]
    """Seed by seed, of the readings that all its jobs have and no gate makes meaningless."""

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None unless every seed is done and has it."""
        values = self.metrics.get(metric, ())
        return math.fsum(values) / len(values) if values and self.state == "done" else None


Ask = Callable[[Arm], Tried | None]
"""What became of an arm; None while a job of it has not ended."""


@dataclass(frozen=True)
class Proposal:
    """The arms of an adaptive design as far as results tell."""

    arms: tuple[Arm, ...]
    """In the order they were thought of; those without results are to run, if they can be."""
    more: str = ""
    """What is to come, for people; empty when this is all."""
    notes: tuple[str, ...] = ()
    """What it found so far."""
    walked: tuple[Arm, ...] = ()
    """The arms of a path, from the base on."""


class Adaptive(Protocol):
    """A design that makes further arms of results."""

    def outline(self) -> Sequence[Sequence[Arm]]:
        """What must be possible before anything is run: of each of these, one arm at least."""
        ...

    def propose(self, tried: Ask, slots: int) -> Proposal:
        """Every arm so far.

        Args:
            tried: what became of an arm.
            slots: jobs that could start now. 0: only look, think of nothing new.
        """
        ...


def tried_of(
    jobs: Sequence[Job], results: Mapping[str, Result], void: Mapping[str, Iterable[str]]
) -> Tried | None:
    """What became of the arm with these jobs; None while one has no result.

    Args:
        jobs: of one arm, one a seed.
        results: by job id.
        void: by job id, readings that a gate makes meaningless.
    """
    own = [results.get(job.id) for job in jobs]
    ended = [result for result in own if result is not None]
    if len(ended) < len(jobs):
        return None
    states: set[State] = {result.state for result in ended}
    done = [result for result in ended if result.state == "done"]
    names = set.intersection(*(set(r.metrics) for r in done)) if done else set()
    names -= {name for job in jobs for name in void.get(job.id, ())}
    values = {name: tuple(r.metrics[name] for r in done) for name in sorted(names)}
    finite = {name: v for name, v in values.items() if all(map(math.isfinite, v))}
    return Tried(min(states, key=WORST_FIRST.index), finite)
