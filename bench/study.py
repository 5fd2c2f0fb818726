"""A whole study of 24 jobs: ours, and the same train function under Ray Tune and under Optuna.

    python -m bench.study [--steps 500] [--workers 2] [--side ours tune optuna]

Every side starts from a fresh process and an empty cache and trains the same 24 jobs with
`model.train.train`, one thread each. The others log to MLflow as their users do: each metric line
as it comes, to the same kind of SQLite store. Ray Tune runs a function trainable on one processor a
trial; Optuna a SQLite study from as many joblib processes as there are workers, with a grid.
Printed: wall seconds; the sum of the jobs' pure training time (their optimiser steps alone) by
workers, as each side's own jobs took it, since they contend for the same machine; the seconds
that our run spent on evaluation and on the final readings; and what logging to MLflow cost it:
the processor seconds of its thread, shared out over the workers' cores, and the wait at the end.
The sides run one after the other, and a machine that others use too changes its speed by a quarter
in an hour. They train with the same function, so its time tells: what is compared is how often each
side takes its own pure training time (in which is what contends with training for the cores).
A study of 10 minutes takes --steps 2000 or so on 2 cores; 24 x 500 steps of lanelm_128 at 250
tokens are 3 to 5 minutes a side.

Ray Tune is not among our dependencies: pip install 'ray[tune]'. A side that is not there is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.rows import Row, hand_in

RATES, CLIPS, WEIGHTS, SEEDS = (3e-4, 1e-4), (1.0, 0.5), (0.3, 0.0), (0, 1, 2)
BASE: dict[str, Any] = {
    "preset": "v4_fixed",
    "model.preset": "lanelm_128",
    "visual.levels": "p5",
    "data.train_images": 1,
}
SIDES = ("ours", "tune", "optuna")


def grid(steps: int) -> list[dict[str, Any]]:
    """The 24 jobs' settings."""
    return [
        {**BASE, "optim.steps": steps}
        | {"optim.lr": lr, "optim.clip": clip, "loss.y_weight": weight, "seed": seed}
        for lr in RATES
        for clip in CLIPS
        for weight in WEIGHTS
        for seed in SEEDS
    ]


def study_file(folder: Path, steps: int) -> Path:
    """Write the same grid as a study of ours."""
    path = folder / "bench24.yaml"
    factors = {
        "lr": {f"{lr:g}": {"optim.lr": lr} for lr in RATES},
        "clip": {f"{clip:g}": {"optim.clip": clip} for clip in CLIPS},
        "y": {f"{w:g}": {"loss.y_weight": w} for w in WEIGHTS},
    }
    value = {
        "question": "What does a study cost beside its training?",
        "base": {**BASE, "optim.steps": steps},
        "factors": factors,
        "design": "factorial",
        "seeds": list(SEEDS),
    }
    path.write_text(json.dumps(value))  # JSON is YAML
    return path


