"""The report of a study: one HTML file that needs no network, and the same in Markdown.

Values in, text out; the only files read are the pictures given and the templates beside this.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import charts, runs, wording
from ablate.arm import RankedArm
from ablate.nouns import Job, Plan, Result, Study
from ablate.rank import COST, PX_ERROR, Ranking
from ablate.stats import Effect

if TYPE_CHECKING:
    import jinja2

Histories = Mapping[str, Iterable[Mapping[str, Any]]]
"""Events by job id, as the ledger has them."""

CURVES = ("train/loss", "train/px_error", "val/px_error", "attention/uniformity")
"""Readings drawn over the steps, where a core has them; else its first two."""
CURVES_SHOWN = 12
OVERLAYS_SHOWN, SHEETS_SHOWN = 4, 2
PICTURE_WIDTH, SHEET_WIDTH = 800, 1400
QUALITY = 80
"""Of the embedded JPEG pictures."""


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
    values = _common(study, plan, ranking, results, command)
    by_arm = _jobs_by_arm(plan, results)
    shown = _arms_shown(ranking)
    values |= {
        "groups": [{**group, "charts": _forests(group["effects"])} for group in values["groups"]],
        "curves": _curves(study, ranking, shown, by_arm, histories),
        "curves_left": max(0, len(ranking.arms) - len(shown)),
        "gallery": _gallery(ranking, by_arm, pictures),
        "cost": _cost(ranking, results),
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
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {
        "amount": wording.amount,
        "cell": wording.criterion_cell,
        "css": lambda verdict: "untested" if verdict == "not testable" else verdict,
        "line": wording.effect_line,
        "md": _markdown,
        "mean": lambda interval: wording.number(interval.mean) if interval else "-",
        "notes": wording.short_notes,
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
    titles = [f"{wording.name(c.name)} < {wording.number(c.readings[0].threshold)}" for c in first]
    kinds = dict.fromkeys(effect.kind for effect in ranking.effects)
    terms: dict[str, dict[str, Any]] = {}
    for term in ranking.variance:
        terms.setdefault(term.metric, {})[term.term] = term
    base = next((job for job in plan.jobs if job.arm == ranking.base), None)
    settings = base or (plan.jobs[0] if plan.jobs else None)
    return {
        "study": study,
        "plan": plan,
        "ranking": ranking,
        "sentences": wording.sentences(ranking),
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
            for point in runs.history(histories.get(job.id, ())):
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


def _gallery(
    ranking: Ranking, by_arm: Mapping[str, Sequence[Job]], pictures: Mapping[str, Sequence[Path]]
) -> dict[str, list[dict[str, Any]]]:
    """The last pictures of the best, the base and the worst arm: a row per image."""
    last: dict[str, dict[str, runs.Picture]] = {}  # arm -> key
    for arm in ranking.arms:
        for job in by_arm.get(arm.arm, ())[:1]:
            own = sorted(map(runs.picture, pictures.get(job.id, ())), key=lambda p: p.step)
            if own:
                last[arm.arm] = {picture.key: picture for picture in own}
    order = list(last)  # as ranked
    roles = [(arm, "worst") for arm in order[-1:]]
    roles += [(arm, "base") for arm in order if arm == ranking.base]
    roles += [(arm, "best") for arm in order[:1]]
    named = dict(roles)  # of an arm with two roles the better one stays
    keys = sorted({key for arm in named for key in last[arm]})
    sheets = [key for key in keys if "attention" in key][:SHEETS_SHOWN]
    overlays = [key for key in keys if "attention" not in key][:OVERLAYS_SHOWN]
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in (*overlays, *sheets):
        width = SHEET_WIDTH if key in sheets else PICTURE_WIDTH
        for arm in (arm for arm in order if arm in named and key in last[arm]):
            found, seed = last[arm][key], by_arm[arm][0].seed
            role = named[arm] if named[arm] == arm else f"{named[arm]}: {arm}"
            caption = f"{role}, seed {seed}" + (f", step {found.step}" if found.step else "")
            if data := embed(found.path, width):
                rows.setdefault(_heading(key), []).append({"caption": caption, "data": data})
    return rows


def _heading(key: str) -> str:
    """`train_0_attention` is `training image 0 attention`."""
    head, _, rest = key.partition("_")
    known = {"train": "training image", "val": "held-out image", "test": "test image"}
    return " ".join([known.get(head, head), *rest.split("_")]).strip()


def embed(path: Path, width: int) -> str | None:
    """An image file as a data URI, at most so many px wide; None when it cannot be read."""
    import cv2

    image = cv2.imread(str(path))
    if image is None:
        return None
    scale = min(1.0, width / image.shape[1])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    whole, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}" if whole else None


def _cost(ranking: Ranking, results: Mapping[str, Result]) -> dict[str, Any]:
    from markupsafe import Markup

    seconds = [result.metrics.get(COST, math.nan) for result in results.values()]
    total = math.fsum(value for value in seconds if math.isfinite(value))
    rows = [arm for arm in ranking.arms if COST in arm.metrics]
    names = sorted({name for arm in rows for name in arm.metrics if name.startswith("cost/")})
    points = {
        arm.arm: (arm.metrics[COST].mean, arm.metrics[PX_ERROR].mean, arm.pareto)
        for arm in rows[:40]
        if PX_ERROR in arm.metrics
    }
    chart = charts.trade_off(points, "seconds per job", "px error") if len(points) > 1 else ""
    return {"total": _duration(total), "rows": rows, "names": names, "chart": Markup(chart)}


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
