"""The linear model of a factorial study and its analysis of variance: pure, on `stats.job_frame`s.

One linear model per metric, on the scale that `stats.scale_of` names: every factor, every pair of
factors, and the seed as a block (the same seed draws the same data order in every arm, so what the
seeds share is no noise). Sums of squares are of type II, which also holds for unbalanced designs
(a diverged job leaves a gap); their shares add up to 1 only when the design is balanced.

Jobs that are one training, read in several ways, are no replicates: the study is a split plot
(Montgomery, Design and Analysis of Experiments, 14.5), trainings its whole plots. What trainings
differ in is tested against the noise between trainings, what their readings differ in against the
noise within them; exact where every training is read in the same ways, near it where some are lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ablate.stats import CONFIDENCE, FACTOR, ROUNDING, TRAINING, Scale, holm, scale_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Term:
    """A line of the analysis of variance."""

    metric: str
    term: str
    """`tokens`, `tokens x lr`, `seed`, `residual`; `trainings`: their noise, where jobs share."""
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
class Noise:
    """What effects are tested against."""

    sum_sq: float
    df: float

    @property
    def mean_sq(self) -> float:
        """Per degree of freedom; nan where there is none."""
        return self.sum_sq / self.df if self.df > 0 else math.nan


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

    trainings: pd.Series | None = None
    """The training of each row of `data`, where some share one."""
    inner: frozenset[str] = frozenset()
    """Factors all of whose levels occur in one training: how it is read."""

    @cached_property
    def _strata(self) -> tuple[Noise, Noise]:
        """The noise between trainings, and within them."""
        import numpy as np

        whole = Noise(float(self.model.ssr), float(self.model.df_resid))
        if self.trainings is None:
            return whole, whole
        means = self.model.resid.groupby(self.trainings).agg(["mean", "size"])
        between = float((means["size"] * means["mean"] ** 2).sum())
        spec = self.model.model.data.model_spec
        outer = [place for term, place in spec.term_name_slices.items() if not self.within(term)]
        columns = np.hstack([np.asarray(self.model.model.exog)[:, place] for place in outer])
        df = len(means) - int(np.linalg.matrix_rank(columns))
        within = max(whole.sum_sq - between, 0.0)
        return Noise(between, max(df, 0)), Noise(within, max(whole.df - df, 0))

    def within(self, term: str) -> bool:
        """Whether a term of the formula tells readings of one training apart."""
        return any(f"C({self.columns[name]}, Sum)" in term.split(":") for name in self.inner)

    def noise(self, *factors: str) -> Noise:
        """The noise that what these factors do, alone or together, is tested against."""
        return self._strata[not self.inner.isdisjoint(factors)]

    def noiseless(self, noise: Noise) -> bool:
        """Whether replicates agree but for rounding: there is nothing to test effects against."""
        return bool(noise.sum_sq <= ROUNDING**2 * self.model.uncentered_tss)

    def count(self, factor: str, level: str) -> int:
        """How many replicates have a level: jobs, or the trainings that they share."""
        at = self.data[self.columns[factor]] == level
        if self.trainings is None or factor in self.inner:
            return int(at.sum())
        return int(self.trainings[at].nunique())

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
    from statsmodels.regression.linear_model import OLS  # formula.api imports far more

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
            trainings, inner = _shared(known, varying)
            return Fit(fitted, columns, own, data, scale, aliases, apart, trainings, inner)
    return None


def _shared(frame: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.Series | None, frozenset[str]]:
    """The training of each job, and the factors that only say how one is read."""
    if TRAINING not in frame or frame[TRAINING].is_unique:
        return None, frozenset()
    inner = set()
    for name in factors:
        of_one = frame.groupby(TRAINING, sort=False)[FACTOR + name].nunique()
        if of_one.max() == frame[FACTOR + name].nunique():
            inner.add(name)
    return frame[TRAINING], frozenset(inner)


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
    total = float(fitted.model.centered_tss)
    terms: list[Term] = []
    for name, row in table.iterrows():
        term, df, sum_sq = fitted.terms.get(str(name)), float(row["df"]), float(row["sum_sq"])
        if term is None:
            continue
        f, p = _f_test(fitted, fitted.noise(*_parts(term)), sum_sq / df, df)
        aliases = fitted.aliases.get(term, ())
        terms.append(Term(metric, term, df, sum_sq, sum_sq / total, f, p, aliases=aliases))
    between, within = fitted.noise(), fitted.noise(*fitted.inner)
    left = {"residual": within}
    if fitted.trainings is not None:
        left = {"trainings": between} | (left if fitted.inner else {})
    for term, noise in left.items():
        share = noise.sum_sq / total
        terms.append(Term(metric, term, noise.df, noise.sum_sq, share, None, None))
    tested = [term for term in terms if term.p is not None and term.term != "seed"]
    corrected = holm([term.p for term in tested if term.p is not None])
    fixed = {term.term: p for term, p in zip(tested, corrected, strict=True)}
    return [replace(term, p_holm=fixed.get(term.term)) for term in terms]


def _parts(term: str) -> list[str]:
    """The factors of a term as people read it."""
    return term.split(" x ")


def _f_test(
    fitted: Fit, noise: Noise, mean_sq: float, df: float
) -> tuple[float | None, float | None]:
    """F and p of a term; None where there is no noise to test it against."""
    from scipy import stats

    if noise.df <= 0 or fitted.noiseless(noise):
        return None, None
    f = mean_sq / noise.mean_sq
    return f, float(stats.f.sf(f, df, noise.df))
