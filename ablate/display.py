"""How a run shows itself, on stderr: one live screen on a terminal, plain lines elsewhere.

Failures are told the moment they happen and stay on the screen. Nothing here decides anything.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablate.nouns import Job, Result
from ablate.progress import Progress, Running, duration, reading

ESTIMATE_EVERY = 0.5
"""Seconds between estimates of the time left: each looks at all running jobs."""
HEARTBEAT = 30.0
"""Seconds between plain lines while nothing starts or ends."""

ROWS = 24
"""Running jobs that are shown one by one, those first that have run longest."""

STYLES = {"done": "green", "failed": "bold red", "diverged": "yellow", "pruned": "cyan"}


class Screen(Console):
    """stderr; a pipe that nobody reads any more falls silent instead of ending the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display(Protocol):
    """What the coordinator tells."""

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        ...

    def preparing(self, done: int, of: int) -> None:
        """Shared work before the first job."""
        ...

    def started(self, progress: Progress, job: Job, attempt: int) -> None: ...

    def ended(self, progress: Progress, job: Job, result: Result, seconds: float) -> None: ...

    def tick(self, progress: Progress) -> None:
        """Called several times a second while jobs run."""
        ...

    def close(self) -> None: ...


def make_display(console: Console | None = None) -> Display:
    """Live on a terminal, else plain. Colours follow NO_COLOR by way of rich."""
    console = console or Screen(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(console)


def label(job: Job) -> str:
    return f"{job.arm} seed {job.seed}"


def readings(result: Result) -> str:
    """The readings that people watch, of those that a result has."""
    values = ((name, reading(result.metrics, name)) for name in ("loss", "px_error", "uniformity"))
    return "  ".join(f"{name} {number(value)}" for name, value in values if value is not None)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def end_line(job: Job, result: Result, seconds: float) -> str:
    """One line on how a job ended, and where to read more when it did not end well."""
    if result.state == "done":
        return f"{label(job)}  {duration(seconds)}  {readings(result)}".rstrip()
    more = f"  (ablate logs {job.id})" if result.state == "failed" else ""
    tries = f" after {result.attempts} attempts" if result.attempts > 1 else ""
    return f"{label(job)}{tries}: {result.error or 'no reason given'}{more}"


class PlainDisplay:
    """A line for each start and end, and a sign of life in between."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._spoke = clock()
        self._prepared = -1
        self._left = (-math.inf, "")

    def say(self, text: str, style: str = "") -> None:
        self._spoke = self._clock()
        with suppress(OSError):  # a closed terminal or pipe is no reason to stop training
            # no colours here, so not through rich: two lines a job would cost 1 ms
            self._console.file.write(text + "\n")
            self._console.file.flush()

    def preparing(self, done: int, of: int) -> None:
        tenth = 10 * done // max(of, 1)
        if tenth != self._prepared:
            self._prepared = tenth
            self.say(f"preparing features {done}/{of}")

    def started(self, progress: Progress, job: Job, attempt: int) -> None:
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self.say(f"{tally(progress)} start     {label(job)}{again}")

    def ended(self, progress: Progress, job: Job, result: Result, seconds: float) -> None:
        line = end_line(job, result, seconds)
        now = self._clock()
        if now - self._left[0] >= ESTIMATE_EVERY:
            self._left = now, time_left(progress)
        left = self._left[1] if progress.busy else ""
        self.say(f"{tally(progress)} {result.state:9} {line}{left}")

    def tick(self, progress: Progress) -> None:
        if self._clock() - self._spoke < HEARTBEAT:
            return
        rows = "; ".join(
            f"{label(row.job)} step {row.step}/{row.steps} loss {number(row.loss) or '?'}"
            for row in oldest(progress)
        )
        self.say(f"{tally(progress)} {len(progress.running)} running: {rows}{time_left(progress)}")

    def close(self) -> None:
        return None


class LiveDisplay:
    """One screen: overall bar, running jobs, the best so far; what failed scrolls above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn = -1.0
        # refreshed by hand: a thread of its own would read the state while it changes
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, text: str, style: str = "") -> None:
        self._print(Text(text, style))

    def preparing(self, done: int, of: int) -> None:
        bar = ProgressBar(total=max(of, 1), completed=done, width=40)
        line = Table.grid(padding=(0, 1))
        line.add_row("preparing features", bar, f"{done}/{of}")
        self._draw(line)

    def started(self, progress: Progress, job: Job, attempt: int) -> None:
        self._draw(screen(progress, self._clock()))

    def ended(self, progress: Progress, job: Job, result: Result, seconds: float) -> None:
        style = STYLES.get(result.state, "")
        line = Text.assemble((f"{result.state:9} ", style), end_line(job, result, seconds))
        self._print(line)
        self._draw(screen(progress, self._clock()))

    def tick(self, progress: Progress) -> None:
        self._draw(screen(progress, self._clock()))

    def close(self) -> None:
        with suppress(OSError):
            self._live.stop()

    def _print(self, text: Text) -> None:
        with suppress(OSError):  # a closed terminal is no reason to stop training
            self._live.console.print(text)

    def _draw(self, picture: RenderableType) -> None:
        if self._clock() - self._drawn >= 0.2:
            with suppress(OSError):
                self._live.update(picture, refresh=True)
            self._drawn = self._clock()


