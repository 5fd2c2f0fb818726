"""Time from 500 finished jobs to an answer: `ablate rank`, `report`, and `record` from scratch.

    python -m bench.answers [--repeats 3]

The ledger is made up: a grid of 100 configs with 5 seeds each, every job with the readings, the
history and the pictures that a real one leaves. Each command runs in a process of its own, as at a
prompt, imports included; `record` starts without a database.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from ablate.ledger import Ledger
from ablate.nouns import Job, Options, Plan, Result
from ablate.study import load_study, plan
from bench.rows import Row, hand_in
from model.album import QUALITY
from model.config import DataConfig
from model.data import make_splits

STUDY = """
question: How long does the answer take?
base: {preset: v4_fixed, model.preset: lanelm_128, data.train_images: 1}
factors:
  tokens: {p5: {visual.levels: p5}, full: {visual.levels: full}}
  lr:
    5e-4: {optim.lr: 5e-4}
    3e-4: {optim.lr: 3e-4}
    2e-4: {optim.lr: 2e-4}
    1e-4: {optim.lr: 1e-4}
    5e-5: {optim.lr: 5e-5}
  clip:
    "4": {optim.clip: 4.0}
    "2": {optim.clip: 2.0}
    "1": {optim.clip: 1.0}
    "0.5": {optim.clip: 0.5}
    "0.25": {optim.clip: 0.25}
  y_loss: {x+0.3y: {loss.y_weight: 0.3}, x only: {loss.y_weight: 0.0}}
design: factorial
seeds: [0, 1, 2, 3, 4]
"""
STEPS, TOLD_EVERY, READ_EVERY = 500, 10, 100
"""Of a job: what training tells comes more often than evaluations."""
TOLD = ("loss", "loss_x", "loss_y", "objective", "grad_norm", "lr", "y_weight", "clipped_share")
READ = (
    *("attention/uniformity", "attention/effective_tokens", "visual/mean", "visual/std"),
    *("visual/feature_mean", "visual/feature_std", "train/px_error", "train/px_error_p95"),
    *("train/px_error_max", "train/coverage", "train/length_error", "train/lane_count_error"),
    *("val/px_error", "val/coverage", "val/f1", "val/lane_count_error"),
)
AT_THE_END = [
    "loss",
    "objective",
    "loss_y",
    "loss_first_token",
    "loss_points",
    "loss_per_px",
    "uniformity",
    "uniformity_init",
    "effective_tokens",
    "px_error",
    "px_error_p95",
    "px_error_max",
    "px_error_slot",
    "coverage",
    "length_error",
    "points_ratio",
    "lane_count_error",
    "px_error_teacher_forced",
    "exposure_gap",
    "zigzag",
    "zigzag_flips",
    "collapse",
    "step_logit_gap",
    "swap_px",
    "swap_loss",
    "swap_kept",
    "swap_px_labels",
    "blank_loss",
    "shuffle_loss",
]
DRAWN = (0, 100, 200, 400, 500)
PICTURES = (
    *(f"{name}_step{step:06d}.webp" for name in ("attention", "train_0") for step in DRAWN),
    *(f"val_0_step{step:06d}.webp" for step in DRAWN[1:]),
    *(f"{name}_step000500.webp" for name in ("train_1", "val_1")),
)


def main() -> None:
    """Make the ledger, run the commands, print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study, out = folder / "bench.yaml", folder / "runs"
        study.write_text(STUDY)
        jobs = make_ledger(study, out)
        table = Table(title=f"{jobs} jobs, medians of {repeats}")
        for heading in ("command", "wall s", "worst", "processor s"):
            table.add_column(heading, justify="left" if heading == "command" else "right")
        rows = []
        for command, before, limit in (
            ("rank", None, 5.0),
            ("report", None, 30.0),
            ("record", lambda: forget(out), 150.0),
        ):
            runs = [timed(command, study, out, before) for _ in range(repeats)]
            wall, processor = zip(*runs, strict=True)
            columns = (statistics.median(wall), max(wall), statistics.median(processor))
            table.add_row(f"ablate {command}", *(f"{value:.1f}" for value in columns))
            rows.append(Row.within(f"`ablate {command}` of {jobs} jobs", *columns[:2], limit))
        console.print(table)
        hand_in(rows)
        size = (out / "bench" / "report.html").stat().st_size
        console.print(f"report.html: {size / 1e6:.1f} MB")


