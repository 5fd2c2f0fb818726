"""Verdicts, gates, order and what must never be dropped in silence."""

import json
import math
from dataclasses import replace

import pytest

from ablate.compare import LOSSES_APART, void_metrics
from ablate.lanelm_core import LaneLMCore
from ablate.nouns import (
    EARLY,
    Arm,
    Condition,
    Criterion,
    Design,
    Factor,
    Gate,
    Job,
    Level,
    Plan,
    Result,
)
from ablate.rank import Ranking, judge, rank
from tests.ablate import synthetic


def ranked(
    values: dict[str, dict[str, list[float]]],
    states: dict[str, str] | None = None,
    gates: dict[str, Gate] | None = None,
) -> Ranking:
    """Rank arms given as {arm: {metric: value by seed}}; a gate holds for the arm's first seed."""
    factor = Factor("arm", tuple(Level(name, {}) for name in values))
    study = synthetic.study(factors=(factor,), designs=(Design("list"),))
    jobs, results, by_job = [], {}, {}
    for arm, metrics in values.items():
        for seed in range(max(map(len, metrics.values()))):
            job = Job(f"{arm}-{seed}", arm, {"arm": arm}, seed, {"seed": seed})
            jobs.append(job)
            readings = {name: own[seed] for name, own in metrics.items()}
            state = (states or {}).get(job.id, "done")
            if state != "missing":
                results[job.id] = Result(job.id, job.levels, seed, state, readings)  # type: ignore[arg-type]
            if arm in (gates or {}) and seed == 0:
                by_job[job.id] = ((gates or {})[arm],)
    return rank(study, jobs, results, gates=by_job)


def whole(loss=0.01, uniformity=0.4, px=1.0, zigzag=0.1, flips=0.0, seeds=3) -> dict:
    """Readings that agree over the seeds to about a hundredth."""
    names = ("loss", "uniformity", "px_error", "zigzag", "zigzag_flips")
    values = (loss, uniformity, px, zigzag, flips)
    return {
        f"final/{name}": [value * (1 + 0.01 * seed) for seed in range(seeds)]
        for name, value in zip(names, values, strict=True)
    }


def verdicts(ranking: Ranking, arm: str) -> dict[str, str]:
    return {c.name: c.verdict for c in ranking.arm(arm).criteria}


@pytest.mark.parametrize(
    ("px", "verdict"),
    [
        ([1.0, 1.1, 1.2], "passed"),
        ([4.0, 4.5, 4.9], "likely"),  # mean 4.47, interval up to 5.59
        ([4.0, 6.0, 9.0], "failed"),
        ([1.0], "likely"),
        ([6.0], "failed"),
        ([math.nan, math.nan], "not testable"),
        ([1.0, 1.0, math.nan], "likely"),  # one seed decoded nothing
        ([5.0, 5.0], "failed"),  # the threshold itself does not pass
    ],
)
def test_verdict_is_read_from_the_worse_end_of_the_interval(px, verdict):
    values = whole(seeds=len(px)) | {"final/px_error": px}
    assert verdicts(ranked({"a": values}), "a")["px_error"] == verdict


def test_zigzag_needs_both_its_conditions():
    ranking = ranked({"a": whole(zigzag=0.5, flips=0.1)})
    criterion = next(c for c in ranking.arm("a").criteria if c.name == "zigzag")
    assert criterion.verdict == "failed"
    assert criterion.deciding.metric == "final/zigzag_flips"


def test_a_diverged_seed_takes_the_certainty_away():
    ranking = ranked({"a": whole()}, states={"a-2": "diverged"})
    arm = ranking.arm("a")
    assert set(verdicts(ranking, "a").values()) == {"likely"}
    assert arm.counts == {"done": 2, "diverged": 1}
    assert "1 of 3 seeds diverged" in arm.notes
    assert arm.troubles[0].job_id == "a-2"


def test_a_crashed_seed_is_counted_and_the_others_stand():
    ranking = ranked({"a": whole()}, states={"a-2": "failed"})
    assert set(verdicts(ranking, "a").values()) == {"passed"}
    assert "1 of 3 seeds failed" in ranking.arm("a").notes
    assert "1 of 3 jobs failed" in ranking.notes


