"""One job, or two side by side: `ablate show`, `ablate diff`, `ablate logs`."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate.ledger import Ledger
from ablate.nouns import Result, StudyError
from ablate.request import RUNS
from ablate.worker import OUTPUT


def find_job(ledger: Ledger, given: str) -> str:
    """The id that begins with `given`.

    Raises:
        StudyError: no job here begins so, or several do.
    """
    names = sorted(path.name for path in ledger.jobs.glob("*") if path.is_dir())
    found = [name for name in names if name.startswith(given)] if given else []
    if given in names:
        return given
    if len(found) == 1:
        return found[0]
    if found:
        raise StudyError(f"job {given!r}: {len(found)} jobs begin so: {', '.join(found[:5])}")
    near = difflib.get_close_matches(given, names, n=1)
    here = "" if ledger.out == RUNS.absolute() else f" --out {ledger.out}"
    hint = f"; did you mean {near[0]!r}?" if near else f"; `ablate plan STUDY{here}` lists them"
    raise StudyError(f"job {given!r}: not in {ledger.jobs}{hint}")


def show(ledger: Ledger, job_id: str, console: Console, as_json: bool) -> None:
    """Print a job's end, readings and settings."""
    settings, result = ledger.settings(job_id), ledger.result(job_id)
    if as_json:
        value = {"job_id": job_id, "settings": settings, "result": result and asdict(result)}
        console.file.write(json.dumps(value, indent=1) + "\n")
        return
    console.print(Text(f"job {job_id}", "bold"))
    for line in _facts(ledger, job_id, result):
        console.print(Text(line), soft_wrap=True)
    if result is not None and result.metrics:
        console.print(_table({"reading": result.metrics}))
    console.print(_table({"setting": settings}))


def diff(ledger: Ledger, ids: tuple[str, str], console: Console) -> None:
    """Print what two jobs differ in: settings first, then their readings."""
    settings = [ledger.settings(job_id) for job_id in ids]
    results = [ledger.result(job_id) for job_id in ids]
    changed = _differences(*settings)
    if changed:
        console.print(_table({"setting": changed}, ids))
    else:
        console.print("the settings are the same")
    metrics = [dict(result.metrics) if result else {} for result in results]
    if readings := _differences(*metrics):
        console.print(_table({"reading": readings}, ids))
    for name in ("state", "code", "environment"):
        values = [getattr(result, name) if result else "no result" for result in results]
        if values[0] != values[1]:
            console.print(Text(f"{name}: {_value(values[0])} | {_value(values[1])}"))


def logs(
    ledger: Ledger,
    job_id: str,
    write: Callable[[str], object],
    *,
    follow: bool,
    tick: float = 0.5,
) -> None:
    """Write a job's events, a line each, then its output; `follow` goes on until it has ended."""
    offset, begin = 0, None
    while True:
        over = ledger.result(job_id) is not None  # read before the events: none is missed
        events, offset = ledger.read_events(job_id, offset)
        for event in events:
            begin = _time(event, 0.0) if begin is None else begin
            write(event_line(event, begin))
        if over or not follow:
            break
        time.sleep(tick)
    for line in _ending(ledger, job_id):
        write(line)


def event_line(event: Mapping[str, Any], begin: float) -> str:
    """`  12.3 s  step 100  train/loss 0.231  a stage began`."""
    parts = [f"{_time(event, begin) - begin:8.1f} s"]
    if "step" in event:
        parts.append(f"step {event['step']}")
    metrics = event.get("metrics")
    readings = metrics.items() if isinstance(metrics, Mapping) else ()
    parts += [f"{name} {_value(value)}" for name, value in readings]
    if event.get("event"):
        parts.append(str(event["event"]))
    if "attempt" in event:
        parts.append(f"attempt {event['attempt']}")
    if event.get("cohort"):
        parts.append(f"as one with {len(event['cohort']) - 1} more")
    if event.get("error"):
        parts.append(str(event["error"]))
    return "  ".join(parts)


def _time(event: Mapping[str, Any], default: float) -> float:
    """When it was; a line that another program wrote may say anything."""
    found = event.get("time")
    return found if isinstance(found, int | float) else default


def _ending(ledger: Ledger, job_id: str) -> Iterator[str]:
    output = ledger.folder(job_id) / OUTPUT
    if output.exists():
        yield f"--- {OUTPUT}"
        yield output.read_text(errors="replace").rstrip()
    result = ledger.result(job_id)
    if result is not None and result.traceback:
        yield "--- traceback"
        yield result.traceback.rstrip()


def _trained_with(ledger: Ledger, job_id: str) -> list[str]:
    """The jobs that the last attempt trained as one with this one."""
    starts = [event for event in ledger.events(job_id) if event.get("event") == "started"]
    cohort = starts[-1].get("cohort") if starts else None
    return [other for other in cohort or () if other != job_id]


def _facts(ledger: Ledger, job_id: str, result: Result | None) -> Iterator[str]:
    yield f"folder       {ledger.folder(job_id)}"
    if result is None:
        yield "state        no result yet"
        return
    yield f"state        {result.state}" + (f": {result.error}" if result.error else "")
    yield "levels       " + " ".join(f"{name}={level}" for name, level in result.levels.items())
    yield f"seed         {result.seed}"
    yield f"attempts     {result.attempts}"
    if others := _trained_with(ledger, job_id):
        yield f"trained with {' '.join(others)}"
    for name in ("code", "environment"):
        pairs = getattr(result, name).items()
        yield f"{name:12} " + ", ".join(f"{key} {value}" for key, value in pairs)


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(name for name in two if name not in one)]
    pairs = {name: (one.get(name, ""), two.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _table(rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...] = ("",)) -> Table:
    """One titled table; a value is a tuple when there are several columns."""
    (title, values), *_ = rows.items()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title)
    for column in columns:
        table.add_column(column)
    for name, value in values.items():
        cells = value if len(columns) > 1 else (value,)
        table.add_row(name, *(Text(_value(cell)) for cell in cells))
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "none" if value is None else str(value)
