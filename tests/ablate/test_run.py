"""The coordinator with the toy core: what runs, what is skipped, what a failure leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.engines import Outcome, Task
from ablate.ledger import Ledger, LockHeld
from ablate.nouns import Job, Plan, Result
from ablate.progress import Progress
from ablate.scribe import Scribe
from ablate.worker import OUTPUT, Worker
from tests.ablate.toys import CORE, Heard, numbers, run_toys, starts, toy_job, toy_plan, toy_study


def test_runs_every_job_once_and_then_nothing(tmp_path: Path) -> None:
    plan, heard = toy_plan(4), Heard()
    summary = run_toys(tmp_path, plan, heard=heard)
    assert summary.count("done") == 4
    assert summary.missing == ()
    assert sorted(summary.trained) == sorted(job.id for job in plan.jobs)
    assert heard.ends == [(job_id, "done") for job_id in heard.starts]
    before = numbers(tmp_path, plan.jobs)
    again = run_toys(tmp_path, plan)
    assert again.trained == ()
    assert again.count("done") == 4
    assert numbers(tmp_path, plan.jobs) == before


def test_a_result_says_code_and_environment(tmp_path: Path) -> None:
    job = toy_job()
    run_toys(tmp_path, Plan([job]))
    kept = json.loads((tmp_path / "jobs" / job.id / "result.json").read_text())
    assert kept["levels"] == {"arm": "base"}
    assert kept["attempts"] == 1
    assert kept["code"]["core"]
    assert {"python", "torch", "platform", "cpu"} <= set(kept["environment"])


def test_pool_and_inline_agree(tmp_path: Path) -> None:
    plan = toy_plan(6)
    run_toys(tmp_path / "one", plan)
    run_toys(tmp_path / "two", plan, engine="pool", workers=2)
    assert numbers(tmp_path / "one", plan.jobs) == numbers(tmp_path / "two", plan.jobs)


def test_a_changed_plan_adds_jobs_and_leaves_the_others(tmp_path: Path) -> None:
    run_toys(tmp_path, toy_plan(2))
    plan = toy_plan(4)
    summary = run_toys(tmp_path, plan)
    assert sorted(summary.trained) == sorted(job.id for job in plan.jobs[2:])


def test_longest_first(tmp_path: Path) -> None:
    jobs = [toy_job(f"steps={n}", steps=n) for n in (5, 40, 20)]
    heard = Heard()
    run_toys(tmp_path, Plan(jobs), heard=heard)
    assert heard.starts == [jobs[1].id, jobs[2].id, jobs[0].id]


def failing() -> Any:
    return toy_job("wrong", noise=None)  # the core misses a setting: an error that stays


def test_an_exception_fails_its_job_with_a_traceback(tmp_path: Path) -> None:
    bad, good = failing(), toy_job("good", steps=5)
    heard = Heard()
    summary = run_toys(tmp_path, Plan([bad, good]), heard=heard)
    assert dict(heard.ends) == {bad.id: "failed", good.id: "done"}
    result = summary.results[bad.id]
    assert result.error == "KeyError: 'noise'"
    assert "toy_core" in (result.traceback or "")
    assert starts(tmp_path, bad) == 1  # the same error would come again: no second attempt


def test_failed_jobs_run_again_only_on_demand(tmp_path: Path) -> None:
    plan = Plan([failing(), toy_job("good")])
    assert len(run_toys(tmp_path, plan).trained) == 2
    assert run_toys(tmp_path, plan).trained == ()
    assert run_toys(tmp_path, plan).count("failed") == 1
    assert run_toys(tmp_path, plan, retry_failed=True).trained == (plan.jobs[0].id,)


def test_diverged_is_an_end_that_is_not_tried_again(tmp_path: Path) -> None:
    job = toy_job(fault="diverge")
    summary = run_toys(tmp_path, Plan([job]))
    assert summary.results[job.id].state == "diverged"
    assert starts(tmp_path, job) == 1
    assert run_toys(tmp_path, Plan([job]), retry_failed=True).trained == ()


@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_passing_trouble_is_retried_from_the_checkpoint(tmp_path: Path, fault: str) -> None:
    job, calm = toy_job(fault=fault, fault_times=1), toy_job()
    heard = Heard()
    summary = run_toys(tmp_path, Plan([job, calm]), engine="pool", workers=1, heard=heard)
    result = summary.results[job.id]
    assert result.state == "done"
    assert result.attempts == 2
    assert any("trying again" in line for line in heard.said)
    events = list(Ledger(tmp_path).events(job.id))
    second = max(i for i, event in enumerate(events) if event.get("event") == "started")
    assert min(e["step"] for e in events[second:] if "step" in e) == 10  # not from the beginning
    assert result.metrics["final/loss"] == summary.results[calm.id].metrics["final/loss"]


def test_trouble_that_does_not_pass_fails_with_its_reason(tmp_path: Path) -> None:
    job, good = toy_job(fault="exit"), toy_job("good")
    study = toy_study(attempts=3)
    summary = run_toys(tmp_path, Plan([job, good]), study=study, engine="pool", workers=1)
    assert summary.results[good.id].state == "done"
    result = summary.results[job.id]
    assert result.state == "failed"
    assert result.attempts == 3
    assert "status 9" in (result.error or "")


def test_a_hung_job_is_timed_out(tmp_path: Path) -> None:
    job, good = toy_job(fault="hang"), toy_job("good")
    study = toy_study(timeout=2.0)
    summary = run_toys(tmp_path, Plan([job, good]), study=study, engine="pool", workers=2)
    assert summary.results[good.id].state == "done"
    assert "within 2 s" in (summary.results[job.id].error or "")
    assert starts(tmp_path, job) == 1


def test_two_coordinators_are_one_too_many(tmp_path: Path) -> None:
    with Ledger(tmp_path).lock(), pytest.raises(LockHeld, match=str(os.getpid())):
        run_toys(tmp_path, toy_plan(1))


def test_torn_lines_and_a_damaged_result_are_survived(tmp_path: Path) -> None:
    plan = toy_plan(2)
    run_toys(tmp_path, plan)
    before = numbers(tmp_path, plan.jobs)
    folder = Ledger(tmp_path).folder(plan.jobs[0].id)
    (folder / "result.json").write_text('{"job_id": "')
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"step": 7, "metr')
    for path in folder.iterdir():
        if path.name not in ("config.json", "events.jsonl", "result.json"):
            path.unlink()  # the checkpoint: it trains again from the start
    heard = Heard()
    summary = run_toys(tmp_path, plan, heard=heard)
    assert summary.trained == (plan.jobs[0].id,)
    assert any("damaged" in line for line in heard.said)
    assert numbers(tmp_path, plan.jobs) == before


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_a_config_that_a_power_cut_took_is_made_again(tmp_path: Path, lost: str) -> None:
    """It is not flushed by itself; the result of its job is."""
    plan = toy_plan(2)
    run_toys(tmp_path, plan)
    path = Ledger(tmp_path).folder(plan.jobs[0].id) / "config.json"
    before = path.read_text()
    path.write_text("")
    if lost == "gone":
        path.unlink()
    assert run_toys(tmp_path, plan).trained == ()
    assert path.read_text() == before


def test_rerun_trains_what_other_code_made(tmp_path: Path) -> None:
    plan = toy_plan(2)
    run_toys(tmp_path, plan)
    ledger = Ledger(tmp_path)
    old = ledger.result(plan.jobs[0].id)
    assert old is not None
    ledger.write_result(replace(old, code={"core": "older"}, metrics={"final/loss": 9.0}))
    ledger.append_event(old.job_id, {"event": "started", "core": "older"})
    assert run_toys(tmp_path, plan).trained == ()
    assert run_toys(tmp_path, plan, rerun=True).trained == (old.job_id,)
    result = ledger.result(old.job_id)
    assert result is not None
    assert result.metrics["final/loss"] < 9.0
    first = next(event["step"] for event in ledger.events(old.job_id) if "step" in event)
    assert first == 0  # the checkpoint of the older code is not gone on with


def interrupt(after: Callable[[], bool], number: int = signal.SIGINT) -> threading.Thread:
    """Send this process a signal once `after()` holds."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not after() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("engine", ["inline", "pool"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_checkpoints_and_a_later_run_goes_on(
    tmp_path: Path, engine: str, number: int
) -> None:
    plan, calm = toy_plan(4, step_seconds=0.01), toy_plan(4)
    path = tmp_path / "jobs" / plan.jobs[0].id / "events.jsonl"
    heard = Heard()
    thread = interrupt(lambda: path.exists() and path.read_bytes().count(b"\n") > 5, number)
    summary = run_toys(tmp_path, plan, engine=engine, workers=2, heard=heard)
    thread.join()
    assert summary.interrupted
    assert summary.missing
    assert summary.count("failed") == 0
    assert any("Ctrl-C again" in line for line in heard.said)
    assert any(
        event.get("event") == "interrupted" for event in Ledger(tmp_path).events(path.parent.name)
    )
    summary = run_toys(tmp_path, plan, engine=engine, workers=2)
    assert not summary.interrupted
    assert summary.missing == ()
    run_toys(tmp_path / "calm", calm)
    disturbed = [row["metrics"] for row in numbers(tmp_path, plan.jobs).values()]
    assert disturbed == [row["metrics"] for row in numbers(tmp_path / "calm", calm.jobs).values()]


