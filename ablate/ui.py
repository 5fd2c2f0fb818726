"""MLflow's own page, opened at the comparison of a study's best configurations.

Speaks to the server over HTTP only, so a server named by MLFLOW_TRACKING_URI serves as well as the
one that is started here on the loopback interface.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from rich.console import Console

from ablate.nouns import StudyError
from ablate.runs import SHARE_KEY
from ablate.store import is_remote, uri_of

COMPARED = 10
"""Runs that MLflow compares by default."""
PATIENCE = 120.0
"""Seconds a server may take to answer first: on a busy machine its imports alone take 20."""


def open_ui(out: Path, study: str, console: Console | None = None, browser: bool = True) -> None:
    """Serve the record of OUT, print links to the study's runs, and wait for Ctrl-C.

    Args:
        out: the folder with mlflow.db.
        study: the study's name, which is its experiment's.
        console: where the links are printed.
        browser: open one, where there is a display.

    Raises:
        StudyError: nothing is recorded, or the server does not start.
    """
    console = console or Console()
    with _ended_by_signals(), serve(out) as (base, server):
        places = links(base, study)
        console.print(f"MLflow answers at {base} (Ctrl-C stops it)", highlight=False)
        for name, link in places.items():
            console.print(f"  {name}:", highlight=False)
            console.print(f"  {link}", soft_wrap=True, highlight=False, style="cyan")
        if browser and _has_display():
            webbrowser.open(list(places.values())[-1])
        if server is not None:
            try:
                server.wait()
            except KeyboardInterrupt:
                console.print("stopped")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """However we are asked to end, the server ends with us."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def serve(out: Path) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """A server for the store of OUT: its address, and its process if it is ours.

    Raises:
        StudyError: there is no store, or the server does not answer.
    """
    uri = uri_of(out)
    if is_remote():
        yield uri.rstrip("/"), None
        return
    if "MLFLOW_TRACKING_URI" not in os.environ and not (Path(out) / "mlflow.db").exists():
        raise StudyError(f"--out {out}: no mlflow.db there; run the study first")
    port = _free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", uri]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = Path(out).absolute() / "mlflow-server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=Path(out).absolute(),
            start_new_session=True,  # Ctrl-C is for us; its workers end with its group
        )
        try:
            _wait(base, server, log)
            yield base, server
        finally:
            _end(server)


def links(base: str, study: str) -> dict[str, str]:
    """Addresses of a study's configurations as a table, as charts, and of its best ones compared.

    Raises:
        StudyError: the store has no such study.
    """
    query = urlencode({"experiment_name": study})
    try:
        found = _call(f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}")
    except urllib.error.HTTPError:
        raise StudyError(f"{study}: MLflow has no such study; run it, or `ablate record`") from None
    experiment = found["experiment"]["experiment_id"]
    search = {
        "experiment_ids": [experiment],
        "filter": "tags.kind = 'config'",
        "order_by": ["metrics.`criteria/rank` ASC"],
        "max_results": COMPARED,
    }
    best = _call(f"{base}/api/2.0/mlflow/runs/search", search).get("runs", [])
    ids = json.dumps([run["info"]["run_id"] for run in best], separators=(",", ":"))
    page = f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    table = f"{page}&viewStateShareKey={SHARE_KEY}"
    compared = f"runs={quote(ids)}&experiments={quote(json.dumps([experiment]))}"
    compared += "&workflowType=machine_learning"
    return {
        "all configurations": table,
        "their curves": f"{table}&compareRunsMode=CHART",
        "the best side by side": f"{base}/#/compare-runs?{compared}" if best else table,
    }


def _call(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _wait(base: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise StudyError(f"MLflow's server does not answer; {log} says why")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
