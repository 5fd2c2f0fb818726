"""submitit's executor on this machine: what a terminal and a killed coordinator do to its jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from ablate.ledger import Ledger
from ablate.nouns import Resources
from tests.ablate import clusters
from tests.ablate.test_conformance import QUICK
from tests.ablate.toys import starts, toy_plan

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(bool(clusters.missing("submitit")), reason=clusters.missing("submitit")),
]

RESOURCES = Resources(slurm={**QUICK, "cluster": "local"})
PACE = 0.2
PLAN = toy_plan(2, steps=12, step_seconds=PACE)


def coordinator(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(out), "2", str(PACE)]
    command += ["slurm", json.dumps(asdict(RESOURCES))]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(out: Path) -> list[int]:
    return [sum("step" in event for event in Ledger(out).events(job.id)) for job in PLAN.jobs]


def processes(out: Path) -> list[int]:
    """Of submitit, at work for this OUT."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace")
        except OSError:
            continue
        if "submitit" in words and str(out) in words:
            found.append(int(path.parent.name))
    return found


def test_ctrl_c_of_a_terminal_keeps_checkpoints_and_leaves_no_process(tmp_path: Path) -> None:
    process = coordinator(tmp_path)
    wait_for(lambda: min(steps(tmp_path)) > 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all in its foreground
    _, errors = process.communicate(timeout=60)
    for job in PLAN.jobs:
        events = list(Ledger(tmp_path).events(job.id))
        assert events[-1].get("event") == "interrupted", errors.decode()
    wait_for(lambda: not processes(tmp_path), 20)


def test_ctrl_c_twice_leaves_no_process(tmp_path: Path) -> None:
    process = coordinator(tmp_path)
    wait_for(lambda: min(steps(tmp_path)) > 2)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    process.communicate(timeout=60)
    wait_for(lambda: not processes(tmp_path), 20)


def test_a_killed_coordinator_comes_back_to_its_jobs(tmp_path: Path) -> None:
    process = coordinator(tmp_path)
    wait_for(lambda: min(steps(tmp_path)) > 2)
    process.kill()
    process.communicate()
    process = coordinator(tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert [starts(tmp_path, job) for job in PLAN.jobs] == [1, 1]
    assert all(Ledger(tmp_path).result(job.id) for job in PLAN.jobs)