def test_ctrl_c_twice_leaves_now(tmp_path: Path) -> None:
    job = toy_job(fault="hang", fault_step=1)
    path = tmp_path / "jobs" / job.id / "faults"
    heard = Heard()
    first = interrupt(path.exists)
    second = interrupt(lambda: any("again" in line for line in heard.said))
    with pytest.raises(KeyboardInterrupt):
        run_toys(tmp_path, Plan([job]), engine="pool", workers=1, heard=heard)
    first.join()
    second.join()
    assert Ledger(tmp_path).result(job.id) is None
    with Ledger(tmp_path).lock(), Ledger(tmp_path).job_lock(job.id):
        pass  # nobody holds anything


class Notebook:
    """A recorder that keeps what it is told, or breaks at a word."""

    def __init__(self, breaks_at: str = "") -> None:
        self.told: list[str] = []
        self._breaks_at = breaks_at

    def __getattr__(self, what: str) -> Callable[..., None]:
        def tell(*arguments: Any) -> None:
            if what == self._breaks_at:
                raise ConnectionError("no such server")
            self.told.append(what)

        return tell


def test_the_record_is_told_everything_in_order(tmp_path: Path) -> None:
    notebook = Notebook()
    run_toys(tmp_path, toy_plan(2), make_recorder=lambda: notebook)
    assert notebook.told[0] == "start"
    assert notebook.told[-1] == "close"
    assert notebook.told.count("job_started") == notebook.told.count("job_finished") == 2
    assert "job_events" in notebook.told


