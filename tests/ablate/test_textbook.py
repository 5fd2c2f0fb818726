"""Statistics against numbers that others have published, each with its source."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from ablate import anova, margins, stats

# Student, The probable error of a mean, Biometrika 6 (1908): hours of sleep gained by ten patients
# under two drugs. R's help page of t.test prints the paired test: t = -4.0621, df = 9,
# p-value = 0.002833, 95 percent confidence interval -2.4598858 -0.7001142, mean difference -1.58.
SLEEP = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)

# Montgomery, Design and Analysis of Experiments (8th ed.), Example 6.2: filtration rate, a run per
# cell of temperature (a), pressure (b), formaldehyde (c) and stirring rate (d)
FILTRATION = {
    "": 45, "a": 71, "b": 48, "ab": 65, "c": 68, "ac": 60, "bc": 80, "abc": 65,
    "d": 43, "ad": 100, "bd": 45, "abd": 104, "cd": 75, "acd": 86, "bcd": 70, "abcd": 96,
}  # fmt: skip

# Kutner, Nachtsheim, Neter, Li, Applied Linear Statistical Models (5th ed.), kidney failure data:
# days in hospital by duration of treatment and weight gain, ten patients a cell
KIDNEY = {
    ("1", "1"): (0, 2, 1, 3, 0, 2, 0, 5, 6, 8),
    ("1", "2"): (2, 4, 7, 12, 15, 4, 3, 1, 5, 20),
    ("1", "3"): (15, 10, 8, 5, 25, 16, 7, 30, 3, 27),
    ("2", "1"): (0, 1, 1, 0, 4, 2, 7, 4, 0, 3),
    ("2", "2"): (5, 3, 2, 0, 1, 1, 3, 6, 7, 9),
    ("2", "3"): (10, 8, 12, 3, 7, 15, 4, 9, 6, 1),
}


def filtration(cells: list[str]) -> pd.DataFrame:
    rows = [
        {
            "seed": 0,
            "rate": float(FILTRATION[cell]),
            **{f"factor:{x}": "+" if x in cell else "-" for x in "abcd"},
        }
        for cell in cells
    ]
    return pd.DataFrame(rows)


def test_the_paired_difference_of_students_sleep_data():
    rows = [
        {"arm": arm, "seed": patient, "factor:drug": arm, "gain": hours}
        for arm, own in zip(("first", "second"), SLEEP, strict=True)
        for patient, hours in enumerate(own)
    ]
    levels = {arm: {"drug": arm} for arm in ("first", "second")}
    frame = pd.DataFrame(rows)
    (effect,) = stats.contrasts(frame, levels, "first", ["gain"], "one at a time")
    assert effect.scale == "difference"
    assert effect.estimate == pytest.approx(1.58)
    assert (effect.low, effect.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert effect.p == pytest.approx(0.002833, abs=5e-7)
    assert effect.n == 10


def test_holms_correction_of_a_published_example():
    """Wikipedia, Holm-Bonferroni method: of these only the first and the last are rejected."""
    corrected = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [p < 0.05 for p in corrected] == [True, False, False, True]


def test_holms_correction_is_statsmodels_own():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 40):
        p = (rng.random(n) ** 3).tolist()
        theirs = np.asarray(multipletests(p, method="holm")[1])
        assert stats.holm(p) == pytest.approx(theirs.tolist())


def test_effects_and_sums_of_squares_of_montgomerys_filtration_rates():
    """Example 6.2: effects 21.625, 3.125, 9.875, 14.625; and every share of the squares."""
    frame = filtration(list(FILTRATION))
    base = dict.fromkeys("abcd", "-")
    fitted = anova.fit(frame, list("abcd"), "rate")
    effects = {
        e.factor: e.estimate for e in margins.main_effects(frame, list("abcd"), base, "rate")
    }
    assert effects == pytest.approx({"a": 21.625, "b": 3.125, "c": 9.875, "d": 14.625})
    terms = {t.term: t for t in anova.variance(frame, list("abcd"), "rate", fitted)}
    published = {
        "a": (1870.56, 32.64),
        "b": (39.0625, 0.68),
        "c": (390.062, 6.81),
        "d": (855.563, 14.93),
        "a x b": (0.0625, 0.0011),
        "a x c": (1314.06, 22.93),
        "a x d": (1105.56, 19.29),
        "b x c": (22.5625, 0.39),
        "b x d": (0.5625, 0.0098),
        "c x d": (5.0625, 0.088),
    }
    for name, (sum_sq, share) in published.items():
        assert terms[name].sum_sq == pytest.approx(sum_sq, rel=1e-5)
        assert 100 * terms[name].share == pytest.approx(share, abs=0.005)
    assert fitted is not None
    for other, published_effect in (("c", -18.125), ("d", 16.625)):
        (joint,) = margins.joint_effects(fitted, "a", other, base)
        assert joint.estimate == pytest.approx(2 * published_effect)  # AC is half that difference


def test_the_half_fraction_of_the_filtration_rates():
    """Example 8.1: the eight runs with D = ABC; [A] 19, [B] 1.5, [C] 14, [D] 16.5, AB = CD ..."""
    runs = ["", "ad", "bd", "ab", "cd", "ac", "bc", "abcd"]
    frame, base = filtration(runs), dict.fromkeys("abcd", "-")
    effects = margins.main_effects(frame, list("abcd"), base, "rate")
    assert {e.factor: e.estimate for e in effects} == pytest.approx(
        {"a": 19.0, "b": 1.5, "c": 14.0, "d": 16.5}
    )
    twice = pd.concat([frame, frame.assign(seed=1, rate=frame["rate"] + 1e-3)])
    terms = {t.term: t for t in anova.variance(twice, list("abcd"), "rate")}
    aliases = {"a x b": ("c x d",), "a x c": ("b x d",), "a x d": ("b x c",)}
    assert {name: terms[name].aliases for name in aliases} == aliases
    # published: [AC] -18.5, [AD] 19, [AB] -1; a sum of squares is n/4 effect^2
    for name, effect in (("a x c", -18.5), ("a x d", 19.0), ("a x b", -1.0)):
        assert terms[name].sum_sq == pytest.approx(16 / 4 * effect**2)


PAPER = {  # Montgomery, 14.5: strength by replicate and temperature, of pulp methods 1, 2, 3
    (1, 200): (30, 34, 29),
    (1, 225): (35, 41, 26),
    (1, 250): (37, 38, 33),
    (1, 275): (36, 42, 36),
    (2, 200): (28, 31, 31),
    (2, 225): (32, 36, 30),
    (2, 250): (40, 42, 32),
    (2, 275): (41, 40, 40),
    (3, 200): (31, 35, 32),
    (3, 225): (37, 40, 34),
    (3, 250): (41, 39, 39),
    (3, 275): (40, 44, 45),
}


def test_a_split_plot():
    """A batch of pulp is cooked in four temperatures: the batch is the replicate of its method.

    Published: methods against the batches' noise, 7.08; temperatures and their interaction against
    the noise within batches.
    """
    rows = [
        {"seed": batch, "factor:method": str(method), "factor:temperature": str(degrees)}
        | {"training": f"{batch} {method}", "strength": float(strength)}
        for (batch, degrees), own in PAPER.items()
        for method, strength in enumerate(own, start=1)
    ]
    terms = {
        t.term: t for t in anova.variance(pd.DataFrame(rows), ["method", "temperature"], "strength")
    }
    published = {
        "method": (128.39, 2, 7.08),
        "temperature": (434.08, 3, 144.69 / ((20.67 + 50.83) / 18)),
        "method x temperature": (75.17, 6, 12.53 / ((20.67 + 50.83) / 18)),
        "seed": (77.55, 2, 38.78 / 9.07),
        "trainings": (36.28, 4, None),
        "residual": (20.67 + 50.83, 18, None),
    }
    assert terms.keys() == published.keys()
    for name, (sum_sq, df, f) in published.items():
        assert terms[name].sum_sq == pytest.approx(sum_sq, abs=0.01), name
        assert terms[name].df == df
        assert terms[name].f == (None if f is None else pytest.approx(f, rel=2e-3))
    assert terms["method"].p == pytest.approx(0.0485, abs=1e-4)


def kidney() -> pd.DataFrame:
    rows = [
        {"factor:duration": d, "factor:weight": w, "seed": 0, "days": math.log(days + 1)}
        for (d, w), own in KIDNEY.items()
        for days in own
    ]
    return pd.DataFrame(rows)


def test_an_unbalanced_anova():
    """Without its first three patients; R's car::Anova, type II, cited in statsmodels' tests."""
    terms = {t.term: t for t in anova.variance(kidney().iloc[3:], ["duration", "weight"], "days")}
    published = {
        "duration": (1, 3.067066, 5.667033, 0.02106078),
        "weight": (2, 13.27205, 12.26141, 4.487909e-05),
        "duration x weight": (2, 0.1905093, 0.1760025, 0.8391231),
    }
    for name, (df, sum_sq, f, p) in published.items():
        assert terms[name].df == df
        assert terms[name].sum_sq == pytest.approx(sum_sq, abs=1e-5)
        assert terms[name].f == pytest.approx(f, abs=1e-4)
        assert terms[name].p == pytest.approx(p, abs=1e-7)
    assert terms["residual"].sum_sq == pytest.approx(27.60181, abs=1e-5)
