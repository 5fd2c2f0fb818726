"""The report of a study: one HTML file that needs no network, and the same in Markdown.

Values in, text out; the only files read are the pictures given and the templates beside this.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import charts, history, importance, wording
from ablate.arm import RankedArm
from ablate.gallery import gallery, over_steps
from ablate.nouns import Job, Plan, Result, Study
from ablate.parallel import axes_of, parallel_coordinates
from ablate.rank import COST, PX_ERROR, Ranking
from ablate.stats import Effect, scale_of

if TYPE_CHECKING:
    import jinja2

Histories = Mapping[str, Iterable[Mapping[str, Any]]]
"""Events by job id, as the ledger has them."""

CURVES = ("train/loss", "train/px_error", "val/px_error", "attention/uniformity")
"""Readings drawn over the steps, where a core has them; else its first two."""
CURVES_SHOWN = 12
TEMPLATES = Path(__file__).parent / "templates"


def render_report(
    study: Study,
    plan: Plan,
    ranking: Ranking,
    results: Mapping[str, Result],
    histories: Histories,
    pictures: Mapping[str, Sequence[Path]],
    command: str = "",
) -> str:
    """The report as one HTML page.

    Args:
        study: what was asked.
        plan: its jobs.
        ranking: of them.
        results: by job id.
        histories: events by job id.
        pictures: image files by job id, named `overlay..._<step>` and `attention..._<step>`.
        command: reproduces the study.
    """
    from markupsafe import Markup

    values = _common(study, plan, ranking, results, command)
    by_arm = _jobs_by_arm(plan, results)
    shown = _arms_shown(ranking)
    values |= {
        "groups": [{**group, "charts": _forests(group["effects"])} for group in values["groups"]],
        "curves": _curves(study, ranking, shown, by_arm, histories),
        "curves_left": max(0, len(ranking.arms) - len(shown)),
        "gallery": gallery(ranking, by_arm, pictures) | over_steps(ranking, by_arm, pictures),
        "cost": _cost(ranking, results),
        "interactions": [(pair, Markup(charts.interaction(pair))) for pair in ranking.interactions],
        **_parallel(ranking),
    }
    return environment(True).get_template("report.html.j2").render(values)


def render_markdown(
    study: Study,
    plan: Plan,
    ranking: Ranking,
    results: Mapping[str, Result],
    command: str = "",
) -> str:
    """The answer, the ranking, the effects and the diagnosis, for a pull request."""
    values = _common(study, plan, ranking, results, command)
    return environment(False).get_template("report.md.j2").render(values)


@cache
def environment(html: bool) -> jinja2.Environment:
    """Jinja2 with our words as filters; HTML is escaped throughout."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {
        "amount": wording.amount,
        "cell": wording.criterion_cell,
        "css": lambda verdict: "untested" if verdict == "not testable" else verdict,
        "joint": wording.joint_amount,
        "line": wording.effect_line,
        "md": _markdown,
        "mean": lambda interval: wording.number(interval.mean) if interval else "-",
        "notes": wording.short_notes,
        "said": wording.finding_text,
        "unsaid": wording.notes_beside_findings,
        "number": wording.number,
        "word": wording.name,
        "words": lambda text: str(text).replace("_", " "),
    }
    return made


