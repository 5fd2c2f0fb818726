"""One folder a job under OUT, shared by all studies there: the only truth about what has run.

    OUT/jobs/<job_id>/{config.json, events.jsonl, checkpoint.*, result.json, pictures/}
    OUT/<study>/{study.yaml, ranking.json, report.html}
    OUT/lock

A result is there whole or not at all (`ablate.files`). Events are appended, so a killed writer
leaves at most one torn line, which readers skip and the next writer closes. Locks are `flock`s:
the kernel frees them when their holder dies, whatever the file still says.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from ablate.files import append_line, sync, write_atomic
from ablate.finite import finite
from ablate.nouns import Job, Result, State, Study, StudyError


class LockHeld(StudyError):  # noqa: N818 - a state of the world, not a mistake
    """Another process holds the lock: one line with its host and pid."""


class Ledger:
    """Reads and writes the job folders of one OUT.

    `warnings` collects what was found damaged and treated as absent, one line each.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out).absolute()
        self.jobs = self.out / "jobs"
        self.warnings: list[str] = []

    def prepare(self) -> None:
        """Make OUT and see that it takes files.

        Raises:
            StudyError: one line, when it cannot be made or written.
        """
        probe = self.jobs / f".probe.{os.getpid()}"
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StudyError(
                f"--out {self.out}: cannot be written ({_reason(error)}); give a folder you may "
                "write to"
            ) from None

    def folder(self, job_id: str) -> Path:
        return self.jobs / job_id

    def study_folder(self, name: str) -> Path:
        return self.out / name

    def create(self, job: Job) -> Path:
        """Make the job's folder with its config.json; leave all else in it as it is."""
        folder = self.folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        text = json.dumps(job.settings, indent=1, sort_keys=True) + "\n"
        path = folder / "config.json"
        if not path.exists() or path.read_bytes() != text.encode():
            write_atomic(path, text, flush=False)  # every run makes those again that were lost
        return folder

    def begin(self, job: Job, core: str) -> None:
        """Make the folder of a job that starts; what other core code left in it goes.

        Args:
            job: about to have its first attempt.
            core: hash of the core's sources; a half-trained job of the same sources goes on.
        """
        folder = self.create(job)
        self.remove_result(job.id)
        starts = [e for e in self.events(job.id) if e.get("event") == "started"]
        if starts and starts[-1].get("core") == core:
            return
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("config.json", "lock"):
                path.unlink(missing_ok=True)

    def mend(self, job: Job) -> None:
        """Make an ended job's config.json again, if a power cut took it or left it empty."""
        path = self.folder(job.id) / "config.json"
        if not path.exists() or path.stat().st_size == 0:
            with suppress(OSError):
                self.create(job)

    def settings(self, job_id: str) -> dict[str, Any]:
        """What config.json holds.

        Raises:
            StudyError: no such job here, or its config.json is damaged.
        """
        path = self.folder(job_id) / "config.json"
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise StudyError(f"job {job_id!r}: not in {self.jobs}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise StudyError(f"{path}: cannot be read ({_reason(error)})") from None
        if not isinstance(value, dict):
            raise StudyError(f"{path}: given {type(value).__name__}, must be a mapping of settings")
        return value

    def result(self, job_id: str) -> Result | None:
        """The job's result, or None: not ended, or damaged (then `warnings` says so)."""
        path = self.folder(job_id) / "result.json"
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return self._damaged(path, _reason(error))
        try:
            return _result_from(json.loads(text), job_id)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return self._damaged(path, f"{type(error).__name__}: {error}")

    def holds_result(self, job_id: str) -> bool:
        """Whether a result lies there, readable or not."""
        try:
            (self.folder(job_id) / "result.json").lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # it may
            return True
        return True

    def accepted(self, job_id: str, study: Study) -> Result | None:
        """The job's result where the study takes it for its own; else the job has not ended."""
        result = self.result(job_id)
        return result if result is not None and study.accepts(result) else None

    def write_result(self, result: Result) -> None:
        """Keep a job's end, durably: its events first, then the result in one rename."""
        folder = self.folder(result.job_id)
        folder.mkdir(parents=True, exist_ok=True)
        value = dataclasses.asdict(result)
        value["metrics"] = finite(value["metrics"])
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / "result.json", text, after=folder / "events.jsonl")

    def remove_result(self, job_id: str) -> None:
        """Forget how a job ended, so that it runs again (a retry, or newer core code)."""
        folder = self.folder(job_id)
        with suppress(FileNotFoundError):
            (folder / "result.json").unlink()
            sync(folder)

    def append_event(self, job_id: str, event: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite are kept as null."""
        append_line(self.folder(job_id) / "events.jsonl", json.dumps(finite(event)))

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """All whole events, in order. A resumed job repeats the steps after its checkpoint.

        Raises:
            OSError: they are there but cannot be read (a network's file system, at times).
        """
        yield from self._read_events(job_id, 0)[0]

    def read_events(self, job_id: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole events from a byte offset on, and the offset to go on from.

        What cannot be read just now is left for the next time.
        """
        try:
            return self._read_events(job_id, offset)
        except OSError:
            return [], offset

    def _read_events(self, job_id: str, offset: int) -> tuple[list[dict[str, Any]], int]:
        try:
            with (self.folder(job_id) / "events.jsonl").open("rb") as file:
                file.seek(offset)
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return [], offset
        end = data.rfind(b"\n") + 1
        events = []
        for line in data[:end].splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # torn by a kill, closed by the next writer
                continue
            if isinstance(event, dict):
                events.append(event)
        return events, offset + end

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold OUT as its one coordinator.

        Raises:
            LockHeld: another coordinator is at work here.
        """
        self.prepare()
        with _flock(self.out / "lock", f"--out {self.out}", "wait for it, or give another --out"):
            yield

    @contextmanager
    def job_lock(self, job_id: str) -> Iterator[None]:
        """Hold one job as its one worker (a worker may outlive its coordinator for a moment).

        Raises:
            LockHeld: another worker trains this job.
        """
        with _flock(self.folder(job_id) / "lock", f"job {job_id}", "it is training there"):
            yield

    def _damaged(self, path: Path, reason: str) -> None:
        line = " ".join(f"{path}: damaged, treated as absent ({reason})".split())
        if line not in self.warnings:
            self.warnings.append(line)


@contextmanager
def _flock(path: Path, what: str, advice: str) -> Iterator[None]:
    """Hold `path`; its text names the holder for the one who comes second."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise StudyError(f"{path}: cannot be locked ({_reason(error)})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = " ".join(file.read(200).decode(errors="replace").split()) or "another process"
            raise LockHeld(f"{what}: held by {holder}; {advice}") from None
        except OSError as error:
            raise StudyError(f"{path}: cannot be locked ({_reason(error)})") from None
        with suppress(OSError):  # a full disk: the lock holds without its holder's name
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)


def _result_from(value: dict[str, Any], job_id: str) -> Result:
    known = {field.name for field in dataclasses.fields(Result)}
    result = Result(**{key: inner for key, inner in value.items() if key in known})
    if result.job_id != job_id:
        raise ValueError(f"it is of job {result.job_id!r}")
    if result.state not in get_args(State):
        raise ValueError(f"unknown state {result.state!r}")
    # what was not finite is kept as null (`ablate.finite`)
    metrics = {name: math.nan if v is None else float(v) for name, v in result.metrics.items()}
    return dataclasses.replace(result, metrics=metrics)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
