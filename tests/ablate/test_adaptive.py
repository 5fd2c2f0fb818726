"""Designs that follow from results, through the coordinator: replayed, resumed, the same again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ablate import strict_yaml
from ablate.adaptive import Tried, tried_of
from ablate.conclude import rank_study, results_of
from ablate.core import load_core
from ablate.designs import Axis
from ablate.ledger import Ledger
from ablate.nouns import Arm, Options, Plan, Result, StudyError
from ablate.paths import Paths, path
from ablate.planner import Planner
from ablate.reader import load_study, resolved
from ablate.run import RunOptions, RunSummary, run
from tests.ablate import toy_core
from tests.ablate.toys import Heard, numbers, starts, toy_job

FACTORS = {
    "lr": {"low": {"lr": 0.1}, "high": {"lr": 1.0}},
    "noise": {"much": {"noise": 0.9}, "little": {"noise": 0.2}},
    "scale": {"one": {"scale": 1.0}, "half": {"scale": 0.5}},
}
PATHS = {"paths": {"reading": "final/loss"}}


def write(folder: Path, **changes: Any) -> Path:
    value = {"question": "Which?", "core": "tests.ablate.toy_core", "base": {"steps": 4}}
    value |= {"factors": FACTORS, "design": PATHS, "seeds": [0, 1]}
    file = folder / "toy.yaml"
    file.write_text(strict_yaml.dump(value | changes))
    return file


def go(file: Path, out: Path, **options: Any) -> tuple[Plan, RunSummary, Heard]:
    asked = Options(out=out)
    study = load_study(str(file), asked)
    planner, heard = Planner(study, asked), Heard()
    plans = [planner.plan()]

    def grow(results: Any, slots: int) -> Plan:
        plans.append(planner.plan(results.get, slots))
        return plans[-1]

    options = {"engine": "inline"} | options
    how = RunOptions(**options)
    summary = run(study, plans[0], out, how, heard, grow=grow)
    return plans[-1], summary, heard


def replayed(file: Path, out: Path) -> Plan:
    return Planner(load_study(str(file), Options(out=out)), Options(out=out)).plan()


def test_an_arm_is_known_when_all_its_seeds_have_ended() -> None:
    jobs = [toy_job(seed=seed) for seed in (0, 1)]
    first = Result(jobs[0].id, {}, 0, "done", {"final/loss": 1.0, "final/px": 3.0})
    second = Result(jobs[1].id, {}, 1, "done", {"final/loss": 2.0, "other": 1.0})
    assert tried_of(jobs, {first.job_id: first}, {}) is None
    both = {first.job_id: first, second.job_id: second}
    assert tried_of(jobs, both, {}) == Tried("done", {"final/loss": (1.0, 2.0)})
    assert tried_of(jobs, both, {jobs[0].id: {"final/loss"}}) == Tried("done", {})
    lost = {**both, second.job_id: Result(jobs[1].id, {}, 1, "diverged", {})}
    found = tried_of(jobs, lost, {})
    assert found is not None
    assert found.state == "diverged"
    assert found.mean("final/loss") is None  # never as if it were complete


def axes(*names: str) -> list[Axis]:
    return [Axis.of(name, "0", "1") for name in names]


def test_a_path_goes_where_it_matters_most_in_this_context() -> None:
    # alone b is best; after b, c beats a because a and b do the same
    worth = {"": 9, "a": 5, "b": 4, "c": 8, "ab": 4, "bc": 2, "ac": 4, "abc": 2}

    def score(arm: Arm) -> float:
        return worth["".join(name for name, level in arm.levels.items() if level == "1")]

    found = path(axes("a", "b", "c"), score)
    assert [arm.label for arm in found.walked] == ["base", "+b", "+b +c", "+b +c +a"]
    assert len(found.arms) == 7


def test_a_change_without_a_reading_is_made_last_and_one_that_cannot_be_blocks() -> None:
    def score(arm: Arm) -> float:
        return float("inf") if arm.levels["a"] == "1" else 1.0

    walked = path(axes("a", "b", "c"), score).walked
    assert [arm.label for arm in walked] == ["base", "+b", "+b +c", "+b +c +a"]
    found = path(axes("a", "b"), score, allowed=lambda arm: arm.levels["a"] == "0")
    assert [arm.label for arm in found.walked] == ["base", "+b"]
    assert found.blocked == ("a",)
    assert found.left == 0


def test_a_path_stops_where_nothing_has_its_reading() -> None:
    design = Paths(axes("a", "b", "c"), "final/los")
    proposal = design.propose(lambda arm: Tried("done", {"final/loss": (1.0,)}), 0)
    assert [arm.label for arm in proposal.arms] == ["base", "+a", "+b", "+c"]
    assert "stopped with 3 changes to make: no arm has the reading final/los" in proposal.more
    failed = design.propose(lambda arm: Tried("failed", {}), 0)
    assert failed.more == ""  # that is no misspelling


def test_a_path_may_ascend_and_start_elsewhere() -> None:
    def tried(arm: Arm) -> Tried:
        ones = [name for name, level in arm.levels.items() if level == "1"]
        return Tried("done", {"val/f1": (float(len(ones) + 10 * ("b" in ones)),)})

    design = Paths(axes("a", "b", "c"), "val/f1", "maximize", base={"c": "1"}, best={"c": "1"})
    proposal = design.propose(tried, 0)
    assert [arm.label for arm in proposal.walked] == ["base", "+b", "+b +a"]
    assert all(arm.levels["c"] == "1" for arm in proposal.arms)
    assert proposal.more == ""
    assert proposal.notes == ("path on val/f1: base 1 -> +b 12 -> +a 13",)


def test_a_path_is_walked_by_the_coordinator_and_replayed_from_the_ledger(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert [arm.label for arm in replayed(file, tmp_path / "out").arms] == [
        "base",
        "+lr",
        "+noise",
        "+scale",
    ]
    plan, summary, heard = go(file, tmp_path / "out")
    assert plan.walked == ("base", "+lr", "+lr +noise", "+lr +noise +scale")
    assert plan.more == ()
    assert len(plan.jobs) == 2 * 7
    assert summary.missing == ()
    assert replayed(file, tmp_path / "out") == plan
    again, summary, heard = go(file, tmp_path / "out")
    assert (again, summary.trained, heard.starts) == (plan, (), [])
    study = load_study(str(file), Options(out=tmp_path / "out"))
    results = results_of(study, plan, Ledger(tmp_path / "out"))
    ranking = rank_study(study, plan, load_core(study.core), results)
    steps = [effect for effect in ranking.effects if effect.kind == "along the path"]
    assert [(e.factor, e.against, e.level) for e in steps] == [
        ("lr", "low", "high"),
        ("noise", "much", "little"),
        ("scale", "one", "half"),
    ]
    means = {arm.arm: arm.metrics["final/loss"].mean for arm in ranking.arms}
    assert steps[1].estimate is not None
    assert steps[1].estimate < 1 < means["base"] / means["+lr +noise"]


def test_pool_and_inline_walk_the_same_path(tmp_path: Path) -> None:
    file = write(tmp_path)
    one, *_ = go(file, tmp_path / "one")
    two, *_ = go(file, tmp_path / "two", engine="pool", workers=2)
    assert one == two
    assert numbers(tmp_path / "one", one.jobs) == numbers(tmp_path / "two", two.jobs)


@pytest.mark.parametrize("again", ["retry_failed", "rerun"])
def test_what_is_made_again_is_gone_by_and_what_it_replaces_is_not(
    tmp_path: Path, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time the rate's arms fail, so that the path makes that change last."""
    fault = {"fault": "raise" if again == "retry_failed" else "diverge", "fault_step": 2}
    lr = {"low": {"lr": 0.1}, "high": {"lr": 1.0, **fault}}
    file, out = write(tmp_path, factors=FACTORS | {"lr": lr}, attempts=1), tmp_path / "out"
    plan, summary, _ = go(file, out)
    assert plan.walked[-1] == "+noise +scale +lr"
    monkeypatch.setattr(toy_core, "strike", lambda *fault: None)
    if again == "rerun":
        monkeypatch.setattr("ablate.run.describe_code", lambda core: {"core": "new"})
    plan, summary, _ = go(file, out, **{again: True})
    assert plan.walked[1] == "+lr"
    assert plan == replayed(file, out)
    assert summary.missing == ()
    assert {summary.results[job.id].state for job in plan.jobs} == {"done"}


