"""A core that is a plain module, for a study that says `core: package.module`.

The module must have `SETTINGS` (every setting's path and neutral value, "seed" among them),
`train` and `criteria`. Any other function of `ablate.core.Core` that it defines is used; what it
leaves out has a plain default here.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ablate.core import CoreError, Member, Progress
from ablate.nouns import Cost, Criterion, Finding, Gate, Settings, StudyError, Workload
from ablate.progress import steps

REQUIRED = ("SETTINGS", "train", "criteria")


def load_module_core(name: str) -> ModuleCore:
    """The core of a module's dotted name, importable from the current folder or installed.

    Raises:
        StudyError: no such module, or it lacks a required part.
    """
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does
        sys.path.append(here)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever its code does
        raise StudyError(
            f"core: given {name!r}, cannot be imported ({_said(error)}); must be 'lanelm' or a "
            "module"
        ) from None
    if missing := [part for part in REQUIRED if not hasattr(module, part)]:
        raise StudyError(f"core: {name} lacks {', '.join(missing)}; see ablate/module_core.py")
    for part, right, kind in (
        ("SETTINGS", isinstance(module.SETTINGS, Mapping), "a mapping: setting to neutral value"),
        ("train", callable(module.train), "a function"),
        ("criteria", callable(module.criteria), "a function that returns Criterion objects"),
    ):
        if not right:
            given = getattr(module, part)
            raise StudyError(
                f"core: {name}.{part}: given {type(given).__name__}, must be {kind}; see "
                "ablate/module_core.py"
            )
    return ModuleCore(module)


def _said(error: BaseException) -> str:
    """What an error says, and at which line of which file it came up."""
    if isinstance(error, ModuleNotFoundError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} at {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<")]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if len(own) > 1 else ""
    return f"{type(error).__name__}: {error}{place}"


class ModuleCore:
    """`Core` from a module: its own functions first, defaults for the rest."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._neutral: dict[str, Any] = {"seed": 0, **module.SETTINGS}
        self.train: Callable[..., dict[str, float]] = module.train
        for part in dir(type(self)):
            if not part.startswith("_") and part != "criteria" and hasattr(module, part):
                setattr(self, part, getattr(module, part))

    numerics_version = 1
    preload: tuple[str, ...] = ()

    def build(self, settings: Settings) -> Any:
        """Known names with values of the neutral value's type, over the neutral values."""
        config = dict(self._neutral)
        for path, value in settings.items():
            if path not in config:
                near = difflib.get_close_matches(path, config, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(config)}"
                raise CoreError(f"unknown setting {path!r}; {hint}")
            kind = type(config[path])
            given = float(value) if kind is float and type(value) is int else value
            if config[path] is not None and type(given) is not kind:
                raise CoreError(f"{path}: given {value!r}, must be of type {kind.__name__}")
            config[path] = given
        return config

    def criteria(self) -> tuple[Criterion, ...]:
        """The module's own.

        Raises:
            StudyError: they are none; the line names its file.
        """
        own = self._module.criteria
        try:
            found = tuple(own())
        except Exception as error:  # noqa: BLE001 - whatever its code does
            raise StudyError(f"core: {self._module.__name__}.criteria: {_said(error)}") from None
        if wrong := [one for one in found if not isinstance(one, Criterion) or not one.conditions]:
            code = getattr(own, "__code__", None)
            place = f" at {code.co_filename}:{code.co_firstlineno}" if code else ""
            raise StudyError(
                f"core: {self._module.__name__}.criteria{place}: given {wrong[0]!r}, must be "
                'Criterion(NAME, (Condition("final/loss", 0.1),)) of ablate.nouns, each'
            )
        return found

    def settings(self, config: Any) -> dict[str, Any]:
        return dict(config)

    def identity(self, config: Any) -> dict[str, Any]:
        return {p: v for p, v in config.items() if p != "seed" and v != self._neutral[p]}

    def inputs(self, data: Sequence[str], checkpoint: str | None) -> dict[str, Any]:
        if data or checkpoint:
            option = "--data" if data else "--checkpoint"
            raise CoreError(f"{option}: the core {self._module.__name__} takes none")
        return {}

    def check(self, configs: Iterable[Any]) -> None:
        return None

    def fingerprints(self, config: Any, cache: Path) -> dict[str, str]:
        return {}

    def remarks(self, config: Any) -> tuple[str, ...]:
        return ()

    def describe(self, config: Any) -> dict[str, float]:
        return {}

    def workload(self, config: Any) -> Workload:
        return Workload((), steps(config))

    def probe(self, settings: Settings, cache: Path) -> Cost | None:
        return None

    def free_gpu_memory_mb(self) -> list[float]:
        return []

    def prepare(
        self, configs: Iterable[Any], cache: Path, progress: Progress | None = None
    ) -> list[Path] | None:
        return []

    def kinship(self, config: Any) -> str | None:
        return None

    def fused_by_default(self, config: Any) -> int:
        return 1

    def twinship(self, settings: Settings) -> str | None:
        return None

    def train_cohort(
        self, members: Sequence[Member], cache: Path
    ) -> Iterator[tuple[int, dict[str, float] | Exception]]:
        raise NotImplementedError(f"{self._module.__name__} trains each job alone")

    def gates(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Gate, ...]:
        return ()

    def diagnose(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Finding, ...]:
        return ()

    def source_hash(self) -> str:
        """Of the module's own file: what it imports is not in it (`numerics_version` is for that).

        A module whose numbers hang on others may define its own.
        """
        source = Path(str(self._module.__file__)).read_bytes()
        return hashlib.sha256(source).hexdigest()[:12]
