"""MLflow's client as the record uses it: one experiment, writes in batches, files laid out.

By default the store is OUT/mlflow.db with OUT/mlartifacts/; MLFLOW_TRACKING_URI names another.
Nothing here is thread-safe: MLflow on SQLite wants one writer.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablate import attachments, history, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_AT_ONCE = 1000
PARAMS_AT_ONCE = 100


@dataclass(frozen=True)
class Made:
    """A run that was made."""

    run_id: str
    place: str
    """Its artifact URI."""


class Experiment:
    """The runs of one study, made and written.

    Every method may raise MLflow's, the database's or the network's errors.
    """

    def __init__(self, out: Path, name: str) -> None:
        from mlflow.entities import LifecycleStage

        self._client = connect(out)
        self.remote = store.is_remote()
        """Whether others may write to the same store."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = None if self.remote else (Path(out).absolute() / "mlartifacts").as_uri()
            self._id = self._client.create_experiment(name, artifact_location=place)
            return
        if found.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_experiment(found.experiment_id)
        self._id = found.experiment_id

    def runs(self, where: str = "") -> Iterator[Run]:
        """All runs that a filter lets pass; they may be changed meanwhile."""
        token = None
        while True:
            page = self._client.search_runs([self._id], where, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def create(self, name: str, tags: Mapping[str, str], begin: int | None = None) -> Made:
        """Make a run that begins at a time (ms since 1970), or now."""
        run = self._client.create_run(self._id, begin or now(), dict(tags), name)
        return Made(run.info.run_id, run.info.artifact_uri or "")

    def delete(self, run_id: str) -> None:
        self._client.delete_run(run_id)

    def end(self, run_id: str, status: str, at: int | None = None) -> None:
        """Close a run: FINISHED, FAILED, KILLED."""
        self._client.set_terminated(run_id, status, at)

    def write(
        self,
        run_id: str,
        points: Sequence[history.Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write readings, params and tags in as few calls as MLflow takes them."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        pairs = [Param(key, value) for key, value in (params or {}).items()]
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        while metrics or pairs or marks:
            head, metrics = metrics[:METRICS_AT_ONCE], metrics[METRICS_AT_ONCE:]
            some, pairs = pairs[:PARAMS_AT_ONCE], pairs[PARAMS_AT_ONCE:]
            self._client.log_batch(run_id, head, some, marks, synchronous=True)
            marks = []

    def attach(
        self, run: Made, pictures: Sequence[runs.Picture], files: Sequence[Path], stamp: int
    ) -> None:
        """Put pictures, over their steps, and files beside a run."""
        local = attachments.local_folder(run.place)
        if local is not None:
            attachments.lay_out(local, pictures, files, stamp)
            return
        with tempfile.TemporaryDirectory() as temporary:
            attachments.lay_out(Path(temporary), pictures, files, stamp)
            self._client.log_artifacts(run.run_id, temporary)

    def attach_file(self, run_id: str, path: Path) -> None:
        self._client.log_artifact(run_id, str(path))

    def attach_text(self, run_id: str, text: str, name: str) -> None:
        self._client.log_text(run_id, text, name)

    def reads(self, run_id: str, data: Mapping[str, str] | None) -> None:
        """Say which data set a run reads (`ablate.runs.data_of`)."""
        from mlflow.entities import Dataset, DatasetInput

        if data is not None:
            self._client.log_inputs(run_id, [DatasetInput(Dataset(**data), [])])

    def tag(self, key: str, value: str) -> None:
        """Tag the experiment itself."""
        self._client.set_experiment_tag(self._id, key, value)


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


def now() -> int:
    """Ms since 1970."""
    return int(1000 * time.time())