def train_logged(settings: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Train one job and log it to MLflow as it goes: what a user's objective does."""
    import mlflow

    from model.presets import build
    from model.train import train

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("bench")
    with mlflow.start_run() as run:
        mlflow.log_params(dict(settings))

        def log(step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
            mlflow.log_metrics(dict(metrics), step=step)

        workdir = folder / "work" / run.info.run_id
        found = train(build(settings), log, workdir, folder / "cache")
        mlflow.log_artifacts(str(workdir / "pictures"))
    (folder / "ends").mkdir(exist_ok=True)
    (folder / "ends" / f"{run.info.run_id}.json").write_text(json.dumps(found))
    return found


def prepare(folder: Path) -> None:
    """Make the MLflow store once: several processes that make it at the same time crash."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("bench")


def run_ours(folder: Path, jobs: list[dict[str, Any]], workers: int) -> None:
    study = study_file(folder, jobs[0]["optim.steps"])
    command = [sys.executable, "-m", "bench.recorded", str(folder / "mlflow.json")]
    command += ["run", str(study), "--out", str(folder / "runs")]
    quiet = subprocess.DEVNULL
    subprocess.run([*command, "--workers", str(workers)], check=True, stdout=quiet, stderr=quiet)


def run_tune(folder: Path, jobs: list[dict[str, Any]], workers: int) -> None:
    from ray import init, tune  # pyright: ignore[reportMissingImports]

    prepare(folder)
    init(num_cpus=workers, include_dashboard=False, log_to_driver=False)

    def trainable(space: dict[str, Any]) -> None:
        tune.report({"loss": train_logged(space["job"], folder)["final/loss"]})

    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"job": tune.grid_search(jobs)},
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()


def run_optuna(folder: Path, jobs: list[dict[str, Any]], workers: int) -> None:
    import joblib
    import optuna

    prepare(folder)
    storage = f"sqlite:///{folder}/optuna.db"
    optuna.create_study(study_name="bench", storage=storage)
    shares = [jobs[i::workers] for i in range(workers)]
    joblib.Parallel(n_jobs=workers)(
        joblib.delayed(optuna_worker)(folder, storage, share) for share in shares
    )


def optuna_worker(folder: Path, storage: str, jobs: list[dict[str, Any]]) -> None:
    """Run a share of the grid; shares are apart, because a shared grid is claimed twice."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="bench", storage=storage)
    left = iter(jobs)

    def objective(trial: optuna.Trial) -> float:
        job = next(left)
        for name, value in job.items():
            trial.set_user_attr(name, value)
        return train_logged(job, folder)["final/loss"]

    study.optimize(objective, n_trials=len(jobs))


def spent(folder: Path) -> list[dict[str, float]]:
    """Every job's readings."""
    ours = [json.loads(p.read_text())["metrics"] for p in folder.glob("runs/jobs/*/result.json")]
    return ours or [json.loads(path.read_text()) for path in folder.glob("ends/*.json")]


def timed(side: str, steps: int, workers: int) -> dict[str, float]:
    """Run one side in a fresh process; its seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "bench.study", "--run", side, "--folder", temporary]
        command += ["--steps", str(steps), "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        begin = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - begin
        jobs = spent(Path(temporary))
        record = Path(temporary) / "mlflow.json"
        mlflow = json.loads(record.read_text()) if record.exists() else {}
    if len(jobs) != len(grid(steps)):
        raise SystemExit(f"{side}: {len(jobs)} jobs ended of {len(grid(steps))}")
    pure = [steps / job["cost/steps_per_second"] for job in jobs]
    return {
        "wall": wall,
        "pure": sum(pure) / workers,
        "tail": max(pure),
        "evaluation": sum(job["cost/evaluation_seconds"] for job in jobs) / sum(pure),
        "final": sum(job["cost/final_seconds"] for job in jobs) / sum(pure),
        **{f"mlflow_{name}": seconds for name, seconds in mlflow.items()},
    }


def rows_of(read: Mapping[str, Mapping[str, float]], steps: int, workers: int) -> list[Row]:
    rows = []
    what = f"24 jobs x {steps} steps on {workers} workers"
    if ours := read.get("ours"):
        ratio = (ours["wall"] - ours["tail"]) / ours["pure"]
        whole = f"{ours['pure']:.0f} s (pure training / {workers}) + {ours['tail']:.0f} s tail"
        rows.append(Row(what, f"{ours['wall']:.0f} s", whole, ratio, "<= 1.08x", ratio <= 1.08))
        for name in ("evaluation", "final"):
            part = f"{name} readings, share of training"
            goal = "< 3% together"
            together = ours["evaluation"] + ours["final"] < 0.03
            rows.append(Row(part, "", "optimiser steps", ours[name], goal, together, "share"))
        busy, waited = ours["mlflow_processor"], ours["mlflow_waited"]
        share = (busy / workers + waited) / ours["wall"]
        seconds = f"{busy:.1f} s of a core, {waited:.1f} s at the end"
        logging = "logging to MLflow, share of the study"
        rows.append(
            Row(logging, seconds, f"{ours['wall']:.0f} s", share, "< 1%", share < 0.01, "share")
        )
        others = {side: one for side, one in read.items() if side != "ours"}
        if others:
            speeds = {side: one["wall"] / one["pure"] for side, one in others.items()}
            ratio = min(speeds.values()) / (ours["wall"] / ours["pure"])
            sides = ", ".join(said(side, one) for side, one in others.items())
            rows.append(Row(what, said("", ours), sides, ratio, ">= 1.3x", ratio >= 1.3))
    return rows


def said(side: str, one: Mapping[str, float]) -> str:
    return f"{side} {one['wall']:.0f} s ({one['pure']:.0f} pure)".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of a whole study")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run = {"ours": run_ours, "tune": run_tune, "optuna": run_optuna}[options.run]
        run(options.folder, grid(options.steps), options.workers)
        return
    read = {}
    for side in options.side:
        if side == "tune" and importlib.util.find_spec("ray") is None:
            print("tune: not measured, ray is not installed")  # noqa: T201
            continue
        read[side] = timed(side, options.steps, options.workers)
        print(side, {name: round(value, 3) for name, value in read[side].items()}, flush=True)  # noqa: T201
    hand_in(rows_of(read, options.steps, options.workers))


if __name__ == "__main__":
    main()
