"""One attempt at one job: what keeps a worker from it, and what it hands back."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ablate import jobview, worker
from ablate.engines import Outcome, Task
from ablate.ledger import Ledger
from ablate.worker import OUTPUT, Worker, captured
from tests.ablate import toy_core
from tests.ablate.toys import CORE, run_toys, toy_job, toy_plan

FULL = OSError(errno.ENOSPC, "No space left on device")


def attempt(out: Path, *, capture: bool = False) -> tuple[Outcome, Path]:
    """A first attempt at the toy job in `out`, and the job's folder."""
    job = toy_job()
    folder = Ledger(out).create(job)
    worker = Worker(out, CORE, out / "cache", {}, {}, capture=capture)
    return worker(Task(job.id, 1, job.levels, job.seed), lambda: False), folder


def test_a_lock_that_cannot_be_had_is_trouble_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        outcome, _ = attempt(tmp_path)
    assert outcome.kind == "broken"
    assert "No locks available" in outcome.error
    assert attempt(tmp_path)[0].kind == "ended"


def test_output_that_cannot_be_kept_is_trouble_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = os.open, len(os.listdir("/dev/fd"))  # noqa: PTH208 - its files come and go

    def refuse(path: Any, *arguments: Any) -> int:
        if Path(path).name == OUTPUT:
            raise FULL
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        outcome, folder = attempt(tmp_path, capture=True)
    assert outcome == Outcome("broken", "OSError: [Errno 28] No space left on device")
    assert not (folder / "events.jsonl").exists()
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208 - no descriptor is left open
    with Ledger(tmp_path).job_lock(folder.name):
        pass


def test_a_full_disk_takes_what_a_job_prints_and_gives_stdout_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def flush(self) -> None:
            raise FULL

    with monkeypatch.context() as patch, captured(tmp_path / OUTPUT):
        patch.setattr(sys, "stderr", Full())
        os.write(1, b"captured\n")
    os.write(1, b"free again\n")
    assert (tmp_path / OUTPUT).read_text() == "captured\n"
    assert capfd.readouterr().out == "free again\n"


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (MemoryError(), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_no_memory_deserves_another_attempt_and_a_mistake_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, passing: bool
) -> None:
    class Fails:
        def train(self, *_: Any, **__: Any) -> None:
            raise error

    monkeypatch.setattr("ablate.worker.load_core", lambda name: Fails())
    outcome, folder = attempt(tmp_path)
    result = Ledger(tmp_path).result(folder.name)
    assert outcome.kind == ("broken" if passing else "ended")
    assert (result is None) == passing
    if result is not None:
        assert result.state == "failed"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (None, "train returned None, must be readings"),
        (0.3, "train returned float, must be readings"),
        ({"final/loss": "low"}, "train returned 'final/loss': 'low', must be readings"),
        ({"final/loss": [0.1]}, "train returned 'final/loss': [0.1], must be readings"),
        ({3: 0.1}, "train returned 3: 0.1, must be readings"),
    ],
)
def test_what_is_no_reading_fails_the_job_at_once(
    end: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_core, "train", lambda *_, **__: end)
    worker.load_core.cache_clear()
    try:
        plan = toy_plan(1)
        summary = run_toys(tmp_path, plan)
    finally:
        worker.load_core.cache_clear()
    (result,) = summary.results.values()
    assert (result.state, result.attempts) == ("failed", 1)
    assert result.error is not None
    assert result.error.startswith(said)
    lines: list[str] = []
    jobview.logs(Ledger(tmp_path), plan.jobs[0].id, lines.append, follow=False)
    assert said in lines[-1]
