"""A study's results as a tidy table, one row a job, and back: what is shipped beside a study file.

    arm, design, level/<factor or range>..., seed, job_id, state, error, attempts, commit, core,
    settings, base, <reading>...

`settings` is a digest of what the levels set, `base` one of what the study set under them, `--set`
included; tables without them are not checked for that.

A table ranks and reports as its ledger does, without data, weights or training, so that a reader
can check every number that was concluded from. Pure but for the core that reads the settings.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ablate.adaptive import Tried, tried_of
from ablate.adaptive_designs import ADAPTIVE, allowed
from ablate.compare import void_metrics
from ablate.core import load_core
from ablate.designs import DESIGNS
from ablate.nouns import UNSEARCHED, Arm, Job, Options, Plan, Result, State, Study, StudyError
from ablate.plan import config_of, plan_unread, whole
from ablate.rank import judge

LEVEL = "level/"
FIXED = ("seed", "job_id", "state", "error", "attempts", "commit", "core")
SET, BASE = "settings", "base"
DIGITS = 6
"""Significant digits of a reading; float32 carries seven."""


def to_table(study: Study, options: Options, plan: Plan, results: Mapping[str, Result]) -> str:
    """The results that there are as CSV, in the order of the plan.

    A job that several arms come to has one row, under the first. Traces of failures stay in the
    ledger.
    """
    names = _names(study)
    ended = [(job, results[job.id]) for job in plan.jobs if job.id in results]
    metrics = sorted({name for _, result in ended for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "design", *(LEVEL + name for name in names), *FIXED, SET, BASE, *metrics]
    )
    under = base_digest(study, options)
    for job, result in ended:
        fixed = [job.seed, job.id, result.state, result.error or "", result.attempts]
        code = [result.code.get("commit", ""), result.code.get("core", "")]
        code += [settings_digest(study, job.levels), under]
        levels = [job.levels[name] for name in names]
        readings = [_number(result.metrics.get(name)) for name in metrics]
        writer.writerow([job.arm, job.design, *levels, *fixed, *code, *readings])
    return text.getvalue()


def from_table(
    study: Study, options: Options, text: str, source: str
) -> tuple[Plan, dict[str, Result]]:
    """The plan of a study and the results that a table has for it, by job id.

    Seeds are the table's, and so are the arms of designs that follow from results. A job whose arm
    and seed the table lacks has no result.

    Args:
        study: as its file says.
        options: settings laid over it.
        text: the CSV.
        source: the table's name, for errors.

    Raises:
        StudyError: one line: the table is not of this study, or is malformed.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    wanted = {LEVEL + name for name in _names(study)} | {"arm", "design", *FIXED}
    if missing := sorted(wanted - set(rows[0] if rows else ())):
        raise StudyError(f"{source}: no column {missing[0]!r}; is it a table of {study.name}?")
    under = base_digest(study, options)
    found: dict[tuple[tuple[str, ...], int], Result] = {}
    for number, row in enumerate(rows, start=2):
        try:
            result = _result(row)
        except (ValueError, TypeError) as error:
            raise StudyError(f"{source}: line {number}: {error}") from None
        _refuse_changed(study, row, f"{source}: line {number}")
        if row.get(BASE) not in (None, "", under):
            raise StudyError(
                f"{source}: line {number}: the base of {study.source} was another when this row "
                "was run; give the study as it was, with the --set that it was run with"
            )
        found[_key(result.levels, study), result.seed] = result
    seeds = tuple(sorted({seed for _, seed in found}))
    study = dataclasses.replace(study, seeds=seeds)
    plan = plan_unread(study, options, _followed(study, rows, source))
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
        raise _strange(study, strange[0], source)
    plan = dataclasses.replace(plan, jobs=jobs)
    return _walked(study, options, plan, results), results


