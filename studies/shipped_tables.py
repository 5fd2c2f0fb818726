"""The shipped result tables, read and ranked, and the tables of RESULTS.md made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from scipy import stats as scipy_stats

from ablate import wording
from ablate.conclude import rank_study
from ablate.core import load_core
from ablate.nouns import Options, Plan, Result, Study
from ablate.rank import Ranking
from ablate.shipped import LEVEL, from_table
from ablate.stats import Effect, t_interval
from ablate.study import load_study

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Source:
    """The study that a table is of, and what was laid over it when it ran."""

    study: str
    sets: tuple[str, ...] = ()


SOURCES = {
    "root_cause_1": Source("root_cause", ("data.train_images=1", "optim.steps=300")),
}
"""Tables whose name is not their study's."""


@dataclass(frozen=True)
class Shipped:
    """A table, read and ranked."""

    study: Study
    plan: Plan
    results: Mapping[str, Result]
    ranking: Ranking
    frame: pd.DataFrame


@cache
def shipped(name: str) -> Shipped:
    """Read `studies/results/NAME.csv` and rank it.

    Raises:
        StudyError: it is not of its study.
        FileNotFoundError: there is none.
    """
    source = SOURCES.get(name, Source(name))
    path = FOLDER / f"{name}.csv"
    options = Options(sets=source.sets)
    study = load_study(str(ROOT / "studies" / f"{source.study}.yaml"), options)
    plan, results = from_table(study, options, path.read_text(), path.name)
    ranking = rank_study(study, plan, load_core(study.core), results)
    names = [LEVEL + factor.name for factor in study.factors]
    frame = pd.read_csv(path, dtype=dict.fromkeys(["arm", "error", "commit", *names], str))
    return Shipped(study, plan, results, ranking, frame)


# ---- tables ----------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def ranking(name: str, *metrics: str) -> str:
    """Every arm in order with its criteria; further readings as means with half the interval.

    `first=8` among the metrics: so many arms alone, and how many of all meet each criterion.
    """
    own = shipped(name)
    limits = [int(metric.partition("=")[2]) for metric in metrics if metric.startswith("first=")]
    metrics = tuple(metric for metric in metrics if not metric.startswith("first="))
    first = own.ranking.arms[0].criteria
    read = [criterion.name for criterion in first] + list(metrics)
    head = ["#", "arm", *map(wording.name, read), "notes"]
    rows = []
    for arm in own.ranking.arms[: limits[0] if limits else None]:
        cells = [wording.criterion_cell(criterion) for criterion in arm.criteria]
        jobs = own.frame[own.frame.arm == arm.arm]
        more = [mean(jobs, metric) for metric in metrics]
        place = "-" if arm.rank is None else str(arm.rank)
        rows.append([place, arm.arm, *cells, *more, wording.short_notes(arm)])
    if limits:
        verdicts = [[criterion.verdict for criterion in arm.criteria] for arm in own.ranking.arms]
        met = [
            str(sum(v in ("passed", "likely") for v in column))
            for column in zip(*verdicts, strict=True)
        ]
        all_of = f"of all {len(verdicts)} meet it"
        rows.append(["", all_of, *met, *([""] * len(metrics)), ""])
    return (
        table(head, rows) + f"\n{wording.LEGEND}. Means over seeds, ± half the 95 % t interval.\n"
    )


def effects(name: str, kind: str, *metrics: str) -> str:
    """Each change of one kind: `one_at_a_time`, `leave_one_out` or `main_effect`."""
    found = [e for e in shipped(name).ranking.effects if e.kind == kind.replace("_", " ")]
    by_change: dict[str, dict[str, Effect]] = {}
    for effect in found:
        change = f"{effect.factor}: {effect.against} → {effect.level}"
        by_change.setdefault(change, {})[effect.metric] = effect
    rows, notes = [], set()
    for change, own in by_change.items():
        cells = [amount(own[metric]) if metric in own else "-" for metric in metrics]
        notes |= {own[metric].note for metric in metrics if metric in own and own[metric].note}
        rows.append([change, *cells])
    below = "; ".join(["\\* clear after Holm's correction", *(f"† {n}" for n in sorted(notes))])
    return f"{table(['change', *map(wording.name, metrics)], rows)}\n{below}.\n"


