"""The engines by themselves: simple work, and every way in which a worker process can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablate.engines import Engine, Notice, Outcome, StopAsked, Task, make_engine

DEADLINE = 20.0


def work(task: Task, stop: StopAsked) -> Outcome:
    """Do what the job's name says."""
    what, _, argument = task.job_id.partition(":")
    if what == "exit":
        os._exit(int(argument))
    if what == "signal":
        os.kill(os.getpid(), int(argument))
    if what == "sleep":
        time.sleep(float(argument))
    if what == "until_stop":
        while not stop():
            time.sleep(0.005)
        return Outcome("interrupted")
    return Outcome("ended", str(os.getpid()))


def task(job_id: str, attempt: int = 1) -> Task:
    return Task(job_id, attempt, {}, 0)


def drain(engine: Engine) -> dict[str, Outcome]:
    """Wait until nothing is pending; the outcome of each job."""
    outcomes: dict[str, Outcome] = {}
    deadline = time.monotonic() + DEADLINE
    while engine.pending():
        assert time.monotonic() < deadline, "the engine hangs"
        for notice in engine.wait(0.5):
            if notice.outcome is not None:
                outcomes[notice.job_id] = notice.outcome
    return outcomes


@pytest.fixture
def pool() -> Iterator[Engine]:
    engine = make_engine("pool", work, 2)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["inline", "pool"])
def test_starts_in_order_and_ends_every_job(name: str) -> None:
    engine = make_engine(name, work, 1)
    jobs = [f"job:{i}" for i in range(5)]
    for job in jobs:
        engine.submit(task(job))
    assert engine.pending() == 5
    notices: list[Notice] = []
    while engine.pending():
        notices += engine.wait(1)
    engine.close()
    assert [n.job_id for n in notices if n.outcome is None] == jobs
    assert [n.job_id for n in notices if n.outcome is not None] == jobs
    for job in jobs:  # a start is told before its end
        mine = [n.outcome for n in notices if n.job_id == job]
        assert mine[0] is None
        assert mine[1] is not None


def test_workers_persist_and_are_other_processes(pool: Engine) -> None:
    for i in range(12):
        pool.submit(task(f"job:{i}"))
    pids = {outcome.error for outcome in drain(pool).values()}
    assert 1 <= len(pids) <= 2
    assert str(os.getpid()) not in pids


def test_a_death_ends_one_job_and_is_explained(pool: Engine) -> None:
    deaths = ["exit:3", f"signal:{signal.SIGKILL:d}", f"signal:{signal.SIGSEGV:d}"]
    jobs = ["job:1", deaths[0], "job:2", deaths[1], deaths[2], "job:3", "job:4"]
    for job in jobs:
        pool.submit(task(job))
    outcomes = drain(pool)
    assert set(outcomes) == set(jobs)
    assert [outcomes[job].kind for job in deaths] == ["died"] * 3
    assert "status 3" in outcomes[deaths[0]].error
    assert "SIGKILL" in outcomes[deaths[1]].error
    assert "SIGSEGV" in outcomes[deaths[2]].error
    assert all(outcomes[f"job:{i}"].kind == "ended" for i in (1, 2, 3, 4))


def test_a_cancelled_job_ends_alone() -> None:
    engine = make_engine("pool", work, 1)
    try:
        for job in ("until_stop:1", "until_stop:2", "job:1", "until_stop:3"):
            engine.submit(task(job))
        while not engine.wait(0.1):  # until the first has started
            pass
        engine.cancel("until_stop:2")  # queued
        engine.cancel("until_stop:1")  # at work
        engine.cancel("strange")
        heard = engine.wait(0)
        assert heard == [Notice("until_stop:2", Outcome("interrupted"))]
        engine.cancel("until_stop:3")  # queued behind what goes on
        outcomes = drain(engine)
    finally:
        engine.close()
    assert outcomes["until_stop:1"].kind == "interrupted"
    assert outcomes["until_stop:3"].kind == "interrupted"
    assert outcomes["job:1"].kind == "ended"


