"""What a job, an arm and a study look like as MLflow runs. Pure: no MLflow in here.

Kinds of runs, told apart by the tag `kind`: `execution` (one per `ablate run` that did something),
`job` (its child), `config` (an arm: means over seeds, `low/` and `high/` ends of the intervals).
A run carries the digest of what it shows in the tag `recorded`, so that recording again changes
nothing.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import wording
from ablate.arm import RankedArm
from ablate.history import NAME, Point, is_number
from ablate.nouns import Job, Result, Study
from ablate.rank import Ranking

PARAM_LIMIT = 6000
TAG_LIMIT = 5000
PICTURE = re.compile(r"^(?P<key>.+?)[-_](?:step[-_]?(?P<step>\d+)|(?P<padded>\d{4,}))$")
"""`overlay_000100` and `overlay_step100` are step 100 of `overlay`; `train_0` is image 0."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp")

SHARE_KEY = "levels-and-criteria"
"""Name of the saved view of MLflow's runs table (`?viewStateShareKey=`)."""
STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "pruned": "KILLED"}


@dataclass(frozen=True)
class Picture:
    """An image of a job."""

    path: Path
    key: str
    step: int


def params_of(study: Study, job: Job) -> dict[str, str]:
    """Levels under their factors' names, then the flat settings without the seed.

    MLflow keeps the order on a run's page, so what the study varies stands first.
    """
    levels = {name: level for name, level in job.levels.items() if name not in study.ranges}
    varied = {path: job.settings[path] for path in study.ranges if path in job.settings}
    settings = {path: value for path, value in job.settings.items() if path != "seed"}
    params = {**levels, **varied, **settings, **levels}
    return {NAME.sub("_", key): _text(value)[:PARAM_LIMIT] for key, value in params.items()}


def tags_of(study: Study, job: Job, result: Result | None) -> dict[str, str]:
    """How a job's run is found and told apart."""
    tags = {
        "kind": "job",
        "study": study.name,
        "job_id": job.id,
        "arm": job.arm,
        "seed": str(job.seed),
        "design": job.design,
        "state": "running",
        **{f"fingerprint.{name}": digest for name, digest in job.fingerprints.items()},
    }
    if result is not None:
        tags["state"] = result.state
        tags |= {name: str(result.code[name]) for name in ("commit", "core") if name in result.code}
        if result.error:
            tags["reason"] = result.error[:TAG_LIMIT]
            tags["mlflow.note.content"] = note(f"{result.state}: {result.error}")
    return tags


def data_of(job: Job) -> dict[str, str] | None:
    """The data set that a job reads, as MLflow's inputs have it; a digest has 36 characters."""
    if "data" not in job.fingerprints:
        return None
    roots = job.settings.get("data.roots") or []
    return {
        "name": " + ".join(Path(root).name for root in roots) or "built in",
        "digest": job.fingerprints["data"][:36],
        "source_type": "local",
        "source": " ".join(roots) or "built in",
    }


def note(text: str) -> str:
    """Plain text as MLflow's description, which is Markdown with HTML."""
    return html.escape(text[:TAG_LIMIT], quote=False)


def description(study: Study, ranking: Ranking) -> str:
    """What stands over the runs table: question, answer, and what must be known to compare."""
    notes = [f"Note: {note}." for note in ranking.notes]
    return "\n\n".join([study.question, *wording.headline(ranking), *notes])


def recorded_digest(value: Any) -> str:
    """Digest of what a run shows."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def finals(result: Result, told: Iterable[str], time: int) -> list[Point]:
    """A result's readings once at step 0, where MLflow draws bars, but for those told as lines.

    The last evaluation of a history is of the final weights, so nothing is lost; a second value at
    step 0 would bend the line.
    """
    names = {NAME.sub("_", name): value for name, value in result.metrics.items()}
    told = set(told)
    return [Point(k, v, time, 0) for k, v in names.items() if is_number(v) and k not in told]


def span(events: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """First and last time of a job's events, ms; None without any."""
    times = [e["time"] for e in events if isinstance(e.get("time"), int | float)]
    return (int(1000 * min(times)), int(1000 * max(times))) if times else None


