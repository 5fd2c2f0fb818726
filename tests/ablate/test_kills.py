"""kill -9 at chosen moments: while a result is written, and all along a study that MLflow records.

The disk is slow here (`tests.ablate.slow_core`), so files are often half written at a kill. The
longer form kills LANELM_KILLS times (12 unless it says otherwise): the coordinator, a worker or
both; while jobs train, while MLflow's database is made, and while it is written.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ablate.ledger import Ledger
from ablate.nouns import Plan
from tests.ablate.test_faults import Victim, check_events, ended, gone, workers_of
from tests.ablate.toys import numbers, run_toys, toy_plan

KILLS = int(os.environ.get("LANELM_KILLS", "12"))
A_STUDY = 6
"""Kills that one study is to endure."""
STEP_SECONDS = 0.02
PATIENCE = 300.0
"""Seconds for what takes a few on an idle machine."""


def coordinator(out: Path, n: int, record: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(out), str(n)]
    command += [str(STEP_SECONDS), "--core", "tests.ablate.slow_core"]
    command += ["--record"] if record else []
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def plan_of(n: int) -> Plan:
    return toy_plan(n, steps=12, step_seconds=STEP_SECONDS)


def wanted(folder: Path, n: int) -> dict[str, Any]:
    """The numbers of an undisturbed run, by the ids of the disturbed one."""
    calm = toy_plan(n, steps=12)  # the same numbers without waiting between steps
    run_toys(folder, calm)
    rows = numbers(folder, calm.jobs).values()
    return dict(zip((job.id for job in plan_of(n).jobs), rows, strict=True))


def kill(process: subprocess.Popen[bytes], victim: Victim, workers: list[int]) -> None:
    """Kill with -9; with its coordinator gone, no worker may stay."""
    everyone = workers_of(process.pid)
    if victim != "coordinator":
        for pid in workers[:1]:
            os.kill(pid, signal.SIGKILL)
    if victim != "worker":
        process.kill()
        process.wait()
        assert gone(everyone, 60), "a worker outlives its coordinator"


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors.decode()


def writing(out: Path) -> int | None:
    """The process that is writing a result at this moment."""
    for path in out.glob("jobs/*/.result.json.*.tmp"):
        return int(path.name.split(".")[3])
    return None


def kill_while_a_result_is_written(out: Path, victim: Victim, dice: random.Random) -> None:
    """The half-written result must be as none, the others untouched, the numbers the same."""
    n, plan = 8, plan_of(8)
    want = wanted(out / "calm", n)
    process = coordinator(out / "run", n)
    try:
        deadline = time.monotonic() + PATIENCE
        after, writer = dice.randrange(3), None  # how many results are to be there
        while writer is None or len(ended(out / "run", plan)) < after:
            assert process.poll() is None
            assert time.monotonic() < deadline, "no result is ever seen being written"
            time.sleep(0.001)
            writer = writing(out / "run")
        kill(process, victim, [writer])
        if victim == "worker":
            finish(process)
    finally:
        process.kill()
        process.communicate()
    then = ended(out / "run", plan)
    finish(coordinator(out / "run", n))
    now = ended(out / "run", plan)
    assert {job: now[job] for job in then} == then, "a finished job was trained again"
    assert numbers(out / "run", plan.jobs) == want
    check_events(out / "run", plan)
    assert not list(out.glob("run/jobs/*/.*.tmp"))


def test_kill_both_while_a_result_is_written(tmp_path: Path) -> None:
    kill_while_a_result_is_written(tmp_path, "both", random.Random(0))


@pytest.mark.long
@pytest.mark.parametrize("victim", ["coordinator", "worker"])
def test_kill_one_while_a_result_is_written(tmp_path: Path, victim: Victim) -> None:
    kill_while_a_result_is_written(tmp_path, victim, random.Random(1))


def disturb(out: Path, n: int, victim: Victim, dice: random.Random) -> bool:
    """Start a recorded run and kill at a moment of its life; False if it had ended by then."""
    process = coordinator(out, n, record=True)
    store, workers = out / "mlflow.db", []
    try:
        deadline = time.monotonic() + PATIENCE
        late = dice.random() < 0.5  # once MLflow is written, or as soon as workers train
        while process.poll() is None and not (workers or (late and store.exists())):
            assert time.monotonic() < deadline, "nothing begins"
            time.sleep(0.005)
            workers = workers_of(process.pid)
        while late and process.poll() is None and not store.exists():
            assert time.monotonic() < deadline, "MLflow is never written"
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 2.5))
        if process.poll() is not None:
            return False
        workers = workers_of(process.pid)
        if victim == "worker" and not workers:
            victim = "coordinator"
        dice.shuffle(workers)
        kill(process, victim, workers)
        if victim == "worker":
            finish(process)
    finally:
        process.kill()
        process.communicate()
    return True


CONNECT = """
import sys
from pathlib import Path
from ablate.tracking import connect
print(len(connect(Path(sys.argv[1])).search_experiments()))
"""


@pytest.mark.long
def test_a_kill_while_mlflow_sets_up_its_tables_leaves_no_half_database(tmp_path: Path) -> None:
    """MLflow refuses a database that was left half set up, and would ever after."""
    command = [sys.executable, "-c", CONNECT, str(tmp_path)]
    for seconds in (0.05, 0.5, 1.0, 2.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob(".mlflow.db.*")):
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.wait()
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "1"
    assert {path.name.removeprefix("mlflow.db") for path in tmp_path.iterdir()} <= {
        "", "-wal", "-shm"
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic)")
@pytest.mark.parametrize("seed", range(max(1, KILLS // A_STUDY)))
def test_a_recorded_study_endures(tmp_path: Path, seed: int) -> None:
    n, dice = 24, random.Random(seed)
    plan, out = plan_of(n), tmp_path / "run"
    want, written = wanted(tmp_path / "calm", n), {}
    victims: list[Victim] = ["coordinator", "coordinator", "both", "both", "worker"]
    kills = 0
    while kills < A_STUDY:
        kills += disturb(out, n, dice.choice(victims), dice)
        now = ended(out, plan)
        assert {job: now[job] for job in written} == written, "a finished job was trained again"
        written = now
    finish(coordinator(out, n, record=True))
    final = ended(out, plan)
    assert {job: final[job] for job in written} == written
    assert numbers(out, plan.jobs) == want
    check_events(out, plan)
    check_record(out, plan)


def check_record(out: Path, plan: Plan) -> None:
    """One finished run a job with its whole history, and nothing left RUNNING."""
    from ablate.tracking import connect

    client = connect(out)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert "RUNNING" not in {run.info.status for run in runs}
    jobs = [run for run in runs if run.data.tags.get("kind") == "job"]
    assert Counter(run.data.tags["job_id"] for run in jobs) == {job.id: 1 for job in plan.jobs}
    assert {run.info.status for run in jobs} == {"FINISHED"}
    for run in jobs:
        result = Ledger(out).result(run.data.tags["job_id"])
        assert result is not None
        assert run.data.metrics["final/loss"] == result.metrics["final/loss"]
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert {point.step for point in history} == set(range(13))
    arms = {run.data.tags["arm"] for run in runs if run.data.tags.get("kind") == "config"}
    assert arms == {job.arm for job in plan.jobs}
