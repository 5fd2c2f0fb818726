"""A tracking server keeps the record as well as the local file does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablate.nouns import Plan
from ablate.rank import rank
from ablate.record import Recorder, rebuild
from ablate.tracking import connect
from tests.ablate import synthetic

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic|requests|urllib3)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's own server on the loopback interface, over a store of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "server-artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **quiet},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            base = f"http://127.0.0.1:{port}"
            wait_for(f"{base}/health", process)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", base)
            yield base
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended; see server.log"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server does not answer")


def test_recorded_twice_there_is_everything_once(server, tmp_path):
    study = synthetic.study(seeds=(0, 1))
    plan = Plan([job for job in synthetic.plan(study).jobs if job.arm in ("base", "all")])
    results = {job.id: synthetic.done(job) for job in plan.jobs}
    ledger = synthetic.keep(tmp_path / "runs", plan, results)
    ranking = rank(study, plan.jobs, results)
    report = tmp_path / "report.html"
    report.write_text("<p>the answer</p>")
    # a coordinator that was killed left this behind
    killed = Recorder(ledger.out, study)
    killed.start(Plan([]))
    killed.job_started(plan.jobs[0])
    client = connect(ledger.out)
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None

    def runs(where: str = "") -> list:
        return list(client.search_runs([experiment.experiment_id], where))

    assert "RUNNING" in {run.info.status for run in runs()}
    seen = []
    for _ in range(2):
        rebuild(study, plan, ledger, ranking, [report])
        seen.append({run.info.run_id: run.info.status for run in runs("tags.kind != 'execution'")})
        assert "RUNNING" not in {run.info.status for run in runs()}
    assert seen[0] == seen[1]
    kinds = Counter(run.data.tags["kind"] for run in runs())
    assert (kinds["job"], kinds["config"]) == (4, 2)
    (run,) = runs(f"tags.job_id = '{plan.jobs[0].id}'")
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [
        *range(0, 50, 10)
    ]
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 12
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in images) == 2
    files = [
        item.path
        for r in runs("tags.kind = 'execution'")
        for item in client.list_artifacts(r.info.run_id)
    ]
    assert "report.html" in files
    assert not (ledger.out / "mlflow.db").exists()


def test_two_ledgers_on_one_server_leave_each_other_alone(server, tmp_path):
    study = synthetic.study(seeds=(0,))
    plan = Plan(synthetic.plan(study).jobs[:1])
    folders = [tmp_path / "mine", tmp_path / "theirs"]
    for folder in folders:
        ledger = synthetic.keep(folder, plan, {})
        recorder = Recorder(ledger.out, study)
        recorder.start(plan)
        recorder.job_started(plan.jobs[0])  # and is at work
    client = connect(folders[0])
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'job'")
    assert [run.info.status for run in found] == ["RUNNING", "RUNNING"]
