"""The seam: what the orchestrator asks of the thing being ablated.

It is LaneLM (`ablate.lanelm_core`), or what a study's `core: package.module` names
(`ablate.module_core`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ablate.nouns import Cost, Criterion, Finding, Gate, Settings, Workload

LANELM = "lanelm"
"""The core's name where a study says nothing else."""

Progress = Callable[[int, int], None]
"""Called with (done, of) while something long is prepared."""


class CoreError(ValueError):
    """A setting, data set or checkpoint that cannot be used: exactly one line."""


class Diverged(RuntimeError):  # noqa: N818 - an outcome, not a mistake
    """Training went to infinity; a reason, not a crash."""

    def __init__(self, step: int, metrics: Mapping[str, float], message: str = "") -> None:
        super().__init__(message or f"diverged at step {step}")
        self.step = step
        self.metrics = dict(metrics)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.metrics, str(self))


class Interrupted(RuntimeError):  # noqa: N818 - an outcome, not a mistake
    """`stop()` said so: the job has kept a checkpoint and is not finished."""


class Log(Protocol):
    """Receives readings while a job trains; `event` is a line for people (a new stage)."""

    def __call__(
        self, step: int, metrics: Mapping[str, float], event: str | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Member:
    """One job of several that train as one: what `Core.train` takes."""

    settings: Settings
    log: Log
    workdir: Path
    stop: Callable[[], bool] = lambda: False


class Enough(Protocol):
    """Whether a job may end where it is, by readings under their final names.

    Without `whole` they are those of an evaluation: what is not among them is not known yet. A job
    that ends early has the reading `final/step`.
    """

    def __call__(self, metrics: Mapping[str, float], *, whole: bool) -> bool: ...


class Core(Protocol):
    """The thing being ablated. A config is any object; the orchestrator only hands it back."""

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that are imported once, before worker processes are forked."""
        ...

    @property
    def numerics_version(self) -> int:
        """Raised by hand when the same settings give other numbers on purpose."""
        ...

    def build(self, settings: Settings) -> Any:
        """A config from dotted settings. Raises CoreError on any that is unknown or has no effect.

        "seed" is a setting of every core.
        """
        ...

    def settings(self, config: Any) -> dict[str, Any]:
        """All settings, flat, plain JSON values; `build` makes the same config of them."""
        ...

    def identity(self, config: Any) -> dict[str, Any]:
        """The settings that change numbers and are not neutral, flat, without the seed."""
        ...

    def inputs(self, data: Sequence[str], checkpoint: str | None) -> dict[str, Any]:
        """The settings that `--data` and `--checkpoint` stand for (absolute paths)."""
        ...

    def check(self, configs: Iterable[Any]) -> None:
        """Look at all data and weights before any training. Raises CoreError."""
        ...

    def fingerprints(self, config: Any, cache: Path) -> dict[str, str]:
        """Content hashes of what a job reads besides its settings, e.g. data and backbone."""
        ...

    def remarks(self, config: Any) -> tuple[str, ...]:
        """What the reader of a plan must know of its data, a line each: less than asked for."""
        ...

    def describe(self, config: Any) -> dict[str, float]:
        """Its size, e.g. visual_tokens and parameters."""
        ...

    def workload(self, config: Any) -> Workload:
        """What its time and memory hang on; without building or reading anything."""
        ...

    def probe(self, settings: Settings, cache: Path) -> Cost | None:
        """Time a few real steps and readings of a job; None: this core has no such probe.

        Called in a process of its own; what it computes for later jobs goes into `cache`.
        """
        ...

    def free_gpu_memory_mb(self) -> list[float]:
        """Free memory of each GPU that it could train on; empty: none."""
        ...

    def prepare(
        self, configs: Iterable[Any], cache: Path, progress: Progress | None = None
    ) -> list[Path] | None:
        """Compute what jobs share, once, into `cache`; the files and folders these jobs read there.

        None: it cannot tell, they may read all.
        """
        ...

    def train(
        self,
        settings: Settings,
        log: Log,
        workdir: Path,
        cache: Path,
        stop: Callable[[], bool] = lambda: False,
        enough: Enough | None = None,
    ) -> dict[str, float]:
        """Train one job, on from its checkpoint in `workdir` if there is one; its final metrics.

        Raises Diverged; Interrupted after `stop()`; anything else is a failure of this job alone.
        """
        ...

    def kinship(self, config: Any) -> str | None:
        """A name shared by jobs that can train as one model; None: this one trains alone."""
        ...

    def fused_by_default(self, config: Any) -> int:
        """How many jobs of this kind train as one where nothing else is said; 1: each alone."""
        ...

    def twinship(self, settings: Settings) -> str | None:
        """A name shared by jobs whose training is the same; None: this one's is its own.

        They differ in what is read of it alone, as in how lanes are decoded: trained once, each
        reads to the bit what it would have read alone.
        """
        ...

    def train_cohort(
        self, members: Sequence[Member], cache: Path
    ) -> Iterator[tuple[int, dict[str, float] | Exception]]:
        """Train jobs of one kinship or twinship as one; the place and end of each as it comes.

        An end is what `train` would have returned or raised.
        """
        ...

    def criteria(self) -> tuple[Criterion, ...]:
        """What success means where a study says nothing else."""
        ...

    def gates(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Gate, ...]:
        """Checks that qualify a result."""
        ...

    def diagnose(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Finding, ...]:
        """What the readings say about the cause."""
        ...

    def source_hash(self) -> str:
        """Hash of the code that makes the numbers."""
        ...


def load_core(name: str = LANELM) -> Core:
    """The core of that name: `lanelm`, or a module by its dotted path (`ablate.module_core`).

    Raises:
        StudyError: no such module, or one that lacks a part.
    """
    if name == LANELM:
        from ablate.lanelm_core import LaneLMCore

        return LaneLMCore()
    from ablate.module_core import load_module_core

    return load_module_core(name)
