"""From results to the answer on disk: ranking.json, report.html and report.md of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate import strict_yaml
from ablate.core import Core
from ablate.files import write_atomic
from ablate.importance import importances_of
from ablate.ledger import Ledger
from ablate.nouns import Plan, Result, Study, StudyError
from ablate.rank import Ranking, judge, rank
from ablate.reader import resolved

HOW_TO_RUN = ("timeout", "attempts", "resources")
"""Keys of a study that change no number of its answer."""


def results_of(study: Study, plan: Plan, ledger: Ledger) -> dict[str, Result]:
    """The results that there are, by job id; what the study does not take for its own is not."""
    found = {job.id: ledger.accepted(job.id, study) for job in plan.jobs}
    return {job_id: result for job_id, result in found.items() if result is not None}


def rank_study(study: Study, plan: Plan, core: Core, results: Mapping[str, Result]) -> Ranking:
    """Rank with the core's gates and findings, naming results of older code."""
    gates, findings = judge(core, plan.jobs, results)
    importances, untold = importances_of(study, plan.jobs, results, gates)
    return rank(
        study,
        plan.jobs,
        results,
        gates=gates,
        findings=findings,
        core_hash=core.source_hash(),
        design=(*plan.notes, *plan.more, *untold),
        walked=plan.walked,
        importances=importances,
    )


def write_study(study: Study, ledger: Ledger) -> Path:
    """Write the study as it was resolved beside its answers."""
    path = ledger.study_folder(study.name) / "study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, resolved(study))
    return path


def answered(study: Study, ledger: Ledger) -> bool:
    """Whether a report lies in the study's folder."""
    return (ledger.study_folder(study.name) / "report.html").exists()


def other_answer(study: Study, ledger: Ledger) -> list[str]:
    """The keys in which the study whose answer lies there differs; none where there is no answer.

    What says only how jobs are run makes no other answer.
    """
    if not answered(study, ledger):
        return []
    try:
        there = strict_yaml.read(ledger.study_folder(study.name) / "study.yaml").plain()
        ours = strict_yaml.parse(resolved(study)).plain()
    except StudyError:  # made before studies were kept, or by hand
        return []
    if not isinstance(there, dict):
        return []
    keys = [key for key in {**ours, **there} if key not in HOW_TO_RUN]
    return [key for key in keys if ours.get(key) != there.get(key)]


def write_ranking(ledger: Ledger, ranking: Ranking) -> Path:
    path = ledger.study_folder(ranking.study) / "ranking.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(ranking.to_json()))
    return path


def write_report(
    study: Study,
    plan: Plan,
    ledger: Ledger,
    ranking: Ranking,
    results: Mapping[str, Result],
    command: str,
) -> Path:
    """Write the page with every job's history and pictures, and the same in words as Markdown.

    `command` runs the study again. The page's path is given back.
    """
    from ablate.report import render_markdown, render_report
    from ablate.runs import pictures_of

    histories = {job_id: ledger.read_events(job_id)[0] for job_id in results}
    pictures = {
        job_id: [picture.path for picture in pictures_of(ledger.folder(job_id))]
        for job_id in results
    }
    page = render_report(study, plan, ranking, results, histories, pictures, command)
    path = ledger.study_folder(study.name) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    text = render_markdown(study, plan, ranking, results, command)
    write_atomic(path.with_suffix(".md"), text)
    return path


def dumps(value: Mapping[str, Any]) -> str:
    """JSON with a line per arm, effect and term: quick to write, and to compare."""
    parts = []
    for key, own in value.items():
        if isinstance(own, list) and own:
            lines = ",\n  ".join(json.dumps(item, allow_nan=False) for item in own)
            text = f"[\n  {lines}\n ]"
        else:
            text = json.dumps(own, allow_nan=False)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
