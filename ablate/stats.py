"""Means, effects and their intervals over replicate seeds: pure functions on tidy pandas frames.

A frame has one row per job: `arm`, `seed`, `state`, one `factor:<name>` column per factor and one
column per metric. Loss, px and cost are compared on the log scale, and an effect on them is a ratio
(0.8: a fifth less); everything else is compared as a difference. Intervals are two-sided 95 % t
intervals: a percentile bootstrap of three seeds would cover 75 %.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

    from ablate.study import Job, Result

Scale = Literal["ratio", "difference"]

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Part of a value below which a difference from it is its rounding."""
AGREE = "replicates agree: no noise to test against"
FACTOR = "factor:"
"""Prefix of a frame's level columns, so that a factor may bear any name."""
JOB = "job"
TRAINING = "training"  # a column: jobs with the same one are one training, read in several ways
"""A frame's column of job ids."""


@dataclass(frozen=True)
class Interval:
    """Mean and t interval of n values; no interval with a single one."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Effect:
    """What one level does to one metric, against another level of the same factor.

    With scale `ratio` the estimate is a ratio of geometric means, `against` being 1.
    """

    kind: Literal["one at a time", "leave one out", "along the path", "main effect"]
    metric: str
    factor: str
    level: str
    against: str
    scale: Scale
    estimate: float | None
    """None when no pair of seeds is left."""
    low: float | None
    high: float | None
    n: int
    """Pairs of seeds; for a main effect, jobs."""
    lost: int = 0
    """Seeds (main effect: jobs) that have no value: diverged, failed, voided or missing."""
    p: float | None = None
    p_holm: float | None = None
    """p after Holm's correction over the effects of one kind on one metric."""
    note: str = ""

    @property
    def clear(self) -> bool:
        """Whether the effect stands after the correction for the number of effects looked at."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def job_frame(
    jobs: Iterable[Job],
    results: Mapping[str, Result],
    void: Mapping[str, Iterable[str]] | None = None,
) -> pd.DataFrame:
    """Lay jobs out as a frame; a job without a result has state `missing`.

    A job that is another arm's too (the same settings by other levels) has a row for each.

    Args:
        jobs: jobs of the study.
        results: by job id.
        void: by job id, metrics that a gate makes meaningless: they become nan.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    for job in jobs:
        result = results.get(job.id)
        state = result.state if result else "missing"
        row: dict[str, object] = {JOB: job.id, "seed": job.seed, "state": state}
        row[TRAINING] = job.training or job.id
        if result and result.state == "done":
            voided = set((void or {}).get(job.id, ()))
            row.update({k: math.nan if k in voided else v for k, v in result.metrics.items()})
        arms = {job.arm: job.levels, **{arm.label: arm.levels for arm in job.also}}
        for label, levels in arms.items():
            own = {FACTOR + name: level for name, level in levels.items()}
            rows.append({"arm": label, **own, **row})
    return pd.DataFrame(rows)


def scale_of(metric: str) -> Scale:
    """Loss, px and cost span decades and are compared as ratios.

    A loss per px has no floor at 0 (it is that of a density): it is compared as a difference.
    """
    name = metric.rsplit("/", 1)[-1]
    if "loss_per_px" in name:
        return "difference"
    ratio = "loss" in name or name.startswith("px_error") or metric.startswith("cost/")
    return "ratio" if ratio and not name.startswith("swap") else "difference"


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of finite values with its t interval.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = _quantile(n - 1, (1 + confidence) / 2) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


@cache
def _quantile(df: int, p: float) -> float:
    """Of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def p_value(values: Sequence[float]) -> float | None:
    """Two-sided p of the t test that the mean is 0.

    None with a single value, and where values other than 0 agree to the last bits (a reading that
    counts, a seed that changes nothing): without noise there is nothing to test against.
    """
    from scipy.special import stdtr

    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    if variance == 0.0 == mean:
        return 1.0
    if math.sqrt(variance) <= ROUNDING * abs(mean):
        return None
    return float(2 * stdtr(n - 1, -abs(mean) / math.sqrt(variance / n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = running
    return corrected


def exp_or_inf(value: float) -> float:
    """Go back from the log scale; two seeds far apart may overflow."""
    return math.exp(value) if value < 700 else math.inf


def paired_effect(
    frame: pd.DataFrame, arm: str, base: str, metric: str
) -> tuple[Scale, list[float], int]:
    """Differences of an arm from its base, seed by seed.

    Returns:
        The scale, one (log) difference per seed that both have, and the number of seeds that
        only one of them has or that lack the metric.
    """
    columns = {name: frame[frame["arm"] == name].set_index("seed")[metric] for name in (arm, base)}
    seeds = sorted(set(columns[arm].index) | set(columns[base].index))
    pairs = [
        (float(columns[arm].get(seed, math.nan)), float(columns[base].get(seed, math.nan)))
        for seed in seeds
    ]
    whole = [pair for pair in pairs if all(map(math.isfinite, pair))]
    scale = scale_of(metric)
    if scale == "ratio" and all(value > 0 for pair in whole for value in pair):
        differences = [math.log(ours / theirs) for ours, theirs in whole]
    else:  # an exact 0 has no logarithm
        scale, differences = "difference", [ours - theirs for ours, theirs in whole]
    return scale, differences, len(pairs) - len(whole)


def one_axis_apart(
    levels: Mapping[str, Mapping[str, str]], base: str, zipped: Sequence[Sequence[str]] = ()
) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Arms that differ from `base` in one factor, or in factors that vary together; and which.

    >>> list(one_axis_apart({"base": {"lr": "a", "clip": "a"}, "lr=b": {"lr": "b", "clip": "a"},
    ...                      "all": {"lr": "b", "clip": "b"}}, "base"))
    [('lr=b', ('lr',))]
    """
    reference = levels[base]
    together = {name: tuple(group) for group in zipped for name in group}
    for arm, own in levels.items():
        changed = [name for name in own if own[name] != reference.get(name)]
        axes = {together.get(name, (name,)) for name in changed}
        if len(axes) == 1:
            yield arm, axes.pop()