def test_more_seeds_run_the_new_jobs_only(tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    plan, *_ = go(file, out)
    more, summary, _ = go(write(tmp_path, seeds=[0, 1, 2]), out)
    assert more.walked == plan.walked
    assert len(summary.trained) == 7
    assert all(starts(out, job) == 1 for job in more.jobs)


@pytest.mark.parametrize(
    ("design", "complaint"),
    [
        ({"paths": {"reading": {"final/loss": "less"}}}, "unknown direction 'less'"),
        ({"paths": {"base": {"lr": "lower"}}}, "unknown level 'lower'"),
        ({"paths": {"start": {"lr": "low"}}}, "unknown key; allowed: base, best"),
        ("path", "unknown design 'path'; did you mean 'paths'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, design: Any, complaint: str) -> None:
    with pytest.raises(StudyError, match=complaint) as caught:
        load_study(str(write(tmp_path, design=design)))
    assert "\n" not in str(caught.value)


def test_a_study_that_follows_results_is_kept_as_it_was_read(tmp_path: Path) -> None:
    study = load_study(str(write(tmp_path)))
    kept = tmp_path / "kept.yaml"
    kept.write_text(resolved(study))
    assert load_study(str(kept)).designs == study.designs


def killed_at(file: Path, out: Path, seconds: float) -> None:
    """Start the command as a user does, and kill it and its workers after a moment of training."""
    command = [sys.executable, "-m", "ablate", "run", str(file), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("jobs/*/events.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long  # killed in the default suite: tests/ablate/test_search.py
def test_a_killed_path_goes_on_to_the_same_end(tmp_path: Path) -> None:
    file = write(tmp_path, base={"steps": 8, "step_seconds": 0.01})
    whole, *_ = go(file, tmp_path / "whole")
    for moment in (0.3, 1.0):
        killed_at(file, tmp_path / "cut", moment)
    plan, *_ = go(file, tmp_path / "cut")
    assert plan == whole
    assert numbers(tmp_path / "cut", plan.jobs) == numbers(tmp_path / "whole", whole.jobs)