def test_inline_cancels_what_is_queued_and_what_asks() -> None:
    asked: list[int] = []

    def stop_asked() -> bool:
        asked.append(1)
        if len(asked) == 3:
            engine.cancel("until_stop:1")
        return False

    engine = make_engine("inline", work, 1, stop_asked=stop_asked)
    for job in ("until_stop:1", "job:1", "job:2"):
        engine.submit(task(job))
    engine.cancel("job:1")
    assert engine.pending() == 3
    outcomes = drain(engine)
    assert outcomes["job:1"].kind == outcomes["until_stop:1"].kind == "interrupted"
    assert outcomes["job:2"].kind == "ended"
    assert len(asked) == 3


def test_an_idle_worker_that_was_killed_is_replaced(pool: Engine) -> None:
    pool.submit(task("job:1"))
    pid = int(drain(pool)["job:1"].error)
    os.kill(pid, signal.SIGKILL)
    pool.wait(0.2)
    pool.submit(task("job:2"))
    again = drain(pool)["job:2"]
    assert again.kind == "ended"
    assert int(again.error) != pid


def test_a_hung_job_is_timed_out_and_only_it() -> None:
    engine = make_engine("pool", work, 2, timeout=5.0)
    try:
        for job in ("sleep:60", "job:1", "sleep:0.05", "job:2"):
            engine.submit(task(job))
        begin = time.monotonic()
        outcomes = drain(engine)
    finally:
        engine.close()
    assert outcomes.pop("sleep:60").kind == "timed out"
    assert {outcome.kind for outcome in outcomes.values()} == {"ended"}
    assert time.monotonic() - begin < DEADLINE


def test_stop_forgets_the_queue_and_asks_the_running(pool: Engine) -> None:
    for job in ("until_stop:1", "until_stop:2", "job:never"):
        pool.submit(task(job))
    started: list[str] = []
    while len(started) < 2:
        started += [notice.job_id for notice in pool.wait(0.5)]
    pool.stop()
    outcomes = drain(pool)
    assert {job: outcome.kind for job, outcome in outcomes.items()} == {
        "until_stop:1": "interrupted",
        "until_stop:2": "interrupted",
    }


def test_close_kills_what_runs() -> None:
    engine = make_engine("pool", work, 1)
    engine.submit(task("sleep:600"))
    while not engine.wait(0.5):
        pass
    begin = time.monotonic()
    engine.close()
    assert time.monotonic() - begin < 60, "it waited for the job"
    assert engine.pending() == 0


def test_workers_have_one_thread_and_leave_ours_alone(pool: Engine) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    engine = make_engine("pool", _threads, 1)
    engine.submit(task("job:1"))
    outcome = drain(engine)["job:1"]
    engine.close()
    assert outcome.error == "1"
    assert os.environ.get("OMP_NUM_THREADS") == before


def _threads(task: Task, stop: StopAsked) -> Outcome:
    return Outcome("ended", os.environ.get("OMP_NUM_THREADS", "unset"))


def test_inline_stops_through_the_flag() -> None:
    asked = False
    engine = make_engine("inline", work, 1, stop_asked=lambda: asked)
    engine.submit(task("until_stop:1"))
    engine.submit(task("job:never"))
    assert engine.wait(0) == [Notice("until_stop:1")]
    asked = True
    engine.stop()
    assert engine.wait(0) == [Notice("until_stop:1", Outcome("interrupted"))]
    assert engine.pending() == 0


COORDINATOR = """
import os, sys, time
from ablate.engines import Outcome, Task, make_engine

def work(task, stop):
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(60)

if __name__ == "__main__":
    engine = make_engine("pool", work, 2)
    engine.submit(Task("a", 1, {}, 0))
    engine.submit(Task("b", 1, {}, 0))
    while True:
        engine.wait(1)
"""


def test_workers_leave_at_once_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(textwrap.dedent(COORDINATOR))
    pids = tmp_path / "pids"
    pids.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(pids)])
    deadline = time.monotonic() + DEADLINE
    while len(list(pids.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = [int(path.name) for path in pids.iterdir()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its coordinator"
        time.sleep(0.01)