def test_the_record_starts_before_it_is_told_of_what_ended_early() -> None:
    notebook: Any = Notebook()
    scribe = Scribe(lambda: notebook, lambda text, style: None)
    job, result = toy_job(), Result("a", {}, 0, "pruned", {})
    scribe.tell(lambda record: record.job_finished(job, result, Path()))  # before any worker
    scribe.begin(toy_plan(1))
    scribe.finish(lambda: False)
    assert notebook.told == ["start", "job_finished", "close"]


@pytest.mark.parametrize("moment", ["start", "job_events", "job_finished", "close"])
def test_trouble_with_the_record_stops_no_training(tmp_path: Path, moment: str) -> None:
    heard = Heard()
    summary = run_toys(tmp_path, toy_plan(3), make_recorder=lambda: Notebook(moment), heard=heard)
    assert summary.count("done") == 3
    told = [line for line in heard.said if "no such server" in line]
    assert len(told) == 1
    assert "ablate record" in told[0]


def test_a_full_disk_fails_no_job_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that cannot be written leave their jobs missing, to be run later."""
    plan, heard = toy_plan(2), Heard()

    def full(self: Ledger, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write_result", full)
        summary = run_toys(tmp_path, plan, heard=heard)
    assert len(summary.missing) == 2
    assert sum("No space left" in line and "cannot be written" in line for line in heard.said) == 2
    assert run_toys(tmp_path, plan).count("done") == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_result_that_cannot_be_read_just_now_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    job, heard = toy_job(), Heard()
    study, read, path = toy_study(attempts=attempts), Path.read_bytes, "result.json"

    def refuse(self: Path) -> bytes:
        if self.name == path and self.exists():
            raise OSError(errno.EIO, "Input/output error")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        summary = run_toys(tmp_path, Plan([job]), study=study, heard=heard)
    assert summary.missing == (job.id,)
    assert any("its result cannot be read; a later run" in line for line in heard.said)
    again = run_toys(tmp_path, Plan([job]))
    assert again.trained == ()
    assert again.count("done") == 1


def test_a_result_under_a_worker_that_died_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its result's name on disk before its process dies; the disk answers later."""
    job = toy_job()
    train = Worker.__call__

    def die(self: Worker, *arguments: Any) -> Outcome:
        train(self, *arguments)
        return Outcome("died", "killed by SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__call__", die)
        patch.setattr(Ledger, "result", lambda *_: None)
        assert run_toys(tmp_path, Plan([job]), study=toy_study(attempts=1)).missing == (job.id,)
    assert run_toys(tmp_path, Plan([job])).count("done") == 1


