"""MLflow as a view of the ledger: one experiment per study, one writer, rebuilt at any time.

Runs (`ablate.runs` says what they hold): an execution, its jobs as children, an arm each on top.
Where they are kept, and how MLflow is spoken to: `ablate.tracking`.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablate import history, runs
from ablate.arm import RankedArm
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study
from ablate.rank import Ranking
from ablate.tracking import METRICS_AT_ONCE, Experiment, Made, now

FLUSH_SECONDS = 30.0
"""How long readings of a running job may wait: each write costs tens of ms whatever it holds, and
MLflow's page, refreshing by itself, looks every 30 s."""


@dataclass
class _Live:
    """A job's run that is being written."""

    run: Made
    told: set[tuple[str, int]] = field(default_factory=set)
    waiting: list[history.Point] = field(default_factory=list)
    since: float = 0.0


class Recorder:
    """Writes what happens in a study to MLflow. Use it from one thread.

    Every method may raise MLflow's, the database's or the network's errors; the ledger then still
    has everything, and the next `start` (or `rebuild`) writes what is missing.
    """

    def __init__(self, out: Path, study: Study) -> None:
        self.out = Path(out).absolute()
        self.study = study
        self._ledger = Ledger(self.out)
        self._experiment = Experiment(self.out, study.name)
        self._live: dict[str, _Live] = {}
        self._recorded: dict[str, tuple[str, str]] = {}
        """Job id or `arm:<label>` -> run id, digest."""
        self._parent: str | None = None
        self._latest: str | None = None
        self._plan: Plan | None = None

    def start(self, plan: Plan, progress: Callable[[int, int], None] | None = None) -> None:
        """Close what a killed coordinator left open, and write ended jobs that are not there yet.

        Args:
            plan: the study's jobs.
            progress: called with (done, of) jobs.
        """
        self._plan = plan
        self._read_runs()
        for done, job in enumerate(plan.jobs):
            result = self._ledger.accepted(job.id, self.study)
            if result is not None:
                self.job_finished(job, result, self._ledger.folder(job.id))
            if progress:
                progress(done + 1, len(plan.jobs))

    def planned(self, plan: Plan) -> None:
        """Take the plan with the jobs that an adaptive design added."""
        self._plan = plan

    def job_started(self, job: Job) -> None:
        """Open the job's run; what an earlier attempt or older code left of it goes away."""
        if job.id not in self._live and not self._is_recorded(job):
            self._open(job, None, None)

    def job_events(self, job: Job, events: Iterable[Mapping[str, Any]]) -> None:
        """Take a running job's events; they are written twice a minute."""
        if job.id not in self._live:
            if self._is_recorded(job):
                return
            self._open(job, None, None)
        live = self._live[job.id]
        live.waiting += history.points_of(events)
        clock = time.monotonic()
        if len(live.waiting) >= METRICS_AT_ONCE or clock - live.since > FLUSH_SECONDS:
            self._flush(live)
            live.since = clock

    def job_finished(self, job: Job, result: Result, folder: Path) -> None:
        """Write all that is known of an ended job, unless it is there already."""
        digest = self._digest(job, result)
        if self._recorded.get(job.id, ("", ""))[1] == digest:
            return
        events = list(self._ledger.events(job.id))
        begin, end = runs.span(events) or (now(), now())
        live = self._live.pop(job.id, None) or self._open(job, result, begin)
        self._live.pop(job.id, None)
        live.waiting = list(history.points_of(events))  # with what waits: the ledger has it all
        finals = runs.finals(result, (point.key for point in live.waiting), end)
        pictures = runs.pictures_of(folder)
        self._experiment.attach(live.run, pictures, [folder / "config.json"], end)
        if result.traceback:
            self._experiment.attach_text(live.run.run_id, result.traceback, "traceback.txt")
        tags = {**runs.tags_of(self.study, job, result), "recorded": digest}
        if pictures:
            tags["mlflow.loggedImages"] = "True"
        self._flush(live, finals, tags)
        self._experiment.end(live.run.run_id, runs.STATUS[result.state], end)
        self._recorded[job.id] = live.run.run_id, digest

    def conclude(self, ranking: Ranking, files: Sequence[Path] = ()) -> None:
        """Write an arm's run each, the files to the execution, and the view of the runs table.

        Runs of arms that have left the study, or have no ended job any more, go.

        Args:
            ranking: of this study.
            files: the report and what else belongs to the answer.
        """
        assert self._plan is not None, "start() first"
        jobs: dict[str, list[Job]] = {}
        for job in self._plan.jobs:
            jobs.setdefault(job.arm, []).append(job)
        ended = [arm for arm in ranking.arms if arm.ended]
        names = {_name_of(arm.arm) for arm in ended}
        for gone in [n for n in self._recorded if n.startswith(_name_of("")) and n not in names]:
            self._experiment.delete(self._recorded.pop(gone)[0])
        for arm in ended:
            self._write_arm(arm, jobs[arm.arm])
        parent = self._parent or self._latest or self._execution()
        for path in files:
            if path.exists():
                self._experiment.attach_file(parent, path)
        counts = {state: sum(a.counts.get(state, 0) for a in ranking.arms) for state in runs.STATUS}
        tags = {f"jobs.{state}": str(n) for state, n in counts.items()}
        self._experiment.write(parent, tags=tags)
        state = json.dumps(runs.view_state(self.study, ranking))
        self._experiment.tag(f"mlflow.sharedViewState.{runs.SHARE_KEY}", state)
        text = runs.note(runs.description(self.study, ranking))
        self._experiment.tag("mlflow.note.content", text)

    def close(self) -> None:
        """Write what waits and close the execution; jobs without a result stand as killed."""
        for live in self._live.values():
            self._flush(live)
            self._experiment.write(live.run.run_id, tags={"state": "interrupted"})
            self._experiment.end(live.run.run_id, "KILLED")
        self._live.clear()
        if self._parent is not None:
            self._experiment.end(self._parent, "FINISHED")

    def _read_runs(self) -> None:
        """Learn what is recorded; close runs that no living coordinator writes."""
        where = f"tags.ledger = '{self._ledger_name}'" if self._experiment.remote else ""
        executions: list[tuple[int, str]] = []
        for run in self._experiment.runs(where):
            tags, run_id = run.data.tags, run.info.run_id
            if run.info.status == "RUNNING":
                # killed between its last readings and its end: it is written again
                self._experiment.write(run_id, tags={"state": "interrupted", "recorded": ""})
                tags = {**tags, "recorded": ""}
                self._experiment.end(run_id, "KILLED")
            name = tags.get("job_id") or _name_of(tags.get("arm", ""))
            if tags.get("kind") == "execution":
                executions.append((run.info.start_time, run_id))
            elif tags.get("kind") in ("job", "config"):
                self._recorded[name] = run_id, tags.get("recorded", "")
        self._latest = max(executions)[1] if executions else None

    def _execution(self) -> str:
        """The run of this execution, made when its first job is written."""
        if self._parent is None:
            name = time.strftime("run of %Y-%m-%d %H:%M")
            tags = {"kind": "execution", "study": self.study.name, **self._common}
            self._parent = self._experiment.create(name, tags).run_id
        return self._parent

    def _is_recorded(self, job: Job) -> bool:
        """Whether the job ended, and was written whole, before this call of it was read."""
        result = self._ledger.result(job.id)
        known = self._recorded.get(job.id, ("", ""))[1]
        return result is not None and known == self._digest(job, result)

    def _digest(self, job: Job, result: Result) -> str:
        """Of all that the job's run shows: names that a study changes too."""
        shown = runs.tags_of(self.study, job, result), runs.params_of(self.study, job)
        return runs.recorded_digest([asdict(result), *shown])

    @property
    def _ledger_name(self) -> str:
        return f"{socket.gethostname()}:{self.out}"

    @property
    def _common(self) -> dict[str, str]:
        """On a shared server, whose run it is: the same study may be run by others."""
        return {"ledger": self._ledger_name} if self._experiment.remote else {}

    def _open(self, job: Job, result: Result | None, begin: int | None) -> _Live:
        if job.id in self._recorded:
            self._experiment.delete(self._recorded.pop(job.id)[0])
        tags = {
            **runs.tags_of(self.study, job, result),
            "mlflow.parentRunId": self._execution(),
            **self._common,
        }
        run = self._experiment.create(f"{job.arm} · seed {job.seed}", tags, begin)
        params = runs.params_of(self.study, job) | {"seed": str(job.seed)}
        self._experiment.write(run.run_id, params=params)
        self._experiment.reads(run.run_id, runs.data_of(job))
        live = self._live[job.id] = _Live(run, since=time.monotonic())
        return live

    def _write_arm(self, arm: RankedArm, jobs: Sequence[Job]) -> None:
        done = [job for job in jobs if job.seed in arm.seeds]
        events = {job.id: list(self._ledger.events(job.id)) for job in done or jobs}
        histories = [list(history.points_of(events[job.id])) for job in done]
        means = history.without_plateaus(history.thinned(history.mean(histories)))
        points = [*runs.config_points(arm, {point.key for point in means}), *means]
        label = runs.config_name(arm)
        tags = runs.config_tags(self.study, arm) | self._common
        tags["mlflow.loggedImages"] = "True"  # harmless where a core draws none
        digest = runs.recorded_digest([label, points, tags])
        name = _name_of(arm.arm)
        if self._recorded.get(name, ("", ""))[1] == digest:
            return
        if name in self._recorded:
            self._experiment.delete(self._recorded[name][0])
        spans = [span for own in events.values() if (span := runs.span(own))]
        begin, end = runs.usual_span(spans) or (now(), now())
        run = self._experiment.create(label, {**tags, "recorded": digest}, begin)
        params = runs.params_of(self.study, jobs[0])
        self._experiment.reads(run.run_id, runs.data_of(jobs[0]))
        points = [point._replace(time=end) for point in points]
        self._experiment.write(run.run_id, points, params)
        pictures = runs.pictures_of(self._ledger.folder((done or jobs)[0].id))
        self._experiment.attach(run, pictures, [], end)
        self._experiment.end(run.run_id, "FINISHED" if done else "FAILED", end)
        self._recorded[name] = run.run_id, digest

    def _flush(
        self,
        live: _Live,
        extra: Sequence[history.Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write the points that wait; a resumed job repeats steps, which count once."""
        points = []
        for point in history.without_plateaus(live.waiting):
            if (point.key, point.step) not in live.told:
                live.told.add((point.key, point.step))
                points.append(point)
        live.waiting.clear()
        self._experiment.write(live.run.run_id, [*points, *extra], tags=tags)


def rebuild(
    study: Study,
    plan: Plan,
    ledger: Ledger,
    ranking: Ranking,
    files: Sequence[Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make MLflow show what the ledger holds; a second time changes nothing."""
    recorder = Recorder(ledger.out, study)
    recorder.start(plan, progress)
    recorder.conclude(ranking, files)
    recorder.close()


def _name_of(arm: str) -> str:
    """By which the run of an arm is remembered, beside those of jobs."""
    return f"arm:{arm}"
