"""A study as an Optuna storage: `ablate export optuna`. Trials are jobs, levels are categories."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ablate import runs
from ablate.adaptive import Direction
from ablate.adaptive_designs import objectives_of, space_of
from ablate.designs import Axis
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study, StudyError
from ablate.search import storage
from ablate.space import Range, Space

SQLITE = (".db", ".sqlite", ".sqlite3")
JOURNAL = (".journal", ".jsonl", ".log")


def export(
    study: Study, plan: Plan, ledger: Ledger, results: Mapping[str, Result], to: Path
) -> int:
    """Write a storage that `optuna.load_study` and optuna-dashboard open; the number of trials.

    One trial a job that has ended: its levels, job id, arm, seed and final readings, the criteria
    as constraints, and its evaluations as intermediate values. An existing file is replaced.

    Raises:
        StudyError: a suffix that names no storage, or a file that cannot be written.
    """
    if to.suffix not in SQLITE + JOURNAL:
        allowed = ", ".join(SQLITE + JOURNAL)
        raise StudyError(f"{to}: given the suffix {to.suffix!r}, must be one of {allowed}")
    space = whole_space(study)
    objectives = objectives_of(study)
    trials = [
        trial_of(study, space, objectives, job, results[job.id], ledger)
        for job in plan.jobs
        if job.id in results
    ]
    temporary = to.with_name(f".{to.stem}.{os.getpid()}{to.suffix}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # SQLite's own error is a page of SQLAlchemy
        temporary.unlink()
        attributes = {"question": study.question, "criteria": [c.name for c in study.criteria]}
        storage.write_storage(
            temporary, to.suffix in SQLITE, study.name, objectives, trials, attributes
        )
        temporary.replace(to)
    except OSError as error:
        raise StudyError(f"{to}: cannot be written ({error.strerror or error})") from None
    finally:
        for path in temporary.parent.glob(f"{temporary.name}*"):
            with contextlib.suppress(OSError):
                path.unlink()
    return len(trials)


def whole_space(study: Study) -> Space:
    """Every factor with its levels, and every range, as wide as several searches have it."""
    ranges: dict[str, Range] = {}
    for design in study.designs:
        for path, own in space_of(study, design).ranges.items():
            ranges[path] = joined(ranges[path], own) if path in ranges else own
    return Space([Axis.of(factor.name, *factor.names) for factor in study.factors], ranges)


def joined(one: Range, other: Range) -> Range:
    """The range of both.

    >>> joined(Range(1, 4), Range(3, 9))
    Range(low=1, high=9, log=False, step=None)
    """
    if one == other:
        return one
    low, high = min(one.low, other.low), max(one.high, other.high)
    return Range(low, high, log=one.log and other.log)


def trial_of(
    study: Study,
    space: Space,
    objectives: Mapping[str, Direction],
    job: Job,
    result: Result,
    ledger: Ledger,
) -> Any:
    """A job as a finished trial."""
    events = list(ledger.events(job.id))
    span = runs.span(events)
    values = [result.metrics.get(metric) for metric in objectives]
    return storage.finished_trial(
        space,
        {name: level for name, level in job.levels.items() if name not in space.ranges},
        {path: job.levels[path] for path in space.ranges},
        state=result.state,
        values=values,
        criteria=study.criteria,
        metrics=result.metrics,
        attributes={
            "job_id": job.id,
            "arm": job.arm,
            "seed": job.seed,
            "design": job.design,
            "state": result.state,
            "metrics": dict(sorted(result.metrics.items())),
            **({"error": result.error} if result.error else {}),
        },
        intermediate=intermediate(study, objectives, events) if len(objectives) == 1 else {},
        span=tuple(datetime.fromtimestamp(t / 1000) for t in span) if span else None,
    )


def intermediate(
    study: Study, objectives: Mapping[str, Direction], events: list[dict[str, Any]]
) -> dict[int, float]:
    """The reading of evaluations by step: what pruning looks at, else the objective's own name."""
    (objective,) = objectives
    tail = objective.rsplit("/", 1)[-1]
    names = [f"val/{tail}", f"train/{tail}"]
    if study.pruning is not None:
        names.insert(0, study.pruning.reading)
    for name in names:
        found: dict[int, float] = {}
        for event in events:
            step, value = event.get("step"), (event.get("metrics") or {}).get(name)
            if isinstance(step, int) and isinstance(value, int | float):
                found[step] = float(value)
        if found:
            return found
    return {}
