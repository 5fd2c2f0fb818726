"""MLflow as a view of the ledger: one experiment per study, one writer, rebuilt at any time.

Runs (`ablate.runs` says what they hold): an execution, its jobs as children, an arm each on top.
By default the store is OUT/mlflow.db with OUT/mlartifacts/; MLFLOW_TRACKING_URI names another.
Nothing here is thread-safe: MLflow on SQLite wants one writer.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import attachments, runs, store
from ablate.arm import RankedArm
from ablate.ledger import Ledger
from ablate.nouns import Job, Plan, Result, Study
from ablate.rank import Ranking

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 5.0
"""How long readings of a running job may wait: each write costs tens of ms whatever it holds."""
METRICS_AT_ONCE = 1000
PARAMS_AT_ONCE = 100


@dataclass
class _Live:
    """A run that is being written."""

    run_id: str
    place: str
    """Its artifact URI."""
    told: set[tuple[str, int]] = field(default_factory=set)
    waiting: list[runs.Point] = field(default_factory=list)
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
        self._client = connect(self.out)
        self._remote = store.is_remote()
        self._live: dict[str, _Live] = {}
        self._recorded: dict[str, tuple[str, str]] = {}
        """Job id or `arm:<label>` -> run id, digest."""
        self._parent: str | None = None
        self._latest: str | None = None
        self._plan: Plan | None = None
        self._experiment = self._find_experiment()

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
        """Take a running job's events; they are written a few times a minute."""
        if job.id not in self._live:
            if self._is_recorded(job):
                return
            self._open(job, None, None)
        live = self._live[job.id]
        live.waiting += runs.history(events)
        now = time.monotonic()
        if len(live.waiting) >= METRICS_AT_ONCE or now - live.since > FLUSH_SECONDS:
            self._flush(live)
            live.since = now

    def job_finished(self, job: Job, result: Result, folder: Path) -> None:
        """Write all that is known of an ended job, unless it is there already."""
        digest = runs.recorded_digest(result)
        if self._recorded.get(job.id, ("", ""))[1] == digest:
            return
        events = list(self._ledger.events(job.id))
        begin, end = runs.span(events) or (_now(), _now())
        live = self._live.pop(job.id, None) or self._open(job, result, begin)
        self._live.pop(job.id, None)
        live.waiting += runs.history(events)
        finals = runs.finals(result, (point.key for point in live.waiting), end)
        pictures = runs.pictures_of(folder)
        self._log_files(live.run_id, live.place, pictures, [folder / "config.json"], end)
        if result.traceback:
            self._client.log_text(live.run_id, result.traceback, "traceback.txt")
        tags = {**runs.tags_of(self.study, job, result), "recorded": digest}
        if pictures:
            tags["mlflow.loggedImages"] = "True"
        self._flush(live, finals, tags)
        self._client.set_terminated(live.run_id, runs.STATUS[result.state], end)
        self._recorded[job.id] = live.run_id, digest

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
            self._client.delete_run(self._recorded.pop(gone)[0])
        for arm in ended:
            self._write_arm(arm, jobs[arm.arm])
        parent = self._parent or self._latest or self._execution()
        for path in files:
            if path.exists():
                self._client.log_artifact(parent, str(path))
        counts = {state: sum(a.counts.get(state, 0) for a in ranking.arms) for state in runs.STATUS}
        self._write(parent, tags={f"jobs.{state}": str(n) for state, n in counts.items()})
        state = json.dumps(runs.view_state(self.study, ranking))
        key = f"mlflow.sharedViewState.{runs.SHARE_KEY}"
        self._client.set_experiment_tag(self._experiment, key, state)
        text = runs.note(runs.description(self.study, ranking))
        self._client.set_experiment_tag(self._experiment, "mlflow.note.content", text)

    def close(self) -> None:
        """Write what waits and close the execution; jobs without a result stand as killed."""
        for live in self._live.values():
            self._flush(live)
            self._write(live.run_id, tags={"state": "interrupted"})
            self._client.set_terminated(live.run_id, "KILLED")
        self._live.clear()
        if self._parent is not None:
            self._client.set_terminated(self._parent, "FINISHED")

    def _find_experiment(self) -> str:
        from mlflow.entities import LifecycleStage

        found = self._client.get_experiment_by_name(self.study.name)
        if found is None:
            place = None if self._remote else (self.out / "mlartifacts").as_uri()
            return self._client.create_experiment(self.study.name, artifact_location=place)
        if found.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _read_runs(self) -> None:
        """Learn what is recorded; close runs that no living coordinator writes."""
        where = f"tags.ledger = '{self._ledger_name}'" if self._remote else ""
        token = None
        executions: list[tuple[int, str]] = []
        while True:
            page = self._client.search_runs([self._experiment], where, page_token=token)
            for run in page:
                tags, run_id = run.data.tags, run.info.run_id
                if run.info.status == "RUNNING":
                    # killed between its last readings and its end: it is written again
                    self._write(run_id, tags={"state": "interrupted", "recorded": ""})
                    tags = {**tags, "recorded": ""}
                    self._client.set_terminated(run_id, "KILLED")
                name = tags.get("job_id") or _name_of(tags.get("arm", ""))
                if tags.get("kind") == "execution":
                    executions.append((run.info.start_time, run_id))
                elif tags.get("kind") in ("job", "config"):
                    self._recorded[name] = run_id, tags.get("recorded", "")
            token = page.token
            if not token:
                break
        self._latest = max(executions)[1] if executions else None

    def _execution(self) -> str:
        """The run of this execution, made when its first job is written."""
        if self._parent is None:
            name = time.strftime("run of %Y-%m-%d %H:%M")
            tags = {"kind": "execution", "study": self.study.name, **self._common}
            run = self._client.create_run(self._experiment, _now(), tags, name)
            self._parent = run.info.run_id
        return self._parent

    def _is_recorded(self, job: Job) -> bool:
        """Whether the job ended, and was written whole, before this call of it was read."""
        result = self._ledger.result(job.id)
        known = self._recorded.get(job.id, ("", ""))[1]
        return result is not None and known == runs.recorded_digest(result)

    @property
    def _ledger_name(self) -> str:
        return f"{socket.gethostname()}:{self.out}"

    @property
    def _common(self) -> dict[str, str]:
        """On a shared server, whose run it is: the same study may be run by others."""
        return {"ledger": self._ledger_name} if self._remote else {}

    def _open(self, job: Job, result: Result | None, begin: int | None) -> _Live:
        if job.id in self._recorded:
            self._client.delete_run(self._recorded.pop(job.id)[0])
        tags = {
            **runs.tags_of(self.study, job, result),
            "mlflow.parentRunId": self._execution(),
            **self._common,
        }
        name = f"{job.arm} · seed {job.seed}"
        run = self._client.create_run(self._experiment, begin or _now(), tags, name)
        params = runs.params_of(self.study, job) | {"seed": str(job.seed)}
        self._write(run.info.run_id, params=params)
        self._log_data(run.info.run_id, job)
        live = self._live[job.id] = _Live(
            run.info.run_id, run.info.artifact_uri or "", since=time.monotonic()
        )
        return live

    def _write_arm(self, arm: RankedArm, jobs: Sequence[Job]) -> None:
        done = [job for job in jobs if job.seed in arm.seeds]
        histories = [list(runs.history(self._ledger.events(job.id))) for job in done]
        lines = runs.mean_history(histories)
        points = [*lines, *runs.config_points(arm, {point.key for point in lines})]
        tags = runs.config_tags(self.study, arm) | self._common
        tags["mlflow.loggedImages"] = "True"  # harmless where a core draws none
        digest = runs.recorded_digest([points, tags])
        name = _name_of(arm.arm)
        if self._recorded.get(name, ("", ""))[1] == digest:
            return
        if name in self._recorded:
            self._client.delete_run(self._recorded[name][0])
        now = _now()
        label = f"{arm.arm} · {len(arm.seeds)} seed" + "s" * (len(arm.seeds) != 1)
        run = self._client.create_run(self._experiment, now, {**tags, "recorded": digest}, label)
        run_id = run.info.run_id
        params = runs.params_of(self.study, jobs[0])
        self._log_data(run_id, jobs[0])
        self._write(run_id, [point._replace(time=now) for point in points], params)
        pictures = runs.pictures_of(self._ledger.folder((done or jobs)[0].id))
        self._log_files(run_id, run.info.artifact_uri or "", pictures, [], now)
        self._client.set_terminated(run_id, "FINISHED" if done else "FAILED")
        self._recorded[name] = run_id, digest

    def _flush(
        self,
        live: _Live,
        extra: Sequence[runs.Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write the points that wait; a resumed job repeats steps, which count once."""
        points = []
        for point in live.waiting:
            if (point.key, point.step) not in live.told:
                live.told.add((point.key, point.step))
                points.append(point)
        live.waiting.clear()
        self._write(live.run_id, [*points, *extra], tags=tags)

    def _write(
        self,
        run_id: str,
        points: Sequence[runs.Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        pairs = [Param(key, value) for key, value in (params or {}).items()]
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        while metrics or pairs or marks:
            head, metrics = metrics[:METRICS_AT_ONCE], metrics[METRICS_AT_ONCE:]
            some, pairs = pairs[:PARAMS_AT_ONCE], pairs[PARAMS_AT_ONCE:]
            self._client.log_batch(run_id, head, some, marks, synchronous=True)
            marks = []

    def _log_files(
        self,
        run_id: str,
        uri: str,
        pictures: Sequence[runs.Picture],
        files: Sequence[Path],
        stamp: int,
    ) -> None:
        local = attachments.local_folder(uri)
        if local is not None:
            attachments.lay_out(local, pictures, files, stamp)
            return
        with tempfile.TemporaryDirectory() as temporary:
            attachments.lay_out(Path(temporary), pictures, files, stamp)
            self._client.log_artifacts(run_id, temporary)

    def _log_data(self, run_id: str, job: Job) -> None:
        from mlflow.entities import Dataset, DatasetInput

        found = runs.data_of(job)
        if found is not None:
            self._client.log_inputs(run_id, [DatasetInput(Dataset(**found), [])])


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


def connect(out: Path) -> MlflowClient:
    """A client for the store of OUT; a new SQLite store takes some seconds to set up."""
    store.be_quiet()
    from mlflow import MlflowClient

    store.be_quiet()  # its import sets its loggers up anew
    out.mkdir(parents=True, exist_ok=True)
    uri = store.uri_of(out)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        store.use_write_ahead_log()
        if not (path := out.absolute() / "mlflow.db").exists():
            _make_database(path)
    return MlflowClient(uri)


def _make_database(path: Path) -> None:
    """Let MLflow set up its tables in another file, which gets the name once it is whole.

    That takes seconds, and a file that a kill left half set up is refused by MLflow ever after.
    """
    from mlflow import MlflowClient

    for left in path.parent.glob(".mlflow.db.*"):  # by those who were killed
        left.unlink(missing_ok=True)
    part = path.with_name(f".mlflow.db.{os.getpid()}")
    whole = path.with_name(f"{part.name}.whole")
    MlflowClient(f"sqlite:///{part}").search_experiments(max_results=1)
    with closing(sqlite3.connect(part)) as database:
        database.execute("VACUUM INTO ?", (str(whole),))  # its connections may stay open
    try:
        path.hardlink_to(whole)
    except FileExistsError:  # another process was faster: its file serves as well
        pass
    except OSError:  # a file system without links
        whole.rename(path)
    for left in path.parent.glob(f"{part.name}*"):
        left.unlink(missing_ok=True)


def _name_of(arm: str) -> str:
    """By which the run of an arm is remembered, beside those of jobs."""
    return f"arm:{arm}"


def _now() -> int:
    return int(1000 * time.time())
