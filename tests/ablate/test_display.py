"""What people see while a study runs, and the state behind it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ablate.display import (
    HEARTBEAT,
    ROWS,
    LiveDisplay,
    PlainDisplay,
    Screen,
    end_line,
    make_display,
    screen,
)
from ablate.nouns import Condition, Criterion, Job, Result, Workload
from ablate.progress import Progress, duration, effort
from tests.ablate.toys import toy_job

CRITERIA = (
    Criterion("loss", (Condition("final/loss", 0.1),)),
    Criterion("px_error", (Condition("final/px_error", 5.0),)),
)


def job(name: str, steps: int = 100, tokens: float = 250) -> Job:
    size = {"visual_tokens": tokens, "parameters": 1e6}
    return Job(name, f"arm {name}", {}, 0, {"optim.steps": steps}, size=size)


def result(name: str, state: str = "done", error: str | None = None, **metrics: float) -> Result:
    named = {f"final/{key}": value for key, value in metrics.items()}
    return Result(name, {}, 0, state, named, error)  # type: ignore[arg-type]


def progress(*jobs: Job, workers: int = 2) -> Progress:
    made = Progress(jobs, CRITERIA, workers)
    made.begin({}, [one.id for one in jobs])
    return made


def shown(display_of: Progress, now: float = 0.0, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(display_of, now))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_shows_running_best_and_counts() -> None:
    state = progress(job("a"), job("b"), job("c"), job("d"))
    for name in "abc":
        state.started(name, 1, 0.0)
    state.ended("a", result("a", loss=0.02, px_error=1.5), 60.0)
    state.ended("b", result("b", "failed", "its worker was killed by SIGKILL"), 60.0)
    state.events(
        "c", [{"step": 0}, {"step": 50, "metrics": {"train/loss": 0.5, "train/px_error": 9}}]
    )
    text = shown(state, now=60.0)
    assert "2/4" in text
    assert "1 done" in text
    assert "1 failed" in text
    assert "1 running" in text
    assert "50/100" in text
    assert "0.5" in text
    assert "2 of 2" in text
    assert "1:00 left" in text  # c: half way after 60 s; d: whole on the other worker


def test_time_left_from_jobs_of_like_shape() -> None:
    state = progress(job("a"), job("b"), job("c", tokens=4750), workers=1)
    assert state.seconds_left(0.0) is None
    state.started("a", 1, 0.0)
    state.ended("a", result("a"), 10.0)
    ratio = effort(job("c", tokens=4750)) / effort(job("b"))
    assert ratio == pytest.approx(7.0)
    assert state.seconds_left(10.0) == pytest.approx(10 + 70)
    state.started("b", 1, 10.0)
    assert state.seconds_left(14.0) == pytest.approx(6 + 70)
    state.stopping = True
    assert state.seconds_left(14.0) == pytest.approx(6)


def test_many_images_a_step_take_longer_than_one() -> None:
    batched = replace(job("a"), workload=Workload(images=8))
    assert effort(batched) == 8 * effort(job("b"))
    assert effort(batched) > effort(job("c", tokens=5250))  # it starts first


def test_a_resumed_job_is_timed_by_its_own_steps() -> None:
    state = progress(job("a"), workers=1)
    state.started("a", 1, 100.0)
    state.events("a", [{"event": "started"}, {"step": 80}, {"step": 90}])
    assert state.seconds_left(105.0) == pytest.approx(5.0)
    state.ended("a", result("a"), 110.0)  # its 10 s are not what a whole job takes
    assert state._seconds == {}


def test_best_by_criteria_then_px() -> None:
    state = progress(*(job(name) for name in "abcde"))
    for name, loss, px in [("a", 0.05, 9), ("b", 0.05, 3), ("c", 0.5, 1), ("d", 0.01, 2)]:
        state.ended(name, result(name, loss=loss, px_error=px), 1.0)
    state.ended("e", result("e", "diverged"), 1.0)
    assert [one.id for one, _, _ in state.best] == ["d", "b", "c"]
    assert [met for _, _, met in state.best] == [2, 2, 1]


def test_what_was_not_decoded_has_no_px_error() -> None:
    """The tokenizer's own error is a px error too, and not this one."""
    bad = Result("a", {}, 0, "done", {"final/loss": 5.0, "floor/px_error": 1.0})
    nan = Result("b", {}, 0, "done", {"final/loss": 4.0, "final/px_error": float("nan")})
    assert "px_error" not in end_line(job("a"), bad, 1.0)
    state = progress(job("a"), job("b"), job("c"))
    for one in (bad, nan, result("c", loss=6.0, px_error=100)):
        state.ended(one.job_id, one, 1.0)
    assert [one.id for one, _, _ in state.best] == ["c", "b", "a"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_for_a_pipe() -> None:
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    display = PlainDisplay(console, clock)
    state = progress(job("a"), job("b"))
    display.preparing(0, 2)
    display.preparing(2, 2)
    state.started("a", 1, 0.0)
    display.started(state, state.jobs["a"], 1)
    display.tick(state)
    clock.now = HEARTBEAT + 1
    display.tick(state)
    failure = result("a", "failed", "RuntimeError: [red]boom[/red] " + "long " * 20)
    state.ended("a", failure, clock.now)
    display.ended(state, state.jobs["a"], failure, clock.now)
    display.close()
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 5  # long ones are not folded, markup is not obeyed
    assert lines[2].startswith("[0/2] start     arm a")
    assert "1 running" in lines[3]
    assert "[red]boom[/red]" in lines[4]
    assert "ablate logs a" in lines[4]
    assert "\x1b" not in "".join(lines)


def test_terminal_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_display(Console(file=io.StringIO())), PlainDisplay)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_display(dumb), PlainDisplay)


