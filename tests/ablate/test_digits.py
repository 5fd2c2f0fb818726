"""The seam is real: a core that is no LaneLM, through every command as a user types it."""

from __future__ import annotations

import inspect
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.cli import main
from tests.ablate import digits_core

pytestmark = pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic)")

STUDY = """
question: Which rate and how much shrinking suit the digits?
core: tests.ablate.digits_core
base: {epochs: 6}
factors:
  lr: {small: {lr: 0.0001}, large: {lr: 0.01}}
  shrink: {little: {alpha: 0.0001}, much: {alpha: 0.5}}
design: factorial
seeds: [0, 1]
"""


def test_the_example_is_short() -> None:
    assert len(inspect.getsource(digits_core).splitlines()) < 60


def test_another_core_runs_the_whole_orchestrator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits.yaml").write_text(STUDY)
    out = tmp_path / "runs"
    asked = [str(tmp_path / "digits.yaml"), "--out", str(out)]
    assert main(["plan", *asked, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["jobs"]) == 8
    assert planned["estimate"]["shapes"][0]["source"] == "probe"
    assert main(["run", *asked, "--workers", "2"]) == 0
    captured = capsys.readouterr()
    assert "the criterion" in captured.out  # one alone
    assert "MLflow cannot" not in captured.err
    assert main(["rank", *asked, "--json"]) == 0
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    assert ranking[0]["levels"] == {"lr": "large", "shrink": "little"}
    assert ranking[0]["criteria"]["error"]["verdict"] in ("passed", "likely")
    assert ranking[-1]["criteria"]["error"]["verdict"] == "failed"
    page = out / "digits" / "report.html"
    page.unlink()
    assert main(["report", *asked]) == 0
    assert "shrink" in page.read_text()
    assert main(["status", *asked, "--json"]) == 0
    capsys.readouterr()
    assert main(["show", planned["jobs"][0]["job_id"], "--out", str(out)]) == 0
    assert "alpha" in capsys.readouterr().out
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (out / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "ablate", "record", *asked]  # MLflow remembers a database
    subprocess.run(command, check=True, capture_output=True)
    with sqlite3.connect(out / "mlflow.db") as store:
        (jobs,) = store.execute(
            "SELECT count(*) FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
            "WHERE t.key = 'kind' AND t.value = 'job' AND r.status = 'FINISHED'"
        ).fetchone()
    assert jobs == 8


def test_what_the_example_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits.yaml").write_text(STUDY)
    asked = ["plan", str(tmp_path / "digits.yaml"), "--out", str(tmp_path), "--set", "images=3"]
    assert main(asked) == 2
    assert "images: must be 10 to 1500" in capsys.readouterr().err
