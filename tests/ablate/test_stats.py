"""Statistics against published figures and simulated studies of known effect."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from ablate import anova, margins, stats
from tests.ablate import synthetic

SLEEP = (  # Student 1908, hours of sleep gained by ten patients under two drugs
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)

BATTERY = {  # Montgomery, Design and Analysis of Experiments: life in hours, material x temperature
    ("1", "15"): (130, 155, 74, 180),
    ("1", "70"): (34, 40, 80, 75),
    ("1", "125"): (20, 70, 82, 58),
    ("2", "15"): (150, 188, 159, 126),
    ("2", "70"): (136, 122, 106, 115),
    ("2", "125"): (25, 70, 58, 45),
    ("3", "15"): (138, 110, 168, 160),
    ("3", "70"): (174, 120, 150, 139),
    ("3", "125"): (96, 104, 82, 60),
}


def battery() -> pd.DataFrame:
    rows = [
        {"seed": 0, "factor:material": m, "factor:temperature": t, "life": float(hours)}
        for (m, t), cell in BATTERY.items()
        for hours in cell
    ]
    return pd.DataFrame(rows)


def test_t_interval_of_students_sleep_data():
    gained = [b - a for a, b in zip(*SLEEP, strict=True)]
    found = stats.t_interval(gained)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert stats.p_value(gained) == pytest.approx(0.002833, abs=1e-6)


def test_one_value_has_no_interval_and_none_no_mean():
    assert stats.t_interval([3.0]) == stats.Interval(3.0, None, None, 1)
    assert stats.p_value([3.0]) is None
    with pytest.raises(ValueError, match="at least one value"):
        stats.t_interval([])


def test_replicates_that_agree_exactly():
    assert stats.p_value([0.0, 0.0]) == 1.0
    assert stats.p_value([0.5, 0.5]) is None  # no noise: a count that two seeds share proves little
    assert stats.p_value([math.log(3 / 1), math.log(0.3 / 0.1)]) is None  # but for rounding
    assert stats.p_value([0.5, 0.5 + 1e-6]) == pytest.approx(0.0, abs=1e-5)


def test_holm_steps_down_in_the_order_given():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("metric", "scale"),
    [
        ("final/loss", "ratio"),
        ("final/px_error", "ratio"),
        ("cost/seconds", "ratio"),
        ("final/uniformity", "difference"),
        ("final/swap_loss", "difference"),
        ("final/zigzag", "difference"),
        ("final/loss_per_px", "difference"),  # a density's: it may be negative
        ("val/loss_points", "ratio"),
    ],
)
def test_scale_of(metric, scale):
    assert stats.scale_of(metric) == scale


def small_frame() -> pd.DataFrame:
    rows = [
        ("base", 0, "a", 10.0),
        ("base", 1, "a", 20.0),
        ("base", 2, "a", 40.0),
        ("f=b", 0, "b", 5.0),
        ("f=b", 1, "b", 10.1),
        ("f=b", 2, "b", math.nan),  # diverged
    ]
    return pd.DataFrame(rows, columns=pd.Index(["arm", "seed", "factor:f", "final/px_error"]))


def test_paired_effect_is_the_ratio_of_the_same_seeds():
    levels = {"base": {"f": "a"}, "f=b": {"f": "b"}}
    (effect,) = stats.contrasts(small_frame(), levels, "base", ["final/px_error"], "one at a time")
    assert effect.scale == "ratio"
    assert effect.estimate == pytest.approx(0.5, abs=0.01)  # without the seeds' own spread
    assert (effect.low, effect.high) == pytest.approx((0.47, 0.54), abs=0.01)
    assert (effect.n, effect.lost) == (2, 1)
    assert effect.clear
    assert effect.note == ""


def test_seeds_that_agree_to_the_last_bit_have_no_star():
    """Two seeds that decode one lane more each: what is counted has no noise to test against."""
    frame = small_frame().assign(**{"final/lanes": [3.0, 3.0, 3.0, 4.0, 4.0, 4.0]})
    levels = {"base": {"f": "a"}, "f=b": {"f": "b"}}
    (effect,) = stats.contrasts(frame, levels, "base", ["final/lanes"], "one at a time")
    assert (effect.estimate, effect.p, effect.p_holm, effect.clear) == (1.0, None, None, False)
    assert effect.note == stats.AGREE
    still = frame.assign(**{"final/lanes": 3.0})
    (effect,) = stats.contrasts(still, levels, "base", ["final/lanes"], "one at a time")
    assert (effect.estimate, effect.p, effect.note) == (0.0, 1.0, "")


def test_a_grid_whose_seeds_agree_to_the_last_bit_has_no_star():
    rows = [
        {"seed": s, "factor:a": a, "factor:b": b, "y": 3.0 + (a == "y") + 0.1 * (b == "y")}
        for a, b, s in itertools.product("xy", "xy", range(2))
    ]
    frame, base = pd.DataFrame(rows), {"a": "x", "b": "x"}
    effects = margins.main_effects(frame, ["a", "b"], base, "y")
    assert [effect.estimate for effect in effects] == pytest.approx([1.0, 0.1])
    assert [(effect.p_holm, effect.note) for effect in effects] == [(None, stats.AGREE)] * 2
    fitted = anova.fit(frame, ["a", "b"], "y")
    terms = anova.variance(frame, ["a", "b"], "y", fitted)
    assert [term.p_holm for term in terms] == [None] * len(terms)
    assert terms[0].share == pytest.approx(1 / 1.01)
    assert margins.interactions(fitted, terms, base) == []


def test_zipped_factors_count_as_one():
    levels = {
        "base": {"lr": "high", "clip": "1", "mode": "x"},
        "together": {"lr": "low", "clip": "2", "mode": "x"},
        "more": {"lr": "low", "clip": "2", "mode": "y"},
    }
    assert list(stats.one_axis_apart(levels, "base")) == []
    found = list(stats.one_axis_apart(levels, "base", [("lr", "clip")]))
    assert found == [("together", ("lr", "clip"))]


def test_a_zero_is_compared_as_a_difference():
    frame = small_frame().assign(**{"final/px_error": [1.0, 0.0, 2.0, 0.5, 1.0, 1.0]})
    scale, differences, lost = stats.paired_effect(frame, "f=b", "base", "final/px_error")
    assert (scale, differences, lost) == ("difference", [-0.5, 1.0, -1.0], 0)


def test_an_arm_without_a_value_is_named_not_dropped():
    frame = small_frame()
    frame.loc[frame["arm"] == "f=b", "final/px_error"] = math.nan
    levels = {"base": {"f": "a"}, "f=b": {"f": "b"}}
    (effect,) = stats.contrasts(frame, levels, "base", ["final/px_error"], "one at a time")
    assert (effect.estimate, effect.n, effect.lost, effect.clear) == (None, 0, 3, False)


def test_job_frame_keeps_lost_jobs_and_voids_metrics():
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    first = plan.jobs[0]
    frame = stats.job_frame(plan.jobs, results, {first.id: ["final/px_error"]})
    assert len(frame) == len(plan.jobs)
    assert sorted(frame["state"].unique()) == ["diverged", "done", "failed"]
    assert frame["final/px_error"].isna()[0]
    assert frame.loc[0, "final/loss"] == results[first.id].metrics["final/loss"]
    assert frame.loc[frame["state"] == "diverged", "final/loss"].isna().all()


def test_pareto_front_keeps_what_nothing_beats():
    points = {
        "cheap": (3.0, 1.0),
        "good": (1.0, 3.0),
        "worse": (3.0, 2.0),
        "unknown": (0.0, None),
        "twin": (1.0, 3.0),
    }
    assert stats.pareto_front(points) == ["cheap", "good", "twin"]


def test_anova_of_montgomerys_batteries():
    terms = {
        term.term: term for term in anova.variance(battery(), ["material", "temperature"], "life")
    }
    published = {
        "material": (2, 10683.72, 7.91),
        "temperature": (2, 39118.72, 28.97),
        "material x temperature": (4, 9613.78, 3.56),
    }
    for name, (df, sum_sq, f) in published.items():
        assert terms[name].df == df
        assert terms[name].sum_sq == pytest.approx(sum_sq, abs=0.005)
        assert terms[name].f == pytest.approx(f, abs=0.005)
    assert terms["residual"].sum_sq == pytest.approx(18230.75)
    assert sum(term.share for term in terms.values()) == pytest.approx(1.0)


def test_main_effects_of_a_balanced_design_are_differences_of_means():
    base = {"material": "1", "temperature": "15"}
    effects = margins.main_effects(battery(), ["material", "temperature"], base, "life")
    found = {(e.factor, e.level): e for e in effects}
    assert found["material", "3"].estimate == pytest.approx(125.0833 - 83.1667, abs=1e-3)
    assert found["temperature", "125"].estimate == pytest.approx(64.1667 - 144.8333, abs=1e-3)
    assert found["temperature", "125"].n == 24


def test_a_planted_grid_gives_its_effects_back():
    """Four factors; two matter, and they interact. The fourth level pair does nothing."""
    rng = np.random.default_rng(3)
    rows = []
    for levels in itertools.product("xy", repeat=4):
        for seed in range(3):
            a, b = levels[0] == "y", levels[1] == "y"
            log_px = math.log(40) - 1.5 * a - 0.7 * b + 0.9 * (a and b)
            log_px += 0.1 * seed + 0.1 * rng.standard_normal()
            row: dict[str, object] = {f"factor:{n}": v for n, v in zip("abcd", levels, strict=True)}
            rows.append({"seed": seed, "final/px_error": math.exp(log_px), **row})
    frame = pd.DataFrame(rows)
    frame.loc[5, "final/px_error"] = math.nan  # one job diverged: unbalanced
    terms = anova.variance(frame, list("abcd"), "final/px_error")
    clear = {term.term for term in terms if term.p_holm is not None and term.p_holm < 0.05}
    assert clear == {"a", "b", "a x b"}
    effects = margins.main_effects(
        frame, list("abcd"), dict.fromkeys("abcd", "x"), "final/px_error"
    )
    found = {effect.factor: effect for effect in effects}
    a = found["a"]
    assert a.low is not None
    assert a.high is not None
    assert a.low < math.exp(-1.5 + 0.45) < a.high  # averaged over b
    assert [name for name, effect in found.items() if effect.clear] == ["a", "b"]
    assert a.lost == 1


def test_a_grid_with_one_seed_has_no_room_for_interactions_but_for_main_effects():
    rows = [
        {"seed": 0, "factor:a": a, "factor:b": b, "y": 1.0 + (a == "y") + 0.1 * (a == b)}
        for a, b in itertools.product("xy", repeat=2)
    ]
    frame = pd.DataFrame(rows)
    terms = [term.term for term in anova.variance(frame, ["a", "b"], "y")]
    assert terms == ["a", "b", "residual"]


def test_a_grid_with_too_little_left_says_so():
    rows = [
        {"seed": 0, "factor:a": a, "factor:b": b, "y": 1.0 if a == "x" else math.nan}
        for a, b in itertools.product("xy", repeat=2)
    ]
    effects = margins.main_effects(pd.DataFrame(rows), ["a", "b"], {"a": "x", "b": "x"}, "y")
    assert [(e.factor, e.estimate, e.n, e.lost) for e in effects] == [
        ("a", None, 2, 2),
        ("b", None, 2, 2),
    ]


def test_a_level_with_one_job_left_has_no_interval():
    """The others agree to the last bit: their noise of 0 must not make the one job's sure."""
    rows = [
        {"seed": s, "factor:a": a, "factor:b": b, "y": 9.0 if a == "z" else 1.0}
        for a, b, s in itertools.product("xyz", "xy", range(2))
        if a != "z" or (b, s) == ("x", 0)
    ]
    effects = margins.main_effects(pd.DataFrame(rows), ["a", "b"], {"a": "x", "b": "x"}, "y")
    found = {(e.factor, e.level): e for e in effects}
    alone = found["a", "z"]
    assert (alone.low, alone.p, alone.clear) == (None, None, False)
    assert "one job left at z" in alone.note
    assert found["a", "y"].low is not None


