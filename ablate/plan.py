"""From a study to its jobs: arms by the designs, a config each, an id each, data looked at first.

A job's id is a hash of what changes its numbers: the settings that differ from their neutral
values, what it reads (content hashes), the seed, the core's numerics version, and the name of a
core other than LaneLM. Studies that come to the same job share it, and a new setting or a changed
preset leaves old ids alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ablate import designs
from ablate.core import LANELM, Core, CoreError, load_core
from ablate.designs import DESIGNS, axes_of, constrained
from ablate.nouns import Arm, Job, Level, Options, Plan, Settings, Study, StudyError
from ablate.reader import parse_sets

Made = tuple[Arm, Any, Mapping[str, str], Mapping[str, float]]
"""An arm, its config, the content hashes of what it reads, its size."""


def plan(study: Study, options: Options | None = None) -> Plan:
    """Make the jobs of a study, each once, and look at all their data.

    Of an adaptive design they are those that the results in the ledger lead to.

    Raises:
        StudyError: one line: a setting, design or data set that cannot be.
    """
    from ablate.planner import Planner

    return Planner(study, options or Options()).plan()


def plan_unread(study: Study, options: Options, followed: Iterable[Arm] = ()) -> Plan:
    """The jobs of a study without a look at its data: their ids are not those of the ledger.

    Args:
        study: its fixed designs make their arms.
        options: settings laid over it.
        followed: the arms of its adaptive designs.

    Raises:
        StudyError: one line: a setting or design that cannot be.
    """
    core = load_core(study.core)
    arms = [*arms_of(study), *followed]
    configs = [config_of(core, study, arm, options) for arm in arms]
    refuse_unused(core, study, arms, arms or [Arm("base", study.base_levels)])
    made: list[Made] = [(arm, config, {}, {}) for arm, config in zip(arms, configs, strict=True)]
    jobs = jobs_of(core, study, made)
    return Plan(jobs, (*notes_of(study), *same_levels(jobs)))


def jobs_of(core: Core, study: Study, made: Iterable[Made]) -> list[Job]:
    """A job a seed of every arm, each once; an arm that comes to the same settings is noted."""
    return once((own[0], seeded(core, study, own)) for own in made)


def seeded(core: Core, study: Study, made: Made) -> list[Job]:
    """A job a seed of one arm."""
    arm, config, fingerprints, size = made
    settings, identity = core.settings(config), core.identity(config)
    load = core.workload(config)
    twinship = core.twinship({**settings, "seed": 0})

    def training_of(seed: int) -> str:
        if twinship is None:
            return ""
        told = json.dumps([twinship, seed, dict(fingerprints)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def id_of(seed: int) -> str:
        try:
            return job_id(identity, fingerprints, seed, core.numerics_version, study.core)
        except StudyError as error:
            raise StudyError(f"{study.source}: arm {arm.label!r}: {error}") from None

    return [
        Job(
            id_of(seed),
            arm.label,
            arm.levels,
            seed,
            {**settings, "seed": seed},
            arm.design,
            (),
            size,
            fingerprints,
            load,
            training_of(seed),
        )
        for seed in study.seeds
    ]


def once(arms: Iterable[tuple[Arm, Iterable[Job]]]) -> list[Job]:
    """The jobs of all arms, each once, under the first arm that comes to it."""
    jobs: dict[str, Job] = {}
    for arm, own in arms:
        for job in own:
            known = jobs.setdefault(job.id, job)
            if known is not job:
                jobs[job.id] = dataclasses.replace(known, also=(*known.also, arm))
    return list(jobs.values())


class Size(Mapping[str, float]):
    """What the core says of a config's size, asked when it is first needed.

    Ranking and status do not need it, and making a model, even without its weights, takes seconds.
    """

    def __init__(self, ask: Callable[[], Mapping[str, float]]) -> None:
        self._ask = ask

    @cached_property
    def _known(self) -> Mapping[str, float]:
        return self._ask()

    def __getitem__(self, name: str) -> float:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def job_id(
    identity: Settings,
    fingerprints: Mapping[str, str],
    seed: int,
    numerics_version: int,
    core: str = LANELM,
) -> str:
    """12 hex digits of the SHA-256 of canonical JSON.

    The core's name is in it where it is another than LaneLM: equal settings of two cores are not
    the same numbers.

    >>> job_id({"optim.lr": 1e-4}, {"data": "d", "backbone": "b"}, 0, 1)
    '828782889bf7'
    >>> job_id({"lr": 1e-4}, {}, 0, 1, "mine") == job_id({"lr": 1e-4}, {}, 0, 1, "yours")
    False
    >>> job_id({"clip": 1.0}, {}, 0, 1) == job_id({"clip": 1}, {}, 0, 1)
    True
    """
    value = {
        "settings": identity,
        "reads": fingerprints,
        "seed": seed,
        "numerics_version": numerics_version,
        **({} if core == LANELM else {"core": core}),
    }
    text = json.dumps(
        _canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def arms_of(study: Study) -> list[Arm]:
    """The distinct arms of all fixed designs, constraints applied, each with its own label.

    Raises:
        StudyError: a design that the factors do not allow, or no arm left.
    """
    axes = axes_of(study.factors, study.zipped)
    found: dict[tuple[str, ...], Arm] = {}
    labels: set[str] = set()
    for design in study.designs:
        if design.name not in DESIGNS:  # adaptive: its arms follow from results
            continue
        try:
            arms = DESIGNS[design.name](axes, **design.options)
        except StudyError as error:
            raise StudyError(f"{study.source}: {error}") from None
        for arm in constrained(arms, study.exclude, study.only):
            arm = whole(study, arm)
            key = tuple(arm.levels.values())
            if key in found:
                continue
            label = arm.label if arm.label not in labels else "/".join(key)
            labels.add(label)
            found[key] = Arm(label, arm.levels, design.name)
    if not found and all(design.name in DESIGNS for design in study.designs):
        raise StudyError(f"{study.source}: exclude/only: no arm is left")
    return list(found.values())


def whole(study: Study, arm: Arm) -> Arm:
    """An arm with a level for the ranges of a search, too, so that all arms can be compared."""
    levels = {name: arm.levels.get(name, level) for name, level in study.base_levels.items()}
    return dataclasses.replace(arm, levels=levels)


def notes_of(study: Study) -> tuple[str, ...]:
    """What a reader of the study's designs must know: the aliases of fractional ones."""
    axes = axes_of(study.factors, study.zipped)
    return tuple(
        line
        for design in study.designs
        if design.name == "fractional"
        for line in designs.notes(axes, **design.options)
    )


