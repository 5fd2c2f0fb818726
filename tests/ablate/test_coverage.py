"""In 1,000 simulated studies a known effect lies in its 95 % interval 93 to 97 times in 100.

Seeds share a block (the same data order in every arm) and have noise of their own, on the log px.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from ablate import anova, margins, stats

STUDIES = 1000
BLOCK, NOISE = 0.5, 0.2
"""Standard deviations, of log px, between the seeds and of a job."""
PX = "final/px_error"


def covered(inside: int, of: int = STUDIES) -> bool:
    return 0.93 * of <= inside <= 0.97 * of


def has(low: float | None, truth: float, high: float | None) -> bool:
    assert low is not None
    assert high is not None
    return low <= truth <= high


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_mean_over_seeds(seeds: int):
    rng = np.random.default_rng(7)
    drawn = 2.0 + NOISE * rng.standard_normal((STUDIES, seeds))
    intervals = [stats.t_interval(row.tolist()) for row in drawn]
    assert covered(sum(has(i.low, 2.0, i.high) for i in intervals))


def arms_frame(rng: np.random.Generator, truth: dict[str, float], seeds: int) -> pd.DataFrame:
    blocks = BLOCK * rng.standard_normal(seeds)
    rows = [
        (arm, seed, math.exp(math.log(20) + shift + blocks[seed] + NOISE * rng.standard_normal()))
        for arm, shift in truth.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=pd.Index(["arm", "seed", PX]))


def lose(frame: pd.DataFrame, rng: np.random.Generator, jobs: int) -> pd.DataFrame:
    """Some jobs diverge, whatever their arm."""
    frame.loc[rng.choice(len(frame), jobs, replace=False), PX] = math.nan
    return frame


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 2])
def test_one_at_a_time(lost: int):
    """Paired differences against the base, the seeds' own spread taken out; jobs may be lost."""
    rng = np.random.default_rng(5)
    truth = {"base": 0.0, "lr=low": -0.7, "clip=low": 0.4, "tokens=p5": 0.0}
    levels: dict[str, dict[str, str]] = {
        arm: {f: f"{f}={arm.partition('=')[2]}" if arm.startswith(f) else "" for f in names}
        for names in [("lr", "clip", "tokens")]
        for arm in truth
    }
    inside: Counter[str] = Counter()
    wrong = 0
    for _ in range(STUDIES):
        frame = lose(arms_frame(rng, truth, 5), rng, lost)
        found = stats.contrasts(frame, levels, "base", [PX], "one at a time")
        for effect in found:
            shift = truth[next(arm for arm in truth if arm.startswith(effect.factor))]
            inside[effect.factor] += has(effect.low, math.exp(shift), effect.high)
            wrong += effect.factor == "tokens" and effect.clear
    assert {name: covered(n) for name, n in inside.items()} == dict.fromkeys(inside, True), inside
    assert set(inside) == {"lr", "clip", "tokens"}
    assert wrong < 0.05 * STUDIES


@pytest.mark.long
def test_holm_keeps_false_alarms_of_a_whole_study_under_5_in_100():
    """Six changes that do nothing: some interval misses 1 in every fourth study, none is clear."""
    rng = np.random.default_rng(9)
    names = "abcdef"
    truth = dict.fromkeys(["base", *names], 0.0)
    levels = {arm: {f: "new" if f == arm else "old" for f in names} for arm in truth}
    missed = alarms = 0
    for _ in range(STUDIES):
        effects = stats.contrasts(arms_frame(rng, truth, 5), levels, "base", [PX], "one at a time")
        missed += any(not has(e.low, 1.0, e.high) for e in effects)
        alarms += any(effect.clear for effect in effects)
    assert missed > 0.12 * STUDIES
    assert alarms <= 0.06 * STUDIES  # 5 % within two standard errors of 1,000 studies


TRUE_A, TRUE_B, TRUE_AB = -0.4, 0.6, 0.5


def grid_frame(rng: np.random.Generator, cells: Sequence[tuple[str, str, int]]) -> pd.DataFrame:
    blocks = BLOCK * rng.standard_normal(3)
    rows = []
    for a, b, seed in cells:
        log_px = math.log(20) + TRUE_A * (a == "y") + TRUE_B * (b == "z")
        log_px += TRUE_AB * (a == "y" and b == "z") + blocks[seed] + NOISE * rng.standard_normal()
        rows.append({"seed": seed, "factor:a": a, "factor:b": b, PX: math.exp(log_px)})
    return pd.DataFrame(rows)


@pytest.mark.long
@pytest.mark.parametrize("lost", [(), (0, 7, 11)], ids=["balanced", "three jobs lost"])
def test_main_effects_and_the_interaction_of_a_grid(lost: tuple[int, ...]):
    rng = np.random.default_rng(11)
    cells = [(a, b, seed) for a, b in itertools.product("xy", "xyz") for seed in range(3)]
    base = {"a": "x", "b": "x"}
    truth = {
        "a y": math.exp(TRUE_A + TRUE_AB / 3),  # averaged over the three levels of b
        "b y": 1.0,
        "b z": math.exp(TRUE_B + TRUE_AB / 2),
        "y with y": 1.0,
        "y with z": math.exp(TRUE_AB),
    }
    inside: Counter[str] = Counter()
    for _ in range(STUDIES):
        frame = grid_frame(rng, cells)
        frame.loc[list(lost), PX] = math.nan
        fitted = anova.fit(frame, ["a", "b"], PX)
        assert fitted is not None
        for effect in margins.main_effects(frame, ["a", "b"], base, PX, fitted):
            name = f"{effect.factor} {effect.level}"
            inside[name] += has(effect.low, truth[name], effect.high)
        for joint in margins.joint_effects(fitted, "a", "b", base):
            name = f"{joint.level} with {joint.other}"
            inside[name] += has(joint.low, truth[name], joint.high)
    assert set(inside) == set(truth)
    assert all(covered(n) for n in inside.values()), inside
