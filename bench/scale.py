"""How far one coordinator reaches: 1,000 simulated workers, 100,000 jobs, nothing trained.

    python -m bench.scale [--jobs 100000] [--workers 1000] [--folder DIR] [--figure FILE.png]

The coordinator, its ledger, progress and display are the real ones, and so are all files; only the
engine is simulated. Its jobs take lognormal times around ten minutes and write, on a virtual clock,
the lines and results that real jobs write. What the simulated workers take (their writing) is not
counted. Seconds are processor seconds of the coordinator, which other load on the machine does not
change; waiting for a disk is not in them. fsync is left out of the long run, so that it takes
minutes, and its waiting is measured by itself on 500 jobs.

Measured: lines a second that the coordinator can take in; seconds of work for a minute of the
cluster (above 60 it falls behind); memory over the jobs that have ended; and the cost of one look
at all running jobs, over their number, beside the time that a tick leaves for it.
"""

from __future__ import annotations

import argparse
import heapq
import io
import itertools
import json
import math
import os
import random
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

from rich.console import Console

import ablate.run as coordinator
from ablate.dispatch import LOOK
from ablate.display import PlainDisplay, screen
from ablate.engines import Notice, Outcome, Task
from ablate.ledger import Ledger
from ablate.nouns import Condition, Criterion, Design, Job, Plan, Result, Study
from ablate.progress import Progress, Running

MINUTES = 10.0
"""Median length of a job."""
LINES, READ_EVERY = 50, 10
"""Lines that a job logs, evenly spread; each tenth carries an evaluation's readings."""
STEP = 60.0
"""Virtual seconds between two waits of the coordinator."""
TOLD = ("loss", "loss_x", "loss_y", "objective", "grad_norm", "lr", "y_weight", "clipped_share")
READ = tuple(f"final/reading_{i}" for i in range(30))


def logged() -> list[str]:
    """The lines of a job, the first with its start before it."""
    lines = []
    for line in range(LINES):
        metrics = {f"train/{name}": 0.123456789 + line for name in TOLD}
        if line % READ_EVERY == READ_EVERY - 1:
            metrics |= dict.fromkeys(READ, 0.987654321)
        lines.append(json.dumps({"step": 10 * line, "metrics": metrics, "time": 1.0}) + "\n")
    start = '{"event": "started", "attempt": 1, "core": "simulated", "time": 0.0}\n'
    return [start + lines[0], *lines[1:]]


LOGGED = logged()


def result_text() -> str:
    """A result.json whose id, levels, seed, loss and px error are filled in with `%`."""
    metrics = dict.fromkeys(READ, 0.5) | {"cost/seconds": 600.0}
    made = asdict(Result("%s", {}, 0, "done", metrics, code={"core": "x" * 12}))
    text = json.dumps(made, indent=1).replace('"levels": {}', '"levels": %s', 1)
    text = text.replace('"seed": 0', '"seed": %d', 1)
    return text.replace('"metrics": {', '"metrics": {"final/loss": %r, "final/px_error": %r,', 1)


RESULT = result_text()