def test_events_that_cannot_be_read_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refuse(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.name == "events.jsonl" and mode == "rb" and self.exists():
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert run_toys(tmp_path, toy_plan(2)).count("done") == 2


def test_events_wait_for_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, append, calls = toy_job(), Ledger.append_event, []

    def sometimes(self: Ledger, *arguments: Any) -> None:
        calls.append(1)
        if 3 < len(calls) < 9:
            raise OSError(28, "No space left on device")
        append(self, *arguments)

    monkeypatch.setattr(Ledger, "append_event", sometimes)
    assert run_toys(tmp_path, Plan([job])).count("done") == 1
    steps = [event["step"] for event in Ledger(tmp_path).events(job.id) if "step" in event]
    assert steps == list(range(41))


def test_what_a_job_prints_goes_into_its_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job, calm = toy_job(fault="raise"), toy_job("calm")
    run_toys(tmp_path, Plan([job, calm]), engine="pool", workers=1)
    ledger = Ledger(tmp_path)
    assert "broken as asked" in (ledger.folder(job.id) / OUTPUT).read_text()
    assert not (ledger.folder(calm.id) / OUTPUT).exists()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "broken as asked" not in captured.err


def test_a_result_that_came_meanwhile_is_not_trained_again(tmp_path: Path) -> None:
    """The worker of a killed coordinator may finish after the next one has made its plan."""
    job = toy_job()
    run_toys(tmp_path, Plan([job]))
    worker = Worker(tmp_path, CORE, tmp_path / "cache", {"core": "x"}, {}, capture=False)
    outcome = worker(Task(job.id, 1, job.levels, job.seed), lambda: False)
    assert outcome.kind == "ended"
    assert starts(tmp_path, job) == 1


@pytest.mark.parametrize("report", [True, False])
def test_the_study_of_an_answer_stays_until_there_is_another(tmp_path: Path, report: bool) -> None:
    """A run that is stopped or killed leaves report and ranking as they were."""
    folder = Ledger(tmp_path).study_folder(toy_study().name)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text("as answered")
    if report:
        (folder / "report.html").write_text("")
    run_toys(tmp_path, Plan([toy_job()]))  # concludes nothing
    assert ((folder / "study.yaml").read_text() == "as answered") == report


def test_a_locked_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.worker.PATIENCE", 0.2)
    job, ledger = toy_job(), Ledger(tmp_path)
    ledger.create(job)
    worker = Worker(tmp_path, CORE, tmp_path / "cache", {}, {}, capture=False)
    task = Task(job.id, 1, job.levels, job.seed)
    with ledger.job_lock(job.id):
        outcome = worker(task, lambda: False)
    assert outcome.kind == "busy"
    assert "held by" in outcome.error
    assert worker(task, lambda: False).kind == "ended"


def test_a_job_that_another_goes_on_training_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a study that was left to Slurm is run again here: its tasks hold their jobs."""
    monkeypatch.setattr("ablate.worker.PATIENCE", 0.2)
    job, ledger = toy_job(), Ledger(tmp_path)
    ledger.create(job)
    with ledger.job_lock(job.id):
        summary = run_toys(tmp_path, Plan([job]))
    assert (summary.missing, ledger.result(job.id)) == ((job.id,), None)


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back a day, on a year: what waits and times out goes by the monotonic clock."""
    plan, real = toy_plan(2), time.time
    jumps = iter(range(10_000))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + (-86_400, 31_536_000)[next(jumps) % 2])
        study = toy_study(timeout=30.0)
        assert run_toys(tmp_path / "jumps", plan, study=study).count("done") == 2
        assert run_toys(tmp_path / "jumps", plan).trained == ()
    run_toys(tmp_path / "calm", plan)
    assert numbers(tmp_path / "jumps", plan.jobs) == numbers(tmp_path / "calm", plan.jobs)


def test_a_result_that_comes_from_elsewhere_meanwhile_is_taken(tmp_path: Path) -> None:
    plan = toy_plan(4)
    run_toys(tmp_path / "elsewhere", plan)
    last = plan.jobs[-1]

    class Delivers(Heard):
        """When the first job ends, the last one's result lies there: its worker had gone on."""

        def ended(self, progress: Progress, job: Job, result: Result, seconds: float) -> None:
            super().ended(progress, job, result, seconds)
            if len(self.ends) == 1:
                found = Ledger(tmp_path / "elsewhere").result(last.id)
                assert found is not None
                Ledger(tmp_path / "out").write_result(found)

    heard = Delivers()
    summary = run_toys(tmp_path / "out", plan, heard=heard)
    assert summary.count("done") == 4
    assert starts(tmp_path / "out", last) == 0
    assert (last.id, "done") in heard.ends
