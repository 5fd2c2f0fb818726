"""What levels do, alone and two together, averaged over the other factors of a factorial study.

Pure: contrasts of the linear model that `ablate.anova` fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate.anova import Fit, Noise, Term, fit
from ablate.stats import AGREE, CONFIDENCE, FACTOR, Effect, Scale, exp_or_inf, scale_of, with_holm

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Cell:
    """The jobs that have one level of each of two factors."""

    level: str
    other: str
    mean: float
    """Geometric where the metric is compared as a ratio."""
    n: int


@dataclass(frozen=True)
class Joint:
    """What two levels do together beyond what each does alone, against the base's levels.

    With scale `ratio`, 2 says: twice the product of what each does alone.
    """

    level: str
    against: str
    other: str
    other_against: str
    scale: Scale
    estimate: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Interaction:
    """Two factors of which one changes what the other does, with the cells that show it."""

    metric: str
    factor: str
    other: str
    share: float
    cells: tuple[Cell, ...]
    joint: tuple[Joint, ...] = ()


def even_means(fitted: Fit, named: Sequence[Mapping[str, str]]) -> np.ndarray:
    """The weights of the coefficients in means over every combination of levels, each once.

    Columns add up to 0 over the levels of a factor (`Sum`), so that in a mean over all its levels
    those of its terms are 0: a row needs no more than the levels that are named.

    Args:
        fitted: the model.
        named: for each mean, the levels that it keeps, by column of the formula.

    Returns:
        (len(named), coefficients)
    """
    import numpy as np
    from patsy.build import build_design_matrices

    info = fitted.model.model.data.model_spec
    columns = [*fitted.columns.values(), "seed"]
    first = {column: fitted.data[column].iloc[0] for column in columns}
    rows = {column: np.array([own.get(column, first[column]) for own in named]) for column in first}
    weights = np.array(build_design_matrices([info], rows)[0])
    codes = {f"C({column}, Sum)": column for column in columns}
    for term, place in info.term_slices.items():
        own = {codes[factor.code] for factor in term.factors}
        weights[[not own <= levels.keys() for levels in named], place] = 0.0
    return weights


def _base(fitted: Fit, factor: str, base: Mapping[str, str]) -> str:
    """The level that others are compared with: the base's, where any job has it."""
    levels = sorted(map(str, fitted.data[fitted.columns[factor]].unique()))
    return base[factor] if base.get(factor) in levels else levels[0]


def _tested(fitted: Fit, contrast: np.ndarray, noise: Noise) -> dict[str, Any]:
    """Estimate, interval and p of a contrast, back from the log scale."""
    from scipy import stats

    back = exp_or_inf if fitted.scale == "ratio" else float
    effect = float(contrast @ fitted.model.params.to_numpy())
    if noise.df <= 0:
        return {"estimate": back(effect), "low": None, "high": None, "p": None}
    covariance = fitted.model.normalized_cov_params.to_numpy()
    error = math.sqrt(max(float(contrast @ covariance @ contrast), 0.0) * noise.mean_sq)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, noise.df)) * error
    return {
        "estimate": back(effect),
        "low": back(effect - reach),
        "high": back(effect + reach),
        "p": 2 * float(stats.t.sf(abs(effect) / error, noise.df)) if error > 0 else None,
    }


def interactions(
    fitted: Fit | None, terms: Sequence[Term], base: Mapping[str, str] | None = None
) -> list[Interaction]:
    """The pairs that are clear after the correction, with their cells and what they do jointly."""
    if fitted is None:
        return []
    back = exp_or_inf if fitted.scale == "ratio" else float
    found = []
    for a, b in itertools.combinations(fitted.columns, 2):
        for term in terms:
            if term.term == f"{a} x {b}" and term.p_holm is not None and term.p_holm < ALPHA:
                groups = fitted.data.groupby([fitted.columns[a], fitted.columns[b]], sort=False)
                cells = tuple(
                    Cell(str(level), str(other), back(float(own["y"].mean())), len(own))
                    for (level, other), own in groups  # type: ignore[misc]
                )
                joint = tuple(joint_effects(fitted, a, b, base or {}))
                found.append(Interaction(term.metric, a, b, term.share, cells, joint))
    return found