def settings_digest(study: Study, levels: Mapping[str, str]) -> str:
    """Of what the levels of an arm set; KeyError where the study lacks one of them."""
    value = {f.name: dict(f.level(levels[f.name]).settings) for f in study.factors}
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_digest(study: Study, options: Options) -> str:
    """Of what a study sets under its levels, but for where its data and weights lie."""
    laid = load_core(study.core).inputs(options.data, options.checkpoint)
    value = {path: setting for path, setting in study.base.items() if path not in laid}
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _refuse_changed(study: Study, row: Mapping[str, str], place: str) -> None:
    """Refuse a row whose levels set something else today; old tables do not say what they set."""
    levels = {factor.name: row[LEVEL + factor.name] for factor in study.factors}
    known = all(levels[factor.name] in factor.names for factor in study.factors)
    if known and row.get(SET) and row[SET] != settings_digest(study, levels):
        said = ", ".join(f"{name}={level}" for name, level in levels.items())
        raise StudyError(
            f"{place}: {study.source} sets other things at {said} than when this row was run; "
            "give the study as it was, or run it"
        )


def _names(study: Study) -> list[str]:
    """What an arm has a level of: factors, and the ranges of searches."""
    return [*(factor.name for factor in study.factors), *study.ranges]


def _key(levels: Mapping[str, str], study: Study) -> tuple[str, ...]:
    return tuple(levels.get(name, "") for name in _names(study))


def _strange(study: Study, levels: tuple[str, ...], source: str) -> StudyError:
    said = ", ".join(levels)
    return StudyError(f"{source}: no arm of {study.name} has the levels {said}")


def _followed(study: Study, rows: Sequence[Mapping[str, str]], source: str) -> list[Arm]:
    """The arms that adaptive designs came to, as the rows have them."""
    adaptive = {design.name for design in study.designs} - set(DESIGNS)
    arms: dict[tuple[str, ...], Arm] = {}
    for row in rows:
        if row["design"] not in adaptive:
            continue
        levels = {name: row[LEVEL + name] for name in _names(study)}
        key = tuple(levels.values())
        try:
            values = {p: _value(levels[p]) for p in study.ranges if levels[p] != UNSEARCHED}
        except ValueError:
            raise _strange(study, key, source) from None
        if any(levels[factor.name] not in factor.names for factor in study.factors):
            raise _strange(study, key, source)
        arms.setdefault(key, Arm(row["arm"], levels, row["design"], values))
    return list(arms.values())


@dataclasses.dataclass
class _Asking:
    """Whom a design is made for that has been run elsewhere (`ablate.adaptive_designs.Asking`)."""

    study: Study
    options: Options

    def possible(self, arm: Arm) -> bool:
        """Whether an arm could be run, as far as settings tell."""
        arm = whole(self.study, arm)
        try:
            config_of(load_core(self.study.core), self.study, arm, self.options)
        except StudyError:
            return False
        return allowed(self.study, arm)


def _walked(study: Study, options: Options, plan: Plan, results: Mapping[str, Result]) -> Plan:
    """The plan with the ablation path that the results lead along."""
    design = next((design for design in study.designs if design.name == "paths"), None)
    if design is None:
        return plan
    gates, _ = judge(load_core(study.core), plan.jobs, results)
    jobs: dict[tuple[str, ...], list[Job]] = {}
    for job in plan.jobs:
        for levels in (job.levels, *(arm.levels for arm in job.also)):
            jobs.setdefault(_key(levels, study), []).append(job)

    def of(arm: Arm) -> list[Job]:
        return jobs.get(_key(whole(study, arm).levels, study), [])

    def tried(arm: Arm) -> Tried | None:
        void = {job.id: void_metrics(study, gates.get(job.id, ())) for job in of(arm)}
        return tried_of(of(arm), results, void) if of(arm) else None

    asking = _Asking(study, options)
    found = ADAPTIVE["paths"](asking, design.name, design).propose(tried, 0)
    labels = tuple(of(arm)[0].arm for arm in found.walked if of(arm))
    more = (found.more,) if found.more else ()
    return dataclasses.replace(plan, notes=(*plan.notes, *found.notes), walked=labels, more=more)


def _result(row: Mapping[str, Any]) -> Result:
    if row["state"] not in get_args(State):
        raise ValueError(f"state: given {row['state']!r}, allowed: {', '.join(get_args(State))}")
    known = {"arm", "design", *FIXED, SET, BASE}
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


def _value(text: str) -> float | int:
    """The value of a range, of its name."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _number(value: float | None) -> str:
    """Six digits, and whole numbers as they are."""
    if value is None:
        return ""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.{DIGITS}g}"
