"""Studies of the toy core, made by hand, and what tests of the coordinator ask of it."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.engines import Engine, Outcome, StopAsked, Task
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study
from ablate.progress import Progress
from ablate.run import RunOptions, RunSummary, run
from tests.ablate import toy_core

CORE = "tests.ablate.toy_core"
TOY = f"""
question: Does it run?
core: {CORE}
base: {{steps: 30}}
factors:
  rate:
    slow: {{lr: 0.1}}
    fast: {{lr: 1.0}}
  noise:
    low: {{noise: 0.2}}
    high: {{noise: 0.9}}
    wild: {{noise: 2}}
design: one_at_a_time
seeds: [0, 1]
"""
"""A study file of 3 arms and 2 seeds."""


def toy_study(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "toy",
        "question": "Does it run?",
        "base": {},
        "factors": (),
        "designs": (),
        "seeds": (0,),
        "criteria": toy_core.criteria(),
        "core": CORE,
    }
    return Study(**(values | changes))


def toy_job(arm: str = "base", seed: int = 0, **settings: Any) -> Job:
    """A job whose id follows from its settings; a setting of None is left out."""
    flat = toy_core.SETTINGS | {"seed": seed} | settings
    flat = {path: value for path, value in flat.items() if value is not None}
    digest = hashlib.sha256(json.dumps([arm, flat], sort_keys=True).encode()).hexdigest()
    return Job(digest[:12], arm, {"arm": arm}, seed, flat)


def toy_plan(n: int = 4, **settings: Any) -> Plan:
    """`n` jobs that differ in their rate, two seeds to an arm."""
    return Plan([toy_job(f"lr={i // 2}", i % 2, lr=0.1 + i // 2, **settings) for i in range(n)])


class Heard:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.starts: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.ticks = 0
        self.prepared: list[tuple[int, int]] = []
        self._console = threading.Lock()  # like a real one, it cannot be sent to another process

    def say(self, text: str, style: str = "") -> None:
        self.said.append(text)

    def preparing(self, done: int, of: int) -> None:
        self.prepared.append((done, of))

    def started(self, progress: Progress, job: Job, attempt: int) -> None:
        self.starts.append(job.id)

    def ended(self, progress: Progress, job: Job, result: Result, seconds: float) -> None:
        self.ends.append((job.id, result.state))

    def tick(self, progress: Progress) -> None:
        self.ticks += 1

    def close(self) -> None:
        return None


def run_toys(
    out: Path, plan: Plan, *, study: Study | None = None, heard: Heard | None = None, **options: Any
) -> RunSummary:
    options = {"engine": "inline"} | options
    recorder = options.pop("make_recorder", None)
    display = heard or Heard()
    return run(study or toy_study(), plan, out, RunOptions(**options), display, recorder)


def numbers(out: Path, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """What must be the same however often a run was disturbed: results without cost and code."""
    ledger = Ledger(out)
    table = {}
    for job in jobs:
        result = ledger.result(job.id)
        assert result is not None, f"{job.arm} seed {job.seed} has no result"
        metrics = {k: v for k, v in result.metrics.items() if not k.startswith("cost/")}
        table[job.id] = {"state": result.state, "seed": result.seed, "metrics": metrics}
    return table


def starts(out: Path, job: Job) -> int:
    """How often a job was started."""
    return sum(event.get("event") == "started" for event in Ledger(out).events(job.id))


@dataclass(frozen=True)
class Waits:
    """Work of an engine by itself: a job called `quick` ends, one called `wait` when it is told."""

    cache: Path = Path()

    def __call__(self, task: Task, stop: StopAsked) -> Outcome:
        while task.job_id.startswith("wait"):
            if stop():
                return Outcome("interrupted")
            time.sleep(0.01)
        return Outcome("ended", " ".join(sorted(p.name for p in self.cache.rglob("[a-z]*"))))

    def moved(self, out: Path, cache: Path) -> Waits:
        return Waits(cache)


def drain(engine: Engine, seconds: float = 60) -> dict[str, Outcome]:
    """Wait until nothing is pending; the outcome of each job."""
    outcomes: dict[str, Outcome] = {}
    deadline = time.monotonic() + seconds
    while engine.pending():
        assert time.monotonic() < deadline, "the engine hangs"
        for notice in engine.wait(0.5):
            if notice.outcome is not None:
                outcomes[notice.job_id] = notice.outcome
    return outcomes
