"""Which configuration meets the criteria, and what each change did. Pure: values in, values out.

Order: criteria passed, then likely, then everything testable before not, then the smallest
relative margin min((threshold - value) / threshold) (its opposite where a criterion asks for more),
then px error, then the order of the plan.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ablate.arm import RankedArm, arm_json, read_arm
from ablate.compare import LevelCount, compare, tokenizer_of
from ablate.finite import finite
from ablate.nouns import EARLY, Finding, Gate, Job, Result, Study
from ablate.stats import Effect, pareto_front

if TYPE_CHECKING:
    from ablate.anova import Term
    from ablate.core import Core
    from ablate.importance import Importance
    from ablate.margins import Interaction

PX_ERROR = "final/px_error"
COST = "cost/seconds"


@dataclass(frozen=True)
class Ranking:
    """A study's answer so far; the best arm first, arms without an ended job last."""

    study: str
    question: str
    arms: tuple[RankedArm, ...]
    base: str | None
    """Label of the base arm, where the plan has it."""
    best: str | None
    """Label of the arm that leave-one-out leaves out from."""
    effects: tuple[Effect, ...]
    variance: tuple[Term, ...]
    notes: tuple[str, ...]
    interactions: tuple[Interaction, ...] = ()
    """Pairs of factors that are clear after the correction."""
    levels: tuple[LevelCount, ...] = ()
    """How the jobs of each level ended."""
    design: tuple[str, ...] = ()
    """What a reader of the designs must know: the aliases of a fractional one."""
    importances: tuple[Importance, ...] = ()
    """Of a search's factors and ranges; no other design has them."""

    def arm(self, label: str) -> RankedArm:
        """The arm of that label (KeyError where there is none)."""
        for arm in self.arms:
            if arm.arm == label:
                return arm
        raise KeyError(label)

    def to_json(self) -> dict[str, Any]:
        """The form of `rank --json`; what is not finite is null."""
        return finite(
            {
                "study": self.study,
                "question": self.question,
                "ranking": [arm_json(arm) for arm in self.arms],
                "effects": [asdict(effect) for effect in self.effects],
                "variance": [asdict(term) for term in self.variance],
                "interactions": [asdict(pair) for pair in self.interactions],
                "importances": [asdict(one) for one in self.importances],
                "levels": [asdict(level) for level in self.levels],
                "notes": [*self.notes, *self.design],
            }
        )


def judge(
    core: Core, jobs: Iterable[Job], results: Mapping[str, Result]
) -> tuple[dict[str, tuple[Gate, ...]], dict[str, tuple[Finding, ...]]]:
    """Ask the core for gates and findings of every job that has readings, by job id.

    A job that diverged has findings (why?) but no gates: it has no final readings to qualify.
    """
    gates: dict[str, tuple[Gate, ...]] = {}
    findings: dict[str, tuple[Finding, ...]] = {}
    for job in jobs:
        result = results.get(job.id)
        if result is None or not result.metrics:
            continue
        findings[job.id] = tuple(core.diagnose(result.metrics, job.settings))
        if result.state == "done":
            gates[job.id] = tuple(core.gates(result.metrics, job.settings))
    return gates, findings


def rank(
    study: Study,
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    *,
    gates: Mapping[str, Sequence[Gate]] | None = None,
    findings: Mapping[str, Sequence[Finding]] | None = None,
    core_hash: str | None = None,
    design: Sequence[str] = (),
    walked: Sequence[str] = (),
    importances: Sequence[Importance] = (),
) -> Ranking:
    """Rank the arms of a study by its criteria, and compare them.

    Args:
        study: its criteria, and which arm is the base.
        jobs: the jobs of its plan.
        results: by job id; a job without one counts as missing.
        gates: by job id (`judge`).
        findings: by job id (`judge`).
        core_hash: hash of today's core sources; results of other sources are named in the notes.
        design: notes of the plan.
        walked: labels of an ablation path's arms.
        importances: of a search's factors and ranges.
    """
    gates, findings = gates or {}, findings or {}
    grouped: dict[str, list[Job]] = {}
    for job in jobs:
        grouped.setdefault(job.arm, []).append(job)
    read = [read_arm(study.criteria, own, results, gates, findings) for own in grouped.values()]
    arms = _in_order(read)
    found = compare(study, jobs, results, gates, walked)
    return Ranking(
        study=study.name,
        question=study.question,
        arms=arms,
        base=found.base,
        best=found.best,
        effects=found.effects,
        variance=found.variance,
        interactions=found.interactions,
        levels=found.levels,
        design=tuple(design),
        importances=tuple(importances),
        notes=(*_notes(jobs, results, core_hash), *unread(study, results)),
    )


