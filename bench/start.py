"""Seconds from typing `ablate run` to the first training step, on a warm install and cache.

    python -m bench.start [--repeats 5]

The study is the shipped one of strategy 1, cut to two steps a job, its features cached and its plan
computed before, as when a study is changed and run again. The first step is the first line with a
step of 1 in any job's events; its time is what the job wrote. All is as users have it, the pictures
of the untrained model included, which are drawn before that step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import Row, hand_in

GOAL = 6.0  # seconds
SETS = ("optim.steps=2", "runtime.log_every=1")


def first_step(out: Path) -> float:
    """Run the study in `out`, whose cache is kept, and end it at its first step; seconds."""
    shutil.rmtree(out / "jobs", ignore_errors=True)
    program = Path(sys.executable).with_name("ablate")
    sets = [word for one in SETS for word in ("--set", one)]
    begin = time.time()
    quiet = subprocess.DEVNULL
    command = [str(program), "run", "strategy1", "--seeds", "1", "--out", str(out), *sets]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        while process.poll() is None or out.exists():
            for events in out.glob("jobs/*/events.jsonl"):
                for line in events.read_text().splitlines():
                    if line.endswith("}") and json.loads(line).get("step") == 1:
                        return json.loads(line)["time"] - begin
            if process.poll() is not None:
                raise SystemExit("the study ended without a step")
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    raise SystemExit("the study did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of starting up")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "runs"
        first_step(out)  # fills the cache
        times = [first_step(out) for _ in range(repeats)]
    what = "first training step after `ablate run`, warm"
    hand_in([Row.within(what, statistics.median(times), max(times), GOAL)])


if __name__ == "__main__":
    main()