def test_a_failed_gate_voids_what_it_makes_meaningless():
    gate = Gate("coverage", "failed", 0.5, ("px_error", "zigzag"), "half the rows are missing")
    ranking = ranked({"holes": whole(), "sound": whole(px=4.9)}, gates={"holes": gate})
    assert verdicts(ranking, "holes") == {
        "loss": "passed",
        "uniformity": "passed",
        "px_error": "not testable",
        "zigzag": "not testable",
    }
    assert [arm.arm for arm in ranking.arms] == ["sound", "holes"]
    assert "half the rows are missing (1 of 3 seeds)" in ranking.arm("holes").notes
    voided = ranking.arm("holes").criteria[2]
    assert voided.voided_by == ("coverage",)
    assert not ranking.arm("holes").pareto


@pytest.mark.parametrize(
    "voids", [("final/px_error",), ("far",), ("final/zigzag", "best/px_error")]
)
def test_a_gate_voids_a_criterion_by_its_name_or_by_any_of_its_readings(voids):
    far = Criterion("far", (Condition("final/px_error", 5.0), Condition("best/px_error", 8.0)))
    study = synthetic.study(criteria=(far, Criterion("loss", (Condition("final/loss", 0.1),))))
    plan = synthetic.plan(study)
    gates = {job.id: (Gate("lanes", "failed", 0.5, voids, "half"),) for job in plan.jobs}
    ranking = rank(study, plan.jobs, synthetic.results(plan), gates=gates)
    found = {c.name: c.voided_by for c in ranking.arms[0].criteria}
    assert found == {"far": ("lanes",), "loss": ()}
    void = void_metrics(study, next(iter(gates.values())))
    named = {"far": {"final/px_error", "best/px_error"}}.get(voids[0], set(voids))
    assert void == named - {"final/zigzag"}  # no criterion reads it


def test_a_gate_of_readings_that_no_criterion_reads_is_not_shown():
    stray = Gate("best_coverage", "failed", 0.5, ("best/px_error",), "half of the held-out rows")
    arm = ranked({"a": whole()}, gates={"a": stray}).arm("a")
    assert arm.gates == ()
    assert not any("held-out" in note for note in arm.notes)
    assert {c.verdict for c in arm.criteria} == {"passed"}
    marks = replace(stray, voids=())
    assert ranked({"a": whole()}, gates={"a": marks}).arm("a").gates[0].name == "best_coverage"


def test_held_out_px_stands_behind_its_own_coverage():
    study = synthetic.study(criteria=(Criterion("held_out", (Condition("best/px_error", 8.0),)),))
    plan = synthetic.plan(study)
    core = LaneLMCore()
    results = {
        job.id: synthetic.done(job, {"best/px_error": 2.0, "best/coverage": 0.3})
        for job in plan.jobs
    }
    gates, _ = judge(core, plan.jobs, results)
    arm = rank(study, plan.jobs, results, gates=gates).arms[0]
    (held_out,) = arm.criteria
    assert (held_out.verdict, held_out.voided_by) == ("not testable", ("best_coverage",))
    assert any("30.0% of the labelled points" in note for note in arm.notes)


def test_order_is_passed_then_likely_then_margin_then_px():
    ranking = ranked(
        {
            "thin margin": whole(px=4.8),
            "wide margin": whole(px=4.0),
            "one fails": whole(px=9.0),
            "one likely": whole() | {"final/px_error": [4.0, 4.5, 4.9]},
            "better px": whole(uniformity=0.45, px=2.0),
            "same margin": whole(uniformity=0.45, px=2.5),
        }
    )
    assert [arm.arm for arm in ranking.arms] == [
        "wide margin",  # uniformity and px a fifth below their thresholds
        "better px",  # uniformity a tenth below, as the next; px decides
        "same margin",
        "thin margin",
        "one likely",
        "one fails",
    ]
    assert [arm.rank for arm in ranking.arms] == [1, 2, 3, 4, 5, 6]


def test_an_arm_without_an_ended_job_has_no_rank():
    states = {f"b-{seed}": "missing" for seed in range(3)}
    ranking = ranked({"b": whole(), "a": whole(px=50.0)}, states=states)
    assert [(arm.arm, arm.rank) for arm in ranking.arms] == [("a", 1), ("b", None)]
    assert "3 of 6 jobs have not ended" in ranking.notes


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([200.0, 100.0, 300.0], "3 of 6 jobs ended early, at step 100 to 300, where all"),
        ([200.0, 200.0, 200.0], "3 of 6 jobs ended early, at step 200, where all"),
    ],
)
def test_runs_of_unequal_lengths_are_said_to_be(steps, said):
    ranking = ranked({"early": whole() | {EARLY: steps}, "last": whole(px=50.0)})
    assert [note for note in ranking.notes if note.startswith(said)]
    assert not any("early" in note for note in ranked({"last": whole()}).notes)


