"""What a job costs beside itself under each engine: no-op jobs through the whole coordinator.

    python -m bench.engines [--rounds 5] [--workers 2] [--only NAME]...

Each figure is the slope between a short and a long study in fresh processes and folders (seconds of
the long less the short, by the jobs between them), as in `bench.overhead`; `start` is what the
short one took beside its jobs: clusters that are started, workers that import. Rounds take turns,
medians are printed. ray and slurm need their extras (`make setup EXTRAS=ray,slurm`), "slurm" a
Slurm that SLURM_CONF names (tests/engines/slurm_here.sh).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ablate.nouns import Design, Options, Resources, Study

CORE = "bench.noop_core"


@dataclass(frozen=True)
class Side:
    engine: str
    jobs: tuple[int, int]
    """Of the short study and the long one."""
    resources: dict[str, Any]
    needs: str = ""


QUICK = {"poll": 1.0, "time": 10}
SIDES = {
    "inline": Side("inline", (20, 220), {}),
    "pool": Side("pool", (20, 220), {}),
    "ray": Side("ray", (20, 220), {}, "ray"),
    "ray, storage local": Side("ray", (20, 120), {"storage": "local"}, "ray"),
    "slurm": Side("slurm", (4, 16), {"slurm": QUICK}, "sbatch"),
    "slurm, 10 jobs a task": Side(
        "slurm", (20, 120), {"slurm": {**QUICK, "jobs_per_task": 10}}, "sbatch"
    ),
}


def missing(side: Side) -> bool:
    if side.needs == "sbatch":
        return shutil.which("sbatch") is None or find_spec("submitit") is None
    return bool(side.needs) and find_spec(side.needs) is None


def study(side: Side, jobs: int, workers: int, folder: Path) -> float:
    """Seconds of a whole run, planning left out."""
    from ablate.display import make_display
    from ablate.plan import plan
    from ablate.run import RunOptions, run
    from bench.noop_core import criteria

    seeds, resources = tuple(range(jobs)), Resources(**side.resources)
    asked = Study(
        "noop",
        "?",
        {},
        (),
        (Design("factorial"),),
        seeds,
        criteria(),
        core=CORE,
        resources=resources,
    )
    made = plan(asked, Options(out=folder))
    display = make_display(Console(file=io.StringIO()))
    begin = time.perf_counter()
    summary = run(asked, made, folder, RunOptions(workers, side.engine), display)
    took = time.perf_counter() - begin
    assert summary.count("done") == jobs
    return took


def seconds(name: str, jobs: int, workers: int) -> float:
    command = [sys.executable, "-m", "bench.engines", "--run", name]
    command += ["--jobs", str(jobs), "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", choices=SIDES, default=None)
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        with tempfile.TemporaryDirectory() as folder:
            took = study(SIDES[given.run], given.jobs, given.workers, Path(folder))
        sys.stdout.write(f"{took}\n")
        return
    names = [name for name in given.only or SIDES if not missing(SIDES[name])]
    slopes: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            few, many = SIDES[name].jobs
            short, long = seconds(name, few, given.workers), seconds(name, many, given.workers)
            slopes[name].append((long - short) / (many - few))
            starts[name].append(short - few * slopes[name][-1])
    table = Table(title=f"no-op jobs, {given.workers} workers, medians of {given.rounds}")
    for column in ("engine", "ms a job", "lowest", "highest", "against pool", "start, s"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    pool = statistics.median(slopes["pool"]) if "pool" in slopes else None
    for name in names:
        middle = statistics.median(slopes[name])
        row = [f"{1e3 * value:.1f}" for value in (middle, min(slopes[name]), max(slopes[name]))]
        ratio = f"{middle / pool:.2f}x" if pool else ""
        table.add_row(name, *row, ratio, f"{statistics.median(starts[name]):.1f}")
    console = Console()
    console.print(table)
    for name in [name for name in given.only or SIDES if name not in names]:
        console.print(f"{name}: not measured, {SIDES[name].needs} is not there")


if __name__ == "__main__":
    main()
