"""One configuration over its seeds: criteria, gates, diagnosis and what went wrong. Pure.

A criterion is *passed* when the worse end of the t interval over seeds meets it, *likely* when
only the mean does (or there is one seed, or a seed diverged), *failed* when the mean does not, and
*not testable* when no seed has the value or a gate makes it meaningless.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ablate.nouns import Condition, Criterion, Finding, Gate, Job, Result
from ablate.nouns import Verdict as GateVerdict
from ablate.stats import Interval, t_interval

Verdict = Literal["passed", "likely", "failed", "not testable"]

WORST_FIRST: tuple[Verdict, ...] = ("failed", "not testable", "likely", "passed")
GATES_WORST_FIRST: tuple[GateVerdict, ...] = ("failed", "passed", "not testable")


@dataclass(frozen=True)
class Reading:
    """One condition of a criterion, read over the seeds of an arm."""

    metric: str
    threshold: float
    verdict: Verdict
    value: Interval | None
    above: bool = False
    """Met by what is greater than the threshold, not less."""

    @property
    def margin(self) -> float:
        """(threshold - mean) / threshold, or its opposite: above 0 passes; -inf without a value."""
        if self.value is None:
            return -math.inf
        return Condition(self.metric, self.threshold, self.above).margin(self.value.mean)


@dataclass(frozen=True)
class CriterionReading:
    """A criterion of an arm: the worst of its conditions decides."""

    name: str
    verdict: Verdict
    readings: tuple[Reading, ...]
    voided_by: tuple[str, ...] = ()

    @property
    def deciding(self) -> Reading:
        """The condition with the worst verdict, then the smallest margin."""
        return min(self.readings, key=lambda r: (WORST_FIRST.index(r.verdict), r.margin))


@dataclass(frozen=True)
class ArmGate:
    """A gate over the seeds of an arm: failed when it fails in any of them."""

    name: str
    verdict: GateVerdict
    value: float | None
    """Mean over the seeds that decide."""
    note: str
    seeds: int
    """Seeds that decide, of all that ended."""


@dataclass(frozen=True)
class ArmFinding:
    """A diagnosis, and in how many seeds it was made."""

    finding: Finding
    seeds: int


@dataclass(frozen=True)
class Trouble:
    """A job that did not end as planned."""

    job_id: str
    seed: int
    state: str
    error: str


@dataclass(frozen=True)
class RankedArm:
    """One configuration over its seeds."""

    rank: int | None
    """None: none of its jobs has ended yet, or one was pruned."""
    arm: str
    design: str
    levels: Mapping[str, str]
    seeds: tuple[int, ...]
    """Seeds whose job is done."""
    counts: Mapping[str, int]
    """Jobs by state: done, failed, diverged, pruned, missing."""
    metrics: Mapping[str, Interval]
    criteria: tuple[CriterionReading, ...]
    gates: tuple[ArmGate, ...]
    notes: tuple[str, ...]
    diagnosis: tuple[ArmFinding, ...]
    troubles: tuple[Trouble, ...]
    pareto: bool = False

    def count(self, verdict: Verdict) -> int:
        """How many criteria have that verdict."""
        return sum(criterion.verdict == verdict for criterion in self.criteria)

    @property
    def jobs(self) -> int:
        """Jobs planned."""
        return sum(self.counts.values())

    @property
    def pruned(self) -> bool:
        """Whether any of its jobs was stopped because others did better: it has no rank then."""
        return self.counts.get("pruned", 0) > 0

    @property
    def ended(self) -> bool:
        """Whether any of its jobs has ended, well or not."""
        return self.jobs > self.counts.get("missing", 0)


def read_arm(
    criteria: Sequence[Criterion],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    gates: Mapping[str, Sequence[Gate]],
    findings: Mapping[str, Sequence[Finding]],
) -> RankedArm:
    states = {job.id: (results[job.id].state if job.id in results else "missing") for job in jobs}
    done = [job for job in jobs if states[job.id] == "done"]
    counts = dict(Counter(states.values()))
    values: dict[str, list[float]] = {}
    for job in done:
        for name, value in results[job.id].metrics.items():
            if math.isfinite(value):
                values.setdefault(name, []).append(value)
    metrics = {name: t_interval(found) for name, found in values.items()}
    every = (gate for job in done for gate in gates.get(job.id, ()))
    own_gates = [gate for gate in every if gate.concerns(criteria)]
    troubles = [
        Trouble(job.id, job.seed, states[job.id], results[job.id].error or "no reason given")
        for job in jobs
        if states[job.id] in ("failed", "diverged", "pruned")
    ]
    # a seed that diverged or was pruned has no value to widen the interval with: never sure
    whole = not (counts.get("diverged") or counts.get("pruned"))
    read = tuple(
        _read_criterion(criterion, metrics, own_gates, len(done), whole) for criterion in criteria
    )
    merged = _merge_gates(own_gates)
    return RankedArm(
        rank=None,
        arm=jobs[0].arm,
        design=jobs[0].design,
        levels=jobs[0].levels,
        seeds=tuple(job.seed for job in done),
        counts=counts,
        metrics=metrics,
        criteria=read,
        gates=merged,
        notes=_notes(jobs, counts, merged),
        diagnosis=_merge_findings([f for job in jobs for f in findings.get(job.id, ())]),
        troubles=tuple(troubles),
    )


def _read_criterion(
    criterion: Criterion,
    metrics: Mapping[str, Interval],
    gates: Sequence[Gate],
    seeds: int,
    whole: bool,
) -> CriterionReading:
    failed = [g.name for g in gates if g.verdict == "failed" and criterion.voided(g)]
    voided_by = tuple(dict.fromkeys(failed))
    readings = tuple(
        _read_condition(condition, metrics.get(condition.metric), seeds, whole)
        for condition in criterion.conditions
    )
    found: set[Verdict] = {reading.verdict for reading in readings}
    verdict = min(found, key=WORST_FIRST.index)
    if voided_by:
        verdict = "not testable"
        readings = tuple(replace(reading, verdict="not testable") for reading in readings)
    return CriterionReading(criterion.name, verdict, readings, voided_by)


def _read_condition(
    condition: Condition, value: Interval | None, seeds: int, whole: bool
) -> Reading:
    verdict: Verdict = "failed"
    if value is None:
        verdict = "not testable"
    elif condition.meets(value.mean):
        worse = value.low if condition.above else value.high
        sure = worse is not None and condition.meets(worse)
        verdict = "passed" if sure and whole and value.n == seeds else "likely"
    return Reading(condition.metric, condition.threshold, verdict, value, condition.above)


def _merge_gates(gates: Sequence[Gate]) -> tuple[ArmGate, ...]:
    merged = []
    for name in dict.fromkeys(gate.name for gate in gates):
        same = [gate for gate in gates if gate.name == name]
        verdicts: set[GateVerdict] = {gate.verdict for gate in same}
        verdict = min(verdicts, key=GATES_WORST_FIRST.index)
        deciding = [gate for gate in same if gate.verdict == verdict]
        known = [g.value for g in deciding if g.value is not None and math.isfinite(g.value)]
        value = sum(known) / len(known) if known else None
        note = next((gate.note for gate in deciding if gate.note), "")
        merged.append(ArmGate(name, verdict, value, note, len(deciding)))
    return tuple(merged)


def _merge_findings(findings: Sequence[Finding]) -> tuple[ArmFinding, ...]:
    counts = Counter(finding.rule for finding in findings)
    first = {finding.rule: finding for finding in reversed(findings)}
    rules = dict.fromkeys(finding.rule for finding in findings)
    return tuple(ArmFinding(first[rule], counts[rule]) for rule in rules)


def _notes(
    jobs: Sequence[Job], counts: Mapping[str, int], gates: Sequence[ArmGate]
) -> tuple[str, ...]:
    done = counts.get("done", 0)
    notes = []
    for gate in gates:
        if gate.note and gate.verdict == "failed":
            share = f" ({gate.seeds} of {done} seeds)" if gate.seeds < done else ""
            notes.append(gate.note + share)
    states = [s for s in ("diverged", "failed", "pruned", "missing") if counts.get(s)]
    notes += [f"{counts[state]} of {len(jobs)} seeds {state}" for state in states]
    if done == 1:
        notes.append("one seed: no interval")
    same = dict.fromkeys(a.label for job in jobs for a in job.also if a.label != job.arm)
    if same:
        notes.append("the same runs as " + ", ".join(same))
    return tuple(notes)


def arm_json(arm: RankedArm) -> dict[str, Any]:
    criteria = {}
    for criterion in arm.criteria:
        deciding = criterion.deciding
        criteria[criterion.name] = {
            "verdict": criterion.verdict,
            "value": deciding.value.mean if deciding.value else None,
            "threshold": deciding.threshold,
            "direction": "above" if deciding.above else "below",
            "metric": deciding.metric,
            "voided_by": list(criterion.voided_by),
            "conditions": [asdict(reading) for reading in criterion.readings],
        }
    return {
        "rank": arm.rank,
        "arm": arm.arm,
        "levels": dict(arm.levels),
        "seeds": list(arm.seeds),
        "jobs": dict(arm.counts),
        "metrics": {name: dict(vars(interval)) for name, interval in arm.metrics.items()},
        "criteria": criteria,
        "gates": {gate.name: asdict(gate) for gate in arm.gates},
        "notes": list(arm.notes),
        "diagnosis": [{**asdict(d.finding), "seeds": d.seeds} for d in arm.diagnosis],
        "troubles": [asdict(trouble) for trouble in arm.troubles],
        "pareto": arm.pareto,
    }
