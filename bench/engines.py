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
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import noop
from bench.rows import Row, hand_in


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
    """Whether its library or cluster is not there."""
    if side.needs == "sbatch":
        return "SLURM_CONF" not in os.environ or find_spec("submitit") is None
    return bool(side.needs) and find_spec(side.needs) is None


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
            side = SIDES[given.run]
            took = noop.run_study(
                given.jobs, side.engine, given.workers, Path(folder), side.resources
            )
        sys.stdout.write(f"{took}\n")
        return
    names = [name for name in given.only or SIDES if not missing(SIDES[name])]
    slopes: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            read = noop.slope("bench.engines", name, SIDES[name].jobs, given.workers)
            if read is None:
                raise SystemExit(1)
            slopes[name].append(read[0])
            starts[name].append(read[1])
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
    hand_in(
        Row(
            f"a no-op job, engine {name}",
            f"{1e3 * statistics.median(slopes[name]):.1f} ms",
            f"{1e3 * pool:.1f} ms (pool)",
            statistics.median(slopes[name]) / pool,
            "none",
            True,
        )
        for name in names
        if pool and name != "pool"
    )
    for name in [name for name in given.only or SIDES if name not in names]:
        console.print(f"{name}: not measured, {SIDES[name].needs} is not there (Slurm: SLURM_CONF)")


if __name__ == "__main__":
    main()
