import errno
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from ablate import ledger as ledger_module
from ablate.files import write_atomic
from ablate.ledger import Ledger, LockHeld
from ablate.nouns import Job, Result, StudyError

JOB = Job("a1b2c3d4e5f6", "base", {"lr": "3e-4"}, 0, {"optim.lr": 3e-4, "seed": 0})
RESULT = Result(
    JOB.id, JOB.levels, JOB.seed, "done", {"final/loss": 0.25}, code={"core": "c"}, attempts=2
)
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "runs")
    made.prepare()
    made.create(JOB)
    return made


def result_path(ledger):
    return ledger.folder(JOB.id) / "result.json"


def events_path(ledger):
    return ledger.folder(JOB.id) / "events.jsonl"


def test_a_job_is_kept_and_read_back(ledger):
    assert ledger.result(JOB.id) is None
    ledger.write_result(RESULT)
    assert ledger.result(JOB.id) == RESULT
    assert ledger.settings(JOB.id) == JOB.settings
    assert sorted(path.name for path in ledger.folder(JOB.id).iterdir()) == [
        "config.json",
        "result.json",
    ]


def test_a_result_copied_into_another_out_counts_there(ledger, tmp_path):
    ledger.write_result(RESULT)
    other = Ledger(tmp_path / "other")
    other.folder(JOB.id).mkdir(parents=True)
    (other.folder(JOB.id) / "result.json").write_bytes(result_path(ledger).read_bytes())
    assert other.result(JOB.id) == RESULT


def test_numbers_that_are_not_finite_are_null_on_disk(ledger):
    metrics = {"final/loss": math.nan, "train/loss": math.inf, "final/px_error": 1.0}
    ledger.write_result(Result(JOB.id, {}, 0, "diverged", metrics, "diverged at step 3"))
    kept = json.loads(result_path(ledger).read_text(), parse_constant=pytest.fail)
    assert kept["metrics"]["final/loss"] is None
    read = ledger.result(JOB.id).metrics
    assert math.isnan(read["final/loss"])
    assert math.isnan(read["train/loss"])
    assert read["final/px_error"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "\xff\xfe",
        '{"job_id": "a1b2c3d4e5f6"}',
        "[" * 200_000,
        json.dumps({**vars(RESULT), "state": "ended"}),
        json.dumps({**vars(RESULT), "job_id": "another"}),
        json.dumps({**vars(RESULT), "metrics": {"final/loss": "low"}}),
        json.dumps({**vars(RESULT), "metrics": None}),
    ],
)
def test_a_damaged_result_is_absent_with_a_warning(ledger, text):
    result_path(ledger).write_text(text, encoding="latin-1")
    assert ledger.result(JOB.id) is None
    assert ledger.result(JOB.id) is None
    assert len(ledger.warnings) == 1
    assert "result.json: damaged, treated as absent" in ledger.warnings[0]
    assert "\n" not in ledger.warnings[0]


def test_a_result_of_a_later_version_is_read(ledger):
    result_path(ledger).write_text(json.dumps({**vars(RESULT), "new": 1}))
    assert ledger.result(JOB.id) == RESULT


def test_a_result_cut_at_any_byte_is_absent(ledger):
    ledger.write_result(RESULT)
    whole = result_path(ledger).read_bytes().rstrip()
    for end in range(len(whole)):
        result_path(ledger).write_bytes(whole[:end])
        assert ledger.result(JOB.id) is None


