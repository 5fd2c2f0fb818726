"""The ablation path: from the base to the best, the most valuable change first. Pure.

Each round tries every change that is left, alone, from where the path stands, and goes where the
reading is best (Fawcett and Hoos, *Analysing differences between algorithm configurations through
ablation*, 2016). k changes take k (k + 1) / 2 + 1 arms, where a factorial takes 2 ** k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ablate.adaptive import Ask, Direction, Proposal
from ablate.designs import Axis
from ablate.nouns import Arm

Score = Callable[[Arm], float | None]
"""The reading of an arm, less is better, inf where it has none; None while it is not known."""


@dataclass(frozen=True)
class Path:
    """A path as far as it has been walked."""

    arms: tuple[Arm, ...]
    """The base, then round by round the changes that were left, those not allowed too."""
    walked: tuple[Arm, ...]
    """The base and the arm that each round ended with."""
    left: int
    """Changes that are not made yet."""
    blocked: tuple[str, ...] = ()
    """Changes that no round may make: they are not allowed anywhere."""
    lost: bool = False
    """Whether it stopped because neither the base nor any arm of a round has the reading."""


class _Steps:
    """The changes between two arms, and what some of them make of the first."""

    def __init__(
        self,
        axes: Sequence[Axis],
        base: Mapping[str, str] | None,
        best: Mapping[str, str] | None,
    ) -> None:
        self._axes = axes
        self._here = [axis.default(base or {}, 0) for axis in axes]
        self._goal = [axis.default(best or {}, -1) for axis in axes]
        ends = enumerate(zip(self._here, self._goal, strict=True))
        self.changes = [place for place, (here, goal) in ends if here != goal]

    def arm(self, changes: Sequence[int]) -> Arm:
        """The base with these changes made, named in this order."""
        levels: dict[str, str] = {}
        for place, axis in enumerate(self._axes):
            pick = (self._goal if place in changes else self._here)[place]
            levels |= axis.choices[pick][1]
        return Arm(" ".join(f"+{self._axes[place].name}" for place in changes) or "base", levels)


def path(
    axes: Sequence[Axis],
    score: Score,
    *,
    base: Mapping[str, str] | None = None,
    best: Mapping[str, str] | None = None,
    allowed: Callable[[Arm], bool] = lambda arm: True,
    unread: Callable[[Arm], bool] = lambda arm: False,
) -> Path:
    """Walk from the base (first levels unless named) to the best (last levels unless named).

    A round ends when all its arms are known. A change whose arm has no reading (it diverged, it
    failed) is made last; of equal ones the first factor's. Where the base and all arms of a round
    are `unread` (they are done and lack the reading), there is nothing to go by, and it stops. A
    change that makes the reading worse is made too: what the whole path says is how much each is
    worth, the harmful ones included.

    >>> axes = [Axis.of("a", "0", "1"), Axis.of("b", "0", "1"), Axis.of("c", "0", "1")]
    >>> worth = {"a": 3, "b": 5, "c": -1}
    >>> def px(arm):  # b is worth most, then a; c harms
    ...     return 10 - sum(worth[f] for f, level in arm.levels.items() if level == "1")
    >>> found = path(axes, px)
    >>> [arm.label for arm in found.arms]
    ['base', '+a', '+b', '+c', '+b +a', '+b +c', '+b +a +c']
    >>> [(arm.label, px(arm)) for arm in found.walked]
    [('base', 10), ('+b', 5), ('+b +a', 2), ('+b +a +c', 3)]
    >>> [arm.label for arm in path(axes, lambda arm: None).arms]  # nothing known yet
    ['base', '+a', '+b', '+c']
    """
    steps = _Steps(axes, base, best)
    made: list[int] = []
    left = list(steps.changes)
    arms, walked = [steps.arm([])], [steps.arm([])]
    while left:
        round_ = [(place, steps.arm([*made, place])) for place in left]
        arms += [arm for _, arm in round_]
        round_ = [(place, arm) for place, arm in round_ if allowed(arm)]
        if not round_:
            return Path(tuple(arms), tuple(walked), 0, tuple(axes[place].name for place in left))
        scores = [(score(arm), place, arm) for place, arm in round_]
        known = [(value, place, arm) for value, place, arm in scores if value is not None]
        if len(known) < len(scores) or score(walked[0]) is None:
            break
        if all(map(unread, (walked[0], *(arm for _, arm in round_)))):
            return Path(tuple(arms), tuple(walked), len(left), lost=True)
        _, place, arm = min(known, key=lambda entry: entry[0])
        made.append(place)
        left.remove(place)
        walked.append(arm)
    return Path(tuple(arms), tuple(walked), len(left))


@dataclass(frozen=True)
class Paths:
    """The design `paths` of a study (`ablate.adaptive.Adaptive`)."""

    axes: Sequence[Axis]
    reading: str
    """The metric whose mean over the seeds decides."""
    direction: Direction = "minimize"
    base: Mapping[str, str] | None = None
    best: Mapping[str, str] | None = None
    allowed: Callable[[Arm], bool] = lambda arm: True

    def outline(self) -> Sequence[Sequence[Arm]]:
        """Its two ends."""
        steps = _Steps(self.axes, self.base, self.best)
        return [steps.arm([])], [steps.arm(steps.changes)]

    def propose(self, tried: Ask, slots: int) -> Proposal:
        """All arms of the rounds that results lead to; a round is run as a whole."""
        sign = 1 if self.direction == "minimize" else -1

        def score(arm: Arm) -> float | None:
            found = tried(arm)
            if found is None:
                return None
            mean = found.mean(self.reading)
            return math.inf if mean is None else sign * mean

        def unread(arm: Arm) -> bool:
            found = tried(arm)
            return found is not None and found.state == "done" and found.mean(self.reading) is None

        found = path(
            self.axes, score, base=self.base, best=self.best, allowed=self.allowed, unread=unread
        )
        more = ""
        if found.lost:
            more = (
                f"paths: stopped with {found.left} changes to make: no arm has the reading "
                f"{self.reading}, or gates void it in all"
            )
        elif found.left:
            more = (
                f"paths: {len(found.walked) - 1} of {len(found.walked) - 1 + found.left} changes "
                "made; what comes next follows from results"
            )
        return Proposal(found.arms, more, self._notes(found, tried), found.walked)

    def _notes(self, found: Path, tried: Ask) -> tuple[str, ...]:
        steps = []
        for arm in found.walked:
            outcome = tried(arm)
            if outcome is not None:
                mean = outcome.mean(self.reading)
                last = arm.label.rsplit(" ", 1)[-1]
                said = outcome.state if outcome.state != "done" else "no reading"
                steps.append(f"{last} {said if mean is None else f'{mean:.4g}'}")
        notes = [f"path on {self.reading}: {' -> '.join(steps)}"] if len(steps) > 1 else []
        if found.blocked:
            notes.append(f"path: there is no way to change {', '.join(found.blocked)}")
        return tuple(notes)
