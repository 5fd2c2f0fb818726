"""MLflow's page, opened at the comparison of a study's configurations."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from rich.console import Console

from ablate import ui
from ablate.nouns import StudyError
from ablate.rank import judge, rank
from ablate.record import rebuild
from tests.ablate import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic)")


class FakeServer(BaseHTTPRequestHandler):
    """Answers what `links` asks of MLflow."""

    def do_GET(self) -> None:
        known = "experiment_name=little" in self.path
        self.answer(200 if known else 404, {"experiment": {"experiment_id": "7"}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["experiment_ids"] == ["7"]
        assert asked["max_results"] == ui.COMPARED
        self.answer(200, {"runs": [{"info": {"run_id": "aa"}}, {"info": {"run_id": "bb"}}]})

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakeServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_links_name_the_best_runs_and_the_saved_view(fake):
    found = {name: unquote(link) for name, link in ui.links(fake, "little").items()}
    assert found["the best side by side"].startswith(
        f'{fake}/#/compare-runs?runs=["aa","bb"]&experiments=["7"]'
    )
    assert "/#/experiments/7/runs?" in found["all configurations"]
    assert "viewStateShareKey=levels-and-criteria" in found["all configurations"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_that_is_not_recorded_is_one_line(fake):
    with pytest.raises(StudyError, match="ablate record"):
        ui.links(fake, "unknown")


def test_a_tracking_server_is_used_as_it_is(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fake + "/")
    file = io.StringIO()
    ui.open_ui(tmp_path, "little", Console(file=file, width=80), browser=False)
    assert f"{fake}/#/experiments/7" in file.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_an_out_without_a_record_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(StudyError, match=r"no mlflow\.db"), ui.serve(tmp_path):
        pass


def test_a_server_that_dies_is_one_line_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    started: list[subprocess.Popen[Any]] = []

    def start(command: list[str], **how: Any) -> subprocess.Popen[Any]:
        process: subprocess.Popen[Any] = popen(["false"], **how)
        started.append(process)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(StudyError, match=r"mlflow-server\.log"), ui.serve(tmp_path):
        pass
    assert started[0].returncode == 1


SCROLL = """(() => {
  for (const e of document.querySelectorAll('*'))
    if (e.scrollHeight > e.clientHeight + 200 && getComputedStyle(e).overflowY != 'visible')
      e.scrollTop += 400
})()"""
"""Charts are drawn when they come into view."""


def wait_for(browser: Any, script: str, seconds: float = 60) -> Any:
    """What a script returns once it returns something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        *before, last = script.split("; ")
        if found := browser.execute_script("; ".join([*before, f"return {last}"])):
            return found
        time.sleep(0.3)
    raise AssertionError(f"never true in the browser: {script}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from tests.ablate.chromium import open_browser

    yield from open_browser(tmp_path)


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_in_a_browser_levels_criteria_metrics_and_pictures_are_seen(browser, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = synthetic.study(seeds=(0, 1))
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    ledger = synthetic.keep(tmp_path / "runs", plan, results)
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates, findings=findings)
    rebuild(study, plan, ledger, ranking)
    has = "document.body.innerText.includes({})".format
    with ui.serve(ledger.out) as (base, server):
        places = ui.links(base, study.name)
        browser.get(places["all configurations"])
        wait_for(browser, has("'mode=relative · 1 diverged · 1 seed'"))
        close = (
            "document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')"
        )
        browser.execute_script(f"const b = {close}; if (b) b.click()")
        headers = "[...document.querySelectorAll('.ag-header-cell')].map(c => c.innerText.trim())"
        wait_for(browser, f"{headers}.includes('final/px_error')")
        shown = set(browser.execute_script(f"return {headers}"))
        assert {"final/loss", "final/uniformity", "criteria/rank", "tokens", "lr"} <= shown
        browser.get("about:blank")
        browser.get(places["the best side by side"])
        for words in ("Comparing 8 Runs", "final/px_error", "final/uniformity", "verdict.loss"):
            wait_for(browser, has(repr(words)))
        job = next(job for job in plan.jobs if job.arm == "all")
        search = {"experiment_ids": ["1"], "filter": f"tags.job_id = '{job.id}'"}
        asked = urllib.request.Request(
            f"{base}/api/2.0/mlflow/runs/search",
            json.dumps(search).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            (run,) = json.load(answer)["runs"]
        page = f"{base}/#/experiments/1/runs/{run['info']['run_id']}/model-metrics"
        browser.get("about:blank")
        browser.get(page)
        wait_for(browser, f"{SCROLL}; [...document.images].some(i => i.naturalWidth > 50)")
    assert server is not None
    assert server.poll() is not None