@dataclass
class Workers:
    """An engine (`ablate.engines.Engine`) whose workers are a heap of virtual times."""

    out: Path
    workers: int
    fuses: bool = False
    clock: float = 0.0
    spent: float = 0.0
    """Seconds in here: the workers' own, not the coordinator's."""
    lines: int = 0
    queue: deque[Task] = field(default_factory=deque)
    running: dict[str, tuple[float, float, Task]] = field(default_factory=dict)
    ends: list[tuple[float, str]] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, float]] = field(default_factory=list)
    ended: int = 0
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    begun: float = field(default_factory=time.process_time)

    @property
    def depth(self) -> int:
        return 2 * self.workers

    def follow(self, tasks: Sequence[Task]) -> set[str]:
        return set()

    def share(self, paths: Sequence[Path]) -> None:
        return None

    def submit(self, task: Task) -> None:
        self.queue.append(task)

    def pending(self) -> int:
        return len(self.queue) + len(self.running)

    def stop(self) -> None:
        self.queue.clear()

    def cancel(self, job_id: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.queue.clear()

    def wait(self, seconds: float) -> list[Notice]:
        begin = time.process_time()
        self.sample(begin)
        notices = []
        end = self.clock + STEP
        while True:
            while self.queue and len(self.running) < self.workers:
                task = self.queue.popleft()
                length = 60 * MINUTES * self.dice.lognormvariate(0, 0.5)
                self.running[task.job_id] = (self.clock, length, task)
                heapq.heappush(self.ends, (self.clock + length, task.job_id))
                notices.append(Notice(task.job_id))
            if not self.ends or self.ends[0][0] > end:
                break
            self.clock, job_id = heapq.heappop(self.ends)
            self.write(job_id, LINES)
            self.finish(job_id)
            notices.append(Notice(job_id, Outcome("ended")))
        self.clock = end
        for job_id, (since, length, _) in self.running.items():
            self.write(job_id, int(LINES * (end - since) / length))
        self.spent += time.process_time() - begin
        return notices

    def write(self, job_id: str, upto: int) -> None:
        """Append a job's lines up to this one."""
        done = self.written.get(job_id, 0)
        text = LOGGED[done:upto]
        if text:
            with (self.out / "jobs" / job_id / "events.jsonl").open("a") as file:
                file.write("".join(text))
            self.written[job_id] = upto
            self.lines += len(text)

    def finish(self, job_id: str) -> None:
        _, _, task = self.running.pop(job_id)
        loss, px = self.dice.random(), 10 * self.dice.random()
        text = RESULT % (job_id, json.dumps(task.levels), task.seed, loss, px)
        (self.out / "jobs" / job_id / "result.json").write_text(text)
        self.written.pop(job_id, None)
        self.ended += 1

    def sample(self, now: float) -> None:
        self.samples.append(
            {
                "ended": self.ended,
                "lines": self.lines,
                "clock": self.clock,
                "work": now - self.begun - self.spent,
                "mb": _resident_mb(),
            }
        )


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def plan_of(n: int) -> Plan:
    """Jobs with as many settings as a LaneLM job has."""
    from ablate.core import load_core

    core = load_core()
    base = core.settings(core.build({"preset": "v4_fixed", "model.preset": "lanelm_128"}))
    size = {"visual_tokens": 5250.0, "parameters": 1e6}
    jobs = []
    for i in range(n):
        arm, seed = f"arm {i // 5}", i % 5
        settings = {**base, "seed": seed, "optim.lr": 1e-4 * (1 + i % 97)}
        jobs.append(Job(f"{i:012x}", arm, {"arm": arm}, seed, settings, size=size))
    return Plan(jobs)


def study() -> Study:
    criteria = (Criterion("loss", (Condition("final/loss", 0.1),)),)
    return Study("scale", "?", {}, (), (Design("list"),), (0,), criteria, core="bench.noop_core")


@contextmanager
def simulated(workers: Workers, *, fsync: bool) -> Iterator[None]:
    """The real coordinator over these workers."""
    with (
        mock.patch.object(coordinator, "make_engine", return_value=workers),
        mock.patch.object(coordinator._Coordinator, "_prepare"),
    ):
        if fsync:
            yield
            return
        with mock.patch.object(os, "fsync"):
            yield


def run(out: Path, jobs: int, workers: int, *, fsync: bool) -> Workers:
    made = plan_of(jobs)
    engine = Workers(out, workers)
    options = coordinator.RunOptions(workers)
    display = PlainDisplay(Console(file=io.StringIO()))
    display.say = lambda text, style="": None  # a terminal's memory is not ours
    with simulated(engine, fsync=fsync):
        engine.begun = time.process_time()
        summary = coordinator.run(study(), made, out, options, display)
    assert summary.count("done") == jobs
    engine.sample(time.process_time())
    return engine


def flushing(out: Path, jobs: int = 500) -> float:
    """Milliseconds that a job waits for the disk to have its result."""
    seconds = []
    for name, fsync in (("durable", True), ("quick", False)):
        begin = time.perf_counter()
        run(out / name, jobs, 100, fsync=fsync)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * (seconds[0] - seconds[1]) / jobs


def look(out: Path, numbers: list[int], repeats: int = 5) -> list[tuple[int, float, float]]:
    """Running jobs -> ms of a look at all their event files, ms of drawing the screen."""
    ledger, made = Ledger(out), plan_of(max(numbers))
    found = []
    for n in numbers:
        ids = [job.id for job in made.jobs[:n]]
        offsets = {}
        for job_id in ids:
            folder = ledger.folder(job_id)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "events.jsonl").write_text('{"step": 1}\n')
            offsets[job_id] = ledger.read_events(job_id)[1]
        progress = Progress(made.jobs[:n], study().criteria, n)
        for job in made.jobs[:n]:
            progress.running[job.id] = Running(job, 0.0, step=5, first_step=0)
        looks, draws = [], []
        for _ in range(repeats):
            begin = time.process_time()
            for job_id in ids:
                ledger.read_events(job_id, offsets[job_id])
            looks.append(time.process_time() - begin)
            begin = time.process_time()
            Console(file=io.StringIO(), force_terminal=True).print(screen(progress, 100.0))
            draws.append(time.process_time() - begin)
        found.append((n, 1e3 * statistics.median(looks), 1e3 * statistics.median(draws)))
    return found