def screen(progress: Progress, now: float) -> RenderableType:
    """The live screen: a bar, a row for each running job, the best three."""
    ended = len(progress.results)
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(len(progress.jobs), 1), completed=ended, width=40)
    head.add_row(bar, Text(f"{ended}/{len(progress.jobs)}", "bold"), _counts(progress, now))
    parts: list[RenderableType] = [head]
    if progress.running:
        table = _table("running", "seed", "step", "loss", "px", "time")
        for row in oldest(progress):
            again = f" (attempt {row.attempt})" if row.attempt > 1 else ""
            table.add_row(
                Text(row.job.arm + again),
                str(row.job.seed),
                f"{row.step}/{row.steps}",
                number(row.loss),
                number(row.px),
                duration(now - row.since),
            )
        if (more := len(progress.running) - ROWS) > 0:
            table.add_row(Text(f"and {more} more", "dim"))
        parts.append(table)
    if progress.best:
        table = _table("best so far", "seed", "criteria", "loss", "px")
        for job, result, met in progress.best:
            loss, px = reading(result.metrics, "loss"), reading(result.metrics, "px_error")
            passed = f"{met} of {len(progress.criteria)}"
            table.add_row(Text(job.arm), str(job.seed), passed, number(loss), number(px))
        parts.append(table)
    return Group(*parts)


def oldest(progress: Progress) -> list[Running]:
    """The running jobs that are shown."""
    return heapq.nsmallest(ROWS, progress.running.values(), key=lambda row: row.since)


def tally(progress: Progress) -> str:
    width = len(str(len(progress.jobs)))
    return f"[{len(progress.results):{width}}/{len(progress.jobs)}]"


def time_left(progress: Progress, now: float | None = None) -> str:
    left = progress.seconds_left(time.monotonic() if now is None else now)
    return f"  (about {duration(left)} left)" if left is not None and progress.busy else ""


def _counts(progress: Progress, now: float) -> Text:
    text = Text()
    for state, style in STYLES.items():
        if (n := progress.count(state)) or state == "done":
            text.append(f"{n} {state}  ", style)
    text.append(f"{len(progress.running)} running")
    if progress.stopping:
        text.append("  stopping (Ctrl-C again: now)", "bold")
    elif (left := progress.seconds_left(now)) is not None:
        text.append(f"  {duration(left)} left")
    return text


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, min_width=20)
    for column in columns:
        table.add_column(column, justify="right")
    return table
