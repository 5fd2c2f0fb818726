"""What only a queue can do: preemption, and a coordinator that goes and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ablate.engines import EngineError
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Resources, StudyError
from tests.ablate import clusters
from tests.ablate.test_conformance import QUICK, interrupt
from tests.ablate.toys import numbers, run_toys, starts, toy_plan, toy_study

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(bool(clusters.missing("slurm")), reason=clusters.missing("slurm")),
]

RESOURCES = Resources(memory=0.2, slurm=QUICK)
PACE = 0.15


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with clusters.slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def coordinator(out: Path, n: int, resources: Resources = RESOURCES) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.ablate.coordinate", str(out), str(n), str(PACE)]
    command += ["slurm", json.dumps(asdict(resources))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def plan_of(n: int) -> Plan:
    return toy_plan(n, steps=12, step_seconds=PACE)


def steps(out: Path, job: Job) -> int:
    return sum("step" in event for event in Ledger(out).events(job.id))


def slurm_ids(out: Path) -> list[str]:
    records = [json.loads(path.read_bytes()) for path in (out / "slurm" / "jobs").glob("*.json")]
    return [record["slurm"] for record in records]


def same_as_calm(tmp_path: Path, n: int) -> bool:
    calm = toy_plan(n, steps=12)
    run_toys(tmp_path / "calm", calm)
    want = [row["metrics"] for row in numbers(tmp_path / "calm", calm.jobs).values()]
    plan = plan_of(n)
    return want == [row["metrics"] for row in numbers(tmp_path / "out", plan.jobs).values()]


def test_a_preempted_job_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    out, job = tmp_path / "out", plan_of(1).jobs[0]
    process = coordinator(out, 1)
    wait_for(lambda: steps(out, job) > 3)
    (slurm,) = slurm_ids(out)
    subprocess.run(["scancel", "--signal=USR2", slurm], check=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    result = Ledger(out).result(job.id)
    assert result is not None
    assert result.attempts == 1  # a preemption is nobody's fault
    kinds = [event["event"] for event in Ledger(out).events(job.id) if "event" in event]
    assert kinds.count("started") == 2
    assert "interrupted" in kinds
    assert same_as_calm(tmp_path, 1)


def test_a_killed_coordinator_comes_back_to_its_jobs(tmp_path: Path) -> None:
    out, plan = tmp_path / "out", plan_of(6)
    process = coordinator(out, 6)
    wait_for(lambda: steps(out, plan.jobs[0]) > 2)
    process.kill()
    process.communicate()
    wait_for(lambda: (out / "jobs" / plan.jobs[0].id / "result.json").exists())  # without it
    process = coordinator(out, 6)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert all(starts(out, job) == 1 for job in plan.jobs)  # nothing was submitted twice
    assert same_as_calm(tmp_path, 6)
    assert slurm_ids(out) == []


def test_detached_jobs_outlive_ctrl_c(tmp_path: Path) -> None:
    out, plan = tmp_path / "out", plan_of(4)
    detached = Resources(memory=0.2, slurm={**QUICK, "detach": True})
    study = toy_study(resources=detached)
    thread = interrupt(lambda: steps(out, plan.jobs[0]) > 2)
    summary = run_toys(out, plan, study=study, engine="slurm", workers=2)
    thread.join()
    assert summary.interrupted
    assert summary.missing
    summary = run_toys(out, plan, study=study, engine="slurm", workers=2)
    assert summary.count("done") == 4
    assert all(starts(out, job) == 1 for job in plan.jobs)
    assert same_as_calm(tmp_path, 4)


def test_jobs_of_other_code_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plan = tmp_path / "out", plan_of(1)
    process = coordinator(out, 1)
    wait_for(lambda: steps(out, plan.jobs[0]) > 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (record,) = (out / "slurm" / "jobs").glob("*.json")
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "code": "older"}))
    before = slurm_ids(out)
    summary = run_toys(out, plan, study=toy_study(resources=RESOURCES), engine="slurm")
    assert summary.count("done") == 1
    listed = subprocess.run(
        ["scontrol", "show", "job", *before], capture_output=True, text=True, check=True
    )
    assert "CANCELLED" in listed.stdout


def test_what_sbatch_refuses_is_one_line(tmp_path: Path) -> None:
    nowhere = Resources(slurm={**QUICK, "partition": "nowhere"})
    with pytest.raises(EngineError, match=r"sbatch refuses: .*nvalid partition"):
        run_toys(tmp_path, plan_of(1), study=toy_study(resources=nowhere), engine="slurm")


def test_a_share_of_a_gpu_is_refused(tmp_path: Path) -> None:
    study = toy_study(resources=Resources(gpus=0.25, slurm=QUICK))
    with pytest.raises(StudyError, match="Slurm gives whole ones"):
        run_toys(tmp_path, plan_of(1), study=study, engine="slurm")


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(StudyError, match="no sbatch here"):
        run_toys(tmp_path, plan_of(1), study=toy_study(resources=RESOURCES), engine="slurm")