def draw(path: Path, workers: Workers, looks: list[tuple[int, float, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    rows = workers.samples
    every = max(len(rows) // 60, 1)
    points = rows[::every]
    pairs = list(itertools.pairwise(points))
    rate = [60 * (b["work"] - a["work"]) / max(b["clock"] - a["clock"], 1) for a, b in pairs]
    ended = [b["ended"] / 1e3 for _, b in pairs]
    left.semilogy(ended, rate)
    left.axhline(60, color="0.6", linestyle="--")
    left.text(0, 50, "falls behind", va="top", color="0.4")
    left.set(xlabel="thousand jobs ended", ylabel="seconds", ylim=(0.01, 200))
    left.set_title(f"Coordinator, a minute of {workers.workers:,} workers", fontsize=10)
    middle.plot([p["ended"] / 1e3 for p in points], [p["mb"] for p in points])
    middle.set(xlabel="thousand jobs ended", ylabel="MB", ylim=(0, None))
    middle.set_title("Memory of the coordinator", fontsize=10)
    ns = [n for n, _, _ in looks]
    right.loglog(ns, [ms for _, ms, _ in looks], marker="o", label="a look at all event files")
    right.loglog(ns, [ms for _, _, ms in looks], marker="s", label="drawing the screen")
    right.axhline(1e3 * LOOK, color="0.6", linestyle="--")
    right.text(ns[0], 1e3 * LOOK * 1.1, "what a tick gives to looks", color="0.4")
    right.set(xlabel="running jobs", ylabel="ms")
    right.set_title("What each tick costs", fontsize=10)
    right.legend(fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--folder", default=None, help="where; a RAM disk shortens the clean-up")
    parser.add_argument("--figure", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        out = Path(folder)
        sync = flushing(out)
        looks = look(out / "look", [100, 300, 1000, 3000, 10_000])
        engine = run(out / "long", given.jobs, given.workers, fsync=False)
        begin = time.process_time()
        again = Workers(out / "long", given.workers)
        with simulated(again, fsync=False):
            silent = PlainDisplay(Console(file=io.StringIO()))
            summary = coordinator.run(
                study(), plan_of(given.jobs), out / "long", coordinator.RunOptions(), silent
            )
        assert not summary.trained
        start = time.process_time() - begin
    last = engine.samples[-1]
    work, clock, lines = last["work"], last["clock"], last["lines"]
    write = Console(highlight=False, soft_wrap=True).print
    write(f"{given.jobs:,} jobs of about {MINUTES:g} min on {given.workers:,} simulated workers")
    write(f"  the study would take             {clock / 3600:8.1f} h")
    write(f"  the coordinator worked           {work:8.0f} s: {100 * work / clock:.2f} % of it")
    write(f"  lines taken in                   {lines:8,.0f}: {lines / work:,.0f} a second of work")
    write(f"  the cluster writes               {lines / clock:8.0f} lines a second")
    write(f"  jobs taken through               {given.jobs / work:8.0f} a second of work")
    write(f"  each flushed to this disk        {sync:8.1f} ms of waiting more a job")
    write(
        f"  memory at the end                {last['mb']:8.0f} MB, before the first job "
        f"{engine.samples[0]['mb']:.0f} MB"
    )
    write(f"  start with all of them done      {start:8.1f} s")
    write("  running jobs, ms of a look at their files, ms of drawing the screen:")
    for n, ms, drawn in looks:
        write(f"    {n:6,} {ms:10.1f} {drawn:10.1f}")
    fit = statistics.median(ms / n for n, ms, _ in looks)
    write(f"  all are looked at in each tick up to {1e3 * LOOK / fit:,.0f} running jobs")
    workers = given.workers * clock / max(work, 1e-9)
    write(f"  it would fall behind at about {math.floor(workers / 1000) * 1000:,} workers")
    if given.figure is not None:
        draw(given.figure, engine, looks)


if __name__ == "__main__":
    main()
