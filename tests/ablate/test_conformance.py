"""What every engine must do: the same study, the same faults, the same numbers.

inline and pool always; ray and slurm where their extras are installed (`make test-engines`): Ray on
a cluster of its own with and without shared storage, slurm with submitit's local executor and with
a real Slurm on this machine.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ablate.engines import Notice, Place, Task, make_engine
from ablate.ledger import Ledger
from ablate.nouns import Plan, Resources
from ablate.run import RunSummary
from tests.ablate import clusters
from tests.ablate.toys import (
    Heard,
    Waits,
    drain,
    numbers,
    run_toys,
    starts,
    toy_job,
    toy_plan,
    toy_study,
)

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning")]

PATIENCE = 60.0


@dataclass
class Kind:
    """An engine, and how it is asked for."""

    name: str
    resources: Resources
    survives: bool = True
    """A job's crash or hang is not the coordinator's."""
    pace: float = 0.1
    """Seconds a step takes where a job must be met at work."""

    def run(self, out: Path, plan: Plan, **options: Any) -> RunSummary:
        study = toy_study(resources=self.resources, **options.pop("study", {}))
        options = {"workers": 2, "engine": self.name, "heard": Heard()} | options
        return run_toys(out, plan, study=study, **options)


QUICK = {"poll": 1.0, "time": 5, "warning": 20}
KINDS = {
    "inline": Kind("inline", Resources(), survives=False, pace=0.01),
    "pool": Kind("pool", Resources(), pace=0.01),
    "ray": Kind("ray", Resources()),
    "ray, no shared storage": Kind("ray", Resources(storage="local"), pace=0.2),
    "slurm, local executor": Kind("slurm", Resources(slurm={**QUICK, "cluster": "local"})),
    "slurm": Kind("slurm", Resources(memory=0.2, slurm=QUICK)),
}
EXTRA = [
    pytest.param(name, marks=pytest.mark.long) if kind.name in ("ray", "slurm") else name
    for name, kind in KINDS.items()
]


@pytest.fixture(scope="module", params=EXTRA)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kind]:
    found = KINDS[request.param]
    with ExitStack() as held:
        if found.name == "ray":
            if why := clusters.missing("ray"):
                pytest.skip(why)
            held.enter_context(clusters.ray_nodes(1))
        if found.name == "slurm":
            if why := clusters.missing("submitit" if "local" in request.param else "slurm"):
                pytest.skip(why)
            if request.param == "slurm":
                held.enter_context(clusters.slurm(tmp_path_factory.mktemp("slurm")))
        yield found


def test_the_order_of_jobs_changes_no_number(kind: Kind, tmp_path: Path) -> None:
    plan = toy_plan(6)
    run_toys(tmp_path / "inline", plan)
    summary = kind.run(tmp_path / "out", Plan(plan.jobs[::-1]))
    assert summary.count("done") == 6
    assert numbers(tmp_path / "out", plan.jobs) == numbers(tmp_path / "inline", plan.jobs)
    assert all(starts(tmp_path / "out", job) == 1 for job in plan.jobs)


def test_a_failure_is_data_and_stops_nobody(kind: Kind, tmp_path: Path) -> None:
    bad, good = toy_job("wrong", noise=None), toy_job("good", steps=5)
    summary = kind.run(tmp_path, Plan([bad, good]))
    assert summary.results[good.id].state == "done"
    result = summary.results[bad.id]
    assert (result.state, result.error) == ("failed", "KeyError: 'noise'")
    assert "toy_core" in (result.traceback or "")


def test_a_crash_costs_one_attempt_and_no_number(kind: Kind, tmp_path: Path) -> None:
    if not kind.survives:
        pytest.skip("a crash of a job is one of this process")
    if kind.resources.storage == "local":
        pytest.skip("the toy remembers its crash in the folder that is lost with it: see test_ray")
    job = toy_job(fault="exit", fault_times=1, steps=14, step_seconds=kind.pace)
    calm, good = toy_job(steps=14), toy_job("good")
    heard = Heard()
    summary = kind.run(tmp_path, Plan([job, calm, good]), heard=heard)
    assert summary.count("done") == 3
    result = summary.results[job.id]
    assert result.attempts == 2
    assert any("trying again" in line for line in heard.said)
    events = list(Ledger(tmp_path).events(job.id))
    second = max(i for i, event in enumerate(events) if event.get("event") == "started")
    assert min(e["step"] for e in events[second:] if "step" in e) > 0  # from the checkpoint
    assert result.metrics["final/loss"] == summary.results[calm.id].metrics["final/loss"]


def test_a_crash_that_stays_fails_its_job_alone(kind: Kind, tmp_path: Path) -> None:
    if not kind.survives:
        pytest.skip("a crash of a job is one of this process")
    job, good = toy_job(fault="exit"), toy_job("good")
    summary = kind.run(tmp_path, Plan([job, good]))
    assert summary.results[good.id].state == "done"
    result = summary.results[job.id]
    assert (result.state, result.attempts) == ("failed", 2)
    assert result.error
    assert "\n" not in result.error


def test_a_hung_job_is_timed_out(kind: Kind, tmp_path: Path) -> None:
    if not kind.survives:
        pytest.skip("time cannot be limited in this process")
    job, good = toy_job(fault="hang"), toy_job("good")
    summary = kind.run(tmp_path, Plan([job, good]), study={"timeout": 4.0})
    assert summary.results[good.id].state == "done"
    assert "within 4 s" in (summary.results[job.id].error or "")
    assert starts(tmp_path, job) == 1


def interrupt(after: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + PATIENCE
        while not after() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_ctrl_c_keeps_checkpoints_and_a_later_run_goes_on(kind: Kind, tmp_path: Path) -> None:
    plan, calm = toy_plan(4, step_seconds=kind.pace), toy_plan(4)
    path = tmp_path / "jobs" / plan.jobs[0].id / "events.jsonl"
    thread = interrupt(lambda: path.exists() and path.read_bytes().count(b"\n") > 5)
    summary = kind.run(tmp_path, plan)
    thread.join()
    assert summary.interrupted
    assert summary.count("failed") == 0
    events = list(Ledger(tmp_path).events(path.parent.name))
    assert events[-1].get("event") == "interrupted"
    reached = max(event["step"] for event in events if "step" in event)
    summary = kind.run(tmp_path, plan)
    assert not summary.interrupted
    assert summary.missing == ()
    events = list(Ledger(tmp_path).events(path.parent.name))
    second = max(i for i, event in enumerate(events) if event.get("event") == "started")
    assert next(e["step"] for e in events[second:] if "step" in e) == reached
    run_toys(tmp_path / "calm", calm)
    disturbed = [row["metrics"] for row in numbers(tmp_path, plan.jobs).values()]
    assert disturbed == [row["metrics"] for row in numbers(tmp_path / "calm", calm.jobs).values()]


def test_a_cancelled_job_ends_alone(kind: Kind, tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path / "cache", resources=kind.resources)
    engine = make_engine(kind.name, Waits(), 1, place=place)
    try:
        for job in ("wait-at-work", "wait-queued", "quick"):
            engine.submit(Task(job, 1, {}, 0))
        deadline = time.monotonic() + PATIENCE
        while Notice("wait-at-work") not in engine.wait(0.1):
            assert time.monotonic() < deadline
        for job in ("wait-queued", "wait-at-work", "strange"):
            engine.cancel(job)
        outcomes = drain(engine, PATIENCE)
    finally:
        engine.close()
    kinds = {job: outcome.kind for job, outcome in outcomes.items()}
    assert kinds == {
        "wait-at-work": "interrupted",
        "wait-queued": "interrupted",
        "quick": "ended",
    }


def test_a_hundred_jobs_of_nothing(kind: Kind, tmp_path: Path) -> None:
    plan = Plan([toy_job(f"seed {i}", i, steps=0) for i in range(100)])
    slurm = {**kind.resources.slurm, "jobs_per_task": 10} if kind.resources.slurm else {}
    kind = replace(kind, resources=replace(kind.resources, slurm=slurm))
    summary = kind.run(tmp_path, plan)
    assert summary.count("done") == 100
    assert len(summary.trained) == 100