def test_memorising_stands_in_the_notes():
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    for job in plan.jobs:
        if job.arm == "base":
            blind = {**results[job.id].metrics, "final/swap_px": 0.1}
            results[job.id] = replace(results[job.id], metrics=blind)
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates, findings=findings)
    assert any(note.startswith("memorises") for note in ranking.arm("base").notes)
    assert not any(note.startswith("memorises") for note in ranking.arm("all").notes)
    (diagnosis,) = ranking.arm("base").diagnosis
    assert (diagnosis.finding.rule, diagnosis.seeds) == ("visual encoder", 3)


def test_effects_of_a_study_recover_what_was_planted():
    study = synthetic.study()
    plan = synthetic.plan(study)
    ranking = rank(study, plan.jobs, synthetic.results(plan), core_hash="c0ffee")
    assert (ranking.base, ranking.best) == ("base", "all")
    effects = {(e.kind, e.factor): e for e in ranking.effects if e.metric == "final/px_error"}
    alone, left = effects["one at a time", "lr"], effects["leave one out", "lr"]
    assert alone.estimate == pytest.approx(0.25, rel=0.05)
    assert left.estimate == pytest.approx(4.0, rel=0.05)
    assert (alone.against, alone.level) == ("3e-4", "1e-4")
    assert effects["one at a time", "mode"].lost == 1
    assert alone.clear
    assert not effects["one at a time", "mode"].clear


def test_losses_across_tokenizers_are_marked():
    study = synthetic.study()
    plan = synthetic.plan(study)
    ranking = rank(study, plan.jobs, synthetic.results(plan))
    assert ranking.notes[0].startswith("raw losses across tokenizers are not comparable")
    marked = {(e.factor, e.metric) for e in ranking.effects if e.note}
    assert marked == {("mode", "final/loss")}


def test_a_tokenizer_that_a_preset_brings_is_one_too():
    """What a level makes of the job counts, not how its study spells it."""
    study = synthetic.study()
    lean = Factor("mode", (Level("absolute", {}), Level("relative", {"preset": "strategy3"})))
    same = Factor("lr", (Level("3e-4", {}), Level("1e-4", {"tokenizer.mode": "absolute"})))
    plan = synthetic.plan(study)
    respelt = replace(study, factors=(study.factors[0], same, lean))
    ranking = rank(respelt, plan.jobs, synthetic.results(plan))
    assert {(e.factor, e.metric) for e in ranking.effects if e.note} == {("mode", "final/loss")}
    grid = replace(respelt, designs=(Design("factorial"),))
    averages = rank(grid, plan.jobs, synthetic.results(plan)).effects
    assert {(e.factor, e.metric) for e in averages if e.note} == {("mode", "final/loss")}


def test_a_fraction_without_a_pair_of_arms_is_read_by_its_levels():
    study = synthetic.study(designs=(Design("fractional"),), seeds=(0, 1, 2))
    whole = synthetic.plan(study)
    half = [j for j in whole.jobs if sum(own.startswith(("p5", "1e", "rel")) for own in
            j.levels.values()) % 2]  # fmt: skip
    effects = rank(study, half, synthetic.results(Plan(half))).effects
    marked = {e.factor for e in effects if LOSSES_APART in e.note}
    assert {e.factor for e in effects} == {"tokens", "lr", "mode"}
    assert marked == {"mode"}


def test_a_level_with_a_plus_in_its_name_is_one_level():
    names = {"relative": "relative+wide"}
    plan = synthetic.plan(synthetic.study())
    study = synthetic.study(
        factors=(
            *synthetic.FACTORS[:2],
            Factor("mode", (Level("absolute", {}), Level("relative+wide", {}))),
        )
    )
    jobs = [
        replace(job, levels={f: names.get(own, own) for f, own in job.levels.items()})
        for job in plan.jobs
    ]
    effects = rank(study, jobs, synthetic.results(plan)).effects
    assert {e.level for e in effects if e.note} == {"relative+wide", "absolute"}


def test_results_of_older_code_are_named():
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    ranking = rank(study, plan.jobs, results, core_hash="another")
    assert f"{len(results)} results from older code; --rerun trains them again" in ranking.notes


def test_a_factorial_gets_main_effects_and_variance_shares():
    study = synthetic.study(designs=(Design("factorial"),))
    plan = synthetic.plan(study)  # 8 arms: the whole grid of three factors
    ranking = rank(study, plan.jobs, synthetic.results(plan))
    shares = {t.term: t.share for t in ranking.variance if t.metric == "final/px_error"}
    assert shares["lr"] > shares["tokens"] > 0.1
    assert shares["mode"] < 0.01
    kinds = {effect.kind for effect in ranking.effects}
    assert kinds == {"main effect"}


