"""How a run ends when it does not end well, and who is told how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Log(Protocol):
    """Receives readings while a job trains; `event` is a line for people."""

    def __call__(
        self, step: int, metrics: Mapping[str, float], event: str | None = None
    ) -> None: ...


@runtime_checkable
class Enough(Protocol):
    """Whether a run may end where it is, by its readings under their final/ names.

    Without `whole` they are those of an evaluation: what is not among them is not known yet.
    """

    def __call__(self, metrics: Mapping[str, float], *, whole: bool) -> bool: ...


class Diverged(RuntimeError):  # noqa: N818 - an outcome, not a mistake
    """The objective is not finite or grew without end; `metrics` are the last finite readings."""

    def __init__(self, step: int, metrics: Mapping[str, float], reason: str = "") -> None:
        super().__init__(f"diverged at step {step}{reason and ': '}{reason}")
        self.step, self.metrics, self.reason = step, dict(metrics), reason

    def __reduce__(self) -> tuple[type[Diverged], tuple[object, ...]]:
        """Keep what pickle would lose on the way out of a worker."""
        return type(self), (self.step, self.metrics, self.reason)


class Interrupted(RuntimeError):  # noqa: N818 - an outcome, not a mistake
    """`stop()` said so; a checkpoint holds the run."""