def read_twice(
    rng: np.random.Generator, ways: tuple[str, ...] = ("as trained", "shifted")
) -> pd.DataFrame:
    """18 trainings of two factors, of which `a` moves the loss; each read in some ways."""
    rows = []
    for a, b, seed in itertools.product("xy", "xyz", range(3)):
        loss = math.exp(-0.5 * (a == "y") + 0.3 * rng.standard_normal())
        own = {"seed": seed, "factor:a": a, "factor:b": b, "final/loss": loss}
        own["training"] = f"{a} {b} {seed}"
        rows += [{**own, "factor:decoding": way} for way in ways]
    return pd.DataFrame(rows)


def test_a_training_that_is_read_twice_is_no_replicate():
    """The loss knows nothing of decoding: intervals are those of the trainings, each told once."""
    told, base = (
        read_twice(np.random.default_rng(5)),
        {"a": "x", "b": "x", "decoding": "as trained"},
    )
    once = told[told["factor:decoding"] == "as trained"]
    effects = margins.main_effects(told, [*base], base, "final/loss")
    found = {(e.factor, e.level): e for e in effects}
    for of_once in margins.main_effects(once, ["a", "b"], base, "final/loss"):
        effect = found[of_once.factor, of_once.level]
        for part in ("estimate", "low", "high", "p"):
            assert getattr(effect, part) == pytest.approx(getattr(of_once, part)), part
    decoding = found["decoding", "shifted"]
    assert (decoding.estimate, decoding.low, decoding.high, decoding.p) == (1.0, 1.0, 1.0, 1.0)
    terms = {term.term: term for term in anova.variance(told, [*base], "final/loss")}
    assert terms["decoding"].share == pytest.approx(0.0)
    assert terms["trainings"].df == 18 - 1 - 1 - 2 - 2 - 2
    by_once = {term.term: term for term in anova.variance(once, ["a", "b"], "final/loss")}
    for name in ("a", "b", "a x b"):
        assert terms[name].share == pytest.approx(by_once[name].share)
        assert terms[name].p == pytest.approx(by_once[name].p)
    assert terms["trainings"].share == pytest.approx(by_once["residual"].share)