def test_live_says_failures_above_the_screen_and_respects_no_color() -> None:
    file = io.StringIO()
    environment = {"TERM": "xterm", "NO_COLOR": "1"}
    console = Console(file=file, force_terminal=True, width=100, _environ=environment)
    display = make_display(console)
    assert isinstance(display, LiveDisplay)
    state = progress(job("a"), job("b"))
    display.preparing(1, 2)
    state.started("a", 1, 0.0)
    display.started(state, state.jobs["a"], 1)
    failure = result("a", "failed", "ValueError: no")
    state.ended("a", failure, 1.0)
    display.ended(state, state.jobs["a"], failure, 1.0)
    display.close()
    text = file.getvalue()
    assert "ValueError: no" in text
    assert "\x1b[31m" not in text
    assert "\x1b[1;31m" not in text


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_closed_pipe_stops_nothing() -> None:
    PlainDisplay(Screen(file=Broken())).say("hello")


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (41.4, "41 s"), (252, "4:12"), (7425, "2:03:45")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_core_that_counts_its_steps_otherwise_breaks_nothing() -> None:
    """Epochs from 1, more of them than the settings seem to say."""
    state = progress(job("a", steps=1), job("b", steps=1), workers=1)
    state.started("a", 1, 0.0)
    for step in range(1, 11):
        state.events("a", [{"step": step, "metrics": {"train/loss": 1.0}}])
        assert state.seconds_left(float(step)) is None
    state.ended("a", result("a"), 10.0)
    assert state.seconds_left(10.0) == pytest.approx(10.0)


def test_a_thousand_running_jobs_do_not_fill_the_screen() -> None:
    jobs = [toy_job(f"arm {i}", i) for i in range(1000)]
    progress = Progress(jobs, ())
    progress.begin({}, [job.id for job in jobs])
    for i, job in enumerate(jobs):
        progress.started(job.id, 1, 1000.0 - i)
    out = io.StringIO()
    Console(file=out, width=100).print(screen(progress, 1001.0))
    shown = out.getvalue()
    assert shown.count("arm ") == ROWS
    assert "arm 999" in shown  # the one that has run longest
    assert f"and {1000 - ROWS} more" in shown