def _common(
    study: Study, plan: Plan, ranking: Ranking, results: Mapping[str, Result], command: str
) -> dict[str, Any]:
    """What both forms of the report say."""
    states = Counter(result.state for result in results.values())
    first = ranking.arms[0].criteria if ranking.arms else ()
    titles = [wording.criterion_title(criterion) for criterion in first]
    kinds = dict.fromkeys(effect.kind for effect in ranking.effects)
    terms: dict[str, dict[str, Any]] = {}
    for term in ranking.variance:
        terms.setdefault(term.metric, {})[term.term] = term
    head, said = wording.headline(ranking), wording.sentences(ranking)
    base = next((job for job in plan.jobs if job.arm == ranking.base), None)
    settings = base or (plan.jobs[0] if plan.jobs else None)
    return {
        "study": study,
        "plan": plan,
        "ranking": ranking,
        "headline": head,
        "findings": [line for line in said if line not in head],
        "legend": wording.LEGEND.replace("  ", ", "),
        "criteria": [{"title": title} for title in titles],
        "done": states["done"],
        "troubled": ", ".join(f"{n} {s}" for s, n in sorted(states.items()) if s != "done"),
        "groups": [
            {
                "title": wording.effect_title(kind, ranking),
                "effects": [effect for effect in ranking.effects if effect.kind == kind],
            }
            for kind in kinds
        ],
        "terms": terms,
        "term_aliases": {term.term: term.aliases for term in ranking.variance if term.aliases},
        "lossy": [level for level in ranking.levels if set(level.counts) - {"done"}],
        "lossy_states": [
            state
            for state in ("done", "diverged", "failed", "pruned", "missing")
            if any(state in level.counts for level in ranking.levels)
        ],
        "front": wording.front(ranking),
        **_importances(ranking),
        "term_names": list(dict.fromkeys(term.term for term in ranking.variance)),
        "diagnosed": [
            arm
            for arm in ranking.arms
            if arm.troubles or (arm.diagnosis and arm.count("passed") < len(arm.criteria))
        ],
        "provenance": _provenance(study, plan, results),
        "command": command or f"ablate run {study.source or study.name}",
        "settings": settings.settings if settings else {},
        "settings_of": settings.arm if settings else "no job",
    }


def _importances(ranking: Ranking) -> dict[str, Any]:
    found = importance.columns(ranking.importances)
    return {
        "importances": {importance.heading(own, found): values for own, values in found.items()},
        "importance_names": importance.rows(ranking.importances),
        "importance_notes": importance.explained(ranking.importances),
    }


def _jobs_by_arm(plan: Plan, results: Mapping[str, Result]) -> dict[str, list[Job]]:
    """The finished jobs of each arm."""
    by_arm: dict[str, list[Job]] = {}
    for job in plan.jobs:
        if job.id in results and results[job.id].state == "done":
            by_arm.setdefault(job.arm, []).append(job)
    return by_arm


def _arms_shown(ranking: Ranking) -> list[RankedArm]:
    """The best arms, and the base and the worst whatever their rank."""
    done = [arm for arm in ranking.arms if arm.seeds]
    if len(done) <= CURVES_SHOWN:
        return done
    keep = {arm.arm for arm in done[: CURVES_SHOWN - 2]} | {ranking.base}
    keep |= {arm.arm for arm in done[-1:]}
    return [arm for arm in done if arm.arm in keep]


def _forests(effects: Sequence[Effect]) -> list[Any]:
    from markupsafe import Markup

    drawn = []
    metrics = dict.fromkeys(effect.metric for effect in effects)
    for metric in sorted(metrics, key=lambda name: name != PX_ERROR):
        own = [e for e in effects if e.metric == metric and e.estimate is not None]
        if any(effect.low != effect.high for effect in own):
            drawn.append(Markup(charts.forest(own, wording.name(metric))))
    return drawn


