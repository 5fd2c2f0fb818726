"""A study of jobs that do nothing, and how runs of it are timed in fresh processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

CORE = "bench.noop_core"


def run_study(
    jobs: int, engine: str, workers: int, folder: Path, resources: Mapping[str, Any] | None = None
) -> float:
    """Run so many jobs through the whole coordinator; seconds, planning left out."""
    from ablate.display import make_display
    from ablate.nouns import Design, Options, Resources, Study
    from ablate.plan import plan
    from ablate.run import RunOptions, run
    from bench.noop_core import criteria

    study = Study(
        name="noop",
        question="?",
        base={},
        factors=(),
        designs=(Design("factorial"),),
        seeds=tuple(range(jobs)),
        criteria=criteria(),
        core=CORE,
        resources=Resources(**(resources or {})),
    )
    made = plan(study, Options(out=folder))
    display = make_display(Console(file=io.StringIO()))
    begin = time.perf_counter()
    summary = run(study, made, folder, RunOptions(workers, engine), display)
    took = time.perf_counter() - begin
    assert summary.count("done") == jobs
    return took


def seconds(
    module: str, name: str, jobs: int, workers: int, environment: Mapping[str, str] | None = None
) -> float | None:
    """What `python -m MODULE --run NAME` says it took, in a fresh process; None where it failed."""
    command = [sys.executable, "-m", module, "--run", name]
    command += ["--jobs", str(jobs), "--workers", str(workers)]
    whole = {**os.environ, **(environment or {}), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=whole, check=False)
    if done.returncode:
        sys.stderr.write(f"{name} failed:\n{done.stderr[-2000:]}\n")
        return None
    return float(done.stdout.split()[-1])


def slope(
    module: str,
    name: str,
    jobs: tuple[int, int],
    workers: int,
    environment: Mapping[str, str] | None = None,
) -> tuple[float, float] | None:
    """Seconds a job between a short and a long run, and what the short one took beside its jobs."""
    short, long = (seconds(module, name, n, workers, environment) for n in jobs)
    if short is None or long is None:
        return None
    each = (long - short) / (jobs[1] - jobs[0])
    return each, short - jobs[0] * each
