"""What the terminal shows of a ranking: legible, and not by colour alone."""

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from ablate import wording
from ablate.compare import LOSSES_APART
from ablate.margins import Cell, Interaction, Joint
from ablate.nouns import Design
from ablate.rank import Ranking, judge, rank
from ablate.stats import AGREE, Effect, Interval
from ablate.table import answer
from tests.ablate import synthetic


def made(blind: tuple[str, ...] = (), diverged: tuple[str, ...] = (), **changes) -> Ranking:
    study = synthetic.study(**changes)
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    for job in plan.jobs:
        if job.arm in blind:
            readings = {**results[job.id].metrics, "final/swap_px": 0.2}
            results[job.id] = replace(results[job.id], metrics=readings)
        if job.arm in diverged:
            results[job.id] = replace(
                results[job.id], state="diverged", metrics={}, error="loss was nan at step 3"
            )
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    return rank(study, plan.jobs, results, gates=gates, findings=findings)


def shown(ranking: Ranking, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(answer(ranking))
    return file.getvalue()


@pytest.mark.parametrize("width", [100, 120])
def test_a_line_per_arm_with_marks_and_values(width):
    text = shown(made(), width)
    assert max(map(len, text.splitlines())) <= width
    (best,) = (line for line in text.splitlines() if line.startswith("1 all "))
    assert best.count("✓") == 3
    assert "✗ 5.31 ±0.58" in best
    (crashed,) = (line for line in text.splitlines() if line.startswith("2 all but mode"))
    assert "2/3" in crashed
    assert "1 failed" in crashed


def test_who_memorises_and_who_never_ended_is_said():
    text = " ".join(shown(made(blind=("base", "all"), diverged=("tokens=p5",)), 120).split())
    assert "Memorises: all and base (all: lanes do not move" in text
    assert "tokens=p5 has no finished job (loss was nan at step 3)" in text
    assert "3 diverged" in text


def test_the_answer_names_the_winner_or_says_that_there_is_none():
    assert wording.sentences(made())[0].startswith(
        "No configuration meets all 4 criteria. The first, all, meets loss, uniformity and zigzag"
    )
    easy = replace(synthetic.CRITERIA[2], conditions=(synthetic.CRITERIA[1].conditions[0],))
    criteria = (synthetic.CRITERIA[0], easy)
    assert wording.sentences(made(criteria=criteria))[0] == "all meets all 2 criteria."
    blind = wording.sentences(made(criteria=criteria, blind=("all",)))[0]
    assert blind == "all (memorises) meets all 2 criteria."


def test_the_levers_are_named_and_what_does_nothing():
    said = " ".join(wording.sentences(made()))
    base, slower = (made().arm(arm).metrics["final/px_error"].mean for arm in ("base", "lr=1e-4"))
    ends = f"from {wording.number(base)} to {wording.number(slower)}"
    assert f"Strongest lever on px error: lr 3e-4 -> 1e-4, x0.25 [0.24, 0.26], {ends}" in said
    assert "no clear effect: mode." in said
    assert "No change has a clear effect on zigzag." in said


def test_with_one_seed_nothing_is_sure_and_the_sentence_says_so():
    ranking = made(seeds=(0,))
    first = wording.sentences(ranking)[0]
    assert first.startswith("No configuration surely meets all 4 criteria. The first, all, ")
    assert "likely meets loss" in first
    assert "meets 0" not in first
    assert "Too few seeds: no effect has an interval." in wording.sentences(ranking)


def test_twelve_long_arms_fit_100_columns():
    ranking = made()
    names = ("all but schedule", "tokenizer=relative_disjoint", "subsample/absolute/3e-4/1.0/fixed")
    long = [replace(arm, arm=names[i % 3] + f" {i}") for i, arm in enumerate(ranking.arms)]
    text = shown(replace(ranking, arms=(*long, *long[:4]), effects=()), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert "all but schedule 0" in text


def test_effects_are_tabled_with_their_intervals():
    text = shown(made(), 120)
    (line,) = (line for line in text.splitlines() if line.split()[:3] == ["lr", "3e-4", "->"])
    assert line.split()[:5] == ["lr", "3e-4", "->", "1e-4", "x0.25"]
    assert "]*" in line
    assert "Each change alone, against base" in text
    assert "Each change taken back, against all" in text


def test_effect_line():
    effect = Effect(
        "one at a time", "final/px_error", "tokens", "p5", "full", "ratio", 0.8, 0.6, 1.1, 3
    )
    assert wording.effect_line(effect) == "tokens: full -> p5: px error x0.8 [0.6, 1.1] (3 seeds)"
    lost = replace(effect, estimate=None, low=None, high=None, n=0, lost=3)
    assert "px error not testable (0 seeds, 3 lost)" in wording.effect_line(lost)


def test_a_study_without_results_says_so():
    study = synthetic.study()
    text = shown(rank(study, synthetic.plan(study).jobs, {}), 120)
    assert "No job has ended yet." in text
    assert "24 of 24 jobs have not ended" in text


def test_main_effects_of_a_grid():
    text = shown(made(designs=(Design("factorial"),)), 120)
    assert "Each level, averaged over the other factors" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05309, "0.0531"),
        (312.4, "312"),
        (41234.0, "41234"),
        (0.00012, "0.00012"),
        (0.0, "0"),
        (-3.14159, "-3.14"),
        (math.inf, "∞"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_numbers_are_short(value, text):
    assert wording.number(value) == text


def test_measured_shows_half_the_interval():
    assert wording.measured(Interval(5.309, 4.73, 5.888, 3)) == "5.31 ±0.58"
    assert wording.measured(Interval(5.309, None, None, 1)) == "5.31"


def effect(factor: str, estimate: float, **changes) -> Effect:
    """A clear effect on the px error, as a ratio."""
    made = Effect(
        "one at a time",
        "final/px_error",
        factor,
        "new",
        "old",
        "ratio",
        estimate,
        estimate * 0.9,
        estimate * 1.1,
        3,
        p=0.001,
        p_holm=0.001,
    )
    return replace(made, **changes)


def levers_of(*effects: Effect) -> list[str]:
    return wording.levers(replace(made(), effects=effects))


def test_where_nothing_lowers_a_reading_the_one_that_raises_it_most_is_named():
    said = levers_of(effect("a", 1.5), effect("b", 3.0), effect("c", 0.9, p_holm=0.4))
    assert said == [
        "Nothing clearly lowers px error; raised most by b old -> new, x3 [2.7, 3.3]; "
        "no clear effect: c."
    ]
    assert levers_of(effect("a", 0.8), effect("b", 3.0))[0].startswith("Strongest lever on px")


def test_a_lever_with_lost_seeds_says_of_how_many_it_is():
    (said,) = levers_of(effect("a", 0.5, n=2, lost=1), effect("b", 0.9))
    assert said == "Strongest lever on px error: a old -> new, x0.5 [0.45, 0.55] (2 of 3 seeds)."
    (said,) = levers_of(effect("a", 0.5, n=7, lost=1, kind="main effect"))
    assert said.endswith("(7 of 8 jobs).")


def test_losses_across_tokenizers_are_no_lever():
    apart = effect("mode", 0.1, metric="final/loss", note=LOSSES_APART)
    assert levers_of(apart) == [
        "Raw losses across mode are not comparable: tokenizers differ.",
    ]
    said = levers_of(apart, effect("lr", 0.5, metric="final/loss"))
    assert said[0].startswith("Strongest lever on loss: lr ")
    assert "no clear effect" not in said[0]
    assert said[1] == "Raw losses across mode are not comparable: tokenizers differ."


def test_seeds_that_agree_are_said_to_where_they_are_all_that_there_is():
    agreeing = effect("a", 0.5, p=None, p_holm=None, note=AGREE)
    assert levers_of(agreeing) == ["No effect can be tested: the seeds agree, or are too few."]


def test_of_a_pair_of_factors_the_surest_pair_of_levels_is_named():
    """Not the one that is farthest off: a single job may be anywhere."""
    wild = Joint("x", "base", "y", "base", "ratio", 9.0, 0.2, 400.0, p=0.3)
    sure = Joint("v", "base", "w", "base", "ratio", 2.0, 1.8, 2.2, p=1e-6)
    cells = (Cell("x", "y", 1.0, 1),)
    pair = Interaction("final/px_error", "f", "g", 0.25, cells, (wild, sure))
    (said,) = (
        s for s in wording.sentences(replace(made(), interactions=(pair,))) if "f and g" in s
    )
    assert said == (
        "f and g change each other's effect on px error (25 % of its variance; v with w: "
        "x2 [1.8, 2.2] of the product of each alone)."
    )


def test_more_is_better_is_said_so():
    loss, *_ = synthetic.CRITERIA
    (condition,) = loss.conditions
    more = replace(loss, conditions=(replace(condition, above=True),))
    text = shown(made(criteria=(more,)), 120)
    assert "loss > 0.1" in text
    assert "the criterion." in text
    less = shown(made(criteria=(loss,)), 120)
    raised = re.search(r"Strongest lever on loss: .*?, x([\d.]+)", text)
    lowered = re.search(r"Strongest lever on loss: .*?, x([\d.]+)", less)
    assert raised is not None
    assert lowered is not None
    assert float(raised[1]) > 1 > float(lowered[1])


def test_without_criteria_there_is_no_winner():
    assert "There are no criteria" in shown(made(criteria=()), 120)