def _curves(
    study: Study,
    ranking: Ranking,
    shown: Sequence[RankedArm],
    by_arm: Mapping[str, Sequence[Job]],
    histories: Histories,
) -> dict[str, list[Any]]:
    """A chart per metric and arm, those of one metric on common axes."""
    from markupsafe import Markup

    wanted = {arm.arm for arm in shown} | {ranking.base}
    readings: dict[str, dict[str, list[dict[int, float]]]] = {}  # metric -> arm -> seeds
    for arm in (label for label in by_arm if label in wanted):
        for job in by_arm[arm]:
            own: dict[str, dict[int, float]] = {}
            for point in history.points_of(histories.get(job.id, ())):
                own.setdefault(point.key, {})[point.step] = point.value
            for metric, values in own.items():
                if len(values) > 1:
                    readings.setdefault(metric, {}).setdefault(arm, []).append(values)
    metrics = [name for name in CURVES if name in readings] or sorted(readings)[:2]
    conditions = [(k.metric, k.threshold) for c in study.criteria for k in c.conditions]
    drawn: dict[str, list[Any]] = {}
    for metric in metrics:
        found = {arm: charts.curve(seeds) for arm, seeds in readings[metric].items()}
        lines = {arm: line for arm, line in found.items() if line is not None}
        values = [value for line in lines.values() for value in line.low]
        log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
        limits = charts.limits_of(list(lines.values()), log)
        base = lines.get(ranking.base or "")
        drawn[metric] = [
            Markup(
                charts.learning_curve(
                    lines[arm.arm],
                    base if arm.arm != ranking.base else None,
                    title=arm.arm,
                    log=log,
                    limits=limits,
                    threshold=charts.threshold_of(metric, conditions),
                )
            )
            for arm in shown
            if arm.arm in lines
        ]
    return drawn


def _cost(ranking: Ranking, results: Mapping[str, Result]) -> dict[str, Any]:
    from markupsafe import Markup

    seconds = [result.metrics.get(COST, math.nan) for result in results.values()]
    total = math.fsum(value for value in seconds if math.isfinite(value))
    rows = [arm for arm in ranking.arms if COST in arm.metrics]
    names = sorted({name for arm in rows for name in arm.metrics if name.startswith("cost/")})
    drawn = []
    for index, criterion in enumerate(rows[0].criteria if rows else ()):
        points = [
            (str(arm.rank), arm.metrics[COST].mean, read.value.mean, arm.pareto)
            for arm in rows
            for own, read in [(arm.criteria[index], arm.criteria[index].readings[0])]
            if own.verdict != "not testable" and read.value is not None
        ]
        if len({point[2] for point in points}) > 1:
            metric = criterion.readings[0].metric
            ratios = scale_of(metric) == "ratio"
            chart = charts.trade_off(points, "seconds per job", wording.name(metric), ratios)
            drawn.append(Markup(chart))
    return {"total": _duration(total), "rows": rows, "names": names, "charts": drawn}


def _parallel(ranking: Ranking) -> dict[str, Any]:
    """The chart of all arms, its axes, and the script that brushes it with its digest."""
    from markupsafe import Markup

    axes = axes_of(ranking)
    script = (TEMPLATES / "parallel.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "parallel": Markup(parallel_coordinates(ranking, axes)),
        "axes": axes,
        "script": Markup(script),
        "script_hash": digest,
    }


def _provenance(study: Study, plan: Plan, results: Mapping[str, Result]) -> dict[str, str]:
    def named(values: Iterable[Any]) -> str:
        counted = Counter(str(value) for value in values if value)
        return ", ".join(value for value, _ in counted.most_common(5))

    own = list(results.values())
    prints = sorted({name for job in plan.jobs for name in job.fingerprints})
    facts = {
        "jobs": f"{len(own)} of {len(plan.jobs)} ended",
        "seeds": ", ".join(map(str, study.seeds)),
        "commit": named(result.code.get("commit") for result in own),
        "core sources": named(result.code.get("core") for result in own),
        **{
            f"{name} fingerprint": named(job.fingerprints.get(name) for job in plan.jobs)
            for name in prints
        },
    }
    for name in dict.fromkeys(key for result in own for key in result.environment):
        facts[name] = named(result.environment.get(name) for result in own)
    return {name: value for name, value in facts.items() if value}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{wording.number(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _markdown(text: object) -> str:
    """Plain text as Markdown: nothing in it is markup, a table cell stays a cell."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*_`\[\]#])", r"\\\1", escaped).replace("\n", " ")