def joint_effects(fitted: Fit, factor: str, other: str, base: Mapping[str, str]) -> list[Joint]:
    """For each two levels that are not the base's: how far they are from doing their work apart."""
    a, b = fitted.columns[factor], fitted.columns[other]
    start, begin = _base(fitted, factor, base), _base(fitted, other, base)
    pairs = list(itertools.product(dict.fromkeys(fitted.data[a]), dict.fromkeys(fitted.data[b])))
    mean = dict(zip(pairs, even_means(fitted, [{a: x, b: y} for x, y in pairs]), strict=True))
    found = []
    for level, second in pairs:
        if level != start and second != begin:
            together = mean[level, second] - mean[start, second]
            apart = mean[level, begin] - mean[start, begin]
            tested = _tested(fitted, together - apart, fitted.noise(factor, other))
            found.append(Joint(level, start, second, begin, fitted.scale, **tested))
    return found


def main_effects(
    frame: pd.DataFrame,
    factors: Sequence[str],
    base: Mapping[str, str],
    metric: str,
    fitted: Fit | None = None,
) -> list[Effect]:
    """What each level does against the base's, averaged evenly over the other factors' levels.

    `fitted` saves fitting again.
    """
    fitted = fitted or fit(frame, factors, metric)
    if fitted is None:
        return _untestable(frame, factors, base, metric)
    levels = [(c, x) for c in fitted.columns.values() for x in dict.fromkeys(fitted.data[c])]
    mean = dict(zip(levels, even_means(fitted, [{c: x} for c, x in levels]), strict=True))
    effects: list[Effect] = []
    for factor, column in fitted.columns.items():
        against = _base(fitted, factor, base)
        aliases = fitted.aliases.get(factor, ())
        for level in dict.fromkeys(fitted.data[column]):
            if level == against:
                continue
            of_level = frame[FACTOR + factor].isin([level, against])
            n = int(fitted.data[column].isin([level, against]).sum())
            contrast = mean[column, level] - mean[column, against]
            noise = fitted.noise(factor)
            tested = _tested(fitted, contrast, noise)
            notes = [f"cannot be told from {', '.join(aliases)}"] if aliases else []
            others = [other for pair in fitted.torn if factor in pair for other in pair]
            if others := [other for other in others if other != factor]:
                said = " and ".join(others)
                notes.append(f"some combinations with {said} have no job: taken not to interact")
            if fitted.noiseless(noise):
                moves = fitted.moves(contrast)
                tested["p"] = None if moves else 1.0
                notes += [AGREE] * moves
                if not moves:  # but for rounding
                    none = 1.0 if fitted.scale == "ratio" else 0.0
                    tested |= dict.fromkeys(("estimate", "low", "high"), none)
            if alone := [x for x in (level, against) if fitted.count(factor, x) == 1]:
                # the others' noise says nothing of it: converged jobs may agree to the last bit
                tested |= {"low": None, "high": None, "p": None}
                one = "one job" if (fitted.data[column] == alone[0]).sum() == 1 else "one training"
                notes.append(f"{one} left at {' and '.join(alone)}")
            effects.append(
                Effect(
                    kind="main effect",
                    metric=metric,
                    factor=factor,
                    level=level,
                    against=against,
                    scale=fitted.scale,
                    n=n,
                    lost=int(of_level.sum()) - n,
                    note="; ".join(notes),
                    **tested,
                )
            )
    return with_holm(effects)


def _untestable(
    frame: pd.DataFrame, factors: Sequence[str], base: Mapping[str, str], metric: str
) -> list[Effect]:
    """The effects that were asked for and that too few jobs are left for."""
    effects = []
    for factor in factors if metric in frame else ():
        for level in frame[FACTOR + factor].dropna().unique():
            if level != base[factor]:
                rows = frame[frame[FACTOR + factor].isin([level, base[factor]])]
                n = int(rows[metric].notna().sum())
                effects.append(
                    Effect(
                        kind="main effect",
                        metric=metric,
                        factor=factor,
                        level=str(level),
                        against=base[factor],
                        scale=scale_of(metric),
                        estimate=None,
                        low=None,
                        high=None,
                        n=n,
                        lost=len(rows) - n,
                    )
                )
    return effects
