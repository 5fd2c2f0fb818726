"""96 jobs that train nothing: ours, against a fresh process a job with MLflow and Optuna.

    python -m bench.orchestration [--jobs 96] [--theirs 12]

What is left is starting workers, scheduling and tracking. A job logs 50 lines of four metrics. Ours
is the whole command, MLflow included. The other side is the script that one writes first: for each
job a fresh process that imports torch, asks a SQLite study of Optuna for a trial, opens a run in an
SQLite store of MLflow and logs every line as it comes. Of those `--theirs` are timed, as many at a
time as there are workers, and scaled up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ablate.core import Log
from ablate.nouns import Condition, Criterion
from bench.rows import Row, hand_in

LINES, GOAL = 50, 20.0
SETTINGS = {"place": 0}
JOB = """
import sys, torch, mlflow, optuna
folder, place, lines = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="bench", storage=f"sqlite:///{folder}/optuna.db")
trial = study.ask()
trial.suggest_int("place", 0, 1000)
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment("bench")
with mlflow.start_run():
    mlflow.log_params({"place": place})
    for step in range(lines):
        mlflow.log_metrics({name: 1.0 / (step + 1) for name in ("a", "b", "c", "d")}, step=step)
study.tell(trial, 0.0)
"""
FIRST = """
import sys, mlflow, optuna
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
mlflow.set_experiment("bench")
optuna.create_study(study_name="bench", storage=f"sqlite:///{sys.argv[1]}/optuna.db")
"""


def train(settings: dict, log: Log, workdir: Path, cache: Path, stop: object) -> dict[str, float]:
    """Do nothing, and tell of it (this module is the study's core)."""
    for step in range(LINES):
        log(step, dict.fromkeys(("a", "b", "c", "d"), 1.0 / (step + 1)))
    return {"final/loss": 0.0}


def criteria() -> tuple[Criterion, ...]:
    return (Criterion("loss", (Condition("final/loss", 0.1),)),)


def ours(folder: Path, jobs: int, workers: int) -> float:
    """Seconds of the whole command."""
    study = folder / "noop.yaml"
    levels = "\n".join(f"    p{i}: {{place: {i}}}" for i in range(jobs))
    study.write_text(
        "question: What does nothing cost?\ncore: bench.orchestration\nbase: {}\n"
        f"factors:\n  place:\n{levels}\ndesign: factorial\nseeds: [0]\n"
    )
    command = [sys.executable, "-m", "ablate", "run", str(study), "--out", str(folder / "runs")]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, "--workers", str(workers)], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - begin
    ended = len(list(folder.glob("runs/jobs/*/result.json")))
    if ended != jobs:
        raise SystemExit(f"{ended} of {jobs} jobs ended: {done.stderr[-500:]}")
    return took


def theirs(folder: Path, jobs: int, workers: int) -> float:
    """Seconds of some jobs in processes of their own."""
    quiet = subprocess.DEVNULL
    python = [sys.executable, "-c"]
    subprocess.run([*python, FIRST, str(folder)], check=True, stdout=quiet, stderr=quiet)

    def one(place: int) -> None:
        command = [*python, JOB, str(folder), str(place), str(LINES)]
        subprocess.run(command, check=True, stdout=quiet, stderr=quiet)

    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(jobs)))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the orchestration")
    parser.add_argument("--jobs", type=int, default=96)
    parser.add_argument("--theirs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slow = theirs(folder, options.theirs, options.workers) * options.jobs / options.theirs
        fast = ours(folder, options.jobs, options.workers)
    what = f"orchestration of {options.jobs} jobs, no training"
    of = f"{options.theirs} of {options.jobs} timed and scaled up"
    baseline = f"{slow:.0f} s (process a job, MLflow per line, Optuna SQLite; {of})"
    ratio = slow / fast
    hand_in(
        [Row(what, f"{fast:.1f} s", baseline, ratio, f">= {GOAL:g}x", ratio >= GOAL)],
    )


if __name__ == "__main__":
    main()
