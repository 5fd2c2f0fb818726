"""The smoke study as a user runs it: the command, the real core, real files and figures."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def ablate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ablate", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """OUT of a finished smoke study, and what it printed."""
    out = tmp_path_factory.mktemp("smoke")
    ended = ablate("run", "smoke", "--out", str(out), "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    return out, ended.stdout


def ranked(out: Path) -> dict[str, Any]:
    rows = json.loads((out / "smoke" / "ranking.json").read_text())["ranking"]
    return {"/".join(row["levels"].values()): row for row in rows}


def test_it_ranks_by_what_was_learned(smoke: tuple[Path, str]) -> None:
    arms = ranked(smoke[0])
    assert len(arms) == 4
    for tokenizer in ("absolute", "relative"):
        fast, slow = arms[f"3e-3/{tokenizer}"], arms[f"1e-4/{tokenizer}"]
        assert fast["metrics"]["final/loss"]["mean"] < 0.1 < slow["metrics"]["final/loss"]["mean"]
        assert fast["metrics"]["final/px_error"]["mean"] < 5
        assert fast["criteria"]["px_error"]["verdict"] == "likely"  # one seed
        assert fast["rank"] < slow["rank"]


def test_it_says_where_everything_is(smoke: tuple[Path, str]) -> None:
    out, said = smoke
    for words in ("3e-3/absolute", "loss < 0.1", str(out / "smoke" / "report.html"), "ablate ui"):
        assert words in said
    assert "make ui" in said


def test_every_job_has_its_folder_and_its_run(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    results = [json.loads(path.read_text()) for path in out.glob("jobs/*/result.json")]
    assert [result["state"] for result in results] == ["done"] * 4
    with sqlite3.connect(out / "mlflow.db") as store:
        runs = store.execute(
            "SELECT job.value, r.status FROM runs r "
            "JOIN tags job ON job.run_uuid = r.run_uuid AND job.key = 'job_id' "
            "JOIN tags kind ON kind.run_uuid = r.run_uuid AND kind.key = 'kind' "
            "WHERE kind.value = 'job'"
        ).fetchall()
    assert sorted(runs) == sorted((result["job_id"], "FINISHED") for result in results)


def test_a_second_run_trains_nothing(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}
    again = ablate("run", "smoke", "--out", str(out))
    assert again.returncode == 0
    assert "4 ended, 0 to run" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}
