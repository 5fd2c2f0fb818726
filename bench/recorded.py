"""`ablate`, with what its MLflow thread took kept: `python -m bench.recorded FILE run STUDY ...`.

FILE gets, as JSON, the processor seconds of the thread that writes to MLflow (imports and the
making of the store included) and the wall seconds that the study waited for it at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ablate import run
from ablate.cli import program
from ablate.scribe import Scribe


class TimedScribe(Scribe):
    """A scribe that knows its seconds."""

    processor = 0.0
    waited = 0.0

    def _write(self) -> None:
        try:
            super()._write()
        finally:
            TimedScribe.processor = time.thread_time()

    def finish(self, stop_asked: Callable[[], bool]) -> None:
        begin = time.perf_counter()
        super().finish(stop_asked)
        TimedScribe.waited = time.perf_counter() - begin


def main() -> int:
    file = Path(sys.argv.pop(1))
    run.Scribe = TimedScribe  # the one that the coordinator makes
    try:
        return program()
    finally:
        seconds = {"processor": TimedScribe.processor, "waited": TimedScribe.waited}
        file.write_text(json.dumps(seconds))


if __name__ == "__main__":
    sys.exit(main())
