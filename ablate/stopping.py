"""Ctrl-C, SIGTERM and SIGHUP as a request: the first is polite, the second is not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """Set by the first Ctrl-C, SIGTERM or SIGHUP."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a flag, the second of them into KeyboardInterrupt."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