def test_what_trainings_differ_in_is_not_sure_for_being_read_often():
    """No effect of b: however often a training is read, 1 study in 20 may see one."""
    rng, sure = np.random.default_rng(7), []
    for _ in range(60):
        told = read_twice(rng, ("as trained", "shifted", "off by one"))
        moved = told["factor:decoding"] == "shifted"
        told.loc[moved, "final/loss"] *= np.exp(1.0 + 0.01 * rng.standard_normal(moved.sum()))
        terms = {t.term: t for t in anova.variance(told, ["b", "decoding"], "final/loss")}
        moves, nothing = terms["decoding"].p, terms["b"].p
        assert moves is not None
        assert nothing is not None
        assert moves < 1e-6
        sure.append(nothing < 0.05)
    assert sum(sure) <= 8  # binomial, 60 of 0.05: more in 1 of 200; as replicates about 25


def test_a_level_with_one_training_left_has_no_interval():
    told, base = (
        read_twice(np.random.default_rng(5)),
        {"a": "x", "b": "x", "decoding": "as trained"},
    )
    told = told[(told["factor:b"] != "z") | (told["training"] == "x z 0")]
    effects = margins.main_effects(told, [*base], base, "final/loss")
    (alone,) = (e for e in effects if e.level == "z")
    assert (alone.low, alone.p) == (None, None)
    assert "one training left at z" in alone.note


