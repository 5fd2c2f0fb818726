"""LaneLM as the orchestrator's core: only this file imports `model`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.core import CoreError, Diverged, Enough, Interrupted, Log, Member, Progress
from ablate.nouns import Condition, Cost, Criterion, Finding, Gate, Settings, Workload

FUSED_ON_GPU = 32
"""Jobs that train as one on a GPU, where a small model's step is bound by kernel launches: 12 times
fewer of them (counted, not timed)."""


def _ours(error: Exception) -> Exception:
    """Turn the core's outcomes into the seam's; other errors stay what they are."""
    from model.outcome import Diverged as Lost
    from model.outcome import Interrupted as Stopped

    if isinstance(error, Lost):
        return Diverged(error.step, error.metrics, str(error))
    return Interrupted(str(error)) if isinstance(error, Stopped) else error


class LaneLMCore:
    """`model`, imported where it is first needed, so that `ablate --help` costs nothing."""

    preload = ("model.train", "torch._dynamo")
    """What workers find imported when they start (the optimizers import the second when made)."""

    def __init__(self) -> None:
        self._splits: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._read: dict[str, dict[str, str]] = {}
        self._channels: dict[str, tuple[int, int, int]] = {}
        self._sizes: dict[tuple[Any, ...], dict[str, float]] = {}
        self._shapes: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    @property
    def numerics_version(self) -> int:
        from model.config import NUMERICS_VERSION

        return NUMERICS_VERSION

    def build(self, settings: Settings) -> Any:
        from model.presets import SettingError, build

        try:
            return build(settings)
        except SettingError as error:
            raise CoreError(str(error)) from None

    def settings(self, config: Any) -> dict[str, Any]:
        from model.config import settings_of

        flat = settings_of(config)
        return {path: list(v) if isinstance(v, tuple) else v for path, v in flat.items()}

    def identity(self, config: Any) -> dict[str, Any]:
        from model.config import identity

        return identity(config)

    def inputs(self, data: Sequence[str], checkpoint: str | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if data:
            settings["data.roots"] = [str(Path(root).expanduser().absolute()) for root in data]
        if checkpoint is not None:
            settings["backbone.name"] = "clrernet_dla34"
            settings["backbone.checkpoint"] = str(Path(checkpoint).expanduser().absolute())
        return settings

    def check(self, configs: Iterable[Any]) -> None:
        from model.data import DataError, check_scenes
        from model.weights_file import CheckpointError

        scenes: dict[str, Any] = {}
        backbones: dict[str, Any] = {}
        for config in configs:
            scenes.setdefault(repr(config.data), config.data)
            if config.backbone.checkpoint is not None:  # the others need nothing from outside
                backbones.setdefault(repr(config.backbone), config.backbone)
        for known in self._checked:  # an adaptive design asks again for each of its arms
            scenes.pop(known, None)
            backbones.pop(known, None)
        try:
            for data in scenes.values():
                check_scenes(self._refs(data), data)
            for backbone in backbones.values():
                from model.backbone import make_pyramid  # torch takes seconds to import

                make_pyramid(backbone)
            self._checked |= {*scenes, *backbones}
        except (DataError, CheckpointError) as error:
            raise CoreError(str(error)) from None

    def fingerprints(self, config: Any, cache: Path) -> dict[str, str]:
        from model.data import fingerprint
        from model.weights_file import backbone_fingerprint

        key = repr((config.data, config.backbone))
        if key not in self._read:
            self._read[key] = {
                "data": fingerprint(self._split(config.data), cache),
                "backbone": backbone_fingerprint(config.backbone),
            }
        return self._read[key]

    def remarks(self, config: Any) -> tuple[str, ...]:
        from model.data import shortage

        said = shortage(self._split(config.data), config.data)
        return (said,) if said else ()

    def describe(self, config: Any) -> dict[str, float]:
        from model.backbone import make_pyramid
        from model.lanelm import count_parameters, visual_tokens

        backbone = repr(config.backbone)
        if backbone not in self._channels:
            self._channels[backbone] = make_pyramid(config.backbone).channels
        # no size hangs on a float: arms that differ in rates alone are counted once
        parts = (config.data, config.tokenizer, config.visual, config.model)
        values = [value for part in parts for _, value in part if not isinstance(value, float)]
        key = (backbone, bool(config.loss.lane_map), *values)
        if key not in self._sizes:
            self._sizes[key] = {
                "visual_tokens": visual_tokens(config),
                "parameters": count_parameters(config, self._channels[backbone]),
            }
        return self._sizes[key]

    def workload(self, config: Any) -> Workload:
        from model.workload import evaluations, shape_of

        shape = tuple(shape_of(config).items())
        shape = self._shapes.setdefault(shape, shape)  # one for ten thousand jobs
        images = config.batch.images * config.batch.accumulate
        device = config.runtime.device
        return Workload(shape, config.optim.steps, evaluations(config), device, images)

    def probe(self, settings: Settings, cache: Path) -> Cost | None:
        from model.cost import measure

        found = measure(self.build(settings), cache)
        return Cost(
            found.step_seconds, found.evaluation_seconds, found.other_seconds, found.memory_mb
        )

    def free_gpu_memory_mb(self) -> list[float]:
        from model.cost import free_gpu_memory_mb

        return free_gpu_memory_mb()

    def prepare(
        self, configs: Iterable[Any], cache: Path, progress: Progress | None = None
    ) -> list[Path]:
        from model.features import prepare_features

        distinct = {repr((config.data, config.backbone)): config for config in configs}
        return [
            prepare_features(config, self._refs(config.data), cache, progress)
            for config in distinct.values()
        ]

    def train(
        self,
        settings: Settings,
        log: Log,
        workdir: Path,
        cache: Path,
        stop: Callable[[], bool] = lambda: False,
        enough: Enough | None = None,
    ) -> dict[str, float]:
        from model import train as training

        try:
            return training.train(self.build(settings), log, workdir, cache, stop, enough)
        except (training.Diverged, training.Interrupted) as error:
            raise _ours(error) from error

    def kinship(self, config: Any) -> str | None:
        from model.cohort import kinship

        return kinship(config)

    def fused_by_default(self, config: Any) -> int:
        return FUSED_ON_GPU if config.runtime.device.startswith("cuda") else 1

    def twinship(self, settings: Settings) -> str | None:
        from model.workload import twinship

        return twinship(settings)

    def train_cohort(
        self, members: Sequence[Member], cache: Path
    ) -> Iterator[tuple[int, dict[str, float] | Exception]]:
        from model import cohort, twins

        names = {self.twinship(member.settings) for member in members}
        alike = len(names) == 1 and None not in names
        together = twins.train_twins if alike else cohort.train_cohort
        ours = [
            cohort.Member(self.build(member.settings), member.log, member.workdir, member.stop)
            for member in members
        ]
        for place, end in together(ours, cache):
            yield place, _ours(end) if isinstance(end, Exception) else end

    def criteria(self) -> tuple[Criterion, ...]:
        from model.verdict import CRITERIA

        return tuple(
            Criterion(c.name, tuple(Condition(k.metric, k.threshold) for k in c.conditions))
            for c in CRITERIA
        )

    def gates(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Gate, ...]:
        from model.verdict import gates

        return tuple(
            Gate(gate.name, gate.verdict, gate.value, gate.voids, gate.note)
            for gate in gates(metrics, settings)
        )

    def diagnose(self, metrics: Mapping[str, float], settings: Settings) -> tuple[Finding, ...]:
        from model.verdict import diagnose

        return tuple(
            Finding(found.rule, found.text, found.readings, found.next)
            for found in diagnose(metrics, settings)
        )

    def source_hash(self) -> str:
        import model

        digest = hashlib.sha256()
        for path in sorted(Path(str(model.__file__)).parent.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:12]

    def _split(self, data: Any) -> Any:
        from model.data import make_splits

        key = repr(data)
        if key not in self._splits:
            self._splits[key] = make_splits(data)
        return self._splits[key]

    def _refs(self, data: Any) -> list[Any]:
        splits = self._split(data)
        return [*splits.train, *splits.val, *splits.test]
