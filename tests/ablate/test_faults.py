"""kill -9 of the coordinator, of workers and of both, at many moments of a study.

Whatever was killed, typing the command again ends with the results of an undisturbed run; no job
that had ended is trained again, and no job is ever trained by two processes at once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from ablate.ledger import Ledger
from ablate.nouns import Plan
from tests.ablate.toys import numbers, run_toys, toy_plan

Victim = Literal["coordinator", "worker", "both"]

STEP_SECONDS = 0.004


def plan_of(n: int) -> Plan:
    return toy_plan(n, steps=12, step_seconds=STEP_SECONDS)


def coordinator(out: Path, n: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(out), str(n), str(STEP_SECONDS)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
        except OSError:  # it ended while we looked
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def workers_of(pid: int) -> list[int]:
    """The worker processes: the children of the server that the coordinator started."""
    return [worker for server in children_of(pid) for worker in children_of(server)]


def gone(pids: list[int], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def wait_for_steps(out: Path, plan: Plan) -> None:
    """Wait until the first job trains."""
    deadline = time.monotonic() + 30
    while not any("step" in event for event in Ledger(out).events(plan.jobs[0].id)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(out: Path, plan: Plan) -> dict[str, int]:
    """When each finished job's result was written."""
    paths = {job.id: out / "jobs" / job.id / "result.json" for job in plan.jobs}
    return {job_id: path.stat().st_mtime_ns for job_id, path in paths.items() if path.exists()}


def disturb(out: Path, plan: Plan, victim: Victim, dice: random.Random) -> dict[str, int]:
    """Start a run, kill within its first moments of training; the jobs that had ended by then."""
    before = len(ended(out, plan))
    process = coordinator(out, len(plan.jobs))
    try:
        deadline = time.monotonic() + 30
        while not (workers := workers_of(process.pid)) and process.poll() is None:
            assert time.monotonic() < deadline, "no worker starts"
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.1 * len(plan.jobs) / 8))
        if victim in ("worker", "both") and workers:
            os.kill(dice.choice(workers), signal.SIGKILL)
        if victim in ("coordinator", "both"):
            workers = workers_of(process.pid)
            process.kill()
            process.wait()
            assert gone(workers), "a worker outlives its coordinator"
        else:
            process.wait(60)
    finally:
        process.kill()
        process.communicate()
    then = ended(out, plan)
    assert len(then) >= before
    return then


def check_events(out: Path, plan: Plan) -> None:
    """No job was trained by two workers at once: each attempt's steps follow one another."""
    for job in plan.jobs:
        events = list(Ledger(out).events(job.id))
        last = -1
        for event in events:
            if event.get("event") == "started":
                last = -1
            elif "step" in event:
                assert last == -1 or event["step"] == last + 1, "two workers wrote at once"
                last = event["step"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    made: dict[int, dict[str, Any]] = {}
    for n in (8, 24):
        out = tmp_path_factory.mktemp("undisturbed")
        plan = plan_of(n)
        calm = toy_plan(n, steps=12)  # the same numbers without waiting between steps
        run_toys(out, calm)
        rows = numbers(out, calm.jobs).values()
        made[n] = dict(zip((job.id for job in plan.jobs), rows, strict=True))
    return made


def endure(
    out: Path, n: int, kills: int, victims: list[Victim], seed: int, want: dict[str, Any]
) -> None:
    """Kill `kills` times at random moments, then finish, and compare with `want`."""
    plan, dice = plan_of(n), random.Random(seed)
    written: dict[str, int] = {}
    for _ in range(kills):
        victim = dice.choice(victims)
        now = disturb(out, plan, victim, dice)
        assert {job: now[job] for job in written} == written, "a finished job was trained again"
        written = now
    process = coordinator(out, n)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    final = ended(out, plan)
    assert {job: final[job] for job in written} == written
    assert numbers(out, plan.jobs) == want
    check_events(out, plan)


@pytest.mark.parametrize("victim", ["coordinator", "worker", "both"])
def test_kill_9_and_again(
    tmp_path: Path, victim: Victim, undisturbed: dict[int, dict[str, Any]]
) -> None:
    endure(tmp_path, 8, 2, [victim], seed=1, want=undisturbed[8])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_sixty_kills(tmp_path: Path, seed: int, undisturbed: dict[int, dict[str, Any]]) -> None:
    victims: list[Victim] = ["coordinator", "coordinator", "worker", "both"]
    endure(tmp_path, 24, 6, victims, seed, undisturbed[24])


def test_a_killed_worker_costs_its_job_one_attempt(tmp_path: Path) -> None:
    plan = toy_plan(2, steps=12, step_seconds=0.1)
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(tmp_path), "2", "0.1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_for_steps(tmp_path, plan)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "killed by SIGKILL" in errors.decode()
    results = [Ledger(tmp_path).result(job.id) for job in plan.jobs]
    assert sorted(result.attempts for result in results if result) == [1, 2]


def test_ctrl_c_in_a_terminal_reaches_all_and_breaks_nothing(tmp_path: Path) -> None:
    """The terminal signals the whole group: workers, their server and the coordinator."""
    plan = toy_plan(4, steps=12, step_seconds=0.05)
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(tmp_path), "4", "0.05"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for_steps(tmp_path, plan)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors.decode()
    assert "Stopping" in errors.decode()
    events = list(Ledger(tmp_path).events(plan.jobs[0].id))
    assert events[-1]["event"] == "interrupted"
    assert not ended(tmp_path, plan)


def test_a_second_coordinator_is_refused(tmp_path: Path) -> None:
    process = coordinator(tmp_path, 24)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "lock").exists() or not (tmp_path / "lock").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = coordinator(tmp_path, 24)
        _, errors = second.communicate(timeout=30)
        assert second.returncode != 0
        assert f"pid {process.pid}" in errors.decode()
    finally:
        process.kill()
        process.communicate()
    assert run_toys(tmp_path, plan_of(8)).count("done") == 8  # a killed holder leaves no lock


def test_a_lock_file_from_another_time_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("host elsewhere, pid 1\n")
    assert run_toys(tmp_path, plan_of(2)).count("done") == 2
