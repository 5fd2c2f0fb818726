"""What a study is and how far it is, without running anything: `ablate plan`, `ablate status`."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from ablate.estimate import Estimate
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, State, Study
from ablate.progress import duration, shape
from ablate.pruning_schema import unheard

ROWS = 200
"""Jobs that the table of a plan lists; `--json` has them all."""

ENDED = get_args(State)
ORDER = (*ENDED, "running", "started", "missing")


def state_of(ledger: Ledger, job: Job, result: Result | None) -> str:
    """A result's state; else running, started (it has events, perhaps a checkpoint) or missing."""
    if result is not None:
        return result.state
    folder = ledger.folder(job.id)
    if not folder.exists():
        return "missing"
    if _locked(ledger, job):
        return "running"
    return "started" if (folder / "events.jsonl").exists() else "missing"


def _locked(ledger: Ledger, job: Job) -> bool:
    try:
        with (ledger.folder(job.id) / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def states(plan: Plan, ledger: Ledger, results: Mapping[str, Result]) -> dict[str, str]:
    return {job.id: state_of(ledger, job, results.get(job.id)) for job in plan.jobs}


def plan_json(
    study: Study, plan: Plan, state: Mapping[str, str], guess: Estimate
) -> dict[str, Any]:
    """The form of `plan --json`."""
    return {
        "study": study.name,
        "jobs": [
            {
                "job_id": job.id,
                "arm": job.arm,
                "levels": dict(job.levels),
                "seed": job.seed,
                "visual_tokens": job.size.get("visual_tokens"),
                "parameters": job.size.get("parameters"),
                "state": state[job.id],
            }
            for job in plan.jobs
        ],
        "estimate": guess.to_json(),
        "notes": list(plan.notes),
        "more": list(plan.more),
    }


def plan_table(study: Study, plan: Plan, state: Mapping[str, str], guess: Estimate) -> Table:
    """A row for each job: arm, what differs from the base, seed, size, time to come, state."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("job", "arm", "beside the base"):
        table.add_column(column)
    for column in ("seed", "visual tokens", "parameters", "time"):
        table.add_column(column, justify="right")
    table.add_column("state")
    base = study.base_levels
    for job in plan.jobs[:ROWS]:
        changed = [
            f"{name}={level}" for name, level in job.levels.items() if level != base.get(name)
        ]
        table.add_row(
            job.id,
            Text(job.arm),
            Text(" ".join(changed)),
            str(job.seed),
            *(f"{job.size[key]:,.0f}" if key in job.size else "" for key in SIZES),
            _time(job, state[job.id], guess),
            state[job.id],
        )
    return table


def _time(job: Job, state: str, guess: Estimate) -> str:
    found = guess.guesses.get(shape(job)) if state not in ENDED else None
    return "" if found is None or found.seconds is None else duration(found.seconds)


SIZES = ("visual_tokens", "parameters")


def plan_summary(study: Study, plan: Plan, state: Mapping[str, str], guess: Estimate) -> str:
    """What stands below the table."""
    counts = Counter(state.values())
    found = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
    lines = [
        f"{study.name}: {len(plan.arms)} arms x {len(study.seeds)} seeds = "
        f"{len(plan.jobs)} jobs ({found or 'none yet'})"
    ]
    if len(plan.jobs) > ROWS:
        lines.insert(0, f"... and {len(plan.jobs) - ROWS:,} more (--json lists all)")
    return "\n".join([*lines, *estimate_lines(guess), *plan.more, *plan.notes])


def estimate_lines(guess: Estimate) -> list[str]:
    """Time and memory of what is to run, and how they are known."""
    if not guess.to_run or guess.seconds is None or guess.cpu_seconds is None:
        return []
    line = f"about {duration(guess.seconds)} to go with {_many(guess.workers, 'worker')}"
    if guess.workers > 1:
        line += f" ({duration(guess.cpu_seconds)} of all together)"
    if guess.trainings < guess.to_run:
        line += f"; {guess.to_run} jobs in {_many(guess.trainings, 'training')}"
    if guess.memory_mb is not None:
        total = guess.memory_mb * guess.workers
        line += f"; {guess.memory_mb / 1e3:.1f} GB a worker, {total / 1e3:.1f} GB in all"
    sources = Counter(found.source for found in guess.guesses.values())
    told = ", ".join(f"{_many(n, 'shape')} {HOW[source]}" for source, n in sources.items())
    return [line, f"  {told}"]


HOW: Mapping[str, str] = {
    "finished jobs": "from finished jobs",
    "probe": "from timed steps",
    "finished jobs elsewhere": "from jobs that ended on another machine",
    "scaled": "scaled from the others",
    "unknown": "unknown",
}


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def status_json(
    study: Study,
    plan: Plan,
    ledger: Ledger,
    state: Mapping[str, str],
    results: Mapping[str, Result],
    core_hash: str,
    guess: Estimate,
) -> dict[str, Any]:
    """How far a study is: counts, what failed and why, what runs, results of older code."""
    counts = Counter(state.values())
    ends = [(job, results[job.id]) for job in plan.jobs if job.id in results]
    silent = unheard(study.pruning, results, ledger)
    return {
        "study": study.name,
        "jobs": len(plan.jobs),
        "states": {name: counts[name] for name in ORDER if counts[name]},
        "not_done": [
            {"job_id": job.id, "arm": job.arm, "seed": job.seed, "state": result.state}
            | {"error": result.error, "attempts": result.attempts}
            for job, result in ends
            if result.state != "done"
        ],
        "running": [
            {"job_id": job.id, "arm": job.arm, "seed": job.seed, "step": _last_step(ledger, job)}
            for job in plan.jobs
            if state[job.id] == "running"
        ],
        "older_code": sum(result.code.get("core") != core_hash for _, result in ends),
        "estimate": guess.to_json(),
        "more": list(plan.more),
        "warnings": [*ledger.warnings, *([silent] if silent else [])],
    }


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    found = ", ".join(f"{n} {name}" for name, n in status["states"].items())
    lines = [f"{status['study']}: {status['jobs']} jobs: {found}"]
    lines += [
        f"  {row['state']:9} {row['arm']} seed {row['seed']}: {row['error']}  ({row['job_id']})"
        for row in status["not_done"]
    ]
    lines += [
        f"  running   {row['arm']} seed {row['seed']} at step {row['step']}  ({row['job_id']})"
        for row in status["running"]
    ]
    if status["older_code"]:
        lines.append(f"{status['older_code']} results from older code: --rerun trains them again")
    guess = status["estimate"]
    if guess["to_run"] and guess["seconds"] is not None:
        crew = _many(guess["workers"], "worker")
        lines.append(f"about {duration(guess['seconds'])} to go with {crew}")
    return [*lines, *status["more"], *status["warnings"]]


def _last_step(ledger: Ledger, job: Job) -> int | None:
    steps = [event["step"] for event in ledger.read_events(job.id)[0] if "step" in event]
    return steps[-1] if steps else None
