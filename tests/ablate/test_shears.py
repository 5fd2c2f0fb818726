"""Pruning across runs: what a coordinator that comes back is told, and which old ends count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablate.ledger import Ledger
from ablate.nouns import Job, Plan
from tests.ablate.test_adaptive import PATHS, go
from tests.ablate.test_pruning import RATES, study
from tests.ablate.toys import numbers, starts

WILCOXON: dict[str, Any] = {
    "pruning": {"wilcoxon": {"reading": "final/loss", "p": 0.2}},
    "factors": {"lr": {name: RATES[name] for name in ("rate 0", "rate 4")}},
    "seeds": [0, 1, 2, 3, 4],
}


def states(out: Path, plan: Plan) -> dict[tuple[str, int], str]:
    ended = numbers(out, plan.jobs)
    return {(job.arm, job.seed): ended[job.id]["state"] for job in plan.jobs}


def forget(out: Path, jobs: Iterable[Job]) -> None:
    for job in jobs:
        shutil.rmtree(Ledger(out).folder(job.id))


def change(out: Path, jobs: Iterable[Job], **values: Any) -> None:
    """Write over what results say of themselves."""
    for job in jobs:
        path = Ledger(out).folder(job.id) / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_seeds_that_a_result_cut_stay_cut_when_the_coordinator_died_of_it(tmp_path: Path) -> None:
    file, out = study(tmp_path, **WILCOXON), tmp_path / "out"
    plan, *_ = go(file, out)
    whole = states(out, plan)
    cut = [job for job in plan.jobs if whole[job.arm, job.seed] == "pruned"]
    assert len(cut) == 2
    forget(out, cut)  # killed between the result that decided and the word to the other seeds
    go(file, out)
    assert states(out, plan) == whole
    assert [starts(out, job) for job in cut] == [0, 0]


def test_jobs_that_run_again_are_pruned_as_the_first_time(tmp_path: Path) -> None:
    file, out = study(tmp_path), tmp_path / "out"
    plan, *_ = go(file, out)
    whole = states(out, plan)
    assert whole["rate 5", 0] == "pruned"
    change(out, plan.jobs, code={"commit": "", "core": "older"})
    _, summary, _ = go(file, out, rerun=True)
    assert len(summary.trained) == len(plan.jobs)
    assert states(out, plan) == whole


def test_a_failed_job_that_is_tried_again_can_be_pruned(tmp_path: Path) -> None:
    file, out = study(tmp_path), tmp_path / "out"
    plan, *_ = go(file, out)
    whole = states(out, plan)
    last = [job for job in plan.jobs if job.arm == "rate 5"]
    change(out, last, state="failed", error="broken", pruned_by="")
    go(file, out, retry_failed=True)
    assert states(out, plan) == whole


def test_the_pruner_hears_of_later_arms_that_had_run_before(tmp_path: Path) -> None:
    factors = {
        "lr": {"good": {"lr": 0.5}, "useless": {"lr": 0.001}},
        "noise": {"much": {"noise": 0.9}, "little": {"noise": 0.2}},
        "scale": {"one": {"scale": 1.0}, "half": {"scale": 0.9}},
    }
    rule = {"median": {"reading": "train/loss", "startup": 6, "warmup": 4}}
    file = study(tmp_path, factors=factors, design=PATHS, pruning=rule)
    out = tmp_path / "out"
    plan, *_ = go(file, out)
    whole = states(out, plan)
    last = plan.jobs[-1]
    assert whole[last.arm, 0] == "pruned"
    forget(out, [plan.jobs[0], last])  # the plan begins anew and comes upon results of old
    again, *_ = go(file, out)
    assert {job.id for job in again.jobs} == {job.id for job in plan.jobs}
    assert states(out, plan) == whole


def test_a_seed_that_is_cut_while_it_waits_has_no_result_of_an_earlier_run(tmp_path: Path) -> None:
    file, out = study(tmp_path, **WILCOXON), tmp_path / "out"
    plan, *_ = go(file, out)
    whole = states(out, plan)
    last = next(job for job in plan.jobs if (job.arm, job.seed) == ("rate 4", 4))
    assert whole["rate 4", 4] == "pruned"
    change(out, [last], state="failed", error="broken in a run before", pruned_by="")
    _, summary, _ = go(file, out, retry_failed=True)
    assert summary.results[last.id].state == "pruned"
    assert states(out, plan) == whole


def test_the_end_that_another_rule_made_is_none_of_this_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, *_ = go(study(tmp_path, **WILCOXON), out)
    (tmp_path / "other").mkdir()
    rule = {"wilcoxon": {"reading": "final/loss", "p": 0.3}}
    file = study(tmp_path / "other", **(WILCOXON | {"pruning": rule}))
    _, summary, _ = go(file, out)
    cut = [job for job in plan.jobs if summary.results[job.id].state == "pruned"]
    assert cut
    for job in cut:
        assert "p 0.3" in summary.results[job.id].pruned_by
    _, again, _ = go(file, out)
    assert again.trained == ()