def unread(study: Study, results: Mapping[str, Result]) -> list[str]:
    """A line for each reading that the study goes by and no finished job has: it may be misspelt.

    While no job is done, nothing is known.
    """
    done = [result for result in results.values() if result.state == "done"]
    if not done:
        return []
    known = sorted({name for result in done for name in result.metrics})
    asked = [(k.metric, f"criteria.{c.name}") for c in study.criteria for k in c.conditions]
    for design in study.designs:
        named = design.options.get("reading") or design.options.get("objective") or {}
        asked += [(name, f"design {design.name}") for name in named]
    places: dict[str, str] = {}
    for name, place in asked:
        if name not in known:
            places.setdefault(name, place)
    return [
        f"{place}: no finished job has the reading {name}{suggested(name, known)}"
        for name, place in places.items()
    ]


def suggested(name: str, known: Sequence[str]) -> str:
    """The nearest of the readings that there are, as the end of a line."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; the nearest is {near[0]}" if near else f"; there are {', '.join(known[:16])}"


def _in_order(arms: Sequence[RankedArm]) -> tuple[RankedArm, ...]:
    order = sorted(range(len(arms)), key=lambda index: (*_order(arms[index]), index))
    front = pareto_front({arm.arm: _coordinates(arm) for arm in arms})
    ranked = []
    for place, index in enumerate(order, start=1):
        arm = arms[index]
        ranked.append(
            replace(
                arm, rank=place if arm.ended and not arm.pruned else None, pareto=arm.arm in front
            )
        )
    return tuple(ranked)


def _order(arm: RankedArm) -> tuple[float, ...]:
    testable = [c for c in arm.criteria if c.verdict != "not testable"]
    margins = [reading.margin for criterion in testable for reading in criterion.readings]
    px = arm.metrics.get(PX_ERROR)
    px_void = any(
        reading.metric == PX_ERROR
        for criterion in arm.criteria
        if criterion.voided_by
        for reading in criterion.readings
    )
    return (
        not arm.ended,
        arm.pruned,
        -arm.count("passed"),
        -arm.count("likely"),
        len(arm.criteria) - len(testable),
        -min(margins, default=-math.inf),
        math.inf if px is None or px_void else px.mean,
    )


def _coordinates(arm: RankedArm) -> list[float | None]:
    """Where an arm stands among trade-offs: all metrics of the criteria, and the cost."""
    if arm.pruned:  # what is left of it is no place among those that were finished
        return [None]
    point: list[float | None] = []
    for criterion in arm.criteria:
        void = criterion.verdict == "not testable"
        for reading in criterion.readings:  # less is better on every axis of the front
            value = None if void or reading.value is None else reading.value.mean
            point.append(-value if value is not None and reading.above else value)
    cost = arm.metrics.get(COST)
    return [*point, cost.mean if cost else None]


def _notes(
    jobs: Sequence[Job], results: Mapping[str, Result], core_hash: str | None
) -> tuple[str, ...]:
    notes = []
    if len({tokenizer_of(job) for job in jobs}) > 1:
        notes.append(
            "raw losses across tokenizers are not comparable: compare px error, or "
            "final/loss_per_px"
        )
    own = [results[job.id] for job in jobs if job.id in results]
    older = sum(bool(core_hash) and result.code.get("core") != core_hash for result in own)
    if older:
        notes.append(f"{older} results from older code; --rerun trains them again")
    states = Counter(result.state for result in own)
    notes += [f"{n} of {len(jobs)} jobs {s}" for s, n in sorted(states.items()) if s != "done"]
    if states["pruned"]:
        notes.append(
            "pruned arms have no rank, and effects are of the jobs that were let finish: pruning "
            "takes the balance out of a grid"
        )
    if early := sorted(int(r.metrics[EARLY]) for r in own if r.early):
        span = f"step {early[0]}" + (f" to {early[-1]}" if early[-1] > early[0] else "")
        notes.append(
            f"{len(early)} of {len(jobs)} jobs ended early, at {span}, where all criteria held: "
            "effects are of runs of unequal lengths"
        )
    if missing := len(jobs) - len(own):
        notes.append(f"{missing} of {len(jobs)} jobs have not ended")
    return tuple(notes)
