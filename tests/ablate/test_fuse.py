"""Jobs that train as one model: each has its own folder, end and further attempts."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ablate.commands import fused
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Pruning, StudyError
from ablate.run import RunOptions, run
from tests.ablate import kin_core
from tests.ablate.clusters import missing
from tests.ablate.toys import Heard, toy_job, toy_study

STUDY = toy_study(core="tests.ablate.kin_core", attempts=2)


def kin_job(seed: int, **settings: Any) -> Job:
    return toy_job(f"arm {seed}", seed, **(kin_core.SETTINGS | settings))


def run_jobs(jobs: list[Job], out: Path, fuse: int | None) -> dict[str, Any]:
    options = RunOptions(engine="inline", fuse=fuse)
    return dict(run(STUDY, Plan(jobs), out, options, Heard()).results)


def cohorts(out: Path, job: Job) -> list[list[str] | None]:
    starts = [e for e in Ledger(out).events(job.id) if e.get("event") == "started"]
    return [start.get("cohort") for start in starts]


def test_jobs_of_one_shape_train_together_and_the_ledger_says_with_whom(tmp_path: Path) -> None:
    alike, other = [kin_job(i) for i in range(5)], kin_job(9, shape=2)
    results = run_jobs([*alike[:3], other, *alike[3:]], tmp_path, fuse=4)
    assert [results[job.id].metrics["final/loss"] for job in alike[:4]] == [2.0] * 4
    assert cohorts(tmp_path, alike[0]) == [[job.id for job in alike[:4]]]
    for single in (alike[4], other):
        assert results[single.id].metrics["final/loss"] == 1.0
        assert cohorts(tmp_path, single) == [None]


@pytest.mark.parametrize("fuse", [1, None])
def test_without_being_asked_a_cpu_job_trains_alone(fuse: int | None, tmp_path: Path) -> None:
    jobs = [kin_job(i) for i in range(2)]
    results = run_jobs(jobs, tmp_path, fuse)
    assert {result.metrics["final/loss"] for result in results.values()} == {1.0}


def test_a_member_ends_by_itself(tmp_path: Path) -> None:
    troubles = ["none", "diverges", "fails", "disk", "none"]
    jobs = [kin_job(i, trouble=trouble) for i, trouble in enumerate(troubles)]
    results = [run_jobs(jobs, tmp_path, fuse=8)[job.id] for job in jobs]
    states = [result.state for result in results]
    assert states == ["done", "diverged", "failed", "done", "done"]
    assert results[2].error == "ValueError: no good"
    assert results[3].attempts == 2  # a full disk may pass: tried again, alone
    assert cohorts(tmp_path, jobs[3])[1:] == [None]


def test_what_ails_the_whole_pass_sends_its_members_on_alone(tmp_path: Path) -> None:
    jobs = [kin_job(0), kin_job(1, trouble="kills all"), kin_job(2)]
    results = run_jobs(jobs, tmp_path, fuse=4)
    losses = [results[job.id].metrics["final/loss"] for job in jobs]
    assert losses == [1.0, 1.0, 2.0]  # the third had ended before


def test_what_ailed_the_whole_pass_costs_no_attempt(tmp_path: Path) -> None:
    """An out-of-memory of many stacked models says nothing of one."""
    jobs = [kin_job(0), kin_job(1, trouble="kills all"), kin_job(2)]
    study = toy_study(core="tests.ablate.kin_core", attempts=1)
    options = RunOptions(engine="inline", fuse=4)
    results = run(study, Plan(jobs), tmp_path, options, Heard()).results
    assert [results[job.id].state for job in jobs] == ["done"] * 3


def test_one_that_hangs_does_not_fail_those_that_train_with_it(tmp_path: Path) -> None:
    jobs = [kin_job(0), kin_job(1, trouble="hangs"), kin_job(2)]
    study = toy_study(core="tests.ablate.kin_core", attempts=1, timeout=3.0)
    options = RunOptions(workers=1, fuse=4)
    results = run(study, Plan(jobs), tmp_path, options, Heard()).results
    assert [results[job.id].state for job in jobs] == ["done", "failed", "done"]
    assert "no end within" in str(results[jobs[1].id].error)


def test_by_itself_a_cohort_leaves_no_worker_without_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kin_core, "fused_by_default", lambda config: 32, raising=False)
    jobs = [kin_job(i) for i in range(6)]
    options = RunOptions(workers=3)
    run(STUDY, Plan(jobs), tmp_path, options, Heard())
    together = {job_id for own in cohorts(tmp_path, jobs[0]) for job_id in own or []}
    assert len(together) == 2


@pytest.mark.parametrize("given", ["0", "-1", "x", "1.5"])
def test_fuse_takes_a_number_auto_or_off(given: str) -> None:
    with pytest.raises(StudyError, match="--fuse: given"):
        fused(given)
    assert [fused(word) for word in ("auto", "off", "8")] == [None, 1, 8]


@pytest.mark.skipif(bool(missing("submitit")), reason=missing("submitit"))
def test_engines_that_move_single_folders_do_not_fuse(tmp_path: Path) -> None:
    study = toy_study(core="tests.ablate.kin_core")
    options = RunOptions(engine="slurm", fuse=2)
    with pytest.raises(StudyError, match="--fuse: given 2, --engine slurm runs each job by itself"):
        run(study, Plan([kin_job(0)]), tmp_path, options, Heard())


@pytest.mark.parametrize(
    ("key", "value"), [("pruning", Pruning("median", "train/loss")), ("stop_when_passed", True)]
)
def test_jobs_that_may_end_early_are_not_quietly_trained_alone(
    key: str, value: object, tmp_path: Path
) -> None:
    study = toy_study(core="tests.ablate.kin_core", **{key: value})
    with pytest.raises(StudyError, match=f"--fuse: given 2, {key}: may end each job"):
        run(study, Plan([kin_job(0)]), tmp_path, RunOptions(engine="inline", fuse=2), Heard())
    assert run(study, Plan([kin_job(0)]), tmp_path, RunOptions(engine="inline"), Heard()).results


def ablate(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ablate", "run", "smoke", "--seeds", "2", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)


def metrics(out: Path) -> dict[str, dict[str, float]]:
    results = [json.loads(path.read_text()) for path in out.glob("jobs/*/result.json")]
    return {result["job_id"]: result["metrics"] for result in results}


@pytest.mark.long
def test_a_fused_study_agrees_with_a_solo_one_even_when_it_was_killed(tmp_path: Path) -> None:
    sets = ("--set", "optim.steps=60", "--set", "runtime.checkpoint_every=5")
    solo, fuse = tmp_path / "solo", tmp_path / "fused"
    assert ablate("--out", str(solo), "--fuse", "off", *sets).wait() == 0
    first = ablate("--out", str(fuse), "--fuse", "4", *sets)
    while not list(fuse.glob("jobs/*/checkpoint.pt")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ablate("--out", str(fuse), "--fuse", "4", *sets).wait() == 0
    together, alone = metrics(fuse), metrics(solo)
    assert set(together) == set(alone)
    assert len(alone) == 8
    starts = [
        [e for e in Ledger(fuse).events(job) if e.get("event") == "started"] for job in together
    ]
    assert {len(mine[-1]["cohort"]) for mine in starts} == {4}
    assert any(
        "resumed" in str(e.get("event")) for job in together for e in Ledger(fuse).events(job)
    )
    for job, read in alone.items():
        for name in ("final/loss", "final/uniformity", "final/px_error", "val/coverage"):
            if name in read:
                assert math.isclose(together[job][name], read[name], rel_tol=0.02, abs_tol=0.02), (
                    job,
                    name,
                )
