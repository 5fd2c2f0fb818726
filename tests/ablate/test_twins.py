"""Jobs whose training is the same train once, whoever is asked and wherever it is."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablate.core import load_core
from ablate.estimate import estimate
from ablate.jobview import logs, show
from ablate.kin import TWINS, Kin, may_fuse, trainings
from ablate.ledger import Ledger
from ablate.nouns import Cost, Job, Plan, Pruning, Result, Study, Workload
from ablate.progress import Progress, shape
from ablate.run import RunOptions, run
from tests.ablate import twin_core
from tests.ablate.toys import Heard, toy_job, toy_study

CORE = "tests.ablate.twin_core"
STUDY = toy_study(core=CORE, attempts=2)


def twin_job(i: int, **settings: Any) -> Job:
    job = toy_job(f"arm {i}", 0, **(twin_core.SETTINGS | settings))
    name = twin_core.twinship(job.settings) or ""
    return replace(job, workload=Workload(steps=10), training=name)


def run_jobs(
    jobs: list[Job], out: Path, study: Study = STUDY, **options: Any
) -> dict[str, list[str] | None]:
    """Run jobs to their end; with whom each was in its last attempt."""
    summary = run(study, Plan(jobs), out, RunOptions(**{"engine": "inline", **options}), Heard())
    assert {result.state for result in summary.results.values()} == {"done"}
    assert len(summary.results) == len(jobs)
    ledger = Ledger(out)
    starts = {
        job.id: [e for e in ledger.events(job.id) if e.get("event") == "started"] for job in jobs
    }
    return {job_id: own[-1].get("cohort") for job_id, own in starts.items()}


def test_twins_train_once_and_the_ledger_says_with_whom(tmp_path: Path) -> None:
    twins, other = [twin_job(i) for i in range(3)], twin_job(9, shape=2)
    own_tokens = [twin_job(i, trouble="own tokens") for i in (4, 5)]
    found = run_jobs([twins[0], other, *own_tokens, *twins[1:]], tmp_path)
    assert [found[job.id] for job in twins] == [[job.id for job in twins]] * 3
    assert [found[job.id] for job in (other, *own_tokens)] == [None] * 3


def test_who_is_shown_or_logged_says_with_whom(tmp_path: Path) -> None:
    twins = [twin_job(i) for i in range(3)]
    run_jobs(twins, tmp_path)
    console = Console(file=io.StringIO(), width=200)
    show(Ledger(tmp_path), twins[1].id, console, as_json=False)
    assert f"trained with {twins[0].id} {twins[2].id}\n" in console.file.getvalue()  # type: ignore[attr-defined]
    written: list[str] = []
    logs(Ledger(tmp_path), twins[1].id, written.append, follow=False)
    assert "started  attempt 1  as one with 2 more" in written[0]


def test_twins_stay_together_whatever_the_workers_could_do(tmp_path: Path) -> None:
    twins = [twin_job(i) for i in range(4)]
    found = run_jobs(twins, tmp_path, engine="pool", workers=3)
    assert all(own is not None and len(own) == 4 for own in found.values())


def test_so_many_train_as_one_at_most(tmp_path: Path) -> None:
    twins = [twin_job(i) for i in range(TWINS + 2)]
    found = run_jobs(twins, tmp_path)
    assert [len(found[job.id] or ()) for job in twins] == [TWINS] * TWINS + [2, 2]


def test_who_is_told_so_trains_each_alone(tmp_path: Path) -> None:
    found = run_jobs([twin_job(i) for i in range(3)], tmp_path, fuse=1)
    assert set(found.values()) == {None}


def test_jobs_that_may_end_early_train_alone(tmp_path: Path) -> None:
    study = toy_study(core=CORE, pruning=Pruning("median", "final/loss"))
    found = run_jobs([twin_job(i) for i in range(3)], tmp_path, study)
    assert set(found.values()) == {None}
    assert not may_fuse(toy_study(core=CORE, stop_when_passed=True))
    assert may_fuse(STUDY)


def test_what_ails_all_sends_them_on_alone(tmp_path: Path) -> None:
    twins = [twin_job(0), twin_job(1, trouble="kills all"), twin_job(2)]
    found = run_jobs(twins, tmp_path)
    assert found[twins[0].id] is None
    assert found[twins[1].id] is None


def test_a_job_that_has_no_twin_among_the_known_is_not_looked_for() -> None:
    kin_of, core = Kin(), load_core(CORE)
    first, second = twin_job(0), twin_job(1)
    kin_of.learn(core, [first], [first.settings], None)
    assert kin_of.bond(first.id) is None
    assert kin_of.share(first.id) == 1
    kin_of.learn(core, [second, first], [second.settings, first.settings], None)
    assert kin_of.bond(first.id) == kin_of.bond(second.id) is not None
    assert kin_of.share(first.id) == 0.5
    assert kin_of.most == 1  # no stacked model: no more memory


def test_the_estimate_counts_a_training_once() -> None:
    jobs = [twin_job(i) for i in range(4)] + [twin_job(9, shape=2)]
    cost = Cost(1.0, 0.0, 0.5, 100.0)
    known = {shape(job): cost for job in jobs}
    alone = estimate(jobs, {}, known, {}, 1)
    once = estimate(jobs, {}, known, {}, 1, trainings)
    assert (alone.seconds, alone.trainings) == (52.5, 5)
    assert (once.seconds, once.trainings, once.to_run) == (22.5, 2, 5)  # each takes its readings
    assert once.to_json()["trainings"] == 2


def test_time_left_counts_a_training_once() -> None:
    jobs = [twin_job(i) for i in range(6)]
    state = Progress(jobs, (), workers=1)
    state.begin({}, [job.id for job in jobs])
    for job in jobs[:4]:
        state.share(job.id, 0.25)
    for job in jobs[:4]:
        state.started(job.id, 1, 0.0)
    for job in jobs[:4]:
        state.ended(job.id, Result(job.id, {}, 0, "done", {"final/loss": 1.0}), 10.0)
    assert state.seconds_left(10.0) == pytest.approx(20.0)  # two more, each by itself
    state.share(jobs[4].id, 0.5)
    state.share(jobs[5].id, 0.5)
    assert state.seconds_left(10.0) == pytest.approx(10.0)
    for job in jobs[4:]:
        state.started(job.id, 1, 10.0)
    assert state.seconds_left(14.0) == pytest.approx(6.0)
    for job in jobs[4:]:
        state.ended(job.id, None, 15.0)
    assert not state._queue
