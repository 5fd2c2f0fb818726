"""Main effects and interactions of a factorial study: pure functions on `stats.job_frame`s.

One linear model per metric, on the scale that `stats.scale_of` names: every factor, every pair of
factors, and the seed as a block (the same seed draws the same data order in every arm, so what the
seeds share is no noise). Sums of squares are of type II, which also holds for unbalanced designs
(a diverged job leaves a gap); their shares add up to 1 only when the design is balanced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ablate.stats import FACTOR, Effect, exp_or_inf, holm, scale_of, with_holm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Term:
    """A line of the analysis of variance."""

    metric: str
    term: str
    """`tokens`, `tokens x lr`, `seed` or `residual`."""
    df: float
    sum_sq: float
    share: float
    """Of the total sum of squares about the mean."""
    f: float | None
    p: float | None
    p_holm: float | None = None
    """p after Holm's correction over the factors and pairs of this metric."""


@dataclass(frozen=True)
class Fit:
    """A fitted model with the names behind its columns."""

    model: Any
    """statsmodels' results."""
    columns: dict[str, str]
    """Factor -> column of the formula."""
    terms: dict[str, str]
    """Term of the formula -> as people read it."""
    data: pd.DataFrame
    scale: str


def fit(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> Fit | None:
    """Fit the linear model with as many interactions as the data can tell apart.

    Returns:
        None when no factor varies among the jobs that have the metric.
    """
    import numpy as np
    import statsmodels.formula.api as smf

    known = frame[np.isfinite(frame[metric].astype(float))] if metric in frame else frame[:0]
    varying = [f for f in factors if FACTOR + f in known and known[FACTOR + f].nunique() > 1]
    if not varying:
        return None
    columns = {name: f"f{index}" for index, name in enumerate(varying)}
    data = known[[FACTOR + name for name in varying]].astype(str)
    data.columns = list(columns.values())
    scale = scale_of(metric)
    if scale == "ratio" and (known[metric] > 0).all():
        data["y"] = np.log(known[metric].astype(float))
    else:
        scale, data["y"] = "difference", known[metric].astype(float)
    data["seed"] = known["seed"].astype(str)
    mains = {f"C({column}, Sum)": name for name, column in columns.items()}
    if data["seed"].nunique() > 1:
        mains["C(seed, Sum)"] = "seed"
    pairs = {
        f"C({columns[a]}, Sum):C({columns[b]}, Sum)": f"{a} x {b}"
        for a, b in itertools.combinations(varying, 2)
    }
    for terms in (mains | pairs, mains):
        model = smf.ols("y ~ " + " + ".join(terms), data)
        exog = np.asarray(model.exog)
        if len(data) > exog.shape[1] == np.linalg.matrix_rank(exog):
            return Fit(model.fit(), columns, terms, data, scale)
    return None


def variance(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> list[Term]:
    """Analysis of variance of one metric; empty when the data cannot carry it."""
    from statsmodels.stats.anova import anova_lm

    fitted = fit(frame, factors, metric)
    if fitted is None or fitted.model.centered_tss <= 0:
        return []
    table = anova_lm(fitted.model, typ=2)
    total = float(fitted.model.centered_tss)
    terms = [
        Term(
            metric=metric,
            term=fitted.terms.get(str(name), "residual"),
            df=float(row["df"]),
            sum_sq=float(row["sum_sq"]),
            share=float(row["sum_sq"]) / total,
            f=_known(row["F"]),
            p=_known(row["PR(>F)"]),
        )
        for name, row in table.iterrows()
    ]
    tested = [term for term in terms if term.p is not None and term.term != "seed"]
    corrected = holm([term.p for term in tested if term.p is not None])
    fixed = {term.term: p for term, p in zip(tested, corrected, strict=True)}
    return [replace(term, p_holm=fixed.get(term.term)) for term in terms]


def main_effects(
    frame: pd.DataFrame, factors: Sequence[str], base: Mapping[str, str], metric: str
) -> list[Effect]:
    """What each level does against the base's, averaged evenly over the other factors' levels."""
    import numpy as np
    from patsy.build import build_design_matrices

    fitted = fit(frame, factors, metric)
    if fitted is None:
        return _untestable(frame, factors, base, metric)
    back = exp_or_inf if fitted.scale == "ratio" else float
    # every combination of levels once: averaging its predictions weighs levels evenly
    names = [*fitted.columns.values(), "seed"]
    levels = [sorted(fitted.data[name].unique()) for name in names]
    grid = {
        name: [row[place] for row in itertools.product(*levels)] for place, name in enumerate(names)
    }
    info = fitted.model.model.data.model_spec
    exog = np.asarray(build_design_matrices([info], grid)[0])
    effects: list[Effect] = []
    for factor, column in fitted.columns.items():
        labels = np.array(grid[column])
        against = base[factor] if base[factor] in labels else str(labels[0])
        for level in dict.fromkeys(fitted.data[column]):
            if level == against:
                continue
            contrast = exog[labels == level].mean(0) - exog[labels == against].mean(0)
            test = fitted.model.t_test(contrast)
            low, high = test.conf_int()[0]
            of_level = frame[FACTOR + factor].isin([level, against])
            n = int(fitted.data[column].isin([level, against]).sum())
            effects.append(
                Effect(
                    kind="main effect",
                    metric=metric,
                    factor=factor,
                    level=level,
                    against=against,
                    scale="ratio" if fitted.scale == "ratio" else "difference",
                    estimate=back(float(test.effect[0])),
                    low=back(float(low)),
                    high=back(float(high)),
                    n=n,
                    lost=int(of_level.sum()) - n,
                    p=float(test.pvalue),
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


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