def same_levels(jobs: Iterable[Job]) -> list[str]:
    """A line for each two levels of a factor that come to one job: one sets what the other does."""
    said: dict[str, None] = {}
    for job in jobs:
        for arm in job.also:
            apart = [name for name, level in job.levels.items() if arm.levels.get(name) != level]
            if len(apart) == 1:
                (name,) = apart
                line = f"{name}: {job.levels[name]} and {arm.levels[name]} are one config"
                said[f"{line}, trained once"] = None
    return list(said)


def _levels_settings(study: Study, arm: Arm) -> dict[str, Any]:
    """The settings of an arm's levels; two of them must not disagree on one."""
    settings: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for factor in study.factors:
        level = arm.levels[factor.name]
        for path, value in factor.level(level).settings.items():
            if path in settings and settings[path] != value:
                raise StudyError(
                    f"{study.source}: arm {arm.label!r}: {owner[path]} and {factor.name}={level} "
                    f"both set {path}, to {settings[path]!r} and {value!r}; keep one, or exclude "
                    "the pair"
                )
            settings[path] = value
            owner[path] = f"{factor.name}={level}"
    return {**settings, **arm.settings}


def config_of(core: Core, study: Study, arm: Arm, options: Options) -> Any:
    """The config of an arm. Raises StudyError with the place of the fault."""
    settings = {**study.base, **_levels_settings(study, arm), "seed": study.seeds[0]}
    try:
        return core.build(settings)
    except CoreError as error:
        place = f"{study.source}: {_blame(core, study, arm)}"
        if any(path in str(error) for path in parse_sets(options.sets)):
            place = "--set"
        raise StudyError(f"{place}: {error}") from None


def _blame(core: Core, study: Study, arm: Arm) -> str:
    """Where the fault of an arm that cannot be built lies: base, one level, or their meeting."""

    def fails(settings: Settings) -> bool:
        try:
            core.build(settings)
        except CoreError:
            return True
        return False

    if fails(study.base):
        return "base"
    for factor in study.factors:
        level = factor.level(arm.levels[factor.name])
        if fails({**study.base, **level.settings}):
            return f"factors.{factor.name}.{level.name}"
    return f"arm {arm.label!r}"


def refuse_unused(core: Core, study: Study, made: Iterable[Arm], beside: Iterable[Arm]) -> None:
    """A level that no arm uses must still be one that could be: its settings may be misspelt.

    Args:
        core: what builds.
        study: its levels.
        made: arms that could be built.
        beside: arms beside whose other levels it may stand.
    """
    used = {(name, level) for arm in made for name, level in arm.levels.items()}
    beside = list(beside)
    for factor in study.factors:
        for level in factor.levels:
            if (factor.name, level.name) in used:
                continue
            refusals = [_refusal(core, study, arm, level) for arm in beside]
            if all(refusals):
                place = f"factors.{factor.name}.{level.name}"
                raise StudyError(f"{study.source}: {place}: {refusals[0]}")


def _refusal(core: Core, study: Study, arm: Arm, level: Level) -> str | None:
    try:
        core.build({**study.base, **_levels_settings(study, arm), **level.settings})
    except (CoreError, StudyError) as error:
        return str(error)
    return None


def _canonical(value: Any, key: str = "a setting") -> Any:
    """The same number is the same text: 1.0 as 1, -0.0 as 0; a tuple is a list, a path its text."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner, key) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StudyError(f"{key}: given {value}, must be a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return str(value) if isinstance(value, Path) else value
