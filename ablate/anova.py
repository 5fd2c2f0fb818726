"""The linear model of a factorial study and its analysis of variance: pure, on `stats.job_frame`s.

One linear model per metric, on the scale that `stats.scale_of` names: every factor, every pair of
factors, and the seed as a block (the same seed draws the same data order in every arm, so what the
seeds share is no noise). Sums of squares are of type II, which also holds for unbalanced designs
(a diverged job leaves a gap); their shares add up to 1 only when the design is balanced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ablate.stats import CONFIDENCE, FACTOR, ROUNDING, Scale, holm, scale_of

if TYPE_CHECKING:
    import numpy as np
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
    aliases: tuple[str, ...] = ()
    """Pairs of factors that this design cannot tell from the term: it may be theirs."""

    @property
    def clear(self) -> bool:
        """Whether the term stands after the correction for the number of terms looked at."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


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
    scale: Scale
    aliases: dict[str, tuple[str, ...]]
    """Term as people read it -> pairs that cannot be told from it."""
    torn: tuple[tuple[str, str], ...] = ()
    """Pairs of factors with too few combinations to be fitted: the model takes them to add up."""
    echoes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Factors that change no value of the metric to the last bit, no part of the model, with their
    levels."""

    @property
    def noiseless(self) -> bool:
        """Whether replicates agree but for rounding: there is nothing to test effects against."""
        return bool(self.model.ssr <= ROUNDING**2 * self.model.uncentered_tss)

    def moves(self, contrast: np.ndarray) -> bool:
        """Whether a contrast of the coefficients is more than the rounding of the values."""
        size = math.sqrt(self.model.uncentered_tss / len(self.data))
        return abs(float(contrast @ self.model.params.to_numpy())) > ROUNDING * size


def fit(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> Fit | None:
    """Fit the linear model with as many interactions as the data can tell apart.

    Returns:
        None when no factor varies among the jobs that have the metric.
    """
    import numpy as np

    known = frame[np.isfinite(frame[metric].astype(float))] if metric in frame else frame[:0]
    varying = [f for f in factors if FACTOR + f in known and known[FACTOR + f].nunique() > 1]
    if not varying:
        return None
    once, echoes = without_echoes(known, varying, metric)
    if echoes:
        fitted = _fit(once, [name for name in varying if name not in echoes], metric)
        if fitted is not None:
            same = {name: tuple(map(str, known[FACTOR + name].unique())) for name in echoes}
            return replace(fitted, echoes=same)
    return _fit(known, varying, metric)


def _fit(known: pd.DataFrame, varying: Sequence[str], metric: str) -> Fit | None:
    import numpy as np
    from statsmodels.regression.linear_model import OLS  # formula.api imports far more

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
    both = {f"{a} x {b}": (a, b) for a, b in itertools.combinations(varying, 2)}
    pairs = {f"C({columns[a]}, Sum):C({columns[b]}, Sum)": pair for pair, (a, b) in both.items()}
    rows = tuple(data.drop(columns="y").itertuples(index=False, name=None))
    for fit_pairs in (True, False):
        own, aliases, torn = told_apart(rows, tuple(mains.items()), tuple(pairs.items()), fit_pairs)
        model = OLS.from_formula("y ~ " + " + ".join(own), data)
        exog = np.asarray(model.exog)
        if len(data) > exog.shape[1] == np.linalg.matrix_rank(exog):
            fitted = model.fit(method="qr")
            apart = tuple(both[pair] for pair in torn)
            return Fit(fitted, columns, own, data, scale, aliases, apart)
    return None


def without_echoes(
    frame: pd.DataFrame, factors: Sequence[str], metric: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Leave out factors that leave every value the same to the last bit, and what they repeat.

    A metric of training alone is the same however lanes are decoded: jobs that differ in that are
    one training told several times, and no replicates. A metric that is the same in all jobs is
    left as it is, and one factor always stays.

    Returns:
        One row of each such set, and the factors left out.
    """
    echoes: list[str] = []
    for name in factors if frame[metric].nunique() > 1 else ():
        others = [FACTOR + f for f in factors if f != name and f not in echoes]
        groups = frame.groupby([*others, "seed"], sort=False, dropna=False)
        told = groups[metric].nunique()
        if others and groups.ngroups < len(frame) and (told <= 1).all():
            frame = groups.head(1)
            echoes.append(name)
    return frame, tuple(echoes)