def timed(
    command: str, study: Path, out: Path, before: Callable[[], None] | None
) -> tuple[float, float]:
    """Wall and processor seconds of one command; the latter are the same on a busy machine."""
    if before is not None:
        before()
    begin, spent = time.perf_counter(), processor_seconds()
    program = Path(sys.executable).with_name("ablate")
    line = [str(program), command, str(study), "--out", str(out)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, processor_seconds() - spent


def processor_seconds() -> float:
    """Of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def forget(out: Path) -> None:
    """Remove all that MLflow has."""
    for path in out.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(out / "mlartifacts", ignore_errors=True)


def make_ledger(study: Path, out: Path) -> int:
    """Fill OUT with the study's jobs as if they had run."""
    options = Options(out=out)
    planned: Plan = plan(load_study(str(study), options), options)
    ledger = Ledger(out)
    ledger.prepare()
    image = make_splits(DataConfig()).train[0].load(DataConfig()).image
    originals = []
    for name in PICTURES:
        originals.append(out / name)
        cv2.imwrite(str(originals[-1]), image, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    for job in planned.jobs:
        folder = ledger.create(job)
        (folder / "pictures").mkdir()
        for original in originals:
            (folder / "pictures" / original.name).hardlink_to(original)
        rng = random.Random(job.id)
        lines = "".join(event(job, rng, step) for step in range(0, STEPS + 1, TOLD_EVERY))
        (folder / "events.jsonl").write_text(lines)
        ledger.write_result(ended(job, rng))
    return len(planned.jobs)


def event(job: Job, rng: random.Random, step: int) -> str:
    """A line of a history; losses fall, the rest wanders."""
    level = math.exp(-step / 150)
    names = [f"train/{name}" for name in TOLD] + (list(READ) if step % READ_EVERY == 0 else [])
    readings = ", ".join(f'"{name}": {level * rng.uniform(0.9, 1.1)!r}' for name in names)
    return f'{{"time": {1.7e9 + step}, "step": {step}, "metrics": {{{readings}}}}}\n'


def ended(job: Job, rng: random.Random) -> Result:
    """A result in which the rate and the tokens matter."""
    aim = 40 * (job.settings["optim.lr"] / 5e-4) ** 0.5
    aim *= (0.7 if job.levels["tokens"] == "p5" else 1.0) * rng.uniform(0.9, 1.1)
    metrics = {f"final/{name}": aim * rng.uniform(0.01, 0.02) for name in AT_THE_END}
    metrics |= {f"val/{name}": rng.random() for name in AT_THE_END[:12]}
    metrics |= {f"best/{name}": rng.random() for name in AT_THE_END[:12]}
    metrics |= {"final/px_error": aim, "final/coverage": 1.0, "final/lane_count_error": 0.0}
    metrics |= {"final/step_logit_gap": 1e-6, "final/uniformity_init": 0.92}
    metrics |= {"floor/px_error": 1.0, "floor/px_error_max": 2.0, "floor/bound": 2.01}
    metrics |= {"cost/seconds": rng.uniform(20, 60), "cost/peak_memory_mb": 700.0}
    return Result(
        job_id=job.id,
        levels=job.levels,
        seed=job.seed,
        state="done",
        metrics=metrics,
        code={"commit": "0" * 40, "core": "0" * 12},
        environment={"python": "3.11", "torch": "2.13.0", "cpu": "bench"},
    )


if __name__ == "__main__":
    main()
