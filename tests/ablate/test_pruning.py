"""Jobs that are stopped because others do better, and jobs that end because they are good."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ablate.conclude import rank_study, results_of
from ablate.core import load_core
from ablate.ledger import Ledger
from ablate.nouns import Options, Plan, Pruning, Result, StudyError
from ablate.pruning import Pruner
from ablate.pruning_schema import unheard
from ablate.rank import Ranking
from ablate.reader import load_study, resolved
from tests.ablate.test_adaptive import go, killed_at, write
from tests.ablate.toys import numbers, starts, toy_job

RATES = {f"rate {i}": {"lr": value} for i, value in enumerate((0.5, 0.4, 0.3, 0.2, 0.002, 0.001))}
MEDIAN = {"median": {"reading": "train/loss", "startup": 2, "warmup": 4}}


def study(folder: Path, **changes: Any) -> Path:
    value: dict[str, Any] = {"factors": {"lr": RATES}, "design": "factorial", "seeds": [0]}
    return write(folder, **(value | {"base": {"steps": 12}, "pruning": MEDIAN} | changes))


def ranked(file: Path, out: Path, plan: Plan) -> tuple[Ranking, dict[str, Result]]:
    asked = load_study(str(file), Options(out=out))
    results = results_of(asked, plan, Ledger(out))
    return rank_study(asked, plan, load_core(asked.core), results), results


@pytest.mark.parametrize(
    "rule",
    [
        MEDIAN,
        {"asha": {"reading": "train/loss", "min_steps": 3, "factor": 2}},
        {"hyperband": {"reading": "train/loss", "min_steps": 3, "max_steps": 12, "factor": 2}},
    ],
)
def test_what_does_worse_is_stopped_and_never_ranked(tmp_path: Path, rule: Any) -> None:
    file, out = study(tmp_path, pruning=rule), tmp_path / "out"
    plan, summary, _ = go(file, out)
    ranking, results = ranked(file, out, plan)
    pruned = {job.arm for job in plan.jobs if results[job.id].state == "pruned"}
    assert set() < pruned < {job.arm for job in plan.jobs}
    assert "hyperband" in rule or {"rate 4", "rate 5"} <= pruned  # its brackets go by the number
    assert summary.count("pruned") == len(pruned)
    for arm in ranking.arms:
        assert (arm.rank is None) == (arm.arm in pruned)
        assert not (arm.arm in pruned and (arm.pareto or arm.count("passed")))
    assert [arm.arm in pruned for arm in ranking.arms] == sorted(
        arm.arm in pruned for arm in ranking.arms
    )
    lost = ranking.arms[-1].troubles[0]
    (name,) = rule
    assert lost.error.startswith("pruned at step ")
    assert f"by {name}: train/loss" in lost.error
    assert "stopped after step" in lost.error
    assert not any(n.startswith("final/") for n in results[lost.job_id].metrics)
    assert any("takes the balance out of a grid" in note for note in ranking.notes)
    _, again, _ = go(file, out)
    assert again.trained == ()  # pruned jobs have ended


def test_a_job_in_this_process_stops_at_the_step_that_decides(tmp_path: Path) -> None:
    file, out = study(tmp_path), tmp_path / "out"
    plan, *_ = go(file, out)
    _, results = ranked(file, out, plan)
    worst = next(job for job in plan.jobs if job.arm == "rate 5")
    assert "pruned at step 4 " in (results[worst.id].error or "")
    assert max(e["step"] for e in Ledger(out).events(worst.id) if "step" in e) == 4


def test_workers_are_told_to_stop(tmp_path: Path) -> None:
    file = study(tmp_path, base={"steps": 60, "step_seconds": 0.02})
    plan, summary, _ = go(file, tmp_path / "out", engine="pool", workers=1)
    assert summary.count("pruned") >= 2
    assert summary.missing == ()
    worst = next(job for job in plan.jobs if job.arm == "rate 5")
    steps = [e["step"] for e in Ledger(tmp_path / "out").events(worst.id) if "step" in e]
    assert max(steps) < 60


@pytest.mark.long  # killed in the default suite: tests/ablate/test_search.py
def test_a_killed_study_prunes_the_same(tmp_path: Path) -> None:
    file = study(tmp_path, base={"steps": 12, "step_seconds": 0.01})
    whole, *_ = go(file, tmp_path / "whole")
    killed_at(file, tmp_path / "cut", 0.2)
    plan, *_ = go(file, tmp_path / "cut")
    states = [
        {k: own["state"] for k, own in numbers(tmp_path / name, plan.jobs).items()}
        for name in ("whole", "cut")
    ]
    assert plan == whole
    assert states[0] == states[1]


def test_a_study_without_the_rule_finishes_what_another_pruned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, *_ = go(study(tmp_path), out)
    (tmp_path / "plain").mkdir()
    file = study(tmp_path / "plain", pruning=None)
    _, summary, _ = go(file, out)
    pruned = [job for job in plan.jobs if job.id in summary.trained]
    assert {job.arm for job in pruned} >= {"rate 4", "rate 5"}
    assert summary.count("done") == len(plan.jobs)
    for job in pruned:  # on from where it was stopped, not from the beginning
        steps = [e["step"] for e in Ledger(out).events(job.id) if "step" in e]
        assert steps.count(0) == 1
    go(file, tmp_path / "fresh")
    assert numbers(out, plan.jobs) == numbers(tmp_path / "fresh", plan.jobs)


def test_wilcoxon_prunes_the_seeds_that_are_left(tmp_path: Path) -> None:
    rule = {"wilcoxon": {"reading": "final/loss", "p": 0.2}}
    rates = {name: RATES[name] for name in ("rate 0", "rate 4")}
    file = study(tmp_path, pruning=rule, factors={"lr": rates}, seeds=[0, 1, 2, 3, 4])
    plan, summary, _ = go(file, tmp_path / "out")
    ranking, results = ranked(file, tmp_path / "out", plan)
    assert ranking.arm("rate 0").counts == {"done": 5}
    assert ranking.arm("rate 4").counts == {"done": 3, "pruned": 2}
    assert ranking.arm("rate 4").rank is None
    assert summary.missing == ()
    unstarted = [job for job in plan.jobs if results[job.id].state == "pruned"]
    assert [starts(tmp_path / "out", job) for job in unstarted] == [0, 0]
    assert "pruned at seed 2 by wilcoxon" in (results[unstarted[0].id].error or "")


@pytest.mark.parametrize(
    "rule", [{"median": {"reading": "train/los"}}, {"wilcoxon": {"reading": "final/los", "p": 0.6}}]
)
def test_a_reading_that_no_job_has_is_said_once_and_by_status(tmp_path: Path, rule: Any) -> None:
    file, out = study(tmp_path, pruning=rule, seeds=[0, 1]), tmp_path / "out"
    plan, summary, heard = go(file, out)
    assert summary.count("done") == len(plan.jobs)
    lines = [line for line in heard.said if line.startswith("pruning: ")]
    asked = load_study(str(file), Options(out=out))
    assert asked.pruning is not None
    reading = asked.pruning.reading
    assert len(lines) == 1
    assert f"no finished job has reported {reading}" in lines[0]
    assert f"did you mean '{reading}s'" in lines[0]
    assert unheard(asked.pruning, summary.results, Ledger(out)) == lines[0]


def test_a_reading_that_a_job_has_is_no_matter(tmp_path: Path) -> None:
    file, out = study(tmp_path), tmp_path / "out"
    _, summary, heard = go(file, out)
    assert not any(line.startswith("pruning: ") for line in heard.said)
    done = {k: own for k, own in summary.results.items() if own.state == "done"}
    asked = load_study(str(file), Options(out=out))
    assert unheard(asked.pruning, done, Ledger(out)) is None


def test_a_reading_counts_once_however_often_it_is_told() -> None:
    jobs = [toy_job(f"arm {i}", lr=0.1 * i) for i in (1, 2, 3)]
    pruner = Pruner(Pruning("median", "px", options={"startup": 1}))
    pruner.extend(jobs)

    def told(step: int, px: float) -> list[dict[str, Any]]:
        return [{"step": step, "metrics": {"px": px}}]

    assert pruner.heard(jobs[0], told(1, 1.0)) == {}
    assert pruner.ended(jobs[0], Result(jobs[0].id, {}, 0, "done", {})) == {}
    assert pruner.heard(jobs[1], told(1, 0.5) * 3) == {}
    assert pruner.heard(jobs[1], [{"event": "started"}, *told(1, 99.0)]) == {}
    why = pruner.heard(jobs[2], told(1, 2.0))
    assert why == {jobs[2].id: "pruned at step 1 by median: px 2"}
    assert pruner.heard(jobs[2], told(2, 2.0)) == {}


@pytest.mark.parametrize(
    ("pruning", "complaint"),
    [
        ({"medium": {}}, "pruning.medium: unknown key; did you mean 'median'"),
        ({"median": {}}, "pruning.median: reading: is missing"),
        ({"asha": {"reading": "a"}}, "min_steps: is missing"),
        ({"asha": {"reading": "a", "min_steps": 0}}, "given 0, must be a whole number from 1"),
        ({"asha": {"reading": "a", "min_steps": 2, "factor": 1}}, "must be a whole number from 2"),
        (
            {"hyperband": {"reading": "a", "min_steps": 5, "max_steps": 5}},
            "max_steps must be above min_steps",
        ),
        ({"wilcoxon": {"reading": "a"}}, "with 1 seeds no arm can be pruned before its last"),
        ({**MEDIAN, "asha": {}}, "given 2 rules"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, pruning: Any, complaint: str) -> None:
    with pytest.raises(StudyError, match=complaint) as caught:
        load_study(str(study(tmp_path, pruning=pruning)))
    assert "\n" not in str(caught.value)


def test_the_keys_are_kept_as_they_were_read(tmp_path: Path) -> None:
    found = load_study(str(study(tmp_path, stop_when_passed=True)))
    kept = tmp_path / "kept.yaml"
    kept.write_text(resolved(found))
    again = load_study(str(kept))
    assert (again.pruning, again.stop_when_passed) == (found.pruning, True)
    assert found.pruning is not None


# -- ending early because all criteria hold ---------------------------------------------------

EARLY: dict[str, Any] = {"pruning": None, "stop_when_passed": True, "base": {"steps": 40}}


def test_a_job_whose_criteria_hold_ends_early_and_says_where(tmp_path: Path) -> None:
    file, out = study(tmp_path, **EARLY), tmp_path / "out"
    plan, *_ = go(file, out)
    _, results = ranked(file, out, plan)
    by_arm = {job.arm: results[job.id] for job in plan.jobs}
    assert by_arm["rate 0"].metrics["final/step"] in (10, 20, 30)
    assert by_arm["rate 0"].metrics["final/loss"] < 0.3
    assert "final/step" not in by_arm["rate 5"].metrics  # it never passes, so it trains to its end
    _, again, _ = go(file, out)
    assert again.trained == ()


def test_a_study_that_wants_all_steps_goes_on_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, *_ = go(study(tmp_path, **EARLY), out)
    (tmp_path / "plain").mkdir()
    file = study(tmp_path / "plain", **(EARLY | {"stop_when_passed": False}))
    _, summary, _ = go(file, out)
    early = next(job for job in plan.jobs if job.arm == "rate 0")
    assert early.id in summary.trained
    go(file, tmp_path / "fresh")
    assert numbers(out, plan.jobs) == numbers(tmp_path / "fresh", plan.jobs)
    # and a stricter threshold does not take what stopped at a looser one
    (tmp_path / "strict").mkdir()
    strict = study(tmp_path / "strict", **EARLY, criteria={"loss": 0.01})
    looser = Ledger(tmp_path / "early")
    go(study(tmp_path, **EARLY), looser.out)
    _, summary, _ = go(strict, looser.out)
    assert early.id in summary.trained


def test_gates_and_missing_readings_keep_a_job_going() -> None:
    from functools import partial

    from ablate.nouns import Condition, Criterion, Gate
    from ablate.worker import all_hold

    class Gated:
        def gates(self, metrics: Any, settings: Any) -> tuple[Gate, ...]:
            held = "failed" if metrics.get("blind") else "passed"
            own = "failed" if metrics.get("holes") else "passed"
            stray = Gate("of_others", "failed", None, ("c", "held_out"), "")
            return (Gate("sees", held, None, (), ""), stray, Gate("holes", own, None, ("b",), ""))

    criteria = [Criterion("a", (Condition("a", 1.0),)), Criterion("b", (Condition("b", 1.0),))]
    core: Any = Gated()
    enough = partial(all_hold, core, criteria, {})
    assert enough({"a": 0.5}, whole=False)  # b is not known yet
    assert not enough({"a": 0.5}, whole=True)
    assert not enough({"a": 0.5, "b": math.nan}, whole=True)
    assert enough({"a": 0.5, "b": 0.5}, whole=True)
    assert not enough({"a": 0.5, "b": 0.5, "blind": 1.0}, whole=True)
    assert not enough({"a": 0.5, "b": 0.5, "holes": 1.0}, whole=True)
    assert not enough({"b": 2.0}, whole=False)