@lru_cache(maxsize=8)  # the metrics of a study mostly have the same rows
def told_apart(
    rows: tuple[tuple[str, ...], ...],
    mains: tuple[tuple[str, str], ...],
    pairs: tuple[tuple[str, str], ...],
    fit_pairs: bool,
) -> tuple[dict[str, str], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The terms that these jobs can tell apart, which pairs are aliased with which, which are torn.

    A pair whose columns are combinations of those of earlier terms is left out and named as the
    alias of the terms it is made of: in a fraction of a grid, or where jobs were lost. A pair of
    which only some columns are new is torn: some of its combinations of levels have no job.

    Args:
        rows: levels f0, f1, ... and the seed of each job.
        mains: terms of the formula, and how people read them; kept in any case.
        pairs: terms that are kept when they say something new.
        fit_pairs: whether to keep any; else only what is aliased with `mains` is named.
    """
    import numpy as np
    from patsy.highlevel import dmatrix

    *factors, seeds = (list(column) for column in zip(*rows, strict=True))
    data = {f"f{index}": column for index, column in enumerate(factors)} | {"seed": seeds}
    matrix: Any = dmatrix(" + ".join(name for name, _ in (*mains, *pairs)), data)
    whole, slices = np.asarray(matrix), matrix.design_info.term_name_slices
    kept, blocks = dict(mains), {name: whole[:, slices[name]] for name, _ in mains}
    aliases: dict[str, tuple[str, ...]] = {}
    torn: list[str] = []
    for name, pair in pairs:
        own = whole[:, slices[name]]
        before = np.hstack([whole[:, :1], *blocks.values()])
        weights, *_ = np.linalg.lstsq(before, own, rcond=None)
        new = own - before @ weights
        if np.abs(new).max() > 1e-8:
            if fit_pairs and np.linalg.matrix_rank(new) == own.shape[1]:
                kept[name], blocks[name] = pair, own
            elif fit_pairs:
                torn.append(pair)
            continue
        start = 1
        for term, block in blocks.items():
            size = np.abs(weights[start : start + block.shape[1]]).max()
            start += block.shape[1]
            if size > 1e-8:
                aliases[kept[term]] = (*aliases.get(kept[term], ()), pair)
    return kept, aliases, tuple(torn)


def variance(
    frame: pd.DataFrame, factors: Sequence[str], metric: str, fitted: Fit | None = None
) -> list[Term]:
    """Analysis of variance of one metric; empty when the data cannot carry it.

    `fitted` saves fitting again.
    """
    from statsmodels.stats.anova import anova_lm

    fitted = fitted or fit(frame, factors, metric)
    if fitted is None or fitted.model.centered_tss <= 1e-20 * fitted.model.uncentered_tss:
        return []  # the same value everywhere, but for rounding
    table = anova_lm(fitted.model, typ=2)
    if fitted.noiseless:
        table[["F", "PR(>F)"]] = math.nan
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
            aliases=fitted.aliases.get(fitted.terms.get(str(name), ""), ()),
        )
        for name, row in table.iterrows()
    ]
    tested = [term for term in terms if term.p is not None and term.term != "seed"]
    mains = len(fitted.columns)
    terms[mains:mains] = [
        Term(metric, name, len(levels) - 1, 0.0, 0.0, None, None)
        for name, levels in fitted.echoes.items()
    ]
    tested = [term for term in terms if term.p is not None and term.term != "seed"]
    terms += [
        Term(metric, name, len(levels) - 1, 0.0, 0.0, None, None)
        for name, levels in fitted.echoes.items()
    ]
    corrected = holm([term.p for term in tested if term.p is not None])
    fixed = {term.term: p for term, p in zip(tested, corrected, strict=True)}
    return [replace(term, p_holm=fixed.get(term.term)) for term in terms]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