@pytest.mark.parametrize("metric", ["missing", "constant"])
def test_nothing_to_explain(metric):
    frame = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1],
            "factor:a": ["x", "y", "x", "y"],
            "constant": [0.1 + 0.2, 0.3, 0.3, 0.3],
        }
    )
    assert anova.variance(frame, ["a"], metric) == []


def half_fraction(names: str, generated: str, of: str, seeds: int = 2) -> pd.DataFrame:
    """A two-level grid with one factor's level the product of others', of signs."""
    rng = np.random.default_rng(5)
    rows = []
    for signs in itertools.product((-1, 1), repeat=len(names)):
        level: dict[str, int] = dict(zip(names, signs, strict=True))
        level[generated] = math.prod(level[name] for name in of)
        for seed in range(seeds):
            noise = 0.01 * rng.standard_normal()
            row = {f"factor:{name}": "-+"[sign > 0] for name, sign in level.items()}
            y = 2.0 * level["a"] + 1.0 * level["a"] * level["b"] + noise
            rows.append({"seed": seed, "y": y, **row})
    return pd.DataFrame(rows)


def test_a_half_fraction_names_its_aliased_pairs_and_fits_the_others():
    """Resolution IV: pairs are aliased with pairs, factors are clear."""
    terms = {t.term: t for t in anova.variance(half_fraction("abc", "d", "abc"), list("abcd"), "y")}
    assert terms["a x b"].aliases == ("c x d",)
    assert terms["a x c"].aliases == ("b x d",)
    assert terms["a"].aliases == ()
    assert "c x d" not in terms
    assert terms["a"].share == pytest.approx(0.8, abs=0.01)
    assert terms["a x b"].share == pytest.approx(0.2, abs=0.01)


