"""Files that a kill or a power cut leaves whole: one rename, or one more line."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path


def write_atomic(
    path: Path, content: str | bytes, *, flush: bool = True, after: Path | None = None
) -> None:
    """Write so that `path` holds the old content or the new, whole, even after a power cut.

    A temporary neighbour is written and flushed to disk, renamed over `path`, and the folder
    flushed. On an error (disk full) `path` is as before and the OSError goes on. Without `flush`
    a kill still leaves the old or the new; a power cut may leave neither. What `after` holds is
    on disk before the new content has its name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, content.encode() if isinstance(content, str) else content)
            if flush:
                _sync_both(descriptor, after)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if flush:
        sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line in one write; a torn last line is closed first, so only it is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        torn = b""
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        _write_all(file.fileno(), torn + line.encode() + b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_both(descriptor: int, path: Path | None) -> None:
    """Flush two files at once: the disk then commits both in the time of one."""
    errors: list[OSError] = []

    def one(path: Path) -> None:
        try:
            sync(path)
        except FileNotFoundError:  # a job may end without an event
            return
        except OSError as error:
            errors.append(error)

    thread = None if path is None else threading.Thread(target=one, args=(path,))
    if thread is not None:
        thread.start()
    try:
        os.fsync(descriptor)
    finally:
        if thread is not None:
            thread.join()
    if errors:
        raise errors[0]


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
