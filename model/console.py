"""What `python -m model` reads and says: settings, one-line errors, a progress line, tables."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


class RequestError(ValueError):
    """The request was wrong: one line."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest option there is."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        given = next((word for word in message.split() if word.startswith("-")), "")
        near = difflib.get_close_matches(given.split("=")[0], self._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != given else ""
        raise RequestError(f"{self.prog}: {message}{hint} (see {self.prog} --help)")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object of settings.

    Raises:
        RequestError: no such file, not JSON, not an object.
    """
    try:
        settings = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}; give a JSON file of settings") from None
    except ValueError as error:
        raise RequestError(f"{path}: not JSON ({error})") from None
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise RequestError(f"{path}: given a {kind}, must be an object of settings by dotted path")
    return settings


def read_sets(given: Sequence[str]) -> dict[str, Any]:
    """Read `path=value` pairs; a value that is no JSON is the word itself.

    Raises:
        RequestError: no path, or one given twice.
    """
    settings: dict[str, Any] = {}
    for pair in given:
        path, equals, value = pair.partition("=")
        if not path or not equals:
            raise RequestError(f"--set: given {pair!r}, must be path=value (null for none)")
        if path in settings:
            raise RequestError(f"--set: {path} is given twice")
        try:
            settings[path] = json.loads(value)
        except ValueError:
            settings[path] = value
    return settings


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def close_torn_line(path: Path) -> None:
    """End a last line that a killed writer left half written, so that it takes no other with it."""
    with path.open("ab+") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Make readings fit for JSON, which knows no NaN: null stands for it."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def table(metrics: Mapping[str, float | None]) -> str:
    """Lay readings out, one a line, sorted by name."""
    width = max(map(len, metrics), default=0)
    return "".join(f"{name:{width}}  {_number(metrics[name])}\n" for name in sorted(metrics))


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.6g}"


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that `train` asks; the second ends it at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class Display:
    """One line that tells how far a run is: rewritten on a terminal, now and then on a pipe."""

    PATIENCE = 10.0
    """seconds between two lines on a pipe"""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.live = sys.stdout.isatty()
        self.began: tuple[int, float] | None = None
        self.seen: dict[str, float] = {}
        self.wrote = -math.inf

    def __call__(self, step: int, metrics: Mapping[str, float], event: str | None) -> None:
        """Take what the run logs."""
        self.seen.update(metrics)
        if event:
            self._write(f"step {step}: {event}", whole=True)
        elif "train/loss" in metrics and "final/loss" not in metrics:
            now = time.monotonic()
            self.began = self.began or (step, now)
            if self.live or now - self.wrote >= self.PATIENCE or step == self.steps:
                self.wrote = now
                self._write(self._line(step, now), whole=not self.live)

    def _line(self, step: int, now: float) -> str:
        parts = [f"step {step}/{self.steps}", f"loss {self.seen['train/loss']:.4f}"]
        known = [split for split in ("train", "val") if f"{split}/px_error" in self.seen]
        parts += [f"{split} px {self.seen[f'{split}/px_error']:.1f}" for split in known]
        first, since = self.began or (step, now)
        if step > first and now > since:
            speed = (step - first) / (now - since)
            left = round((self.steps - step) / speed)
            parts.append(f"{speed:.1f} steps/s, {left // 60}:{left % 60:02} left")
        return "  ".join(parts)

    def end(self) -> None:
        """Leave the live line."""
        if self.live and self.began:
            self._write("", whole=True)

    def _write(self, line: str, *, whole: bool) -> None:
        start = "\r\x1b[K" if self.live and line else ""
        sys.stdout.write(f"{start}{line}" + "\n" * whole)
        sys.stdout.flush()
