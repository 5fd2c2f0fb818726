"""A study's results as a tidy table, one row a job, and back: what is shipped beside a study file.

    arm, design, level/<factor>..., seed, job_id, state, error, attempts, commit, core, <reading>...

A table ranks and reports as its ledger does, without data, weights or training, so that a reader
can check every number that was concluded from. Pure but for the core that reads the settings.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any, get_args

from ablate.core import load_core
from ablate.nouns import Job, Options, Plan, Result, State, Study, StudyError
from ablate.plan import plan_unread

LEVEL = "level/"
FIXED = ("seed", "job_id", "state", "error", "attempts", "commit", "core")
DIGITS = 6
"""Significant digits of a reading; float32 carries seven."""


def to_table(study: Study, plan: Plan, results: Mapping[str, Result]) -> str:
    """The results that there are as CSV, in the order of the plan.

    A job that several arms come to has one row, under the first. Traces of failures stay in the
    ledger.
    """
    factors = [factor.name for factor in study.factors]
    ended = [(job, results[job.id]) for job in plan.jobs if job.id in results]
    metrics = sorted({name for _, result in ended for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "design", *(LEVEL + name for name in factors), *FIXED, *metrics])
    for job, result in ended:
        fixed = [job.seed, job.id, result.state, result.error or "", result.attempts]
        code = [result.code.get("commit", ""), result.code.get("core", "")]
        levels = [job.levels[name] for name in factors]
        readings = [_number(result.metrics.get(name)) for name in metrics]
        writer.writerow([job.arm, job.design, *levels, *fixed, *code, *readings])
    return text.getvalue()


def from_table(
    study: Study, options: Options, text: str, source: str
) -> tuple[Plan, dict[str, Result]]:
    """The plan of a study and the results that a table has for it, by job id.

    Seeds are the table's. A job whose arm and seed the table lacks has no result.

    Args:
        study: as its file says.
        options: settings laid over it.
        text: the CSV.
        source: the table's name, for errors.

    Raises:
        StudyError: one line: the table is not of this study, or is malformed.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    wanted = {LEVEL + factor.name for factor in study.factors} | set(FIXED)
    if missing := sorted(wanted - set(rows[0] if rows else ())):
        raise StudyError(f"{source}: no column {missing[0]!r}; is it a table of {study.name}?")
    found: dict[tuple[tuple[str, ...], int], Result] = {}
    for number, row in enumerate(rows, start=2):
        try:
            result = _result(row)
        except (ValueError, TypeError) as error:
            raise StudyError(f"{source}: line {number}: {error}") from None
        found[_key(result.levels, study), result.seed] = result
    seeds = tuple(sorted({seed for _, seed in found}))
    plan = plan_unread(dataclasses.replace(study, seeds=seeds), options)
    jobs: list[Job] = []
    results: dict[str, Result] = {}
    used = set()
    for job in plan.jobs:
        arms = [job.levels, *(arm.levels for arm in job.also)]
        keys = [(_key(levels, study), job.seed) for levels in arms]
        key = next((key for key in keys if key in found), None)
        if key is None:
            jobs.append(job)
            continue
        used.update(keys)
        results[found[key].job_id] = found[key]
        jobs.append(dataclasses.replace(job, id=found[key].job_id))
    if strange := next((key for key in found if key not in used), None):
        levels = ", ".join(strange[0])
        raise StudyError(f"{source}: no arm of {study.name} has the levels {levels}")
    return dataclasses.replace(plan, jobs=jobs), results


def core_of(study: Study) -> Any:
    """The core that judges the readings of a table."""
    return load_core(study.core)


def _key(levels: Mapping[str, str], study: Study) -> tuple[str, ...]:
    return tuple(levels.get(factor.name, "") for factor in study.factors)


def _result(row: Mapping[str, Any]) -> Result:
    if row["state"] not in get_args(State):
        raise ValueError(f"state: given {row['state']!r}, allowed: {', '.join(get_args(State))}")
    known = {"arm", "design", *FIXED}
    names = [name for name in row if name not in known and not name.startswith(LEVEL)]
    return Result(
        job_id=row["job_id"],
        levels={k.removeprefix(LEVEL): v for k, v in row.items() if k.startswith(LEVEL)},
        seed=int(row["seed"]),
        state=row["state"],
        metrics={name: float(row[name]) for name in names if row[name]},
        error=row["error"] or None,
        attempts=int(row["attempts"]),
        code={"commit": row["commit"], "core": row["core"]},
    )


def _number(value: float | None) -> str:
    """Six digits, and whole numbers as they are."""
    if value is None:
        return ""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.{DIGITS}g}"