def contrasts(
    frame: pd.DataFrame,
    levels: Mapping[str, Mapping[str, str]],
    base: str,
    metrics: Sequence[str],
    kind: Literal["one at a time", "leave one out"],
    zipped: Sequence[Sequence[str]] = (),
) -> list[Effect]:
    """Paired effects of every arm that is one factor away from `base`.

    For `leave one out`, `base` is the best arm and an effect says what *leaving the factor out*
    does: a ratio above 1 on px means that the factor helps.

    Args:
        frame: as `job_frame` makes it.
        levels: by arm.
        base: the arm compared against.
        metrics: one family of Holm's correction each.
        kind: how the effects are named.
        zipped: groups of factors that vary together and count as one.
    """
    pairs = [(arm, base, factors) for arm, factors in one_axis_apart(levels, base, zipped)]
    return _paired(frame, levels, pairs, metrics, kind)


def path_effects(
    frame: pd.DataFrame,
    levels: Mapping[str, Mapping[str, str]],
    walked: Sequence[str],
    metrics: Sequence[str],
    zipped: Sequence[Sequence[str]] = (),
) -> list[Effect]:
    """Paired effects of each arm of an ablation path against the one before it.

    The changes were chosen by what they did to one reading: of that one they are flattered.
    """
    pairs = [
        (arm, before, factors)
        for before, arm in itertools.pairwise(walked)
        for found, factors in one_axis_apart(
            {name: levels[name] for name in (before, arm)}, before, zipped
        )
        if found == arm
    ]
    return _paired(frame, levels, pairs, metrics, "along the path")


def _paired(
    frame: pd.DataFrame,
    levels: Mapping[str, Mapping[str, str]],
    pairs: Sequence[tuple[str, str, tuple[str, ...]]],
    metrics: Sequence[str],
    kind: Literal["one at a time", "leave one out", "along the path"],
) -> list[Effect]:
    """Effects of arms against others, which differ in the factors given; Holm within a metric."""
    effects: list[Effect] = []
    for metric in metrics:
        family: list[Effect] = []
        for arm, base, factors in pairs if metric in frame else ():
            scale, differences, lost = paired_effect(frame, arm, base, metric)
            estimate, low, high = _back(differences, scale)
            p = p_value(differences)
            family.append(
                Effect(
                    kind=kind,
                    metric=metric,
                    factor="+".join(factors),
                    level="+".join(levels[arm][name] for name in factors),
                    against="+".join(levels[base][name] for name in factors),
                    scale=scale,
                    estimate=estimate,
                    low=low,
                    high=high,
                    n=len(differences),
                    lost=lost,
                    p=p,
                    note=AGREE if p is None and len(differences) > 1 else "",
                )
            )
        effects += with_holm(family)
    return effects


def _back(
    differences: Sequence[float], scale: Scale
) -> tuple[float | None, float | None, float | None]:
    """Mean and interval of differences, back from the log scale."""
    if not differences:
        return None, None, None
    inside = t_interval(differences)
    back = exp_or_inf if scale == "ratio" else float
    low, high = (None if end is None else back(end) for end in (inside.low, inside.high))
    return back(inside.mean), low, high


def with_holm(family: Sequence[Effect]) -> list[Effect]:
    """Fill `p_holm` over the effects that have a p."""
    tested = [effect for effect in family if effect.p is not None]
    corrected = holm([effect.p for effect in tested if effect.p is not None])
    table = dict(zip(map(id, tested), corrected, strict=True))
    return [replace(effect, p_holm=table.get(id(effect))) for effect in family]


def pareto_front(points: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Names that no other beats or equals in every coordinate (less is better).

    A point with an unknown coordinate is on no front and beats nobody.
    """
    known = {
        name: [float(value) for value in point if value is not None]
        for name, point in points.items()
        if all(value is not None and math.isfinite(value) for value in point)
    }
    beaten: set[str] = set()
    for (_, a), (other, b) in itertools.permutations(known.items(), 2):
        no_worse = all(x <= y for x, y in zip(a, b, strict=True))
        if no_worse and a != b:
            beaten.add(other)
    return [name for name in known if name not in beaten]