def usual_span(spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Of several jobs, when the last ended, and how long before that one of them usually began, ms.

    >>> usual_span([(0, 10), (100, 130)])
    (110, 130)
    """
    if not spans:
        return None
    end = max(end for _, end in spans)
    return end - sum(end - begin for begin, end in spans) // len(spans), end


def picture(path: Path, root: Path | None = None) -> Picture:
    """Read key and step from a file's name, or from its path below `root`."""
    name = (path.relative_to(root) if root else Path(path.name)).with_suffix("").as_posix()
    match = PICTURE.match(name)
    key, step = (match["key"], int(match["step"] or match["padded"])) if match else (name, 0)
    return Picture(path, NAME.sub("_", key), step)


def pictures_of(folder: Path) -> list[Picture]:
    """The images of a job, in order of their names."""
    root = folder / "pictures"
    paths = (path for path in sorted(root.glob("**/*")) if path.suffix.lower() in IMAGES)
    return [picture(path, root) for path in paths]


def gallery(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures as MLflow shows them.

    The last of each key stands with the final readings, at step 0, where MLflow's slider starts;
    where there are several steps, all are under `pictures/`.
    """
    by_key: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: picture.step):
        by_key.setdefault(picture.key, []).append(picture)
    shown = []
    for key, own in by_key.items():
        shown.append(Picture(own[-1].path, f"final/{key}", 0))
        if len(own) > 1:
            shown += [Picture(one.path, f"pictures/{key}", one.step) for one in own]
    return shown


def picture_name(picture: Picture, time: int) -> str:
    """The file name, without suffix, by which MLflow's UI knows key, step and time of an image."""
    unique = hashlib.sha256(f"{picture.key} {picture.path}".encode()).hexdigest()[:32]
    key = picture.key.replace("/", "~")
    return f"{key}+step+{picture.step}+timestamp+{time}+{unique}"


def config_name(arm: RankedArm) -> str:
    """Of an arm's run, with what must be known beside every number of it: `memorises`.

    MLflow's table cuts long names, so the seeds, which are a tag as well, stand last.
    """
    seeds = f"{len(arm.seeds)} seed" + "s" * (len(arm.seeds) != 1)
    return " · ".join(part for part in (arm.arm, wording.short_notes(arm), seeds) if part)


def config_points(arm: RankedArm, told: Iterable[str]) -> list[Point]:
    """An arm's means once at step 0, and the ends of the intervals of what the criteria read.

    MLflow keeps the order on a run's page: what ranks an arm stands first.
    """
    told = set(told)
    places = {} if arm.rank is None else {"rank": arm.rank}
    places |= {verdict: arm.count(verdict) for verdict in ("passed", "likely")}
    points = [Point(f"criteria/{name}", value, 0, 0) for name, value in places.items()]
    read = dict.fromkeys(r.metric for criterion in arm.criteria for r in criterion.readings)
    shown = [name for name in (*read, *arm.metrics) if name in arm.metrics]
    for name in dict.fromkeys(shown):
        interval, key = arm.metrics[name], NAME.sub("_", name)
        if key not in told:
            points.append(Point(key, _said(interval.mean), 0, 0))
        if interval.low is not None and interval.high is not None and name in read:
            points.append(Point(f"low/{key}", _said(interval.low), 0, 0))
            points.append(Point(f"high/{key}", _said(interval.high), 0, 0))
    return points


def config_tags(study: Study, arm: RankedArm) -> dict[str, str]:
    """How an arm's run is found, and its verdicts as words."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(arm.counts.items()))
    tags = {
        "kind": "config",
        "study": study.name,
        "arm": arm.arm,
        "design": arm.design,
        "seeds": " ".join(map(str, arm.seeds)),
        "jobs": states,
        **{f"verdict.{c.name}": c.verdict for c in arm.criteria},
        **{f"gate.{gate.name}": gate.verdict for gate in arm.gates},
    }
    found = [own.finding for own in arm.diagnosis]
    lines = wording.notes_beside_findings(arm)
    lines += [f"{one.rule.replace('_', ' ')}: {wording.finding_text(one)}" for one in found]
    if lines:
        tags["mlflow.note.content"] = note("\n\n".join(lines))
    return tags


def view_state(study: Study, ranking: Ranking) -> dict[str, Any]:
    """The state of MLflow's runs table that shows arms with their levels and criteria.

    The keys and column names are those that its "share view" button writes.
    """
    metrics = dict.fromkeys(c.conditions[0].metric for c in study.criteria)
    columns = [
        "metrics.`criteria/rank`",
        "metrics.`criteria/passed`",
        *(f"params.`{factor.name}`" for factor in study.factors),
        *(f"params.`{path}`" for path in study.ranges),
        *(f"metrics.`{NAME.sub('_', metric)}`" for metric in metrics),
        *(f"tags.`verdict.{criterion.name}`" for criterion in study.criteria),
    ]
    return {
        "searchFilter": "tags.kind = 'config'",
        "orderByKey": "metrics.`criteria/rank`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": columns,
    }


def _said(value: float) -> float:
    """As the terminal and the report say it: the same number everywhere."""
    return float(wording.number(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
