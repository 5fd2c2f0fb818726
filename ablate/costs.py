"""Timed probes: a few real steps of each distinct shape, in worker processes, kept on disk.

    OUT/cache/costs/<key>.json     of a shape, the core's sources and this machine

A probe runs as a job does: in the pool's processes, as many at once as there will be workers, so
that what they take from each other is in the figures. One that fails costs its own figure only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core import load_core
from ablate.engines import EngineError, Outcome, StopAsked, Task, make_engine
from ablate.files import write_atomic
from ablate.nouns import Cost, Job, Settings
from ablate.progress import Shape, shape
from ablate.worker import captured

BUDGET = 60.0
"""Seconds after which no further probe starts: what is left is scaled from what is known."""
PATIENCE = 300.0
"""Seconds that one probe may take."""

Tell = Callable[[int, int], None]
"""Called with (done, of) probes."""


@dataclass(frozen=True)
class CostCache:
    """Costs by shape, of one core's sources on one machine."""

    cache: Path
    core: str
    source_hash: str
    environment: Mapping[str, Any]

    def key(self, job: Job) -> str:
        """Name the file of a job's shape; how many steps it has is not in it."""
        value = [job.workload.shape, self.core, self.source_hash, dict(self.environment)]
        text = json.dumps(value, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, key: str) -> Path:
        return self.cache / "costs" / f"{key}.json"

    def read(self, key: str) -> Cost | None:
        """The cost kept under `key`; a damaged file is as none."""
        try:
            value = json.loads(self.path(key).read_bytes())
            return Cost(**{field.name: float(value[field.name]) for field in FIELDS})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def of(self, jobs: Sequence[Job]) -> dict[Shape, Cost]:
        """What is known of the shapes of some jobs, without timing anything."""
        found = {}
        for shaped, job in _by_shape(jobs).items():
            if (cost := self.read(self.key(job))) is not None:
                found[shaped] = cost
        return found


FIELDS = dataclasses.fields(Cost)


@dataclass(frozen=True)
class ProbeWork:
    """The work of an engine (`ablate.engines.Work`): the job id is the key of a shape."""

    costs: CostCache
    settings: Mapping[str, Settings]

    def __call__(self, task: Task, stop: StopAsked) -> Outcome:
        key, path = task.job_id, self.costs.path(task.job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        said = path.with_suffix(".txt")
        try:
            with captured(said):
                cost = load_core(self.costs.core).probe(self.settings[key], self.costs.cache)
            if cost is None:
                return Outcome("broken", "this core has no probe")
            write_atomic(path, json.dumps(dataclasses.asdict(cost)) + "\n")
        except Exception as error:  # noqa: BLE001 - no probe is worth a failed plan
            return Outcome("broken", " ".join(f"{type(error).__name__}: {error}".split()))
        finally:
            said.unlink(missing_ok=True)
        return Outcome("ended")


def probe(
    costs: CostCache,
    jobs: Sequence[Job],
    workers: int,
    tell: Tell,
    preload: Sequence[str] = (),
    budget: float = BUDGET,
) -> list[str]:
    """Time the shapes of `jobs` that the cache does not know yet, most jobs first.

    What has been timed is kept, whatever ends it.

    Returns:
        What could not be timed and why, a line each.
    """
    todo = {key: job for key, job in _by_key(costs, jobs).items() if costs.read(key) is None}
    if not todo:
        return []
    work = ProbeWork(costs, {key: job.settings for key, job in todo.items()})
    on_gpu = any(job.workload.device != "cpu" for job in todo.values())
    at_once = 1 if on_gpu else max(1, min(workers, len(todo)))
    waiting, notes = deque(todo), []
    until, done = time.monotonic() + budget, 0
    engine = make_engine("pool", work, at_once, timeout=PATIENCE, preload=preload)
    try:
        tell(0, len(todo))
        while waiting or engine.pending():
            if time.monotonic() > until and waiting:
                notes.append(f"{len(waiting)} shapes not timed: {budget:g} s are over")
                waiting.clear()
            while waiting and engine.pending() < at_once:
                engine.submit(Task(waiting.popleft(), 1, {}, 0))
            for notice in engine.wait(0.25):
                if notice.outcome is None:
                    continue
                done += 1
                tell(done, len(todo))
                if notice.outcome.kind != "ended":
                    arm = todo[notice.job_id].arm
                    notes.append(f"{arm} could not be timed: {notice.outcome.error}")
    except EngineError as error:
        notes.append(f"nothing could be timed: {error}")
    finally:
        engine.close()
    return notes


def _by_shape(jobs: Sequence[Job]) -> dict[Shape, Job]:
    """One job of each shape that a core can name, those of most jobs first."""
    named = [(shape(job), job) for job in jobs if job.workload.shape]
    counts = Counter(key for key, _ in named)
    first = dict(reversed(named))
    return dict(sorted(first.items(), key=lambda item: -counts[item[0]]))


def _by_key(costs: CostCache, jobs: Sequence[Job]) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for job in _by_shape(jobs).values():
        found.setdefault(costs.key(job), job)
    return found