def test_a_baseline_beside_a_factorial_leaves_its_averages_alone():
    crossing = Design("factorial", {"factors": ("tokens", "lr")})
    baseline = Design("list", {"arms": {"all": {}}})
    study = synthetic.study(designs=(crossing, baseline))
    jobs = synthetic.plan(study).jobs
    crossed = [job for job in jobs if job.levels["mode"] == "absolute"]
    alone = rank(synthetic.study(designs=(crossing,)), crossed, synthetic.results(Plan(crossed)))
    beside = [*crossed, *(job for job in jobs if job.arm == "all")]
    both = rank(study, beside, synthetic.results(Plan(beside)))
    averages = [e for e in both.effects if e.kind == "main effect"]
    assert averages == [e for e in alone.effects if e.kind == "main effect"]
    assert {e.factor for e in averages} == {"tokens", "lr"}
    assert all(e.estimate is not None for e in averages if e.metric == "final/px_error")
    assert both.variance == alone.variance


def test_arms_with_the_same_runs_are_both_named():
    study = synthetic.study(designs=(Design("one_at_a_time"),))
    plan = synthetic.plan(study)
    job = plan.jobs[0]
    twin = Arm("tokens=same", {**job.levels, "tokens": "same"}, "one_at_a_time")
    jobs = [replace(job, also=(twin, Arm("base", job.levels))), *plan.jobs[1:]]
    ranking = rank(study, jobs, synthetic.results(plan))
    assert "the same runs as tokens=same" in ranking.arm("base").notes
    effects = {e.level: e for e in ranking.effects if e.metric == "final/px_error"}
    assert (effects["same"].estimate, effects["same"].n) == (1.0, 1)


def test_json_form():
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates, findings=findings)
    form = json.loads(json.dumps(ranking.to_json(), allow_nan=False))
    assert form["study"] == "little"
    best = form["ranking"][0]
    assert best["rank"] == 1
    assert best["levels"]["tokens"] == "p5"
    assert best["seeds"] == [0, 1, 2]
    assert best["metrics"]["final/px_error"].keys() >= {"mean", "low", "high"}
    assert best["criteria"]["px_error"].keys() >= {"verdict", "value", "threshold"}
    assert best["gates"]["coverage"].keys() >= {"verdict", "value"}
    assert isinstance(best["notes"], list)
    assert isinstance(best["diagnosis"], list)
    assert form["effects"][0].keys() >= {"factor", "metric", "estimate", "low", "high"}


@pytest.mark.parametrize(
    ("f1", "verdict"),
    [
        ([0.95, 0.96, 0.97], "passed"),
        ([0.85, 0.99], "likely"),  # mean 0.92, interval from 0.03
        ([0.8, 0.81], "failed"),
        ([0.9, 0.9], "failed"),
        ([0.97], "likely"),
    ],
)
def test_a_criterion_that_asks_for_more(f1: list[float], verdict: str) -> None:
    hits = Criterion("hits", (Condition("test/f1", 0.9, above=True),))
    factor = Factor("arm", (Level("one", {}), Level("other", {})))
    study = synthetic.study(factors=(factor,), designs=(Design("list"),), criteria=(hits,))
    jobs, results = [], {}
    for arm, values in {"other": [0.1] * len(f1), "one": f1}.items():
        for seed, value in enumerate(values):
            job = Job(f"{arm}-{seed}", arm, {"arm": arm}, seed, {"seed": seed})
            jobs.append(job)
            readings = {"test/f1": value, "cost/seconds": 1.0}
            results[job.id] = Result(job.id, job.levels, seed, "done", readings)
    found = rank(study, jobs, results)
    assert [arm.arm for arm in found.arms] == ["one", "other"]
    assert verdicts(found, "one") == {"hits": verdict}
    assert [arm.pareto for arm in found.arms] == [True, False]
    said = found.to_json()["ranking"][0]["criteria"]["hits"]
    assert (said["threshold"], said["direction"]) == (0.9, "above")


def test_a_reading_that_no_finished_job_has_is_noted() -> None:
    criteria = (Criterion("acc", (Condition("final/los", 0.1),)),)
    study = synthetic.study(criteria=criteria)
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    said = "criteria.acc: no finished job has the reading final/los; the nearest is final/loss"
    assert said in rank(study, plan.jobs, results).notes
    assert not any("no finished job has" in note for note in rank(study, plan.jobs, {}).notes)
