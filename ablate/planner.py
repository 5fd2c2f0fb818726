"""The plan of a study as results come in: fixed designs at once, adaptive ones as far as they tell.

`ablate plan` and every other command replay adaptive designs from the ledger; the coordinator asks
again whenever a job has ended. An arm that was looked at once is not looked at again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ablate.adaptive import Tried, tried_of
from ablate.adaptive_designs import ADAPTIVE, allowed, numbered
from ablate.compare import void_metrics
from ablate.core import CoreError, load_core
from ablate.ledger import Ledger
from ablate.nouns import Arm, Job, Options, Plan, Result, Study, StudyError
from ablate.plan import (
    Made,
    Size,
    arms_of,
    config_of,
    notes_of,
    once,
    refuse_unused,
    same_levels,
    seeded,
    whole,
)

Key = tuple[str, ...]
"""The levels of an arm, in the order of the study."""

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
        self._made: dict[Key, Made] = {}
        self._refused: dict[Key, str] = {}
        self._remarks: dict[str, None] = {}
        self._jobs: dict[Key, tuple[Arm, list[Job]]] = {}
        self._fixed = [(key_of(arm), arm) for arm in arms_of(study)]
        self._adaptive = [
            (name, design.name, ADAPTIVE[design.name](self, name, design))
            for name, design in numbered(study.designs)
            if design.name in ADAPTIVE
        ]
        self._make(arm for _, arm in self._fixed)
        self._look()

    def plan(self, results: Results | None = None, slots: int = 0) -> Plan:
        """The jobs of the study.

        Args:
            results: by job id; None: as the ledger has them.
            slots: jobs that could start now: adaptive designs may think of as many new arms.

        Raises:
            StudyError: one line: a setting, design or data set that cannot be.
        """
        find = results or (lambda job_id: self._ledger.accepted(job_id, self.study))
        arms = dict(self._fixed)
        labels = {arm.label for arm in arms.values()}
        notes, more = [*notes_of(self.study), *self._remarks], []
        walked: list[str] = []
        for name, kind, design in self._adaptive:
            proposal = design.propose(partial(self._tried, find), slots)
            refused: dict[str, str] = {}
            for arm in (whole(self.study, arm) for arm in proposal.arms):
                key = key_of(arm)
                if not self.possible(arm):
                    refused[arm.label] = self._refused[key]
                elif key not in arms:
                    label = arm.label if arm.label not in labels else "/".join(key)
                    labels.add(label)
                    arms[key] = Arm(label, arm.levels, kind, arm.settings)
            notes += proposal.notes
            notes += _cannot(name, {label: why for label, why in refused.items() if why})
            walked = walked or [arms[key_of(whole(self.study, a))].label for a in proposal.walked]
            more += [proposal.more] if proposal.more else []
        jobs = once((arm, self._jobs_of(arm)) for arm in arms.values())
        notes += same_levels(jobs)
        return Plan(jobs, tuple(notes), tuple(walked), tuple(more))

    def _tried(self, find: Results, arm: Arm) -> Tried | None:
        """What became of an arm over all its seeds; one that cannot be has failed."""
        if not self.possible(arm):
            return Tried("failed", {})
        arm = whole(self.study, arm)
        known = self._jobs.get(key_of(arm))
        jobs = known[1] if known else self._jobs_of(arm)
        found = {job.id: find(job.id) for job in jobs}
        results = {job_id: result for job_id, result in found.items() if result is not None}
        void = {
            job.id: void_metrics(self.study, self.core.gates(result.metrics, job.settings))
            for job in jobs
            if (result := results.get(job.id)) is not None and result.state == "done"
        }
        return tried_of(jobs, results, void)

    def _jobs_of(self, arm: Arm) -> list[Job]:
        """The jobs of an arm that was made: once, and again when it has another label."""
        key = key_of(arm)
        known = self._jobs.get(key)
        if known is None or known[0] != arm:
            known = self._jobs[key] = (
                arm,
                seeded(self.core, self.study, (arm, *self._made[key][1:])),
            )
        return known[1]

    def possible(self, arm: Arm) -> bool:
        """Whether an adaptive design may run an arm; why not is kept."""
        arm = whole(self.study, arm)
        key = key_of(arm)
        if key not in self._made and key not in self._refused:
            if not allowed(self.study, arm):
                self._refused[key] = ""
            else:
                try:
                    self._make([arm])
                except Refused as error:
                    self._refused[key] = str(error).removeprefix(f"{self.study.source}: ")
        return key in self._made

    def _look(self) -> None:
        """Look at what adaptive designs will need, while nothing has been run yet.

        Raises:
            StudyError: a design or a level of which no arm is possible.
        """
        outlines = itertools.chain.from_iterable(d.outline() for *_, d in self._adaptive)
        groups = [[whole(self.study, arm) for arm in group] for group in outlines]
        for group in groups:
            fitting = [arm for arm in group if allowed(self.study, arm)]
            if fitting and not any(map(self.possible, fitting)):
                raise StudyError(f"{self.study.source}: {self._refused[key_of(fitting[0])]}")
        made = [arm for arm, *_ in self._made.values()]
        beside = [*(arm for _, arm in self._fixed), *itertools.chain.from_iterable(groups)]
        refuse_unused(self.core, self.study, made, beside)

    def _make(self, arms: Iterable[Arm]) -> None:
        """Build the configs of arms that are new, and look at their data.

        Raises:
            Refused: the core takes the settings or data of one not.
            StudyError: what they need cannot be read.
        """
        new = {key: arm for arm in arms if (key := key_of(arm)) not in self._made}
        try:
            configs = {
                key: config_of(self.core, self.study, arm, self.options) for key, arm in new.items()
            }
        except StudyError as error:
            raise Refused(str(error)) from None
        try:
            self.core.check(configs.values())
            for key, config in configs.items():
                read = self.core.fingerprints(config, self._cache)
                size = Size(partial(self.core.describe, config))
                self._made[key] = new[key], config, read, size
                self._remarks |= dict.fromkeys(self.core.remarks(config))
        except CoreError as error:
            raise Refused(f"{self.study.source}: {error}") from None
        except OSError as error:
            where = error.filename or self._cache
            raise StudyError(f"{where}: {error.strerror or error}") from None


class Refused(StudyError):  # noqa: N818 - a property of the arm; of a fixed one, a mistake
    """An arm whose settings or data the core refuses."""


def key_of(arm: Arm) -> Key:
    """By what an arm is known: its levels, in the order of the study."""
    return tuple(arm.levels.values())


def _cannot(name: str, refused: Mapping[str, str]) -> list[str]:
    """A line about the arms of a design that cannot be, by label, with the first one's reason."""
    if not refused:
        return []
    label, why = next(iter(refused.items()))
    why = why.removeprefix(f"arm {label!r}: ")
    others = f", nor {len(refused) - 1} more" if len(refused) > 1 else ""
    return [f"{name}: the combination {label} cannot be ({why}){others}"]