def test_effects_that_may_be_a_pairs_say_so():
    """Resolution III: every factor is aliased with a pair."""
    base = dict.fromkeys("abc", "-")
    effects = margins.main_effects(half_fraction("ab", "c", "ab"), list("abc"), base, "y")
    notes = {effect.factor: effect.note for effect in effects}
    assert notes["c"] == "cannot be told from a x b"
    assert notes["a"] == "cannot be told from b x c"


def test_an_interaction_shows_its_cells():
    frame = half_fraction("abc", "d", "abc")
    fitted = anova.fit(frame, list("abcd"), "y")
    (pair,) = margins.interactions(fitted, anova.variance(frame, list("abcd"), "y", fitted))
    assert (pair.factor, pair.other) == ("a", "b")
    means = {(cell.level, cell.other): cell.mean for cell in pair.cells}
    assert means == {
        ("-", "-"): pytest.approx(-1, abs=0.02),
        ("-", "+"): pytest.approx(-3, abs=0.02),
        ("+", "-"): pytest.approx(1, abs=0.02),
        ("+", "+"): pytest.approx(3, abs=0.02),
    }
    assert sum(cell.n for cell in pair.cells) == len(frame)


def test_a_mean_over_every_combination_needs_none_of_them():
    """The same weights as the average of the model's rows over the whole grid."""
    from patsy.build import build_design_matrices

    rng = np.random.default_rng(4)
    grid = list(itertools.product("xyz", "xy", "pqrs", (0, 1)))
    rows = [
        {"factor:a": a, "factor:b": b, "factor:c": c, "seed": s, "y": rng.standard_normal()}
        for a, b, c, s in grid
        if rng.random() < 0.8  # jobs are lost: the grid's rows are not the data's
    ]
    fitted = anova.fit(pd.DataFrame(rows), list("abc"), "y")
    assert fitted is not None
    assert "a x c" in fitted.terms.values()
    *factors, seeds = (np.array([str(v) for v in column]) for column in zip(*grid, strict=True))
    whole = dict(zip(fitted.columns.values(), factors, strict=True)) | {"seed": seeds}
    matrix = np.asarray(build_design_matrices([fitted.model.model.data.model_spec], whole)[0])
    named = [{"f0": "z"}, {"f2": "q"}, {"f0": "y", "f2": "s"}, {}]
    for levels, found in zip(named, margins.even_means(fitted, named), strict=True):
        kept = np.array(
            [all(whole[f][i] == v for f, v in levels.items()) for i in range(len(grid))]
        )
        np.testing.assert_allclose(found, matrix[kept].mean(0), atol=1e-12)


def test_a_fraction_of_many_factors_is_not_spread_out():
    """20 factors: their grid has a million combinations."""
    names = [f"f{index}" for index in range(20)]
    rng = np.random.default_rng(6)
    rows = []
    for _ in range(64):
        levels = {name: str(rng.choice(["-", "+"])) for name in names}
        y = 3.0 * (levels["f7"] == "+") + 0.01 * rng.standard_normal()
        rows.append({"seed": 0, "y": y, **{f"factor:{n}": v for n, v in levels.items()}})
    effects = margins.main_effects(pd.DataFrame(rows), names, dict.fromkeys(names, "-"), "y")
    assert [effect.factor for effect in effects if effect.clear] == ["f7"]
    assert effects[7].estimate == pytest.approx(3.0, abs=0.05)


def test_intervals_are_statsmodels_own():
    from statsmodels.stats.weightstats import DescrStatsW

    rng = np.random.default_rng(2)
    for n in (2, 3, 8):
        values = rng.standard_normal(n)
        found, theirs = stats.t_interval(values.tolist()), DescrStatsW(values)
        assert (found.low, found.high) == pytest.approx(theirs.tconfint_mean())
        assert stats.p_value(values.tolist()) == pytest.approx(theirs.ttest_mean(0)[1])