def amount(effect: Effect) -> str:
    """Estimate and interval, with a dagger where a note qualifies it."""
    return wording.amount(effect).replace("*", "\\*") + (" †" if effect.note else "")


def means(name: str, by: str, *metrics: str) -> str:
    """Readings over the levels of some factors (`a,b`), as means with half the interval."""
    factors = by.split(",")
    frame = shipped(name).frame
    rows = []
    for levels, jobs in frame.groupby([LEVEL + f for f in factors], sort=False):
        rows.append([*map(str, levels), *(mean(jobs, metric) for metric in metrics)])
    return table([*factors, *map(wording.name, metrics)], rows)


def predictors(name: str, outcome: str, *metrics: str) -> str:
    """How well each reading orders the jobs as an outcome does: Spearman's rank correlation.

    Jobs may be restricted to a level of a factor: `images=2000` among the metrics.
    """
    frame = shipped(name).frame
    for chosen in [metric for metric in metrics if "=" in metric]:
        factor, _, level = chosen.partition("=")
        frame = frame[frame[LEVEL + factor] == level]
    metrics = tuple(metric for metric in metrics if "=" not in metric)
    rows = []
    for metric in metrics:
        said = wording.name(metric)
        known = frame[[metric, outcome]].dropna()
        if len(known) < 4 or known[metric].nunique() < 2:
            rows.append([said, "not testable", str(len(known))])
            continue
        rho, p = scipy_stats.spearmanr(known[metric], known[outcome])
        low, high = fisher(float(rho), len(known))
        star = "*" if p < 0.05 / len(metrics) else ""
        rows.append([said, f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]{star}", str(len(known))])
    return table(["reading", f"rank correlation with {wording.name(outcome)}", "jobs"], rows)


def variance(name: str, *metrics: str) -> str:
    """Shares of the variance by factor and pair of factors, over the whole grid."""
    by_term: dict[str, dict[str, str]] = {}
    for term in shipped(name).ranking.variance:
        clear = "\\*" if term.clear else ""
        said = " or ".join((term.term, *term.aliases))
        by_term.setdefault(said, {})[term.metric] = f"{100 * term.share:.1f} %{clear}"
    rows = [[said, *(own.get(m, "-") for m in metrics)] for said, own in by_term.items()]
    head = ["term", *map(wording.name, metrics)]
    return f"{table(head, rows)}\n\\* clear after Holm's correction.\n"


def fisher(rho: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation of n pairs.

    Fisher's z with Bonett and Wright's variance (1 + rho^2 / 2) / (n - 3) (Psychometrika 65, 2000).
    """
    if abs(rho) >= 1:
        return rho, rho
    half = 1.959964 * math.sqrt((1 + rho * rho / 2) / (n - 3))
    z = math.atanh(rho)
    return math.tanh(z - half), math.tanh(z + half)


def mean(jobs: pd.DataFrame, metric: str) -> str:
    """Mean and half the t interval over seeds; how many jobs have the reading when not all.

    Arms of one seed share what the seed draws: they are averaged first, and count as one.
    """
    known = jobs[["seed", metric]].dropna() if metric in jobs else jobs[:0]
    if known.empty:
        return "-"
    text = wording.measured(t_interval(known.groupby("seed")[metric].mean().tolist()))
    return text if len(known) == len(jobs) else f"{text} ({len(known)}/{len(jobs)})"


KINDS: dict[str, Callable[..., str]] = {
    "ranking": ranking,
    "effects": effects,
    "means": means,
    "predictors": predictors,
    "variance": variance,
}
