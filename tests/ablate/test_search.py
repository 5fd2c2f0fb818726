"""Optuna's samplers through the ledger: the same sequence however often a search was killed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ablate.adaptive import Tried
from ablate.designs import Axis
from ablate.nouns import Arm, Condition, Criterion, Options, StudyError
from ablate.planner import Planner
from ablate.reader import load_study, resolved
from ablate.search.design import Sampling, Search
from ablate.search.suggestions import Suggestion, Suggestions
from ablate.search.trials import constraints_of
from ablate.space import Range, Space
from tests.ablate.test_adaptive import go, killed_at, replayed, write
from tests.ablate.toys import numbers

RANGES = {"lr": {"low": 0.01, "high": 3.0, "log": True}, "steps": {"low": 2, "high": 6}}
SEARCH = {"trials": 8, "startup": 3, "objective": "final/loss", "ranges": RANGES}
FACTORS = {"noise": {"much": {"noise": 0.9}, "little": {"noise": 0.2}}}

SPACE = Space(
    [Axis.of("mode", "a", "b")], {"x": Range(-2.0, 2.0), "n": Range(1, 5), "z": Range(0.0, 1.0)}
)
SAMPLERS = ("tpe", pytest.param("gp", marks=pytest.mark.long), "nsga2", "random")


def study(folder: Path, search: dict[str, Any] | None = None, **changes: Any) -> Path:
    return write(folder, **({"factors": FACTORS, "design": {"search": search or SEARCH}} | changes))


def search(folder: Path, sampler: str, trials: int = 12, **changes: Any) -> Search:
    sampling = Sampling(sampler, startup=4, population=4)
    made: dict[str, Any] = {"objectives": {"px": "minimize"}, "criteria": ()} | changes
    return Search(SPACE, sampling, trials, file=folder / "kept.jsonl", **made)


def bowl(arm: Arm) -> Tried:
    """Least at x = 1, mode b, n = 3."""
    x, n = arm.settings["x"], arm.settings["n"]
    px = (x - 1) ** 2 + (n - 3) ** 2 + (arm.levels["mode"] == "a")
    return Tried("done", {"px": (px,), "size": (float(n) + abs(x),)})


def points(design: Search, until: int = 10**9) -> list[dict[str, Any]]:
    """Ask for one point after the other, as one worker does."""
    kept = design.propose(lambda arm: None, 0).arms
    known = {tuple(arm.levels.values()): bowl(arm) for arm in kept}

    def tried(arm: Arm) -> Tried | None:
        return known.get(tuple(arm.levels.values()))

    while True:
        proposal = design.propose(tried, 1)
        new = [a for a in proposal.arms if tuple(a.levels.values()) not in known]
        if not new or len(proposal.arms) > until:
            return [{**a.levels} for a in proposal.arms]
        known |= {tuple(a.levels.values()): bowl(a) for a in new}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_cut_goes_on_with_the_same_points(tmp_path: Path, sampler: str) -> None:
    trials = 8 if sampler == "gp" else 12
    whole = points(search(tmp_path / "whole", sampler, trials))
    assert len(whole) == trials
    cut = search(tmp_path / "cut", sampler, trials)
    points(cut, until=5)
    with cut.file.open("a") as file:  # killed while it kept one
        file.write('{"search": "')
    assert points(cut) == whole
    assert points(cut) == whole  # nothing is left to think of
    lines = [line for line in cut.file.read_text().splitlines() if line.endswith("}")]
    assert len(lines) == trials


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.long)])
def test_a_model_does_better_than_chance(tmp_path: Path, sampler: str) -> None:
    found = points(search(tmp_path, sampler, trials=25))
    chance = points(search(tmp_path / "chance", "random", trials=25))

    def late(levels: list[dict[str, Any]]) -> float:
        values = [(float(p["x"]) - 1) ** 2 + (int(p["n"]) - 3) ** 2 for p in levels[10:]]
        return math.fsum(values) / len(values)

    assert late(found) < late(chance) / 2


def test_values_have_four_digits_and_stay_inside() -> None:
    own = Range(1.00049e-5, 0.99999, log=True)
    assert own.rounded(1.0005e-5) == own.rounded(1.00049e-5) == 1.00049e-5
    assert own.rounded(0.999985) == 0.99999
    assert Range(0.1, 0.9, step=0.1).rounded(0.1 + 2 * 0.1) == 0.3
    assert Range(1, 8).whole
    assert not Range(1, 8.0).whole


def test_criteria_are_constraints_and_what_cannot_be_read_violates_them() -> None:
    criteria = [Criterion("px", (Condition("px", 5.0),)), Criterion("c", (Condition("gone", 0.0),))]
    assert constraints_of(criteria, {"px": 6.0}) == {"px: px": pytest.approx(0.2), "c: gone": 1.0}
    assert constraints_of(criteria[:1], {"px": 4.0})["px: px"] < 0
    assert constraints_of(criteria[:1], {"px": math.nan}) == {"px: px": 1.0}


def test_constraints_keep_a_search_where_they_hold(tmp_path: Path) -> None:
    # the bowl's bottom is at n = 3, but size < 2 asks for n = 1 and |x| < 1
    small = Criterion("size", (Condition("size", 2.0),))
    free = points(search(tmp_path / "free", "tpe", trials=40))
    held = points(search(tmp_path / "held", "tpe", trials=40, criteria=[small]))

    def feasible(found: list[dict[str, Any]]) -> int:
        return sum(float(p["n"]) + abs(float(p["x"])) < 2 for p in found[10:])

    assert feasible(held) > 2 * feasible(free)


def test_several_objectives(tmp_path: Path) -> None:
    both = {"px": "minimize", "size": "maximize"}
    design = search(tmp_path, "nsga2", objectives=both)
    assert points(design) == points(search(tmp_path / "again", "nsga2", objectives=both))
    kept = [json.loads(line) for line in design.file.read_text().splitlines()]
    assert kept[-1]["attributes"] == {"NSGAIISampler:generation": 2}


def test_points_without_a_reading_are_no_end(tmp_path: Path) -> None:
    design = search(tmp_path, "tpe", trials=6)
    proposal = design.propose(lambda arm: Tried("diverged", {}), 1)
    assert len(proposal.arms) == 6
    assert proposal.more == ""
    assert proposal.notes == ("search: 6 of 6 points have no reading to search by",)


def test_other_settings_begin_a_new_sequence(tmp_path: Path) -> None:
    first = points(search(tmp_path, "random"))
    other = search(tmp_path, "random", context="other base")
    proposal = other.propose(lambda arm: None, 0)
    assert proposal.arms == ()
    assert "12 suggestions made under other settings are left out" in proposal.notes[0]
    assert points(search(tmp_path, "random")) == first


def test_a_search_by_the_command_is_replayed_and_survives_kills(tmp_path: Path) -> None:
    file = study(tmp_path)
    whole, summary, _ = go(file, tmp_path / "whole")
    assert summary.missing == ()
    assert len(whole.arms) == 8
    assert whole.more == ()
    assert replayed(file, tmp_path / "whole") == whole
    assert all(job.levels["lr"] == f"{job.settings['lr']:.12g}" for job in whole.jobs)
    assert {type(job.settings["steps"]) for job in whole.jobs} == {int}
    for moment in (0.2, 0.5):
        killed_at(file, tmp_path / "cut", moment)
    plan, *_ = go(file, tmp_path / "cut")
    assert plan == whole
    assert numbers(tmp_path / "cut", plan.jobs) == numbers(tmp_path / "whole", whole.jobs)
    more, summary, _ = go(study(tmp_path, seeds=[0, 1, 2]), tmp_path / "whole")
    assert [arm.levels for arm in more.arms] == [arm.levels for arm in whole.arms]
    assert len(summary.trained) == 8  # the third seed of every point


def test_several_workers_search_too(tmp_path: Path) -> None:
    plan, summary, _ = go(study(tmp_path), tmp_path / "out", engine="pool", workers=2)
    assert summary.missing == ()
    assert len(plan.arms) == 8


def test_looking_thinks_of_nothing(tmp_path: Path) -> None:
    plan = replayed(study(tmp_path), tmp_path / "out")
    assert plan.jobs == []
    assert plan.more[0].startswith("search: 0 of 8 points tried")
    assert not (tmp_path / "out").exists()


def test_beside_other_designs_every_arm_has_all_levels(tmp_path: Path) -> None:
    file = study(tmp_path, design=["one_at_a_time", {"search": SEARCH | {"trials": 2}}])
    plan, *_ = go(file, tmp_path / "out")
    assert {tuple(arm.levels) for arm in plan.arms} == {("noise", "lr", "steps")}
    assert plan.arms[0].levels == {"noise": "much", "lr": "base", "steps": "base"}
    assert [arm.design for arm in plan.arms] == ["one_at_a_time"] * 2 + ["search"] * 2


def test_a_point_that_the_core_refuses_does_not_end_the_search(tmp_path: Path) -> None:
    file = study(tmp_path, exclude=[{"noise": "much"}])
    plan, *_ = go(file, tmp_path / "out")
    assert {arm.levels["noise"] for arm in plan.arms} == {"little"}
    assert any("have no reading to search by" in note for note in plan.notes)


def wrong(**changes: Any) -> dict[str, Any]:
    made = SEARCH | changes
    return {key: value for key, value in made.items() if value is not None}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (wrong(trials=None), "trials: is missing"),
        (wrong(trials=0), "trials: given 0, must be a positive number"),
        (wrong(sampler="tp"), "sampler: unknown sampler 'tp'; did you mean 'tpe'"),
        (wrong(objective=[]), "objective: must be one or several"),
        (wrong(objective="val/f1"), r"more val/f1 is better: write {val/f1: maximize}"),
        (wrong(objective={"final/loss": "up"}), "unknown direction 'up'"),
        (wrong(ranges={"lr": {"low": 1.0}}), "ranges.lr: high: is missing"),
        (wrong(ranges={"lr": {"low": 1.0, "high": 0.1}}), "low must be below high"),
        (wrong(ranges={"lr": {"low": 0.0, "high": 1.0, "log": True}}), "low is 0.0, must be above"),
        (wrong(ranges={"lr": {"low": "a", "high": 1.0}}), "given 'a', must be a number"),
        (wrong(ranges={"lrr": {"low": 0.1, "high": 1.0}}), "unknown setting 'lrr'"),
        (wrong(ranges={"noise": {"low": 0.1, "high": 1.0}}), "the factor noise sets it"),
        (wrong(constraints=["lose"]), "unknown criterion 'lose'; did you mean 'loss'"),
        (wrong(population=8), "only the sampler nsga2 has it"),
        (wrong(seed=-1), "seed: given -1"),
        (wrong(factors=[], ranges=None), "nothing to search"),
        (wrong(sampling="tpe"), "unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(StudyError, match=complaint) as caught:
        load_study(str(study(tmp_path, options)))
    assert "\n" not in str(caught.value)


def test_a_search_is_kept_as_it_was_read(tmp_path: Path) -> None:
    several = ["a", {"b": "maximize"}]
    file = study(tmp_path, wrong(startup=None, sampler="nsga2", population=6, objective=several))
    found = load_study(str(file))
    kept = tmp_path / "kept.yaml"
    kept.write_text(resolved(found))
    assert load_study(str(kept)).designs == found.designs
    assert found.designs[0].options["objective"] == {"a": "minimize", "b": "maximize"}
    assert Planner(found, Options(out=tmp_path / "out")).plan().jobs == []


def test_an_option_over_a_searched_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="lr: given by an option, but the search varies it") as c:
        load_study(str(study(tmp_path)), Options(sets=("scale=0.5 lr=0.2",)))
    assert "(0.01 to 3.0)" in str(c.value)


def test_a_suggestion_that_cannot_be_kept_ends_no_running_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = study(tmp_path, base={"step_seconds": 0.02}), tmp_path / "out"
    keep = Suggestions.keep

    def full(self: Suggestions, one: Suggestion) -> None:
        if one.number == 3:
            raise StudyError(f"{self.file}: a suggestion cannot be kept (No space left on device)")
        keep(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(Suggestions, "keep", full)
        plan, summary, heard = go(file, out, engine="pool", workers=2)
    assert [line for line in heard.said if "No space left" in line] == [
        f"No further arms in this run: {out / 'toy' / 'suggestions.jsonl'}: a suggestion cannot be "
        "kept (No space left on device)"
    ]
    assert (len(summary.trained), summary.missing) == (len(plan.jobs), ())
    assert summary.more
    assert not summary.interrupted
    _, summary, _ = go(file, out)
    assert (summary.more, len(summary.results)) == ((), 8 * 2)
