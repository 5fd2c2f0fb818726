"""The plan of a study as results come in: fixed designs at once, adaptive ones as far as they tell.

`ablate plan` and every other command replay adaptive designs from the ledger; the coordinator asks
again whenever a job has ended. An arm that was looked at once is not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ablate.adaptive import Adaptive, Tried, tried_of
from ablate.compare import void_metrics
from ablate.core import CoreError, load_core
from ablate.designs import axes_of, constrained
from ablate.ledger import Ledger
from ablate.nouns import Arm, Design, Job, Options, Plan, Result, Study, StudyError
from ablate.paths import Paths
from ablate.plan import Made, Size, arms_of, config_of, jobs_of, notes_of, refuse_unused, whole
from ablate.space import Range, Space

Results = Callable[[str], Result | None]
"""The result that counts for a job, by its id."""


class Planner:
    """Makes the jobs of a study, each once, and looks at all their data."""

    def __init__(self, study: Study, options: Options) -> None:
        self.study = study
        self.options = options
        self.core = load_core(study.core)
        self._cache = options.out.absolute() / "cache"
        self._ledger = Ledger(options.out)
        self._made: dict[tuple[str, ...], Made] = {}
        self._refused: dict[tuple[str, ...], str] = {}
        self._jobs: dict[tuple[str, ...], list[Job]] = {}
        self._fixed = arms_of(study)
        self._adaptive = [(d.name, self._design(d)) for d in study.designs if d.name in ADAPTIVE]
        self._make(self._fixed)
        refuse_unused(self.core, study, self._fixed or [self._base()])

    def plan(self, results: Results | None = None, slots: int = 0) -> Plan:
        """The jobs of the study.

        Args:
            results: by job id; None: as the ledger has them.
            slots: jobs that could start now: adaptive designs may think of as many new arms.

        Raises:
            StudyError: one line: a setting, design or data set that cannot be.
        """
        find = results or self._in_ledger
        arms = {tuple(arm.levels.values()): arm for arm in self._fixed}
        labels = {arm.label for arm in self._fixed}
        notes, more = list(notes_of(self.study)), []
        walked: list[str] = []
        for name, design in self._adaptive:
            proposal = design.propose(partial(self._tried, find), slots)
            for arm in (whole(self.study, arm) for arm in proposal.arms):
                key = tuple(arm.levels.values())
                if key in arms or key in self._refused:
                    continue
                label = arm.label if arm.label not in labels else "/".join(key)
                labels.add(label)
                arms[key] = Arm(label, arm.levels, name, arm.settings)
            self._make(arms.values())
            notes += proposal.notes
            steps = [whole(self.study, arm) for arm in proposal.walked]
            walked = walked or [arms[tuple(arm.levels.values())].label for arm in steps]
            more += [proposal.more] if proposal.more else []
        made = [(arms[key], *self._made[key][1:]) for key in arms if key in self._made]
        jobs = jobs_of(self.core, self.study, made)
        return Plan(jobs, tuple(notes), tuple(walked), tuple(more))

    def _in_ledger(self, job_id: str) -> Result | None:
        result = self._ledger.result(job_id)
        return result if result is not None and self.study.accepts(result) else None

    def _design(self, design: Design) -> Adaptive:
        return ADAPTIVE[design.name](self.study, design, self.options)

    def _base(self) -> Arm:
        return Arm("base", self.study.base_levels)

    def _tried(self, find: Results, arm: Arm) -> Tried | None:
        """What became of an arm over all its seeds; one that cannot be built has failed."""
        arm = whole(self.study, arm)
        key = tuple(arm.levels.values())
        if not allowed(self.study, arm):
            self._refused[key] = "exclude/only leave it out"
        if key in self._refused:
            return Tried("failed", {})
        try:
            self._make([arm])
        except Refused as error:
            self._refused[key] = str(error)
            return Tried("failed", {})
        if key not in self._jobs:
            self._jobs[key] = jobs_of(self.core, self.study, [self._made[key]])
        jobs = self._jobs[key]
        found = {job.id: find(job.id) for job in jobs}
        results = {job_id: result for job_id, result in found.items() if result is not None}
        void = {
            job.id: void_metrics(self.study, self.core.gates(result.metrics, job.settings))
            for job in jobs
            if (result := results.get(job.id)) is not None and result.state == "done"
        }
        return tried_of(jobs, results, void)

    def _make(self, arms: Iterable[Arm]) -> None:
        """Build the configs of arms that are new, and look at their data."""
        new = {tuple(arm.levels.values()): arm for arm in arms}
        new = {k: arm for k, arm in new.items() if k not in self._made and k not in self._refused}
        configs: dict[tuple[str, ...], Any] = {}
        for key, arm in new.items():
            try:
                configs[key] = config_of(self.core, self.study, arm, self.options)
            except StudyError as error:
                if arm.settings:  # a point of a search, where not every combination can be
                    raise Refused(str(error)) from None
                raise
        try:
            self.core.check(configs.values())
            for key, config in configs.items():
                read = self.core.fingerprints(config, self._cache)
                size = Size(partial(self.core.describe, config))
                self._made[key] = new[key], config, read, size
        except CoreError as error:
            raise StudyError(f"{self.study.source}: {error}") from None
        except OSError as error:
            where = error.filename or self._cache
            raise StudyError(f"{where}: {error.strerror or error}") from None


class Refused(StudyError):  # noqa: N818 - a property of the point, not a mistake
    """A point of a search that the core refuses."""


def allowed(study: Study, arm: Arm) -> bool:
    """Whether `exclude` and `only` let an arm be."""
    return bool(constrained([arm], study.exclude, study.only))


def _paths(study: Study, design: Design, options: Options) -> Adaptive:
    named = dict(design.options)
    ((reading, direction),) = named.pop("reading", {default_reading(study): "minimize"}).items()
    axes = axes_of(study.factors, study.zipped)
    return Paths(axes, reading, direction, allowed=partial(allowed, study), **named)


def default_reading(study: Study) -> str:
    """What decides where a study says nothing: px error where a criterion reads it, else the first.

    Raises:
        StudyError: the study has no criteria.
    """
    metrics = [condition.metric for c in study.criteria for condition in c.conditions]
    if not metrics:
        raise StudyError(f"{study.source}: design: name a reading: the study has no criteria")
    return next((name for name in metrics if name.endswith("/px_error")), metrics[0])


def _search(study: Study, design: Design, options: Options) -> Adaptive:
    from ablate.search import Sampling, Search  # optuna takes a while to import

    named = dict(design.options)
    sampling = {k: named[k] for k in ("sampler", "seed", "startup", "population") if k in named}
    constraints = named.get("constraints", [criterion.name for criterion in study.criteria])
    return Search(
        space_of(study, design),
        Sampling(**sampling),
        named["trials"],
        named.get("objective", {default_reading(study): "minimize"}),
        [criterion for criterion in study.criteria if criterion.name in constraints],
        Ledger(options.out).study_folder(study.name) / SUGGESTIONS,
        repr((study.core, sorted(study.base.items()), study.factors, study.zipped)),
        len(study.seeds),
    )


def space_of(study: Study, design: Design) -> Space:
    """What a search varies."""
    ranges = {path: Range(**own) for path, own in design.options.get("ranges", {}).items()}
    factors, base = design.options.get("factors"), design.options.get("base", {})
    return Space(axes_of(study.factors, study.zipped), ranges, factors, base)


SUGGESTIONS = "suggestions.jsonl"

ADAPTIVE: Mapping[str, Callable[[Study, Design, Options], Adaptive]] = {
    "paths": _paths,
    "search": _search,
}
"""Design name -> what makes it."""