class DiskFull:
    """`os.write` that takes `room` bytes in all, at most `chunk` at once."""

    def __init__(self, room, chunk=7):
        self.room, self.chunk, self.write = room, chunk, os.write

    def __call__(self, descriptor, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(descriptor, bytes(data[: min(self.chunk, self.room)]))
        self.room -= written
        return written


def test_a_write_stopped_at_any_byte_leaves_the_old_result(ledger, monkeypatch):
    ledger.write_result(RESULT)
    size = result_path(ledger).stat().st_size
    new = Result(JOB.id, JOB.levels, JOB.seed, "done", {"final/loss": 0.125}, attempts=2)
    for room in range(size):
        with monkeypatch.context() as patch:
            patch.setattr(ledger_module.os, "write", DiskFull(room))
            try:
                ledger.write_result(new)
            except OSError:
                assert ledger.result(JOB.id) == RESULT
            else:
                assert ledger.result(JOB.id) == new
                break
        assert not list(ledger.folder(JOB.id).glob(".*.tmp"))
    else:
        pytest.fail("the shorter result must fit at last")


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_write_that_cannot_be_flushed_leaves_the_old_result(ledger, monkeypatch, call):
    ledger.write_result(RESULT)
    real = getattr(os, call)

    def fail(descriptor):
        if call == "close":
            real(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.os, call, fail)
        with pytest.raises(OSError, match="Input/output error"):
            write_atomic(result_path(ledger), "{}")
    assert ledger.result(JOB.id) == RESULT


def test_a_reader_of_the_old_result_reads_it_whole(ledger):
    ledger.write_result(RESULT)
    old = result_path(ledger).read_text()
    with result_path(ledger).open() as reader:
        ledger.write_result(Result(JOB.id, {}, 0, "failed", {}, "broke"))
        assert reader.read() == old


def test_a_result_is_on_disk_before_its_name_and_its_name_before_the_return(ledger, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor):
        calls.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def rename(path, target):
        calls.append("rename")
        return replace(path, target)

    ledger.append_event(JOB.id, {"step": 1})
    monkeypatch.setattr(ledger_module.os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    ledger.write_result(RESULT)
    temporary = f".result.json.{os.getpid()}.tmp"
    assert set(calls[:2]) == {"events.jsonl", temporary}  # side by side
    assert calls[2:] == ["rename", JOB.id]


def write_forever(out, ready):
    ledger = Ledger(Path(out))
    ready.set()
    for count in range(10**9):
        metrics = {f"final/reading{i}": float(count) for i in range(300)}
        ledger.append_event(JOB.id, {"step": count, "metrics": metrics})
        ledger.write_result(Result(JOB.id, {}, 0, "done", metrics))


def test_kill_while_a_result_is_written(ledger):
    for delay in (0.0, 0.003, 0.011, 0.024, 0.037, 0.052):
        ready = spawn.Event()
        process = spawn.Process(target=write_forever, args=(ledger.out, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        time.sleep(delay)
        process.kill()
        process.join()
        result = ledger.result(JOB.id)
        assert ledger.warnings == []
        if result is not None:
            assert len(set(result.metrics.values())) == 1
        ledger.append_event(JOB.id, {"after": delay})
        events = list(ledger.events(JOB.id))
        assert events[-1] == {"after": delay}
        assert all("after" in event or len(event["metrics"]) == 300 for event in events)
    assert result is not None
    ledger.create(JOB)
    assert not list(ledger.folder(JOB.id).glob(".*.tmp"))


def test_events_are_read_on_from_an_offset(ledger):
    assert ledger.read_events(JOB.id) == ([], 0)
    ledger.append_event(JOB.id, {"step": 1, "metrics": {"train/loss": math.inf}})
    events, offset = ledger.read_events(JOB.id)
    assert events == [{"step": 1, "metrics": {"train/loss": None}}]
    ledger.append_event(JOB.id, {"step": 2})
    assert ledger.read_events(JOB.id, offset)[0] == [{"step": 2}]


def test_a_torn_last_line_is_skipped_and_closed_by_the_next_writer(ledger):
    ledger.append_event(JOB.id, {"step": 1})
    whole = events_path(ledger).read_bytes()
    line = json.dumps({"step": 2, "metrics": {"train/loss": 0.5}}).encode() + b"\n"
    for end in range(1, len(line)):
        events_path(ledger).write_bytes(whole + line[:end])
        events, offset = ledger.read_events(JOB.id)
        assert events == [{"step": 1}]
        assert offset == len(whole)
        ledger.append_event(JOB.id, {"step": 3})
        after = [event["step"] for event in ledger.events(JOB.id)]
        assert after in ([1, 3], [1, 2, 3])  # the line may be whole but for its end
    events_path(ledger).write_bytes(b"\xff\xfe\n[1]\nnull\n" + whole)
    assert list(ledger.events(JOB.id)) == [{"step": 1}]


def test_a_result_can_be_forgotten(ledger):
    ledger.remove_result(JOB.id)
    ledger.write_result(RESULT)
    ledger.remove_result(JOB.id)
    assert ledger.result(JOB.id) is None


def test_create_keeps_what_is_there_and_renews_the_config(ledger):
    ledger.write_result(RESULT)
    (ledger.folder(JOB.id) / ".result.json.99.tmp").write_text("half")
    ledger.create(Job(JOB.id, "base", {}, 0, {"optim.lr": 3e-4, "runtime.device": "cuda"}))
    assert ledger.settings(JOB.id)["runtime.device"] == "cuda"
    assert ledger.result(JOB.id) == RESULT
    assert not (ledger.folder(JOB.id) / ".result.json.99.tmp").exists()


def test_a_job_that_is_not_there(ledger):
    with pytest.raises(StudyError, match="job 'nope': not in"):
        ledger.settings("nope")
    assert ledger.result("nope") is None
    assert list(ledger.events("nope")) == []
    (ledger.folder(JOB.id) / "config.json").write_text("{")
    with pytest.raises(StudyError, match=r"config\.json: cannot be read"):
        ledger.settings(JOB.id)


def hold(out, ready, job):
    ledger = Ledger(Path(out))
    with ledger.job_lock(JOB.id) if job else ledger.lock():
        ready.set()
        time.sleep(600)


@pytest.mark.parametrize("job", [False, True])
def test_a_second_holder_is_told_who_holds_and_a_dead_one_holds_nothing(ledger, job):
    ready = spawn.Event()
    process = spawn.Process(target=hold, args=(ledger.out, ready, job), daemon=True)
    process.start()
    assert ready.wait(60)

    def lock():
        return ledger.job_lock(JOB.id) if job else ledger.lock()

    with pytest.raises(LockHeld, match=rf"held by host \S+, pid {process.pid};") as caught, lock():
        pass
    assert "\n" not in str(caught.value)
    process.kill()
    process.join()
    with lock():  # the file still names the dead one
        pass
    with lock():
        pass


def test_the_lock_is_freed_by_an_error(ledger):
    with pytest.raises(KeyError), ledger.lock():
        raise KeyError
    with ledger.lock():
        pass


def test_an_out_that_takes_no_files(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"--out .*/file/runs: cannot be written \(Not a dir"):
        Ledger(tmp_path / "file" / "runs").prepare()

    def refuse(self, data):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with (
        pytest.raises(StudyError, match=r"cannot be written \(Permission denied\)") as caught,
        Ledger(tmp_path / "runs").lock(),
    ):
        pass
    assert "\n" not in str(caught.value)


def unreadable(monkeypatch, name):
    """Have a file of that name refuse to be read, as a network's file system does at times."""
    real_open, real_read = Path.open, Path.read_bytes

    def refuse(path):
        if path.name == name:
            raise OSError(errno.ESTALE, "Stale file handle")

    def open_(self, *arguments, **options):
        refuse(self)
        return real_open(self, *arguments, **options)

    def read_bytes(self):
        refuse(self)
        return real_read(self)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_events_that_cannot_be_read_just_now_are_read_the_next_time(ledger, monkeypatch):
    ledger.append_event(JOB.id, {"step": 1})
    _, offset = ledger.read_events(JOB.id)
    ledger.append_event(JOB.id, {"step": 2})
    with monkeypatch.context() as patch:
        unreadable(patch, "events.jsonl")
        assert ledger.read_events(JOB.id, offset) == ([], offset)
        with pytest.raises(OSError, match="Stale"):
            list(ledger.events(JOB.id))
    assert ledger.read_events(JOB.id, offset)[0] == [{"step": 2}]


def half_trained(ledger):
    ledger.append_event(JOB.id, {"event": "started", "core": "today"})
    (ledger.folder(JOB.id) / "checkpoint.pt").write_bytes(b"weights")
    (ledger.folder(JOB.id) / "pictures").mkdir()
    return ledger.folder(JOB.id)


def test_a_job_begins_where_the_same_code_left_it(ledger):
    folder = half_trained(ledger)
    ledger.write_result(RESULT)
    ledger.begin(JOB, "today")
    assert ledger.result(JOB.id) is None
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "events.jsonl",
        "pictures",
    ]


def test_a_job_begins_anew_under_other_code_while_its_lock_is_held(ledger):
    """The lock's file stays: one made anew could be held beside the old one."""
    folder = half_trained(ledger)
    with ledger.job_lock(JOB.id):
        ledger.begin(JOB, "tomorrow")
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock"]
        with pytest.raises(LockHeld), Ledger(ledger.out).job_lock(JOB.id):
            pass


def test_a_job_whose_events_cannot_be_read_loses_no_checkpoint(ledger, monkeypatch):
    folder = half_trained(ledger)
    with monkeypatch.context() as patch:
        unreadable(patch, "events.jsonl")
        with pytest.raises(OSError, match="Stale"):
            ledger.begin(JOB, "today")
    assert (folder / "checkpoint.pt").read_bytes() == b"weights"


def test_a_forgotten_result_stays_forgotten_after_a_power_cut(ledger, monkeypatch):
    flushed, fsync = [], os.fsync

    def flush(descriptor):
        flushed.append(
            (Path(f"/proc/self/fd/{descriptor}").resolve(), result_path(ledger).exists())
        )
        fsync(descriptor)

    ledger.write_result(RESULT)
    monkeypatch.setattr(os, "fsync", flush)
    ledger.remove_result(JOB.id)
    assert flushed == [(ledger.folder(JOB.id), False)]


def test_a_lock_holds_on_a_full_disk(ledger, monkeypatch):
    real = Path.open

    class Full:
        """A file whose disk is full."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full(real(path, *a, **k)))
    with (
        ledger.job_lock(JOB.id),
        pytest.raises(LockHeld, match="held by another process"),
        ledger.job_lock(JOB.id),
    ):
        pass
    with ledger.job_lock(JOB.id):
        pass
